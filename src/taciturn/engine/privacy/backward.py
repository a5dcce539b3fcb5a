"""What happens in the backward pass to a parameter that has one virtual copy per unit.

Each function here is an ordinary operation in the forward pass; in the backward pass it keeps the
units' gradients apart instead of adding them up. The *carrier* [U, *parameter shape] that each
takes has no memory of its own and no influence on the output: it is where the gradients arrive,
unless the *receiver* keeps their factors.

Shapes: B sequences, T tokens, U units, D input features, P output features, V vocabulary,
R rows of a sequence, or of several sequences flattened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from taciturn.engine.privacy.receiver import Receiver


def virtual_copies(count: int, parameter: Tensor) -> Tensor:
    """Zeros of shape [count, *parameter.shape] that occupy one element."""
    zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    return zero.expand(count, *parameter.shape)


def apply(function: type[Function], *args: Any) -> Tensor:
    """`function.apply`, typed."""
    result: Tensor = function.apply(*args)
    return result


class Derive(Function):
    """The carrier of a tensor computed from parameters alone, such as a cast or a product.

    `pullbacks` hold, for each of the `carriers`, the linear map from the result's per-unit gradient
    to that parameter's.
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
    """y = x W^T; the carrier receives sum over tokens of g x^T, unit by unit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, receiver: Receiver) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.receiver = receiver
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        return x_grad, None, ctx.receiver.products(grad, x), None


class Embedding(Function):
    """Row look-up; the carrier receives each unit's gradient rows, padding row excluded."""

    @staticmethod
    def forward(
        ctx: Any,
        ids_BT: Tensor,
        weight: Tensor,
        carrier: Tensor,
        padding_idx: int | None,
        receiver: Receiver,
    ) -> Tensor:
        ctx.save_for_backward(ids_BT)
        ctx.rows, ctx.padding_idx, ctx.receiver = weight.shape[0], padding_idx, receiver
        return F.embedding(ids_BT, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (ids_BT,) = ctx.saved_tensors
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids_BT == ctx.padding_idx).unsqueeze(-1), 0.0)
        return None, None, ctx.receiver.lookups(ids_BT, grad, ctx.rows), None, None


class Scale(Function):
    """y = x * w, w on the last dimension of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, carrier: Tensor, receiver: Receiver) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.receiver = receiver
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        x_grad = (grad * weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return x_grad, None, ctx.receiver.sums(grad * x).to(weight.dtype), None


class Shift(Function):
    """y = x + b, b on the last dimension of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, carrier: Tensor, receiver: Receiver) -> Tensor:
        ctx.receiver, ctx.dtypes = receiver, (x.dtype, bias.dtype)
        return x + bias

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x_dtype, bias_dtype = ctx.dtypes
        return grad.to(x_dtype), None, ctx.receiver.sums(grad).to(bias_dtype), None


class RoutedLinear(Function):
    """y_r = x_r W^T for rows r of several sequences; each row's gradient goes to its unit."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, weight: Tensor, carrier: Tensor, unit_of_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_RD, weight, unit_of_R)
        ctx.n_units = carrier.shape[0]
        return F.linear(x_RD, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g_RP,) = grads
        x_RD, weight, unit_of_R = ctx.saved_tensors
        x_grad = g_RP @ weight if ctx.needs_input_grad[0] else None
        unit_of_R, order_R = unit_of_R.sort(stable=True)
        rows_of_U = torch.bincount(unit_of_R, minlength=ctx.n_units)
        # Rows of one unit side by side, each unit padded with zero rows to the longest.
        first_of_U = rows_of_U.cumsum(0) - rows_of_U
        slot_R = torch.arange(len(order_R), device=order_R.device) - first_of_U[unit_of_R]
        shape = (ctx.n_units, int(rows_of_U.max()))
        g_USP = g_RP.new_zeros(*shape, g_RP.shape[1])
        x_USD = x_RD.new_zeros(*shape, x_RD.shape[1])
        g_USP[unit_of_R, slot_R] = g_RP[order_R]
        x_USD[unit_of_R, slot_R] = x_RD[order_R]
        return x_grad, None, torch.bmm(g_USP.transpose(1, 2), x_USD), None
