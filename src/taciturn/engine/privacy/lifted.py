"""A parameter lifted to one virtual copy per unit, so that autograd itself yields per-unit gradients.

In place of each trainable parameter W the model sees a `LiftedParameter`: W's value, and a *carrier*
of shape [B, *W.shape] that takes no memory (all strides zero) and whose only purpose is to receive,
in the backward pass, each sequence's own gradient. Every operation that touches a lifted parameter
has a rule below: forward as usual, backward per sequence instead of summed. The chain rule does the
rest: tied weights add up (PITFALLS 8), checkpointing recomputes through the same rules
(PITFALLS 9), broadcast inputs are expanded to the sequences they serve (PITFALLS 10). An operation
without a rule is refused by name, never approximated.

Shapes: B sequences, T tokens, D input features, P output features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from taciturn.errors import UnsupportedLayerError


@dataclass(frozen=True, slots=True)
class SequenceShape:
    """B sequences of T tokens: how rows of flattened activations map to sequences."""

    sequences: int
    tokens: int

    def split(self, value: Tensor, name: str) -> Tensor:
        """View activations [B, ..., D], [B*T, D] or broadcast [1, ..., D] as [B, rows, D]."""
        b, t = self.sequences, self.tokens
        if value.ndim >= 3 and value.shape[0] == b:
            return value.reshape(b, -1, value.shape[-1])
        if value.ndim == 2 and value.shape[0] == b * t:
            return value.reshape(b, t, value.shape[-1])
        raise UnsupportedLayerError(
            f"parameter {name!r} meets activations of shape {tuple(value.shape)}, which do not "
            f"split into {b} sequences of {t} tokens; its per-unit gradient is not known. "
            "Leave it out of the trained parameters, for example with target_modules"
        )

    def expand(self, value: Tensor) -> Tensor:
        """Repeat a broadcast input [1, ...] for each sequence; a view."""
        if value.shape[0] == 1 and self.sequences > 1:
            return value.expand(self.sequences, *value.shape[1:])
        return value


class LiftedParameter(Tensor):
    """A parameter's value together with the carrier of its per-sequence gradients."""

    value: Tensor
    carrier: Tensor
    shape_of_batch: SequenceShape
    parameter_name: str

    @staticmethod
    def lift(value: Tensor, carrier: Tensor, batch: SequenceShape, name: str) -> LiftedParameter:
        """Pair `value` with a carrier [B, *value.shape]."""
        plain = value.detach()
        lifted: LiftedParameter = Tensor._make_subclass(LiftedParameter, plain)
        lifted.value, lifted.carrier = plain, carrier
        lifted.shape_of_batch, lifted.parameter_name = batch, name
        return lifted

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None:
            return rule(*args, **kwargs)
        names = [arg.parameter_name for arg in (*args, *kwargs.values()) if isinstance(arg, LiftedParameter)]
        raise UnsupportedLayerError(
            f"parameter {', '.join(names) or '(in a list)'!r} is used by "
            f"{getattr(func, '__name__', func)!r}, whose per-unit gradient is not known; leave it "
            "out of the trained parameters, for example with target_modules"
        )

    def derive(self, value: Tensor, carrier: Tensor) -> LiftedParameter:
        """A lifted tensor computed from this parameter alone."""
        return LiftedParameter.lift(value, carrier, self.shape_of_batch, self.parameter_name)


def virtual_copies(count: int, parameter: Tensor) -> Tensor:
    """Zeros of shape [count, *parameter.shape] that occupy one element."""
    zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    return zero.expand(count, *parameter.shape)


class GatherUnits(Function):
    """Virtual copies per unit [U, ...] -> per sequence [B, ...]; backward adds sequences up."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, unit_of_B: Tensor) -> Tensor:
        ctx.save_for_backward(unit_of_B)
        ctx.n_units = units.shape[0]
        return virtual_copies(len(unit_of_B), units[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (unit_of_B,) = ctx.saved_tensors
        total = grad.new_zeros((ctx.n_units, *grad.shape[1:]))
        return total.index_add_(0, unit_of_B, grad), None


class _Linear(Function):
    """y = x W^T; the carrier receives sum over tokens of g x^T, sequence by sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, split: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.split = split
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        g_BTP, x_BTD = ctx.split(grad), ctx.split(x)
        return x_grad, None, torch.bmm(g_BTP.transpose(1, 2), x_BTD), None


