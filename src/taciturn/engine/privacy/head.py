"""Output layer and cross-entropy in one, in chunks of rows: never all logits at once.

The gradient of cross-entropy is known as soon as the logits are, so it is made in the forward pass,
in their place, while they are in the processor's cache (as in Liger Kernel, Hsu et al. 2024).

Which rows have a target is private, and rounding follows shapes: so all rows of a batch are
computed, those without a target as zeros, and chunks cut every sequence alike.

Shapes: B sequences, T tokens, N = B * T rows, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from taciturn.engine.privacy.backward import apply
from taciturn.engine.privacy.lifted import LiftedParameter
from taciturn.engine.privacy.receiver import Receiver

# Logits made at once: 2^22 of them are 16 MiB. With a quarter, products of so few rows are slower.
# A GPU is told of each chunk's kernels one by one, and has the memory: 512 MiB.
_CHUNK, _CHUNK_ON_GPU = 1 << 22, 1 << 27


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
    """What each row of a batch predicts.

    Attributes:
        ids_N: the token.
        weights_N: how much it counts; may be zero.
        shape: (B, T).
    """

    ids_N: Tensor
    weights_N: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, input_ids_BT: Tensor, loss_weights_BT: Tensor) -> _Targets:
        # The row before a position predicts it; position 0 is predicted by none.
        ids_N, weights_N = (
            F.pad(each[:, 1:], (0, 1)).flatten() for each in (input_ids_BT, loss_weights_BT)
        )
        b, t = input_ids_BT.shape
        return cls(ids_N, weights_N, (b, t))

    def take(self, x_BTD: Tensor) -> Tensor:
        """The rows, [N, D]; zeros where nothing counts."""
        return x_BTD.flatten(0, 1).masked_fill((self.weights_N == 0).unsqueeze(1), 0.0)

    def sums(self, value_N: Tensor) -> Tensor:
        """Of each sequence's rows, [B]."""
        return value_N.view(self.shape).sum(1)

    def spread(self, value_B: Tensor) -> Tensor:
        """Each sequence's value at its rows, [N]."""
        return value_B.repeat_interleave(self.shape[1])

    def put(self, x_ND: Tensor) -> Tensor:
        """The rows as activations, [B, T, D]."""
        return x_ND.view(*self.shape, -1)

    def chunks(self, vocabulary: int) -> Iterator[slice]:
        """Some rows at a time: as many whole sequences in each, or the same parts of each one."""
        logits = _CHUNK_ON_GPU if self.ids_N.device.type == "cuda" else _CHUNK
        (b, t), most = self.shape, max(1, logits // vocabulary)
        if most >= t:
            size = t * max(
                count for count in range(1, b + 1) if b % count == 0 and count * t <= most
            )
            return (slice(start, start + size) for start in range(0, b * t, size))
        return (
            slice(first + start, first + min(t, start + most))
            for first in range(0, b * t, t)
            for start in range(0, t, most)
        )


class _HeadLoss(Function):
    """Losses [B] of logits sum_i x_i W_i^T; tensors: x_i, W_i, W_i's carrier or None, in turn."""

    @staticmethod
    def forward(
        ctx: Any, targets: _Targets, receivers: list[Receiver | None], *tensors: Any
    ) -> Tensor:
        weights, needs = tensors[1::3], ctx.needs_input_grad[2:]
        fits_weights = any(needs[1::3]) or any(needs[2::3])
        xs = [targets.take(x) for x in tensors[0::3]]
        made = _Made.of(xs, weights, targets, tuple(needs[0::3]), fits_weights)
        weighted_N = made.losses_N * targets.weights_N.to(made.losses_N.dtype)
        ctx.receivers, ctx.targets, ctx.n_terms = receivers, targets, len(xs)
        ctx.save_for_backward(*(xs if fits_weights else ()), *made.x_grads, made.logits_grad)
        return targets.sums(weighted_N)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *saved, logits_grad = ctx.saved_tensors
        targets, needs = ctx.targets, ctx.needs_input_grad[2:]
        scale_N1 = targets.spread(grads[0]).unsqueeze(1)
        out: list[Tensor | None] = [None, None]
        for i, receiver in enumerate(ctx.receivers):
            x_grad = saved[i - ctx.n_terms]
            out.append(None if x_grad is None else targets.put(_times(x_grad, scale_N1)))
            if logits_grad is None:
                out += [None, None]
                continue
            x = _times(saved[i], scale_N1)
            g = logits_grad.to(x.dtype)
            out.append(g.T @ x if needs[3 * i + 1] else None)
            rows = (targets.put(each) for each in (g, x))
            out.append(receiver.products(*rows) if needs[3 * i + 2] else None)
        return tuple(out)


@dataclass(frozen=True, slots=True)
class _Made:
    """What the forward pass makes, chunk by chunk.

    Attributes:
        losses_N: of each row, fp32 at least.
        x_grads: of the activations, [N, D]; None where not needed.
        logits_grad: [N, V], if weights are fitted.
    """

    losses_N: Tensor
    x_grads: list[Tensor | None]
    logits_grad: Tensor | None

    @classmethod
    def of(
        cls,
        xs: Sequence[Tensor],
        weights: Sequence[Tensor],
        targets: _Targets,
        needs_x: tuple[bool, ...],
        fits_weights: bool,
    ) -> _Made:
        n, vocabulary, dtype = len(targets.ids_N), len(weights[0]), _exact(weights[0].dtype)
        pairs = zip(xs, needs_x, strict=True)
        made = cls(
            weights[0].new_empty(n, dtype=dtype),
            [torch.empty_like(x) if need else None for x, need in pairs],
            # In the adapter's type, if there is one: it is what is trained.
            weights[-1].new_empty(n, vocabulary) if fits_weights else None,
        )
        in_place = fits_weights and all(each.dtype == dtype for each in (*xs, *weights))
        for chunk in targets.chunks(vocabulary):
            kept = None if made.logits_grad is None else made.logits_grad[chunk]
            logits = _logits([x[chunk] for x in xs], weights, kept if in_place else None)
            ids_N, weights_N = targets.ids_N[chunk], targets.weights_N[chunk]
            made.losses_N[chunk] = _cross_entropy(logits, ids_N, weights_N)
            made._keep(chunk, logits, weights)
            if kept is not None and not in_place:
                kept.copy_(logits)
        return made

    def _keep(self, chunk: slice, gradient_NV: Tensor, weights: Sequence[Tensor]) -> None:
        for x_grad, weight in zip(self.x_grads, weights, strict=True):
            if x_grad is not None:
                x_grad[chunk] = gradient_NV.to(weight.dtype) @ weight


def _logits(xs: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """fp32 at least; in `out`, if there is one."""
    logits_NV = torch.mm(xs[0], weights[0].T, out=out)
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        logits_NV = torch.add(logits_NV, x @ weight.T, out=out)
    return logits_NV.to(_exact(logits_NV.dtype))


def _cross_entropy(logits_NV: Tensor, ids_N: Tensor, weights_N: Tensor) -> Tensor:
    """[N]; leaves in place of the logits the gradient of `weights` times it."""
    ids_N1, weights_N1 = ids_N.unsqueeze(1), weights_N.unsqueeze(1).to(logits_NV.dtype)
    top_N1 = logits_NV.amax(1, keepdim=True)
    at_target_N1 = logits_NV.gather(1, ids_N1).sub_(top_N1)
    odds_NV = logits_NV.sub_(top_N1).exp_()
    total_N1 = odds_NV.sum(1, keepdim=True)
    odds_NV.mul_(weights_N1 / total_N1).scatter_add_(1, ids_N1, -weights_N1)
    return (total_N1.log() - at_target_N1)[:, 0]


def _times(value: Tensor, scale: Tensor) -> Tensor:
    return (value * scale).to(value.dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
