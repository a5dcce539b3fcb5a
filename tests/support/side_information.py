"""Side information of base models, worked out once per process and not once per fit.

An automatic fit lets its base model write a few hundred lines and looks at their activations. That
takes seconds, beside which the few steps of a test's fit are nothing, and follows from weights and
seed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
_USER = "taciturn.engine.model.lora"
_WORKED_OUT = ("own_text", "activation_subspaces", "unigram")
_MARK = "remembers"


def remember() -> None:
    """Have the functions remember, if anything has imported them yet; may be called again."""
    user = sys.modules.get(_USER)
    if user is None or hasattr(user.own_text, _MARK):
        return
    for name in _WORKED_OUT:
        setattr(user, name, _remembering(getattr(user, name)))


def _remembering(function: Callable[..., T]) -> Callable[..., T]:
    results: dict[bytes, T] = {}

    @wraps(function)
    def remembering(model: Any, *arguments: Any) -> T:
        key = hashlib.sha256(
            _of_model(model) + repr([_digestible(argument) for argument in arguments]).encode()
        )
        if key.digest() not in results:
            results[key.digest()] = function(model, *arguments)
        return results[key.digest()]

    setattr(remembering, _MARK, True)
    return remembering


def _of_model(model: Any) -> bytes:
    digest = hashlib.sha256(f"{type(model)} {model.device} {model.training}".encode())
    digest.update(model.config.to_json_string().encode())
    digest.update(model.generation_config.to_json_string().encode())
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {_digestible(value)}".encode())
    return digest.digest()


def _digestible(value: Any) -> Any:
    """Bytes of a tensor, anything else as it is."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return (value.dtype, tuple(value.shape), hashlib.sha256(content).hexdigest())
