"""Choice of what is trained: LoRA adapters through PEFT, or every weight."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from taciturn.engine.model.adapter import quiet_peft
from taciturn.engine.model.side_information import kept_side_information
from taciturn.engine.model.subspace import Subspace, activation_subspaces, own_text, unigram
from taciturn.errors import ModelError, SpecError

# Found by trial on public notes and on PHEE's training and dev splits, never on its test split; see
# docs/design/numbers.md, "Which parameters are trained".
_DAMPING = 0.01
_HEAD_GAIN = 4.0
_LEAST = 1e-6
_RARE = 1e-5
_TYPICAL = 1e-3


class AdapterSettings(Protocol):
    """Settings that decide the trained parameters; see training.plan.AdapterPlan."""

    @property
    def method(self) -> str: ...
    @property
    def r(self) -> int | None: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def target_modules(self) -> tuple[str, ...] | None: ...
    @property
    def head_r(self) -> int | None: ...
    @property
    def fixed_a(self) -> bool: ...
    @property
    def seed(self) -> int: ...


class RowScale(nn.Module):
    """A matrix seen through public row scales: small for common tokens, large for rare ones.

    Noise in a logit costs in proportion to its token's probability. So the logits of rare tokens,
    where it costs little, get more of the noise, and those of common tokens less.
    """

    def __init__(self, scale_P1: Tensor) -> None:
        super().__init__()
        self.scale_P1 = nn.Parameter(scale_P1, requires_grad=False)

    def forward(self, weight_PR: Tensor) -> Tensor:
        return weight_PR * self.scale_P1


def attach(model: Any, choice: AdapterSettings, text: Tensor | None = None) -> nn.Module:
    """Make the chosen parameters trainable and return the model to fit.

    With fixed A matrices, these and the row scales are learned from public token ids `text`
    [sequences, tokens]; by default from what the base model writes itself.

    LoRA matrices are fp32 whatever the base is. The seed decides their initial values and nothing
    else; the global random state is left as it was.
    """
    if choice.method == "full":
        return _unfreeze(model)
    if choice.fixed_a:
        return _attach_fixed_a(model, choice, text)
    config = LoraConfig(
        r=choice.r or 8,
        lora_alpha=choice.alpha or 2 * (choice.r or 8),  # type: ignore[arg-type]  # a float will do
        target_modules=_targets(model, choice),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        with quiet_peft():
            adapted: nn.Module = get_peft_model(model, config)
    return adapted


def reopen(model: PeftModel, choice: AdapterSettings) -> nn.Module:
    """Make a saved adapter trainable again, for a further fit; its shape stays.

    With fixed A matrices, the output layer's part stays as it is: the row scales through which it
    was trained are not saved, and without them the logits of common tokens would get more noise.

    Raises:
        SpecError: another shape is asked for, or training in full.
    """
    if choice.method == "full":
        raise SpecError('method="full" cannot go on with an adapter; leave method out')
    if choice.target_modules:
        raise SpecError("target_modules belong to a new adapter; leave them out to train this one")
    head = _head_name(model.get_base_model())
    for name, parameter in model.named_parameters():
        in_head = head is not None and f".{head}." in name
        trained_b = "lora_B" in name and not (choice.fixed_a and in_head)
        parameter.requires_grad_(trained_b or ("lora_A" in name and not choice.fixed_a))
    return model


def settle(model: nn.Module) -> None:
    """Turn scaled matrices into plain ones, so that the adapter is what PEFT expects."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _attach_fixed_a(model: Any, choice: AdapterSettings, text: Tensor | None) -> nn.Module:
    """LoRA whose A matrices are public activation directions; only the B matrices are trained."""
    head = _head_name(model)
    subspaces, frequencies = _side_information(model, choice, text, head)
    # Some layers are never called, because the model takes their weights and computes itself.
    ranks = {name: len(subspace.directions_RD) for name, subspace in subspaces.items()}
    config = LoraConfig(
        r=choice.r or 8,
        lora_alpha=choice.r or 8,
        target_modules=list(ranks),
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        adapted: Any = get_peft_model(model, config)
    for name, subspace in subspaces.items():
        layer = adapted.base_model.model.get_submodule(name)
        if not isinstance(layer, LoraLayer):
            continue  # PEFT takes the names of experts' layers for its own, and leaves others out
        if name != head or frequencies is None:
            _fix_a(layer, subspace.energy_R / subspace.mean_energy + _DAMPING, subspace)
        else:
            # Text of few kinds has directions without any energy.
            energy_R = subspace.energy_R.clamp(min=_LEAST * float(subspace.energy_R[0]))
            _fix_a(layer, energy_R * energy_R[0] / _HEAD_GAIN**4, subspace)
            scale_V1 = ((frequencies + _RARE) / _TYPICAL).pow(-0.25).unsqueeze(1)
            head_b = layer.lora_B["default"]
            parametrize.register_parametrization(head_b, "weight", RowScale(scale_V1))
    model_to_fit: nn.Module = adapted
    return model_to_fit


def _side_information(
    model: Any, choice: AdapterSettings, text: Tensor | None, head: str | None
) -> tuple[dict[str, Subspace], Tensor | None]:
    """Directions of each layer, and how frequent tokens are if the head is adapted.

    Of the embedded model's own text, both are kept in the package.
    """
    ranks = _ranks(model, choice)
    if text is None:
        information = kept_side_information(model, ranks, choice.seed)
        if information is not None:
            return information
        text = own_text(model, choice.seed)
    text = text.to(model.device)
    subspaces = activation_subspaces(model, ranks, text, choice.seed)
    return subspaces, unigram(model, text) if head in subspaces else None


@torch.no_grad()
def _fix_a(layer: Any, energy_R: Tensor, subspace: Subspace) -> None:
    """Set A to the directions, weak ones amplified (energy^-1/4), and freeze it."""
    weight = layer.lora_A["default"].weight
    weight.copy_(energy_R.pow(-0.25).unsqueeze(1) * subspace.directions_RD)
    weight.requires_grad_(False)


def _targets(model: Any, choice: AdapterSettings) -> list[str] | str:
    """Layers that PEFT adapts."""
    if choice.target_modules:
        _check_targets(model, choice.target_modules)
        return list(choice.target_modules)
    linear = _linear_layers(model)
    if all(name in linear for name, module in model.named_modules() if _is_matrix(module)):
        return "all-linear"
    return [name for name in linear if name != _head_name(model)]


def _ranks(model: Any, choice: AdapterSettings) -> dict[str, int]:
    """Layer name -> rank: every linear layer and the head, or those asked for."""
    head, targets = _head_name(model), choice.target_modules
    if targets:
        _check_targets(model, targets)
    ranks = {
        name: min(choice.r or 8, _features(module))
        for name, module in _linear_layers(model).items()
        if name != head and (not targets or _is_target(name, targets))
    }
    if choice.head_r and head is not None and (not targets or _is_target(head, targets)):
        ranks[head] = choice.head_r
    return ranks


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer: all that compute a linear map of their input and nothing else.

    A router of experts is derived from a linear layer, too, and gives back choices.
    """
    return {name: module for name, module in model.named_modules() if _is_linear(module)}


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_linear(module: nn.Module) -> bool:
    own = type(module).forward
    return _is_matrix(module) and not own.__module__.startswith("transformers.models.")


def _features(module: nn.Module) -> int:
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0])
    return int(module.in_features)  # type: ignore[arg-type]


def _head_name(model: Any) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _unfreeze(model: nn.Module) -> nn.Module:
    if getattr(model, "is_quantized", False):
        raise ModelError(
            'method="full" cannot train a quantised base; use method="lora", or leave '
            "quantization out"
        )
    return model.requires_grad_(True)


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise SpecError unless each target names linear layers."""
    linear = _linear_layers(model)
    endings = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if any(_is_target(name, (target,)) for name in linear):
            continue
        modules = [module for name, module in model.named_modules() if _is_target(name, (target,))]
        what = f"{type(modules[0]).__name__}, and not a linear layer" if modules else "not there"
        near = difflib.get_close_matches(target, endings, n=3) or endings[:12]
        raise SpecError(
            f"target_modules: {target!r} of {type(model).__name__} is {what}; linear layers are: "
            f"{', '.join(near)}"
        )
