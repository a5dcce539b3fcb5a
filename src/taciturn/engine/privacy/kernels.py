"""Kernels for GPUs: a key stream, norms of units and their scaled sum, each in one launch.

They compute what torch's operations compute in `chacha.py` and `clipping.py`, which are the
reference and serve other devices. This module alone imports triton, which comes with torch's builds
for GPUs. No kernel adds up with atomics or is chosen by a measurement: the same input gives the
same bits, and a unit's norm does not depend on who stands beside it.

All is added up in float64, on consumer GPUs too: an entry costs one conversion and one
multiply-add there, and even with a 64th of the rate of fp32 that about keeps up with memory.

Shapes: U units, P entries of a unit's gradient, N pieces of columns, B blocks of a stream.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taciturn.errors import GuaranteeError

try:
    import triton
    import triton.language as tl
except ImportError:  # torch's builds for processors come without
    triton = tl = None

_SPAN = 8192
"""Columns that one program reads: enough programs for small adapters, few pieces for large ones."""
_BLOCK = 1024
_STREAM_BLOCK = 128
_TYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_LARGEST_ERROR = 1e-12
"""Between a kernel and its reference; both are float64."""


def _kernel(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@functools.cache
def available(device: torch.device) -> bool:
    """Return whether `device` has kernels: a GPU, with triton and the C compiler that it needs.

    Tried out once, on numbers that are public. A warning tells of a GPU without.
    """
    # Triton's interpreter, a variable in the environment, would read a GPU's addresses as its own.
    if triton is None or device.type != "cuda" or not isinstance(_chacha20, triton.JITFunction):
        return False
    key_8 = torch.zeros(8, dtype=torch.int32, device=device)
    return bool(_built(device, lambda: [key_stream(key_8, 1, (0, 0, 0))]))


def reduces(value: Tensor) -> bool:
    """Return whether `squared_norms` and `weighted_sums` take gradients like these.

    Raises:
        GuaranteeError: the device's kernels give other numbers than the processor.
    """
    return value.dtype in _TYPES and available(value.device) and _adds_up(value.device, value.dtype)


def squared_norms(values: Sequence[Tensor]) -> Tensor:
    """Squared l2 norms of the units' gradients [U, ...], over all values together; float64 [U].

    Guarantee: for entries that are finite, off by less than P 2^-52 of the result; NaN or infinite
    if one is not. Each value is read once, in its own type.

    Args:
        values: at least one; all `reduces`, on one device.
    """
    units = len(values[0])
    total_U = torch.zeros(units, dtype=torch.float64, device=values[0].device)
    for dtype, some in _by_type(values).items():
        pieces = _Pieces.of([values[index] for index in some])
        n = len(pieces.table_N4)
        partial_UN = total_U.new_empty(units, n)
        _launch(_squares, units * n, pieces.table_N4, partial_UN, n, **_shape(dtype))
        total_U += partial_UN.sum(1)
    return total_U


def weighted_sums(values: Sequence[Tensor], scale_U: Tensor) -> list[Tensor]:
    """sum over u of scale[u] * value[u], float64, for each of the values [U, ...].

    Guarantee: off by less than U 2^-52 of the sum of the terms' sizes. A unit with scale zero is
    left out, even if its entries are not finite. Each value is read once, in its own type.

    Args:
        values: all `reduces`, on the device of the scale.
        scale_U: float64.
    """
    sums: dict[int, Tensor] = {}
    for dtype, some in _by_type(values).items():
        pieces = _Pieces.of([values[index] for index in some])
        total_P = scale_U.new_zeros(sum(pieces.sizes))
        arguments = (pieces.table_N4, scale_U.contiguous(), total_P, len(scale_U))
        _launch(_scaled_sum, len(pieces.table_N4), *arguments, **_shape(dtype))
        for index, part_P in zip(some, total_P.split(pieces.sizes), strict=True):
            sums[index] = _restored(part_P, values[index])
    return [sums[index] for index in range(len(values))]


def key_stream(key_8: Tensor, n_blocks: int, nonce: Sequence[int]) -> Tensor:
    """ChaCha20's blocks 0 to n_blocks - 1, int32 [B, 16]: see `chacha.key_stream`.

    Args:
        key_8: int32.
        n_blocks: below 2^31.
        nonce: three integers of 32 bits with a sign.
    """
    out_B16 = torch.empty(n_blocks, 16, dtype=torch.int32, device=key_8.device)
    programs = -(-n_blocks // _STREAM_BLOCK)
    rest = (out_B16, n_blocks, *nonce)
    _launch(_chacha20, programs, key_8.contiguous(), *rest, BLOCK=_STREAM_BLOCK)
    return out_B16


def check(device: torch.device) -> list[str]:
    """Compare the reductions with torch's on the processor, on public numbers of many shapes.

    Returns:
        A line for each type: the largest relative errors.

    Raises:
        GuaranteeError: one of them is above 1e-12.
    """
    lines = []
    for dtype, name in _TYPES.items():
        if not reduces(torch.empty(0, dtype=dtype, device=device)):
            lines.append(f"{name}: no kernel on {device}, torch's own operations serve")
            continue
        errors = [_errors(units, dtype, device) for units in (1, 2, 9)]
        norms, sums = (max(pair) for pair in zip(*errors, strict=True))
        lines.append(f"{name}: largest relative error of norms {norms:.1e}, of sums {sums:.1e}")
        if not max(norms, sums) <= _LARGEST_ERROR:
            raise GuaranteeError(f"kernels on {device} are off by more than 1e-12: {lines[-1]}")
    return lines


def _errors(units: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((), (1,), (7,), (33, 65), (_SPAN,), (_SPAN + 1,), (3, 5, 4001))
    on_cpu = [torch.randn(units, *shape, generator=generator).to(dtype) for shape in shapes]
    scale_U = torch.linspace(0.1, 1, units, dtype=torch.float64)
    values = [value.to(device) for value in on_cpu]
    values = [*values, values[3].transpose(1, 2), values[4][:, ::3]]
    on_cpu = [*on_cpu, on_cpu[3].transpose(1, 2), on_cpu[4][:, ::3]]
    exact = [value.double().reshape(units, -1) for value in on_cpu]
    norms_U = torch.cat(exact, 1).square().sum(1)
    off = (squared_norms(values).cpu() / norms_U - 1).abs().max()
    worst = 0.0
    for own, value in zip(weighted_sums(values, scale_U.to(device)), exact, strict=True):
        size = (value.abs().T @ scale_U).max()
        worst = max(worst, float((own.cpu().flatten() - value.T @ scale_U).abs().max() / size))
    return float(off), worst


def _built(device: torch.device, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What `run` makes; nothing, and a warning, where its kernels can't be built."""
    try:
        return run()
    except Exception as error:  # of any class: a compiler's, a driver's; nothing private is in it
        warnings.warn(
            f"triton builds no kernel for {device}, so noise and clipping use torch's own "
            "operations there, which are slower. Install a C compiler and the triton that belongs "
            "to this torch; it needs a folder to write to, TRITON_CACHE_DIR. It says: "
            f"{type(error).__name__}: {str(error)[:300]}",
            stacklevel=2,
        )
        return []


