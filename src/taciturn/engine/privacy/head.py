"""Output layer and cross-entropy in one, in chunks of rows: never all logits at once.

The gradient of cross-entropy is known as soon as the logits are, so it is made in the forward pass,
in their place, while they are in the processor's cache (as in Liger Kernel, Hsu et al. 2024). Rows
without a target, such as padding and prompts, are left out.

Shapes: B sequences, T tokens, N rows, D features, V vocabulary; of packed rows, their number and
width stand for B and T, and there are S sequences.
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
from taciturn.engine.privacy.packing import Packing
from taciturn.engine.privacy.receiver import Receiver

# Logits made at once: 2^22 of them are 16 MiB. With a quarter, products of so few rows are slower.
_CHUNK = 1 << 22
# Rows of a sequence are a multiple of this where they can be: products of 63 rows take half as long
# again as those of 64.
_EVEN = 8


def head_cross_entropy(
    terms: Sequence[tuple[Tensor, Tensor]],
    input_ids_BT: Tensor,
    loss_weights_BT: Tensor,
    packing: Packing | None = None,
) -> Tensor:
    """Sum over each sequence of weight times next-token cross-entropy; [B], fp32 at least.

    A position of weight zero plays no part, whatever stands there, even NaN. Lifted weights get
    each unit's own gradient.

    Args:
        terms: activations [B, T, D_i] and weights [V, D_i]; the logits are the sum of x W^T. One
            for a plain output layer, two for one with a low-rank adapter.
        packing: the activations are of its rows, in place of those of ids and weights; [S].
    """
    tensors: list[Tensor | None] = []
    for x_BTD, weight_VD in terms:
        if isinstance(weight_VD, LiftedParameter):
            tensors += [x_BTD, weight_VD.value, weight_VD.carrier]
        else:
            tensors += [x_BTD, weight_VD, None]
    receivers = [getattr(weight, "receiver", None) for _, weight in terms]
    fits_weights = any(
        weight is not None and weight.requires_grad for i in (1, 2) for weight in tensors[i::3]
    )
    if packing is None:
        targets = _Targets.of(input_ids_BT, loss_weights_BT, as_many=fits_weights)
    else:
        targets = _Targets.of_packed(packing, everywhere=fits_weights)
    return apply(_HeadLoss, targets, receivers, *tensors)


@dataclass(frozen=True, slots=True)
class _Targets:
    """The rows of a batch that predict something.

    Attributes:
        rows_N: their positions among the B * T rows, each once.
        ids_N: what they should predict.
        weights_N: how much they count.
        sequence_N: to which sequence's loss they add; one after the last for padding.
        sequences: how many sequences there are.
        shape: (B, T).
        filled: some of the rows count zero, and stand there to make as many for each sequence.
    """

    rows_N: Tensor
    ids_N: Tensor
    weights_N: Tensor
    sequence_N: Tensor
    sequences: int
    shape: tuple[int, int]
    filled: bool

    @classmethod
    def of(cls, input_ids_BT: Tensor, loss_weights_BT: Tensor, *, as_many: bool) -> _Targets:
        """The rows with a weight; if `as_many`, [B, R] of them, R being what one sequence needs."""
        b, t = input_ids_BT.shape
        # The row before a position predicts it; position 0 is predicted by none.
        ids_BT, weights_BT = (
            F.pad(each[:, 1:], (0, 1)) for each in (input_ids_BT, loss_weights_BT)
        )
        rows_N = weights_BT.flatten().nonzero()[:, 0]
        if as_many:
            empty_BT = weights_BT == 0
            most = min(t, _EVEN * -(-max(1, t - int(empty_BT.sum(1).min())) // _EVEN))
            first_B1 = torch.arange(0, b * t, t, device=rows_N.device).unsqueeze(1)
            rows_N = (empty_BT.byte().argsort(dim=1, stable=True)[:, :most] + first_B1).flatten()
        ids_N, weights_N = ids_BT.flatten()[rows_N], weights_BT.flatten()[rows_N]
        filled = as_many and not bool(weights_N.all())
        return cls(rows_N, ids_N, weights_N, rows_N // t, b, (b, t), filled)

    @classmethod
    def of_packed(cls, packing: Packing, *, everywhere: bool) -> _Targets:
        """The rows with a weight; if `everywhere`, all of them."""
        ids_N, weights_N = (
            F.pad(each[:, 1:], (0, 1)).flatten()
            for each in (packing.input_ids_RL, packing.loss_weights_RL)
        )
        sequence_N, sequences = packing.record_RL.flatten(), len(packing.lengths)
        if everywhere:
            rows_N = torch.arange(len(ids_N), device=ids_N.device)
        else:
            rows_N = weights_N.nonzero()[:, 0]
            ids_N, weights_N, sequence_N = ids_N[rows_N], weights_N[rows_N], sequence_N[rows_N]
        return cls(rows_N, ids_N, weights_N, sequence_N, sequences, packing.shape, everywhere)

    def sums(self, value_N: Tensor) -> Tensor:
        """Of each sequence's rows, [S]."""
        sums = value_N.new_zeros(self.sequences + 1)
        return sums.index_add_(0, self.sequence_N, value_N)[: self.sequences]

    def spread(self, value_S: Tensor) -> Tensor:
        """Each sequence's value at its rows, [N]; zero for padding."""
        return F.pad(value_S, (0, 1))[self.sequence_N]

    def take(self, x_BTD: Tensor) -> Tensor:
        """Activations [N, D], zeros where nothing counts, even in place of NaN."""
        x_ND = x_BTD.flatten(0, 1)[self.rows_N]
        return x_ND.masked_fill_((self.weights_N == 0).unsqueeze(1), 0.0) if self.filled else x_ND

    def put(self, x_ND: Tensor) -> Tensor:
        """[B, T, D], zeros in the rows that are not here."""
        b, t = self.shape
        out = x_ND.new_zeros(b * t, x_ND.shape[1])
        return out.index_copy_(0, self.rows_N, x_ND).view(b, t, -1)

    def chunks(self, vocabulary: int) -> Iterator[slice]:
        """Some rows at a time."""
        size = max(1, _CHUNK // vocabulary)
        return (slice(start, start + size) for start in range(0, len(self.rows_N), size))


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
            rows = (each.unflatten(0, (targets.shape[0], -1)) for each in (g, x))
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
        n, vocabulary, dtype = len(targets.rows_N), len(weights[0]), _exact(weights[0].dtype)
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
