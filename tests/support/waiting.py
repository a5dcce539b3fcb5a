"""A guard against code that makes the host wait for the device.

On a GPU, CUDA itself says so. Without one, the operations that would wait there are refused by
name: those whose result, or its size, the host has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = frozenset(
    {
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
    }
)
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
# No dispatcher sees these on the CPU. A GPU's copy of Python's numbers waits.
_FUNCTIONS: frozenset[Any] = frozenset(
    {Tensor.tolist, Tensor.cpu, Tensor.item, Tensor.new_tensor, torch.tensor}
)


class WaitingError(AssertionError):
    """The host would wait for the device."""


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Refuse everything inside that waits for `device`.

    Raises:
        WaitingError: without a GPU; with one, CUDA's RuntimeError.
    """
    if device.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with _Functions(_refuse), _Operations(_refuse):
        yield


@contextmanager
def noted_waits() -> Iterator[list[str]]:
    """The names of what would wait for a GPU, in order; computed on the CPU."""
    names: list[str] = []
    with _Functions(names.append), _Operations(names.append):
        yield names


def _refuse(name: str) -> None:
    raise WaitingError(f"{name} waits for the device")


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # `where` sends a Python number to the device.
        numbered = func in (torch.where, Tensor.where) and any(
            isinstance(each, int | float) for each in args
        )
        if func in _FUNCTIONS or numbered:
            self._note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in _INDEXING and any(_is_mask(each) for each in args[1])
        repeated = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in _WAITING or masked or repeated:
            self._note(name)
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