@functools.cache
def _adds_up(device: torch.device, dtype: torch.dtype) -> bool:
    """Compare with the processor, once: sensitivity rests on it. Of integers, sums are exact."""
    sums = _built(device, lambda: _sums_of_integers(*_integers(device, dtype)))
    # Outside: that a device can't be waited for, or is wrong, is no reason to do without kernels.
    if sums and not all(map(_same, sums, _reference(*_integers(torch.device("cpu"), dtype)))):
        raise GuaranteeError(
            f"kernels on {device} do not add up {_TYPES[dtype]} as the processor does; fit on "
            "another device, and report this"
        )
    return bool(sums)


def _integers(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Gradients of three units and their scales. The second is not finite, and has scale zero."""
    entries = torch.arange(3 * (2 * _SPAN + 3), device=device).view(3, -1)
    value = ((entries * entries + entries) % 17 - 8).to(dtype)
    value[1, 5] = math.nan
    swapped = torch.arange(42, device=device).view(3, 2, 7).transpose(1, 2).to(dtype)
    scale_U = torch.arange(3, dtype=torch.float64, device=device).sub_(1).mul_(2)
    return [value, swapped], scale_U


def _sums_of_integers(values: list[Tensor], scale_U: Tensor) -> list[Tensor]:
    return [squared_norms(values), *weighted_sums(values, scale_U)]


def _reference(values: list[Tensor], scale_U: Tensor) -> list[Tensor]:
    exact = [value.double() for value in values]
    squares = torch.stack([value.flatten(1).square().sum(1) for value in exact]).sum(0)
    kept_U = scale_U != 0
    return [squares, *(torch.tensordot(scale_U[kept_U], value[kept_U], 1) for value in exact)]


def _same(own: Tensor, other: Tensor) -> bool:
    return torch.equal(own.cpu().nan_to_num(-1.0), other.nan_to_num(-1.0))


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Gradients of one type cut into pieces of columns, one for each program.

    Attributes:
        table_N4: address of the piece's first entry, columns, entries from one unit to the next,
            and where its sums begin. int64, on the gradients' device.
        sizes: columns of each of the gradients.
        rows: the memory that the addresses point to.
    """

    table_N4: Tensor
    sizes: list[int]
    rows: list[Tensor]

    @classmethod
    def of(cls, values: Sequence[Tensor]) -> _Pieces:
        sizes = [math.prod(value.shape[1:]) for value in values]
        rows = [_stored(value) for value in values]
        # Of all values at once: a large model has a hundred thousand pieces.
        size_V = np.array(sizes, dtype=np.int64)
        pieces_V = (size_V + _SPAN - 1) // _SPAN
        value_N = np.repeat(np.arange(len(values)), pieces_V)
        first_N = np.repeat(np.cumsum(pieces_V) - pieces_V, pieces_V)
        start_N = (np.arange(len(value_N)) - first_N) * _SPAN
        address_V = np.array([row.data_ptr() for row in rows], dtype=np.int64)
        stride_V = np.array([row.stride(0) for row in rows], dtype=np.int64)
        out_V = np.cumsum(size_V) - size_V
        columns = (
            address_V[value_N] + start_N * values[0].element_size(),
            np.minimum(size_V[value_N] - start_N, _SPAN),
            stride_V[value_N],
            out_V[value_N] + start_N,
        )
        table_N4 = torch.from_numpy(np.stack(columns, 1))
        return cls(_copy_on(table_N4, values[0].device), sizes, rows)


def _by_type(values: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    kinds: dict[torch.dtype, list[int]] = {}
    for index, value in enumerate(values):
        kinds.setdefault(value.dtype, []).append(index)
    return kinds


def _shape(dtype: torch.dtype) -> dict[str, Any]:
    return {"BLOCK": _BLOCK, "TYPE": getattr(tl, _TYPES[dtype])}


def _order(value: Tensor) -> list[int]:
    """The dimensions but the first, as they lie in memory: an order whose copy is the memory."""
    return sorted(range(1, value.ndim), key=value.stride().__getitem__, reverse=True)


def _stored(value: Tensor) -> Tensor:
    """The gradients with all entries of a unit side by side, in some order: a copy only if need."""
    if value.is_contiguous():
        return value
    stored = value.permute(0, *_order(value))
    whole = stored[0].is_contiguous() if len(stored) else True
    return stored if whole else stored.contiguous()


def _restored(sum_P: Tensor, value: Tensor) -> Tensor:
    """The sum over units in the shape of one of them."""
    if value.is_contiguous():
        return sum_P.view(value.shape[1:])
    order = _order(value)
    shape = [value.shape[dim] for dim in order]
    back = [order.index(dim) for dim in range(1, value.ndim)]
    return sum_P.view(shape).permute(back).contiguous()


def _copy_on(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    if device.type != "cuda" or len(host) == 0:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _launch(kernel: Any, programs: int, first: Tensor, *rest: Any, **constants: Any) -> None:
    if programs == 0:
        return
    cuda = first.device.type == "cuda"
    with torch.cuda.device(first.device) if cuda else contextlib.nullcontext():
        kernel[(programs,)](first, *rest, **constants)


# Below, what triton compiles. No program writes where another one does.


@_kernel
def _squares(table, partial, n, BLOCK: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Squares of one unit's entries of one piece, added up: program u * n + piece."""
    number = tl.program_id(0)
    row = table + (number % n) * 4
    columns = tl.load(row + 1)
    unit = (number // n).to(tl.int64)
    entries = tl.load(row).to(tl.pointer_type(TYPE)) + unit * tl.load(row + 2)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(entries + column, mask=column < columns, other=0.0).to(tl.float64)
        total += value * value
    tl.store(partial + number, tl.sum(total, axis=0))


@_kernel
def _scaled_sum(table, scales, totals, n_units, BLOCK: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """sum over u of scale[u] * entry[u], of the columns of one piece."""
    row = table + tl.program_id(0) * 4
    columns = tl.load(row + 1)
    first = tl.load(row).to(tl.pointer_type(TYPE))
    stride = tl.load(row + 2)
    out = totals + tl.load(row + 3)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        entries = first + column
        total = tl.zeros((BLOCK,), dtype=tl.float64)
        for unit in range(n_units):
            scale = tl.load(scales + unit)
            # Not read at all where the scale is zero: zero times NaN would be NaN.
            limit = tl.where(scale != 0.0, columns, 0)
            total += tl.load(entries, mask=column < limit, other=0.0).to(tl.float64) * scale
            entries += stride
        tl.store(out + column, total, mask=column < columns)


@_kernel
def _rotated(word, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """To the left; the words have no sign, so that zeros come in from the left."""
    return (word << BITS) | (word >> (32 - BITS))


@_kernel
def _quarter_round(a, b, c, d):  # type: ignore[no-untyped-def]
    """RFC 8439, section 2.1."""
    a += b
    d = _rotated(d ^ a, 16)
    c += d
    b = _rotated(b ^ c, 12)
    a += b
    d = _rotated(d ^ a, 8)
    c += d
    b = _rotated(b ^ c, 7)
    return a, b, c, d


@_kernel
def _chacha20(key, out, n_blocks, nonce_0, nonce_1, nonce_2, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """RFC 8439, section 2.3: the constants, the key, the counter and the nonce, in 20 rounds."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), dtype=tl.uint32)
    s0, s1, s2, s3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    k0, k1 = (
        zero + tl.load(key).to(tl.uint32, bitcast=True),
        zero + tl.load(key + 1).to(tl.uint32, bitcast=True),
    )
    k2, k3 = (
        zero + tl.load(key + 2).to(tl.uint32, bitcast=True),
        zero + tl.load(key + 3).to(tl.uint32, bitcast=True),
    )
    k4, k5 = (
        zero + tl.load(key + 4).to(tl.uint32, bitcast=True),
        zero + tl.load(key + 5).to(tl.uint32, bitcast=True),
    )
    k6, k7 = (
        zero + tl.load(key + 6).to(tl.uint32, bitcast=True),
        zero + tl.load(key + 7).to(tl.uint32, bitcast=True),
    )
    counter = block.to(tl.uint32)
    n0, n1, n2 = (zero + nonce_0), (zero + nonce_1), (zero + nonce_2)
    # The state: a to d are its four rows, 0 to 3 its columns.
    a0, a1, a2, a3, b0, b1, b2, b3 = s0, s1, s2, s3, k0, k1, k2, k3
    c0, c1, c2, c3, d0, d1, d2, d3 = k4, k5, k6, k7, counter, n0, n1, n2
    for _ in range(10):
        a0, b0, c0, d0 = _quarter_round(a0, b0, c0, d0)
        a1, b1, c1, d1 = _quarter_round(a1, b1, c1, d1)
        a2, b2, c2, d2 = _quarter_round(a2, b2, c2, d2)
        a3, b3, c3, d3 = _quarter_round(a3, b3, c3, d3)
        a0, b1, c2, d3 = _quarter_round(a0, b1, c2, d3)
        a1, b2, c3, d0 = _quarter_round(a1, b2, c3, d0)
        a2, b3, c0, d1 = _quarter_round(a2, b3, c0, d1)
        a3, b0, c1, d2 = _quarter_round(a3, b0, c1, d2)
    word, inside = out + block * 16, block < n_blocks
    tl.store(word, (a0 + s0).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 1, (a1 + s1).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 2, (a2 + s2).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 3, (a3 + s3).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 4, (b0 + k0).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 5, (b1 + k1).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 6, (b2 + k2).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 7, (b3 + k3).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 8, (c0 + k4).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 9, (c1 + k5).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 10, (c2 + k6).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 11, (c3 + k7).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 12, (d0 + counter).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 13, (d1 + n0).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 14, (d2 + n1).to(tl.int32, bitcast=True), mask=inside)
    tl.store(word + 15, (d3 + n2).to(tl.int32, bitcast=True), mask=inside)
