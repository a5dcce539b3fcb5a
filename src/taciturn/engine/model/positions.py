"""Token positions that need no look at the device, and choose no kernel.

Transformers asks whether positions jump, as they do where several texts are packed into one row,
and waits for a GPU's answer in every forward pass. It also takes another attention kernel where no
row of a batch jumps, so that a unit's rounding would follow from its company. Here the answer is
known before: rows of single records never jump, and of packed ones it is said that some do.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class _Positions(Tensor):
    """A tensor that answers some questions itself, and is any tensor otherwise."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented  # a lifted parameter has its own rules
        return cls._computed(func, args, kwargs or {})

    @classmethod
    def _computed(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        return cls._instance(out) if func is Tensor.expand else out

    @classmethod
    def _instance(cls, plain: Tensor) -> Self:
        instance: Self = Tensor._make_subclass(cls, plain)
        return instance


class ConsecutivePositions(_Positions):
    """Positions 0 .. T-1 of every sequence, [1, T] or expanded; int64.

    Their differences, which are all one, are given in the CPU's memory.
    """

    @staticmethod
    def of(input_ids_BT: Tensor) -> ConsecutivePositions:
        """The positions of a batch, on its device."""
        plain_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).unsqueeze(0)
        return ConsecutivePositions._instance(plain_1T)

    @classmethod
    def _computed(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if func is torch.diff and isinstance(args[0], cls) and "prepend" in kwargs:
            return np.ones(tuple(args[0].shape), dtype=np.int64)
        return super()._computed(func, args, kwargs)


class PackedPositions(_Positions):
    """Positions of rows that may hold several records, [B, T]; int64.

    Their differences are never all one, whatever they are.
    """

    @staticmethod
    def of(positions_BT: Tensor) -> PackedPositions:
        """The positions of a batch."""
        return PackedPositions._instance(positions_BT)

    @classmethod
    def _computed(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super()._computed(func, args, kwargs)
        return _Differences._instance(out) if func is torch.diff else out


class _Differences(_Positions):
    """Differences of packed positions, and what is made of them on the way to the question."""

    @classmethod
    def _computed(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if func is Tensor.all:
            return False
        out = super()._computed(func, args, kwargs)
        return cls._instance(out) if func in _ON_THE_WAY else out


# An operator has one of two names, by Python's version of it or PyTorch's.
_COMPARISONS = (Tensor.eq, Tensor.__eq__, Tensor.ne, Tensor.__ne__)
_ON_THE_WAY = (*_COMPARISONS, Tensor.cumsum, Tensor.__getitem__)


def takes_positions(body: Any) -> bool:
    """True if the part of a model before its output layer can be told the positions."""
    return "position_ids" in inspect.signature(body.forward).parameters
