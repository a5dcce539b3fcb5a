"""What a lifted parameter does under each operation that models use.

First the operations in which a parameter meets activations, then those on parameters alone. A new
rule needs its case in tests/engine/privacy/test_rules.py: value and per-unit gradient.

Shapes: B sequences, T tokens, D input features, P output features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taciturn.engine.privacy import backward
from taciturn.engine.privacy.lifted import REMEDY, LiftedParameter, LowRankSum, refusal, rule
from taciturn.errors import UnsupportedLayerError

# `Any`, because the types of torch hide that its attributes are descriptors.
_TENSOR: Any = Tensor


# --- a parameter meets activations --------------------------------------------------------------


@rule(F.linear)
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, LiftedParameter):
        raise refusal((input,), F.linear)
    if isinstance(weight, LiftedParameter):
        x = weight.receiver.layout.expand(input)
        weight.receiver.split(x)
        out = backward.apply(backward.Linear, x, weight.value, weight.carrier, weight.receiver)
    else:
        out = F.linear(input, weight)
    return out if bias is None else _add(out, bias)


@rule(torch.addmm)
def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    product = _matmul(mat1, mat2) if isinstance(mat2, LiftedParameter) else torch.mm(mat1, mat2)
    return _add(product, input)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def _matmul(input: Tensor, other: Tensor) -> Tensor:
    if not isinstance(other, LiftedParameter):
        raise refusal((input,), torch.matmul)
    if isinstance(input, LiftedParameter):
        return _product(input, other)
    return _linear(input, _transposed(other))


@rule(F.embedding)
def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if not isinstance(weight, LiftedParameter):
        raise refusal((input,), F.embedding)
    if max_norm is not None or scale_grad_by_freq:
        # Both make one unit's gradient depend on the other units of the batch.
        raise UnsupportedLayerError(
            f"embedding {weight.parameter_name!r} uses max_norm or scale_grad_by_freq, which mix "
            f"units; {REMEDY}"
        )
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.value.shape[0]
    layout = weight.receiver.layout
    ids_BT = layout.expand(input)
    as_rows = ids_BT.ndim < 2 or ids_BT.shape[0] != layout.shape[0]
    weight.receiver.split(ids_BT.unsqueeze(-1))
    if as_rows:
        ids_BT = ids_BT.reshape(layout.shape)
    arguments = (ids_BT, weight.value, weight.carrier, padding_idx, weight.receiver)
    out = backward.apply(backward.Embedding, *arguments)
    return out.reshape(*input.shape, -1) if as_rows else out


@rule(F.layer_norm)
def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if isinstance(input, LiftedParameter):
        raise refusal((input,), F.layer_norm)
    out = F.layer_norm(input, normalized_shape, None, None, eps)
    out = out if weight is None else _mul(out, weight)
    return out if bias is None else _add(out, bias)


@rule(F.rms_norm)
def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if isinstance(input, LiftedParameter):
        raise refusal((input,), F.rms_norm)
    out = F.rms_norm(input, normalized_shape, None, eps)
    return out if weight is None else _mul(out, weight)


@rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _mul(input: Any, other: Any) -> Tensor:
    if isinstance(input, LiftedParameter):
        input, other = other, input
    if not isinstance(other, LiftedParameter):
        return torch.mul(input, other)
    if isinstance(input, int | float):
        return _rescaled(other, input)
    if isinstance(input, LiftedParameter):
        raise refusal((input, other), torch.mul)
    if _is_constant(input) and other.value.ndim == 2 and input.shape == (len(other.value), 1):
        # Public scales of a matrix's rows, applied before it meets any activation.
        return _rescaled(other, input.detach())
    x = _aligned(input, other)
    return backward.apply(backward.Scale, x, other.value, other.carrier, other.receiver)


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    if alpha != 1:
        raise refusal((input, other), torch.add)
    if isinstance(input, LiftedParameter):
        input, other = other, input
    if not isinstance(other, LiftedParameter):
        return torch.add(input, other)
    if isinstance(input, int | float):
        return other.derive(other.value + input, other.carrier)
    if isinstance(input, LiftedParameter):
        raise refusal((input, other), torch.add)
    if _is_constant(input) and other.value.ndim > 1 and input.shape == other.value.shape:
        # A frozen weight plus an update computed from parameters alone; no activation is involved.
        return other.derive(input.detach() + other.value, other.carrier)
    x = _aligned(input, other)
    return backward.apply(backward.Shift, x, other.value, other.carrier, other.receiver)


def _is_constant(value: Tensor) -> bool:
    return isinstance(value, torch.nn.Parameter) and not value.requires_grad


def _aligned(input: Tensor, lifted: LiftedParameter) -> Tensor:
    """`input` with one entry per sequence, checked to end in the lifted vector's dimension."""
    if lifted.value.ndim != 1 or input.ndim < 2 or input.shape[-1] != lifted.value.shape[0]:
        raise UnsupportedLayerError(
            f"parameter {lifted.parameter_name!r} of shape {tuple(lifted.value.shape)} broadcasts "
            f"against activations {tuple(input.shape)}; its per-unit gradient is not known; "
            f"{REMEDY}"
        )
    x = lifted.receiver.layout.expand(input)
    lifted.receiver.split(x)
    return x


