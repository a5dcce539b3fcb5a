"""torch.compile for the parts of a model in which nothing is trained.

Compiled code knows no lifted parameters, so in a private fit only modules without a trained
parameter are compiled: norms, rotary embeddings, activations. What is compiled is what is verified
before the run. In an ordinary fit the whole model before its output layer is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from taciturn.errors import ModelError

_OWN = "_forward_before_compilation"
_COMPILED = "_has_compiled_parts"
# One operation each: there is nothing to fuse, and a call into compiled code costs more than one.
_SINGLE = (nn.Linear, nn.Embedding, nn.Identity, nn.Dropout)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def compile_parts(model: nn.Module, *, whole: bool) -> int:
    """Compile what can be compiled; returns how many modules that are.

    Args:
        model: with its adapters attached, and trainable parameters marked.
        whole: everything before the output layer, for a fit that needs no per-unit gradients.
    """
    parts = [_body(model)] if whole else list(_frozen(model))
    for part in parts:
        part.__dict__[_OWN] = part.__dict__.get("forward")
        part.forward = torch.compile(part.forward)
    model.__dict__[_COMPILED] = True
    return len(parts)


def restore_parts(model: nn.Module) -> None:
    """Undo `compile_parts`; does nothing to a model that was not compiled."""
    model.__dict__.pop(_COMPILED, None)
    for part in model.modules():
        if _OWN not in part.__dict__:
            continue
        own = part.__dict__.pop(_OWN)
        del part.forward
        if own is not None:
            part.forward = own


def has_compiled_parts(model: nn.Module) -> bool:
    """True between `compile_parts` and `restore_parts`."""
    return _COMPILED in model.__dict__


def compiler_failure(error: Exception) -> ModelError:
    """Advice to a user whose machine cannot compile."""
    first = str(error).strip().splitlines()[:1]
    return ModelError(
        f"torch.compile failed ({type(error).__name__}: {''.join(first)[:200]}); it needs a C++ "
        "compiler on CPUs and Triton on GPUs. Install one, or set compile=False"
    )


def _frozen(module: nn.Module) -> Iterator[Any]:
    """The largest modules below `module` without a trained parameter that are worth compiling."""
    for child in module.children():
        trained = any(value.requires_grad for value in child.parameters())
        if trained or isinstance(child, _CONTAINERS):
            yield from _frozen(child)
        elif not isinstance(child, _SINGLE):
            yield child


def _body(model: nn.Module) -> Any:
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return whole.base_model
