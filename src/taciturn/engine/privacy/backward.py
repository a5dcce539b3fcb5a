"""What happens in the backward pass to a parameter that has one virtual copy per sequence.

Each function here is an ordinary operation in the forward pass; in the backward pass it keeps the
sequences' gradients apart instead of adding them up. The *carrier* [B, *parameter shape] that each
takes has no memory of its own and no influence on the output: it is where the gradients arrive.

Shapes: B sequences, T tokens, U units, D input features, P output features, V vocabulary,
R rows of flattened activations.
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
    """B sequences of T tokens: how rows of activations map to sequences."""

    sequences: int
    tokens: int

    def split(self, value: Tensor, name: str) -> Tensor:
        """View activations [B, ..., D] or [B*T, D] as [B, rows, D].

        Raises:
            UnsupportedLayerError: `value`, which meets parameter `name`, has another layout.
        """
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
        if value.ndim >= 2 and value.shape[0] == 1 and self.sequences > 1:
            return value.expand(self.sequences, *value.shape[1:])
        return value


Split = Callable[[Tensor], Tensor]


def virtual_copies(count: int, parameter: Tensor) -> Tensor:
    """Zeros of shape [count, *parameter.shape] that occupy one element."""
    zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    return zero.expand(count, *parameter.shape)


def apply(function: type[Function], *args: Any) -> Tensor:
    """`function.apply`, typed."""
    result: Tensor = function.apply(*args)
    return result


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


class Derive(Function):
    """The carrier of a tensor computed from parameters alone, such as a cast or a product.

    `pullbacks` hold, for each of the `carriers`, the linear map from the result's per-sequence
    gradient to that parameter's.
    """

    @staticmethod
    def forward(
        ctx: Any, result: Tensor, pullbacks: tuple[Callable[[Tensor], Tensor], ...], *carriers: Any
    ) -> Tensor:
        ctx.pullbacks = pullbacks
        return virtual_copies(carriers[0].shape[0], result)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return None, None, *(pullback(grad) for pullback in ctx.pullbacks)


class Linear(Function):
    """y = x W^T; the carrier receives sum over tokens of g x^T, sequence by sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, split: Split) -> Tensor:
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


class Embedding(Function):
    """Row look-up; the carrier receives each sequence's gradient rows, padding row excluded."""

    @staticmethod
    def forward(
        ctx: Any, ids_BT: Tensor, weight: Tensor, carrier: Tensor, padding_idx: int | None
    ) -> Tensor:
        ctx.save_for_backward(ids_BT)
        ctx.rows, ctx.padding_idx = weight.shape[0], padding_idx
        return F.embedding(ids_BT, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (ids_BT,) = ctx.saved_tensors
        b, d = ids_BT.shape[0], grad.shape[-1]
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids_BT == ctx.padding_idx).unsqueeze(-1), 0.0)
        offsets_B1 = torch.arange(b, device=ids_BT.device).unsqueeze(1) * ctx.rows
        flat_BT = ids_BT.reshape(b, -1) + offsets_B1
        out = grad.new_zeros(b * ctx.rows, d).index_add_(0, flat_BT.flatten(), grad.reshape(-1, d))
        return None, None, out.view(b, ctx.rows, d), None


class Scale(Function):
    """y = x * w, w on the last dimension of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, split: Split) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.split = split
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        x_grad = (grad * weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return x_grad, None, ctx.split(grad * x).sum(1).to(weight.dtype), None


class Shift(Function):
    """y = x + b, b on the last dimension of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, carrier: Tensor, split: Split) -> Tensor:
        ctx.split, ctx.dtypes = split, (x.dtype, bias.dtype)
        return x + bias

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x_dtype, bias_dtype = ctx.dtypes
        return grad.to(x_dtype), None, ctx.split(grad).sum(1).to(bias_dtype), None


class RoutedLinear(Function):
    """y_r = x_r W^T for rows r of several sequences; each row's gradient goes to its sequence."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, weight: Tensor, carrier: Tensor, sequence_of_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_RD, weight, sequence_of_R)
        ctx.sequences = carrier.shape[0]
        return F.linear(x_RD, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g_RP,) = grads
        x_RD, weight, sequence_of_R = ctx.saved_tensors
        x_grad = g_RP @ weight if ctx.needs_input_grad[0] else None
        sequence_of_R, order_R = sequence_of_R.sort(stable=True)
        rows_of_B = torch.bincount(sequence_of_R, minlength=ctx.sequences)
        # Rows of one sequence side by side, each sequence padded with zero rows to the longest.
        first_of_B = rows_of_B.cumsum(0) - rows_of_B
        slot_R = torch.arange(len(order_R), device=order_R.device) - first_of_B[sequence_of_R]
        shape = (ctx.sequences, int(rows_of_B.max()))
        g_BSP = g_RP.new_zeros(*shape, g_RP.shape[1])
        x_BSD = x_RD.new_zeros(*shape, x_RD.shape[1])
        g_BSP[sequence_of_R, slot_R] = g_RP[order_R]
        x_BSD[sequence_of_R, slot_R] = x_RD[order_R]
        return x_grad, None, torch.bmm(g_BSP.transpose(1, 2), x_BSD), None
