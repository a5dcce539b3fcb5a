"""Figures of private held-out units, paid for: one Gaussian release of everything that is asked.

Each unit becomes one bounded row: the base model's nats per token and share of hits, by how much
the fitted model is better at both, of pairs of answers the share that it ranks as people did, and,
where texts are compared, one 1 among K clusters. Figures
are mapped to [-1, 1] by public bounds and weighted (`planning/release.py`). Rows are summed, noised
and divided by the public number of units; weights and mapping are undone afterwards.

Shapes: U units, K clusters.
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
from taciturn.planning.release import ACCURACY_GAIN_BOUND, GAIN_BOUND, RowWeights


@dataclass(frozen=True, slots=True)
class ReleasedScore:
    """Scores of a model on private units: means over units, with noise.

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
class ReleasedGain:
    """Gain of the fitted model over the base on private units: paired means.

    Attributes:
        nats_per_token: each unit's own difference, within GAIN_BOUND, averaged over units.
        token_accuracy: each unit's own difference, within ACCURACY_GAIN_BOUND.
        nats_std, accuracy_std: standard deviations of the noise in them.
    """

    nats_per_token: float
    token_accuracy: float
    nats_std: float
    accuracy_std: float


@dataclass(frozen=True, slots=True)
class ReleasedPreferences:
    """Learnt preference on private units of pairs, with noise.

    Attributes:
        accuracy: each unit's share of pairs that are ranked as people did, averaged over units.
        accuracy_std: standard deviation of the noise in it.
    """

    accuracy: float
    accuracy_std: float


@dataclass(frozen=True, slots=True)
class ReleasedScores:
    """Outcome of one release: a score per model, the gain of the second over the first, the share
    of units per cluster, its event, and, of pairs of answers, the learnt preference."""

    scores: tuple[ReleasedScore, ...]
    gain: ReleasedGain | None
    shares_K: tuple[float, ...]
    dp_event: DpEvent
    preferences: ReleasedPreferences | None = None


def release(
    scores: Sequence[UnitScores],
    clusters_U: Tensor | None,
    n_clusters: int,
    *,
    loss_bound: float,
    noise_multiplier: float,
    stream: SecureStream,
    declared_units: int | None = None,
    preferred_U: Tensor | None = None,
    before: Callable[[DpEvent], None] = lambda event: None,
) -> ReleasedScores:
    """Release the mean of every figure with the Gaussian mechanism.

    Guarantee: what `dp_event` says, under addition or removal of one unit, with the number of units
    public. A unit without predicted tokens, or with a figure that is not finite, counts as zero.

    With `declared_units` that is the public number, and how many units there are is private: it is
    a further figure of the same release, and means are over the noised number.

    Args:
        scores: of the base model, or of it and the fitted one, over the same units in the same
            order. Private.
        clusters_U: each unit's cluster in [0, n_clusters), or None. Private.
        n_clusters: K; public.
        loss_bound: nats per token above this count as this; public.
        declared_units: the public number of units, where it is not how many there are.
        preferred_U: each unit's share of pairs that the fitted model ranks as people did, or None.
            Private.
        before: is told what it will cost, before it runs.
    """
    base, *fitted = scores
    counted, compared = declared_units is not None, clusters_U is not None
    pairs = preferred_U is not None
    weights = RowWeights.of(paired=bool(fitted), counted=counted, pairs=pairs)
    columns = [
        weights.nats * _centred(_nats(base) / loss_bound),
        weights.accuracy * _centred(_accuracy(base)),
    ]
    if fitted:
        nats_U = _bounded((_nats(base) - _nats(fitted[0])) / GAIN_BOUND)
        hits_U = _bounded((_accuracy(fitted[0]) - _accuracy(base)) / ACCURACY_GAIN_BOUND)
        columns += [weights.gain * nats_U, weights.accuracy_gain * hits_U]
    if preferred_U is not None:
        columns.append(weights.preferred * _centred(preferred_U))
    if counted:
        columns.append(torch.full_like(columns[0], weights.presence))
    rows = torch.stack(columns, dim=1)
    if clusters_U is not None:
        clusters = torch.nn.functional.one_hot(clusters_U, n_clusters).double()
        rows = torch.cat([rows, clusters], dim=1)
    n_units = declared_units or len(base.nats_U)
    # Each figure lies in [-1, 1] and one cluster is 1: that bounds a row's norm.
    clip = weights.norm(clusters=compared)
    mechanism = GaussianStatistic(n_units, clip, noise_multiplier)
    before(mechanism.dp_event)
    private = mechanism.release(rows, stream)
    means = _Means(private.mean_K, private.noise_std, weights.presence, len(columns) - 1)
    nats, nats_std = means.at(0, weights.nats)
    accuracy, accuracy_std = means.at(1, weights.accuracy)
    score = ReleasedScore(
        loss_bound * _share(nats), _share(accuracy), loss_bound * nats_std / 2, accuracy_std / 2
    )
    gain = None
    if fitted:
        nats, nats_std = means.at(2, weights.gain)
        accuracy, accuracy_std = means.at(3, weights.accuracy_gain)
        gain = ReleasedGain(
            GAIN_BOUND * max(-1.0, min(1.0, nats)),
            ACCURACY_GAIN_BOUND * max(-1.0, min(1.0, accuracy)),
            GAIN_BOUND * nats_std,
            ACCURACY_GAIN_BOUND * accuracy_std,
        )
    preferences = None
    if pairs:
        accuracy, accuracy_std = means.at(4, weights.preferred)
        preferences = ReleasedPreferences(_share(accuracy), accuracy_std / 2)
    scores_of = (score,) if gain is None else (score, _gained(score, gain))
    shares_K = _distribution(private.mean_K[len(columns) :])
    return ReleasedScores(scores_of, gain, shares_K, mechanism.dp_event, preferences)


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