# --- a parameter is reshaped, cast or combined with other parameters, before it meets any --------


@rule(_TENSOR.T.__get__, Tensor.t, torch.t, Tensor.transpose)
def _transposed(input: LiftedParameter, *dims: int) -> LiftedParameter:
    if input.value.ndim != 2 or sorted(each % 2 for each in dims) not in ([], [0, 1]):
        return _permuted(input, _swapped(input.value.ndim, *dims))
    return input.transposed()


def _swapped(ndim: int, first: int, second: int) -> tuple[int, ...]:
    order = list(range(ndim))
    order[first], order[second] = order[second], order[first]
    return tuple(order)


@rule(Tensor.permute)
def _permuted(input: LiftedParameter, *dims: Any) -> LiftedParameter:
    order = [int(each) % input.value.ndim for each in _flat(dims)]
    carrier = input.carrier.permute(0, *(each + 1 for each in order))
    return input.derive(input.value.permute(*order), carrier)


@rule(Tensor.reshape, Tensor.view)
def _reshaped(input: LiftedParameter, *shape: Any) -> LiftedParameter:
    value = input.value.reshape(*_flat(shape))
    return input.derive(value, input.carrier.reshape(input.carrier.shape[0], *value.shape))


def _flat(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


@rule(Tensor.unbind)
def _unbound(input: LiftedParameter) -> tuple[LiftedParameter, ...]:
    pairs = zip(input.value.unbind(0), input.carrier.unbind(1), strict=True)
    return tuple(input.derive(value, carrier) for value, carrier in pairs)


@rule(Tensor.to)
def _to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not isinstance(input, LiftedParameter):
        # Activations follow a parameter's dtype and device: x.to(weight).
        return input.to(*(_value(each) for each in args), **kwargs)
    value = input.value.to(*(_value(each) for each in args), **kwargs)
    if value.device != input.value.device:
        raise refusal((input,), Tensor.to)
    if value.dtype == input.value.dtype:
        return input
    dtype = input.value.dtype
    return input.derive(value, _derived(value, (lambda grad: grad.to(dtype),), input))


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, LiftedParameter) else argument


@rule(Tensor.float)
def _float(input: LiftedParameter) -> Tensor:
    return _to(input, torch.float32)


@rule(Tensor.type_as)
def _type_as(input: Tensor, other: Tensor) -> Tensor:
    return _to(input, other.dtype)


def _rescaled(input: LiftedParameter, factor: float | Tensor) -> LiftedParameter:
    value = input.value * factor
    return input.derive(value, _derived(value, (lambda grad: grad * factor,), input))


def _product(left: LiftedParameter, right: LiftedParameter) -> LiftedParameter:
    if left.value.ndim != 2 or right.value.ndim != 2:
        raise refusal((left, right), torch.matmul)
    value, a, b = left.value @ right.value, left.value, right.value
    pullbacks = (lambda grad: grad @ b.T, lambda grad: a.T @ grad)
    return left.derive(value, _derived(value, pullbacks, left, right))


def _derived(
    value: Tensor, pullbacks: tuple[Callable[[Tensor], Tensor], ...], *sources: LiftedParameter
) -> Tensor:
    carriers = (each.carrier for each in sources)
    return backward.apply(backward.Derive, value, pullbacks, *carriers)


@rule(torch.baddbmm)
def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    factors = isinstance(batch1, LiftedParameter) and isinstance(batch2, LiftedParameter)
    if not factors or not _is_constant(input) or beta != 1:
        raise refusal((input, batch1, batch2), torch.baddbmm)
    return LowRankSum.make(input, batch1, batch2, float(alpha))  # type: ignore[arg-type]


@rule(Tensor.contiguous)
def _itself(input: LiftedParameter) -> LiftedParameter:
    return input
