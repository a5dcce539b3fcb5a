"""Output layer and cross-entropy in one, in chunks of rows: never all logits at once.

The gradient of cross-entropy is known as soon as the logits are, so it is made in the forward pass,
while they are in the processor's cache (as in Liger Kernel, Hsu et al. 2024). Rows without a
target, such as padding and prompts, are not computed at all.

Shapes: B sequences, T tokens, N rows with a target, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from taciturn.engine.privacy.backward import apply
from taciturn.engine.privacy.lifted import LiftedParameter
from taciturn.engine.privacy.receiver import Receiver

# Logits made at once: 2^20 of them are 4 MiB.
_CHUNK = 1 << 20


def head_cross_entropy(
    terms: Sequence[tuple[Tensor, Tensor]], input_ids_BT: Tensor, loss_weights_BT: Tensor
) -> Tensor:
    """Sum over each sequence of weight times next-token cross-entropy; [B], fp32 at least.

    A position of weight zero plays no part, whatever stands there, even NaN. Lifted weights get
    each unit's own gradient.

    Args:
        terms: activations [B, T, D_i] and weights [V, D_i]; the logits are the sum of x W^T. One
            for a plain output layer, two for one with a low-rank adapter.
    """
    tensors: list[Tensor | None] = []
    for x_BTD, weight_VD in terms:
        if isinstance(weight_VD, LiftedParameter):
            tensors += [x_BTD, weight_VD.value, weight_VD.carrier]
        else:
            tensors += [x_BTD, weight_VD, None]
    receivers = [getattr(weight, "receiver", None) for _, weight in terms]
    targets = _Targets.of(input_ids_BT, loss_weights_BT)
    return apply(_HeadLoss, targets, receivers, *tensors)


@dataclass(frozen=True, slots=True)
class _Targets:
    """The rows of a batch that predict something.

    Attributes:
        rows_N: their positions among the B * T rows.
        ids_N: what they should predict.
        weights_N: how much they count.
    """

    rows_N: Tensor
    ids_N: Tensor
    weights_N: Tensor
    sequences: int
    tokens: int

    @classmethod
    def of(cls, input_ids_BT: Tensor, loss_weights_BT: Tensor) -> _Targets:
        b, t = input_ids_BT.shape
        # The row before a position predicts it; position 0 is predicted by none.
        rows_N = F.pad(loss_weights_BT[:, 1:], (0, 1)).flatten().nonzero()[:, 0]
        ids_N, weights_N = input_ids_BT.flatten()[rows_N + 1], loss_weights_BT.flatten()[rows_N + 1]
        return cls(rows_N, ids_N, weights_N, b, t)

    def chunks(self, vocabulary: int) -> list[_Targets]:
        """Some rows at a time."""
        size = max(1, _CHUNK // vocabulary)
        parts = (self.rows_N.split(size), self.ids_N.split(size), self.weights_N.split(size))
        return [_Targets(*part, self.sequences, self.tokens) for part in zip(*parts, strict=True)]


class _HeadLoss(Function):
    """Losses [B] of logits sum_i x_i W_i^T; tensors: x_i, W_i, W_i's carrier or None, in turn."""

    @staticmethod
    def forward(
        ctx: Any, targets: _Targets, receivers: list[Receiver | None], *tensors: Any
    ) -> Tensor:
        xs, weights = tensors[0::3], tensors[1::3]
        needs = ctx.needs_input_grad[2:]
        fits_weights = any(needs[1::3]) or any(needs[2::3])
        made = _Made(xs, weights, tuple(needs[0::3]), fits_weights)
        losses_B: Tensor = weights[0].new_zeros(targets.sequences, dtype=_exact(weights[0].dtype))
        for chunk in targets.chunks(len(weights[0])):
            log_p = _log_probabilities([x.flatten(0, 1)[chunk.rows_N] for x in xs], weights)
            nll_N = -log_p.gather(1, chunk.ids_N.unsqueeze(1))[:, 0]
            losses_B.index_add_(
                0, chunk.rows_N // chunk.tokens, (nll_N * chunk.weights_N).to(losses_B)
            )
            if any(needs):
                made.add(chunk, _logits_gradient(log_p, chunk))
        ctx.receivers, ctx.n_terms = receivers, len(xs)
        ctx.save_for_backward(*xs, *weights, *made.x_grads, made.logits_grad)
        return losses_B

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        n, saved, needs = ctx.n_terms, ctx.saved_tensors, ctx.needs_input_grad[2:]
        logits_grad, scale_B11 = saved[3 * n], grads[0].view(-1, 1, 1)
        out: list[Tensor | None] = [None, None]
        for i, receiver in enumerate(ctx.receivers):
            x, x_grad = saved[i], saved[2 * n + i]
            scaled = (x * scale_B11).to(x.dtype)
            out.append(None if x_grad is None else (x_grad * scale_B11).to(x.dtype))
            out.append(_summed(logits_grad, scaled) if needs[3 * i + 1] else None)
            out.append(_received(receiver, logits_grad, scaled) if needs[3 * i + 2] else None)
        return tuple(out)


class _Made:
    """Gradients that the forward pass fills, chunk by chunk; rows without a target stay zero."""

    def __init__(
        self,
        xs: Sequence[Tensor],
        weights: Sequence[Tensor],
        needs_x: tuple[bool, ...],
        fits_weights: bool,
    ) -> None:
        pairs = zip(xs, needs_x, strict=True)
        self.x_grads = [torch.zeros_like(x) if need else None for x, need in pairs]
        shape = (*xs[0].shape[:2], len(weights[0]))
        # In the adapter's type, if there is one: it is what is trained.
        self.logits_grad = weights[-1].new_zeros(shape) if fits_weights else None
        self._weights = weights

    def add(self, chunk: _Targets, gradient_NV: Tensor) -> None:
        for x_grad, weight in zip(self.x_grads, self._weights, strict=True):
            if x_grad is not None:
                rows = x_grad.view(-1, x_grad.shape[-1])
                rows[chunk.rows_N] = (gradient_NV.to(weight.dtype) @ weight).to(x_grad.dtype)
        if self.logits_grad is not None:
            rows = self.logits_grad.view(-1, gradient_NV.shape[1])
            rows[chunk.rows_N] = gradient_NV.to(rows.dtype)


def _log_probabilities(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    logits_NV = xs[0] @ weights[0].T
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        logits_NV = logits_NV + x @ weight.T
    return logits_NV.log_softmax(-1, dtype=_exact(logits_NV.dtype))


def _logits_gradient(log_p: Tensor, chunk: _Targets) -> Tensor:
    """weight * (p - 1 at the target); `log_p` is overwritten."""
    p_NV = log_p.exp_()
    p_NV.scatter_add_(1, chunk.ids_N.unsqueeze(1), -torch.ones_like(p_NV[:, :1]))
    return p_NV.mul_(chunk.weights_N.unsqueeze(1).to(p_NV.dtype))


def _received(receiver: Receiver, logits_grad: Tensor, x: Tensor) -> Tensor | None:
    return receiver.products(logits_grad.to(x.dtype), x)


def _summed(logits_grad: Tensor, x: Tensor) -> Tensor:
    return logits_grad.to(x.dtype).flatten(0, 1).T @ x.flatten(0, 1)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