class _Embedding(Function):
    """Row look-up; the carrier receives each sequence's gradient rows, padding row excluded."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Tensor, carrier: Tensor, padding_idx: int | None
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding_idx = weight.shape[0], padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (ids,) = ctx.saved_tensors
        b, d = ids.shape[0], grad.shape[-1]
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0.0)
        offsets_B1 = torch.arange(b, device=ids.device).unsqueeze(1) * ctx.rows
        flat_BT = ids.reshape(b, -1) + offsets_B1
        out = grad.new_zeros(b * ctx.rows, d).index_add_(0, flat_BT.flatten(), grad.reshape(-1, d))
        return None, None, out.view(b, ctx.rows, d), None


class _Scale(Function):
    """y = x * w, w on the trailing dimensions of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, split: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.split = split
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        x_grad = (grad * weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return x_grad, None, ctx.split(grad * x).sum(1).to(weight.dtype), None


class _Shift(Function):
    """y = x + b, b on the trailing dimension of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, carrier: Tensor, split: Any) -> Tensor:
        ctx.split, ctx.dtypes = split, (x.dtype, bias.dtype)
        return x + bias

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x_dtype, bias_dtype = ctx.dtypes
        return grad.to(x_dtype), None, ctx.split(grad).sum(1).to(bias_dtype), None


class _Cast(Function):
    """The carrier of a parameter cast to another dtype."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = carrier.dtype
        return virtual_copies(carrier.shape[0], carrier[0].to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return grad.to(ctx.dtype), None


class _RoutedLinear(Function):
    """y_r = x_r W_e^T for rows r routed to expert e; the carrier receives per-sequence sums."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, weight: Tensor, carrier: Tensor, expert: int, sequence_of_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_RD, weight, sequence_of_R)
        ctx.expert, ctx.sequences = expert, carrier.shape[0]
        return F.linear(x_RD, weight[expert])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g_RP,) = grads
        x_RD, weight, sequence_of_R = ctx.saved_tensors
        x_grad = g_RP @ weight[ctx.expert] if ctx.needs_input_grad[0] else None
        out = g_RP.new_zeros(ctx.sequences, *weight.shape)
        for sequence in sequence_of_R.unique().tolist():
            rows_R = sequence_of_R == sequence
            out[sequence, ctx.expert] = g_RP[rows_R].T @ x_RD[rows_R]
        return x_grad, None, out, None, None


def routed_linear(x_RD: Tensor, weight_EPD: Tensor, expert: int, token_of_R: Tensor) -> Tensor:
    """Rows of flattened activations [B*T, D], picked by `token_of_R`, through one expert's matrix.

    For a plain weight this is `F.linear`; for a lifted one, each row's gradient goes to the
    sequence it came from, which `F.linear` alone could not know.
    """
    if not isinstance(weight_EPD, LiftedParameter):
        return F.linear(x_RD, weight_EPD[expert])
    sequence_of_R = token_of_R // weight_EPD.shape_of_batch.tokens
    return _apply(
        _RoutedLinear, x_RD, weight_EPD.value, weight_EPD.carrier, expert, sequence_of_R
    )


# --- rules: what a lifted parameter does under each operation that models use ------------------


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, LiftedParameter):
        raise UnsupportedLayerError(f"parameter {input.parameter_name!r} is the input of a linear layer")
    if isinstance(weight, LiftedParameter):
        x = weight.shape_of_batch.expand(input)
        out = _apply(_Linear, x, weight.value, weight.carrier, _splitter(weight))
    else:
        out = F.linear(input, weight)
    return out if bias is None else _add(out, bias)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    return _add(_matmul(mat1, mat2), input)


def _matmul(input: Tensor, other: Tensor) -> Tensor:
    if isinstance(other, LiftedParameter):
        return _linear(input, _transpose(other))
    return _add(torch.matmul(input, other), 0.0)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    assert isinstance(weight, LiftedParameter)
    if max_norm is not None or scale_grad_by_freq:
        # Both make one unit's gradient depend on the other units of the batch.
        raise UnsupportedLayerError(
            f"embedding {weight.parameter_name!r} uses max_norm or scale_grad_by_freq, which mix units"
        )
    batch = weight.shape_of_batch
    ids = batch.expand(input)
    if ids.shape[0] != batch.sequences:
        batch.split(ids.unsqueeze(-1), weight.parameter_name)
        ids = ids.reshape(batch.sequences, batch.tokens)
        out = _apply(_Embedding, ids, weight.value, weight.carrier, padding_idx)
        return out.reshape(*input.shape, -1)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.value.shape[0]
    return _apply(_Embedding, ids, weight.value, weight.carrier, padding_idx)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    out = F.layer_norm(input, normalized_shape, None, None, eps)
    out = out if weight is None else _mul(out, weight)
    return out if bias is None else _add(out, bias)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    out = F.rms_norm(input, normalized_shape, None, eps)
    return out if weight is None else _mul(out, weight)


def _mul(input: Any, other: Any) -> Tensor:
    if isinstance(input, LiftedParameter):
        input, other = other, input
    if not isinstance(other, LiftedParameter):
        return torch.mul(input, other)
    if isinstance(input, LiftedParameter) or not isinstance(input, Tensor) or input.ndim == 0:
        raise UnsupportedLayerError(f"parameter {other.parameter_name!r} is rescaled before it is used")
    return _apply(_Scale, _aligned(input, other), other.value, other.carrier, _splitter(other))


def _add(input: Any, other: Any) -> Tensor:
    if isinstance(input, LiftedParameter):
        input, other = other, input
    if not isinstance(other, LiftedParameter):
        return torch.add(input, other)
    if isinstance(input, int | float):
        return other.derive(other.value + input, other.carrier)
    if isinstance(input, LiftedParameter) or input.ndim == 0:
        raise UnsupportedLayerError(f"parameter {other.parameter_name!r} is added to another one")
    return _apply(_Shift, _aligned(input, other), other.value, other.carrier, _splitter(other))


def _transpose(input: LiftedParameter, *dims: int) -> LiftedParameter:
    if input.value.ndim != 2:
        raise UnsupportedLayerError(f"parameter {input.parameter_name!r} is transposed in more than 2-D")
    return input.derive(input.value.T, input.carrier.transpose(1, 2))


def _to(input: LiftedParameter, *args: Any, **kwargs: Any) -> LiftedParameter:
    value = input.value.to(*args, **kwargs)
    if value.device != input.value.device:
        raise UnsupportedLayerError(f"parameter {input.parameter_name!r} is moved to another device")
    if value.dtype == input.value.dtype:
        return input
    return input.derive(value, _apply(_Cast, input.carrier, value.dtype))


def _float(input: LiftedParameter) -> LiftedParameter:
    return _to(input, torch.float32)


def _type_as(input: LiftedParameter, other: Tensor) -> LiftedParameter:
    return _to(input, other.dtype)


def _aligned(input: Tensor, lifted: LiftedParameter) -> Tensor:
    """`input` with one entry per sequence, checked to end in the lifted vector's dimension."""
    if lifted.value.ndim != 1 or input.shape[-1] != lifted.value.shape[0]:
        raise UnsupportedLayerError(
            f"parameter {lifted.parameter_name!r} of shape {tuple(lifted.value.shape)} broadcasts against "
            f"activations {tuple(input.shape)}; its per-unit gradient is not known"
        )
    return lifted.shape_of_batch.expand(input)


def _splitter(lifted: LiftedParameter) -> Callable[[Tensor], Tensor]:
    batch, name = lifted.shape_of_batch, lifted.parameter_name
    return lambda value: batch.split(value, name)


def _apply(function: type[Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


_METADATA: frozenset[Any] = frozenset(
    {
        Tensor.shape.__get__,
        Tensor.dtype.__get__,
        Tensor.device.__get__,
        Tensor.layout.__get__,
        Tensor.ndim.__get__,
        Tensor.requires_grad.__get__,
        Tensor.is_cuda.__get__,
        Tensor.is_meta.__get__,
        Tensor.is_quantized.__get__,
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.element_size,
        Tensor.is_floating_point,
        Tensor.is_contiguous,
        Tensor.__len__,
    }
)

_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.add: _add,
    Tensor.add: _add,
    Tensor.__add__: _add,
    Tensor.__radd__: _add,
    torch.mul: _mul,
    Tensor.mul: _mul,
    Tensor.__mul__: _mul,
    Tensor.__rmul__: _mul,
    Tensor.T.__get__: _transpose,
    Tensor.t: _transpose,
    torch.t: _transpose,
    Tensor.float: _float,
    Tensor.to: _to,
    Tensor.type_as: _type_as,
}
