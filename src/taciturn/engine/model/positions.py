"""Token positions that need no look at the device.

Transformers asks whether positions jump, as they do where several texts are packed into one row,
and waits for a GPU's answer in every forward pass. Rows here hold one record each, so that the
answer is known before.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ConsecutivePositions(Tensor):
    """Positions 0 .. T-1 of every sequence, [1, T] or expanded; int64.

    Their differences, which are all one, are given in the CPU's memory. Otherwise as any tensor.
    """

    @staticmethod
    def of(input_ids_BT: Tensor) -> ConsecutivePositions:
        """The positions of a batch, on its device."""
        plain_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).unsqueeze(0)
        positions_1T: ConsecutivePositions = Tensor._make_subclass(ConsecutivePositions, plain_1T)
        return positions_1T

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
        kwargs = kwargs or {}
        if func is torch.diff and isinstance(args[0], cls) and "prepend" in kwargs:
            return np.ones(tuple(args[0].shape), dtype=np.int64)
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        return Tensor._make_subclass(cls, out) if func is Tensor.expand else out


def takes_positions(body: Any) -> bool:
    """True if the part of a model before its output layer can be told the positions."""
    return "position_ids" in inspect.signature(body.forward).parameters
