"""A recorder of the CPU's operations that repeats them as a CUDA graph does.

A graph is kernels with their addresses and numbers: on replay no line of Python runs, every kernel
reads and writes where it did. So does this: each operation is noted with the tensors that it was
given, run again on them, and its results are put where those of the first time were. Memory that
nobody has written is garbage on each replay.

Not as on a GPU: no memory is used twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support.waiting import no_waiting
from taciturn.engine.privacy.types import PerUnitGradients

_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


class OperationRecorder:
    """A Recorder of what the CPU is told; refuses what would wait for a GPU."""

    def record(
        self, compute: Callable[[], PerUnitGradients]
    ) -> tuple[PerUnitGradients, Callable[[], None]]:
        """See Recorder."""
        operations = _Operations()
        with no_waiting(torch.device("cpu")), operations:
            gradients = compute()
        return gradients, operations.replay


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = {_storage(each) for each in _tensors((args, kwargs))}
        made = [each.detach() for each in _tensors(out) if _storage(each) not in inputs]
        # A view runs no kernel.
        if made or func._schema.is_mutable:
            self._noted.append((func, tree_map(_alias, args), tree_map(_alias, kwargs), made))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """All operations, in order."""
        for func, args, kwargs, made in self._noted:
            if func.overloadpacket.__name__ in _EMPTY:
                for value in made:
                    value.fill_(math.nan if value.is_floating_point() else -7)
                continue
            inputs = {_storage(each) for each in _tensors((args, kwargs))}
            again = [
                each for each in _tensors(func(*args, **kwargs)) if _storage(each) not in inputs
            ]
            for value, new in zip(made, again, strict=True):
                value.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _alias(value: Any) -> Any:
    """The same memory, without a place in a graph of gradients."""
    if not isinstance(value, Tensor):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.detach().as_subclass(Tensor)


def _storage(value: Tensor) -> int:
    storage: Any = value.untyped_storage()
    return int(storage._cdata)
