"""Kernels of a GPU that compute the same bits whenever they are given the same numbers.

Many of CUDA's kernels add up by atomic operations, in whatever order they come to an end. Then a
unit's gradient differs from one run to the next, and no shape makes it independent of the company
that it is drawn in. While private gradients are computed, PyTorch is therefore told to use kernels
without such sums. On other devices nothing has to be told.

What PyTorch does of its own accord (aten/src/ATen/native/transformers/cuda/attention_backward.cu):
FlashAttention and memory-efficient attention have a deterministic backward pass, and take it only
where deterministic algorithms are demanded, not where they are merely wished (`warn_only`).
cuDNN's attention has none. Plain matrix products ("math") always are deterministic, and take memory
by the square of the length.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_Result = TypeVar("_Result")
# A module with a property, which mypy does not see.
_memory: Any = torch.utils.deterministic
_CUBLAS, _FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_DEMANDED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# How PyTorch begins to say that it has no deterministic kernel, and that cuBLAS may have none.
_NONE = r".*does not have a deterministic implementation"
_NONE_OF_CUBLAS = r"Deterministic behavior was enabled"


def fix_workspace() -> None:
    """Give cuBLAS a workspace of a fixed size for each stream, unless the environment says which.

    PyTorch looks once, at the process's first matrix product on a GPU: to be called before it.
    """
    os.environ.setdefault(_CUBLAS, _FIXED)


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels on `device` in this block; afterwards all settings are as before.

    Deterministic kernels are demanded, so that an operation without one raises RuntimeError
    (`lacks_kernel`), for which `wish_for_kernels` is the answer, as in `computed`. Where cuBLAS was
    used before its workspace was fixed, they are only wished for, with attention by plain products;
    a warning says so once.
    """
    if device.type != "cuda" or _set():
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _memory.fill_uninitialized_memory,
    )
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(_DEMANDED))
        stack.callback(_restore, *before)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=_NONE)
        warnings.filterwarnings("ignore", message=_NONE_OF_CUBLAS)
        # Else all new memory would be filled, which nobody here reads before it is written.
        _memory.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
        if not _cublas_is_fixed(device):
            wish_for_kernels()
            warnings.warn(_LATE, stacklevel=3)
        yield


_LATE = (
    "the GPU was used in this process before taciturn could fix the workspace of its matrix "
    f"products: attention takes its slowest form. Set {_CUBLAS}={_FIXED} in the environment, or "
    "load the model before anything else runs on the GPU"
)


def wish_for_kernels() -> None:
    """Demand nothing any more in the block of `deterministic_kernels`: attention by plain products.

    Deterministic kernels are still used where there are any. Whether the others change a unit's
    gradient is for the verification to find out.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def computed(device: torch.device, compute: Callable[[], _Result]) -> _Result:
    """Return the result, computed again after `wish_for_kernels` if an operation lacks a kernel.

    To be called in the block of `deterministic_kernels`, before anything depends on its settings.
    """
    try:
        return compute()
    except RuntimeError as error:
        if device.type != "cuda" or not lacks_kernel(error):
            raise
    wish_for_kernels()
    return compute()


def lacks_kernel(error: Exception) -> bool:
    """True if PyTorch says by `error` that an operation has no deterministic kernel."""
    return isinstance(error, RuntimeError) and "deterministic implementation" in str(error)


def _set() -> bool:
    """True if a surrounding block has set all this, or a user has."""
    kernels = torch.backends.cuda
    demanded = not torch.is_deterministic_algorithms_warn_only_enabled()
    plain = not (kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled())
    return (
        torch.are_deterministic_algorithms_enabled()
        and not kernels.cudnn_sdp_enabled()
        and (demanded or plain)
    )


def _cublas_is_fixed(device: torch.device) -> bool:
    some = torch.ones(2, 16, 16, device=device)
    try:
        torch.mm(some[0], some[1])
        torch.bmm(some, some)
    except RuntimeError as error:
        if "CuBLAS" not in str(error):
            raise
        return False
    return True


def _restore(enabled: bool, warn_only: bool, filling: bool) -> None:
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    _memory.fill_uninitialized_memory = filling