def _nats(scores: UnitScores) -> Tensor:
    """Nats per token of each unit, [U]."""
    return scores.nats_U / scores.tokens_U


def _accuracy(scores: UnitScores) -> Tensor:
    """Share of hits of each unit, [U]."""
    return scores.correct_U / scores.tokens_U


def _bounded(figure_U: Tensor) -> Tensor:
    """Within [-1, 1]; where a model gives no number, the unit's row counts as zero."""
    return figure_U.double().clamp(-1.0, 1.0)


def _gained(base: ReleasedScore, gain: ReleasedGain) -> ReleasedScore:
    """The fitted model's figures: those of the base, and what was gained."""
    return ReleasedScore(
        max(0.0, base.nats_per_token - gain.nats_per_token),
        min(1.0, max(0.0, base.token_accuracy + gain.token_accuracy)),
        math.hypot(base.nats_std, gain.nats_std),
        math.hypot(base.accuracy_std, gain.accuracy_std),
    )


def _centred(share_U: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], cut off outside: half the sensitivity, since the count is public."""
    return 2 * share_U.double().clamp(0.0, 1.0) - 1


@dataclass(frozen=True, slots=True)
class _Means:
    """A noised row, read figure by figure.

    Attributes:
        std: of the noise in each value.
        there: weight of the count of units, which is at place `count`; 0 where that is public.
    """

    values: Sequence[float]
    std: float
    presence: float
    count: int

    def at(self, place: int, weight: float) -> tuple[float, float]:
        """A figure's mean over the units that are there, and its noise (to first order): a quotient
        of two noised sums, where the number of units is private.

        Where so few are there that the noise hides them, the divisor is the noise itself.
        """
        total, std = self.values[place] / weight, self.std / weight
        if not self.presence:
            return total, std
        count_std = self.std / self.presence
        divisor = max(self.values[self.count] / self.presence, count_std)
        mean = total / divisor
        return mean, math.hypot(std, mean * count_std) / divisor


def _share(mean: float) -> float:
    return min(1.0, max(0.0, (mean + 1) / 2))


def _distribution(mean_K: Sequence[float]) -> tuple[float, ...]:
    """Noised shares as a distribution: negative ones are zero, the sum is one."""
    shares = [max(0.0, share) for share in mean_K]
    total = sum(shares)
    return tuple(share / total if total > 0 else 1 / len(shares) for share in shares)
