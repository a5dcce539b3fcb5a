"""Choosing what is trained: LoRA adapters through PEFT, or every weight."""

from __future__ import annotations

import difflib
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from taciturn.errors import ModelError, SpecError


class AdapterChoice(Protocol):
    """What decides the trained parameters; see training.plan.AdapterPlan."""

    @property
    def method(self) -> str: ...
    @property
    def r(self) -> int | None: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def target_modules(self) -> tuple[str, ...] | None: ...
    @property
    def seed(self) -> int: ...


def attach(model: Any, choice: AdapterChoice) -> nn.Module:
    """Make the chosen parameters trainable and return the model to fit.

    LoRA matrices are fp32 whatever the base is. The seed decides their initial values and nothing
    else; the global random state is left as it was.
    """
    if choice.method == "full":
        return _unfreeze(model)
    targets = list(choice.target_modules) if choice.target_modules else "all-linear"
    _check_targets(model, targets)
    config = LoraConfig(
        r=choice.r or 8,
        lora_alpha=choice.alpha or 2 * (choice.r or 8),
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        adapted: nn.Module = get_peft_model(model, config)
    return adapted


def _unfreeze(model: nn.Module) -> nn.Module:
    if getattr(model, "is_quantized", False):
        raise ModelError(
            'method="full" cannot train a quantised base; use method="lora", or leave '
            "quantization out"
        )
    return model.requires_grad_(True)


def _check_targets(model: nn.Module, targets: list[str] | str) -> None:
    if isinstance(targets, str):
        return
    names = [name for name, _ in model.named_modules()]
    endings = sorted({name.rpartition(".")[2] for name in names} - {""})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, endings, n=3)
            raise SpecError(
                f"target_modules: no module of {type(model).__name__} is called {target!r}; "
                f"near it: {', '.join(near) or ', '.join(endings[:12])}"
            )
