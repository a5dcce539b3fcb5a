"""Figures of private held-out units, paid for: one Gaussian release of everything that is asked.

Each unit becomes one bounded row: for every model its nats per token and its share of hits, both
mapped to [-1, 1] by public bounds, and, where texts are compared, one 1 among K clusters. Rows are
summed, noised and divided by the public number of units; the mapping is undone afterwards.

Shapes: U units, M models, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from taciturn.engine.evaluation.likelihood import UnitScores
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.statistic import GaussianStatistic


@dataclass(frozen=True, slots=True)
class ReleasedScore:
    """How well a model predicts private units: means over units, with noise.

    Attributes:
        nats_per_token: each unit's own mean, cut off at the public bound, averaged over units.
        token_accuracy: each unit's share of tokens that the model held for the likeliest.
        nats_std: standard deviation of the noise in `nats_per_token`.
        accuracy_std: standard deviation of the noise in `token_accuracy`.
    """

    nats_per_token: float
    token_accuracy: float
    nats_std: float
    accuracy_std: float

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)


@dataclass(frozen=True, slots=True)
class Released:
    """What one release gave: a score per model, the share of units per cluster, and its event."""

    scores: tuple[ReleasedScore, ...]
    shares_K: tuple[float, ...]
    dp_event: DpEvent


def release(
    scores: Sequence[UnitScores],
    clusters_U: Tensor | None,
    n_clusters: int,
    *,
    loss_bound: float,
    noise_multiplier: float,
    stream: SecureStream,
    declared_units: int | None = None,
    before: Callable[[DpEvent], None] = lambda event: None,
) -> Released:
    """Release the mean of every figure with the Gaussian mechanism.

    Guarantee: what `dp_event` says, under addition or removal of one unit, with the number of units
    public. A unit without predicted tokens, or with a figure that is not finite, counts as zero.

    With `declared_units` that is the public number, and how many units there are is private: it is
    a further figure of the same release, and means are over the noised number.

    Args:
        scores: per model, over the same units in the same order. Private.
        clusters_U: each unit's cluster in [0, n_clusters), or None. Private.
        n_clusters: K; public.
        loss_bound: nats per token above this count as this; public.
        declared_units: the public number of units, where it is not how many there are.
        before: is told what it will cost, before it runs.
    """
    rows = [figure for each in scores for figure in _figures(each, loss_bound)]
    if declared_units is not None:
        rows.append(torch.ones(len(scores[0].nats_U), dtype=torch.float64))
    n_units = declared_units or len(scores[0].nats_U)
    columns = [torch.stack(rows, dim=1)]
    if clusters_U is not None:
        columns.append(torch.nn.functional.one_hot(clusters_U, n_clusters).double())
    # Each figure lies in [-1, 1] and one cluster is 1: that bounds a row's norm.
    clip = math.sqrt(len(rows) + (clusters_U is not None))
    mechanism = GaussianStatistic(n_units, clip, noise_multiplier)
    before(mechanism.dp_event)
    private = mechanism.release(torch.cat(columns, dim=1), stream)
    figures, std_of = list(private.mean_K[: 2 * len(scores)]), [private.noise_std] * len(rows)
    if declared_units is not None:
        there = private.mean_K[len(rows) - 1]
        figures, std_of = _over_those_there(figures, there, private.noise_std)
    released = tuple(
        ReleasedScore(
            loss_bound * _share(figures[k]),
            _share(figures[k + 1]),
            loss_bound * std_of[k] / 2,
            std_of[k + 1] / 2,
        )
        for k in range(0, len(figures), 2)
    )
    return Released(released, _distribution(private.mean_K[len(rows) :]), mechanism.dp_event)


def release_shares(
    shares: Sequence[Tensor], *, noise_multiplier: float, stream: SecureStream
) -> tuple[list[float], float, DpEvent]:
    """Release the means of per-unit shares in [0, 1], each a tensor [U], in the same way.

    Returns the means, the standard deviation of their noise, and the event.
    """
    rows_UM = torch.stack([_centred(share) for share in shares], dim=1)
    mechanism = GaussianStatistic(len(rows_UM), math.sqrt(len(shares)), noise_multiplier)
    private = mechanism.release(rows_UM, stream)
    return [_share(mean) for mean in private.mean_K], private.noise_std / 2, mechanism.dp_event


def _figures(scores: UnitScores, loss_bound: float) -> tuple[Tensor, Tensor]:
    nats_U = scores.nats_U / scores.tokens_U
    return _centred(nats_U / loss_bound), _centred(scores.correct_U / scores.tokens_U)


def _centred(share_U: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], cut off outside: half the sensitivity, since the count is public."""
    return 2 * share_U.double().clamp(0.0, 1.0) - 1


def _over_those_there(
    totals: Sequence[float], there: float, noise_std: float
) -> tuple[list[float], list[float]]:
    """Means over the units that are there, and their noise (to first order): each is a quotient of
    two noised sums per declared unit.

    Where so few are there that the noise hides them, the divisor is the noise itself.
    """
    divisor = max(there, noise_std)
    means = [total / divisor for total in totals]
    return means, [noise_std / divisor * math.sqrt(1 + mean**2) for mean in means]


def _share(mean: float) -> float:
    return min(1.0, max(0.0, (mean + 1) / 2))


def _distribution(mean_K: Sequence[float]) -> tuple[float, ...]:
    """Noised shares as a distribution: negative ones are zero, the sum is one."""
    kept = [max(0.0, share) for share in mean_K]
    total = sum(kept)
    return tuple(share / total if total > 0 else 1 / len(kept) for share in kept)
