"""A model taken apart before its output layer, so that the loss need not make all logits at once.

What a model does to its logits after that layer, such as capping or scaling them, is its own
affair; whether taking it apart gives its own logits is therefore tried, not assumed.

Shapes: B sequences, T tokens, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from taciturn.engine.model.compiled import has_compiled_parts
from taciturn.engine.model.positions import (
    ConsecutivePositions,
    PackedPositions,
    takes_positions,
)
from taciturn.engine.model.sharding import is_sharded
from taciturn.errors import ModelError

# Published on purpose: the tokens and weights of the trial are public.
_SEED = 20_231_117
_SHAPE = (2, 9)


def model_logits(model: Any, input_ids_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
    """Logits that the model itself computes, [B, T, V].

    Args:
        positions_BT: as of a UnitBatch.
    """
    positions = {} if positions_BT is None else {"position_ids": PackedPositions.of(positions_BT)}
    logits_BTV: Tensor = model(input_ids=input_ids_BT, use_cache=False, **positions).logits
    return logits_BTV


def output_terms(
    model: Any, input_ids_BT: Tensor, positions_BT: Tensor | None = None
) -> list[tuple[Tensor, Tensor]] | None:
    """Activations [B, T, D] and weights [V, D] whose products x W^T add up to the logits.

    One pair for a plain output layer, a second one for a low-rank adapter on it that is not
    switched off. None, before
    anything is computed, if the layer is of another make, or the model is sharded: then weights are
    put together by the outermost module and by each layer when they are called as a whole.

    Args:
        positions_BT: as of a UnitBatch.
    """
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if is_sharded(whole):
        return None
    head = whole.get_output_embeddings()
    if whole.base_model is whole or not (_is_plain(head) or _is_adapted(head)):
        return None
    positions: dict[str, Tensor] = {}
    if positions_BT is not None:
        positions["position_ids"] = PackedPositions.of(positions_BT)
    # A compiler would have to be told what such a tensor is.
    elif takes_positions(whole.base_model) and not has_compiled_parts(model):
        positions["position_ids"] = ConsecutivePositions.of(input_ids_BT)
    hidden_BTD = whole.base_model(input_ids=input_ids_BT, use_cache=False, **positions)[0]
    if _is_plain(head):
        return [(hidden_BTD, head.weight)]
    if head.disable_adapters:
        return [(hidden_BTD, head.base_layer.weight)]
    name = head.active_adapters[0]
    a: Any = head.lora_A[name]
    low_BTR = a(hidden_BTD.to(a.weight.dtype)) * head.scaling[name]
    return [(hidden_BTD, head.base_layer.weight), (low_BTR, head.lora_B[name].weight)]


@torch.no_grad()
def gives_own_logits(model: Any) -> bool:
    """True if `output_terms` adds up to what the model itself computes, on random public tokens."""
    if is_sharded(model):  # a trial would wait for the other processes
        return False
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        return False
    head = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(_SEED)
    ids_BT = torch.randint(_vocabulary(model), _SHAPE, generator=generator).to(_device(model))
    with _random_adapter(head, generator):
        terms = output_terms(model, ids_BT)
        if terms is None:
            return False
        own = model(input_ids=ids_BT, use_cache=False).logits.float()
        summed: Any = sum(x.float() @ weight.float().T for x, weight in terms)
    exact = own.dtype == torch.float32 and terms[0][1].dtype in (torch.float32, torch.float64)
    return bool((own - summed).norm() <= (1e-5 if exact else 2e-2) * own.norm())


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model whose logits depend on tokens that come later, as an encoder's do."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = _vocabulary(model)
    ids_BT = torch.randint(vocabulary, _SHAPE, generator=generator).to(_device(model))
    other_BT = ids_BT.clone()
    other_BT[:, -1] = (ids_BT[:, -1] + 1) % vocabulary
    one, other = (model_logits(model, tokens_BT)[:, :-1] for tokens_BT in (ids_BT, other_BT))
    tolerance = 1e-4 if one.dtype == torch.float32 else 2e-2
    if bool((one.float() - other.float()).norm() > tolerance * one.float().norm()):
        raise ModelError(
            f"{type(model).__name__} predicts a token from those that come after it, as an encoder "
            "does; choose a causal language model, which continues a text"
        )


def _is_plain(head: Any) -> bool:
    # Not a subclass: quantised, sharded and parametrised layers compute something else.
    return type(head) is nn.Linear and head.bias is None and not _hooked(head)


def _is_adapted(head: Any) -> bool:
    if type(head) is not LoraLinear or not _is_plain(head.base_layer) or _hooked(head):
        return False
    if len(head.active_adapters) != 1 or head.merged:
        return False
    name = head.active_adapters[0]
    plain_dropout = isinstance(head.lora_dropout[name], nn.Identity)
    return plain_dropout and not head.use_dora[name] and head.lora_B[name].bias is None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


@contextmanager
def _random_adapter(head: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """An adapter is zero at first, which would hide what is done with it."""
    adapter = [parameter for name, parameter in head.named_parameters() if "lora_B" in name]
    originals = [parameter.clone() for parameter in adapter]
    for parameter in adapter:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    try:
        yield
    finally:
        for parameter, value in zip(adapter, originals, strict=True):
            parameter.copy_(value)
