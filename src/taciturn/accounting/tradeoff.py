"""Limits of what an attacker can find out: error rates of every membership test, bounded by events.

Whoever has the released model, and everything else there is to know but one unit's membership, may
guess whether that unit's records were used. The trade-off function f(alpha) is the smallest
false-negative rate of any such guess whose false-positive rate is alpha (Dong, Roth & Su 2022,
definition 2.1). By Neyman and Pearson the best guess is a threshold on the privacy loss, so f
follows from the composed privacy loss distribution without a detour over (epsilon, delta), which
says less (Kulynych et al. 2024, "Attack-aware noise calibration").

The losses are those of `privacy_loss`, composed without a tilt. Their divergence is an upper bound
at every epsilon, and a bound delta at epsilon says TPR <= delta + e^epsilon FPR; the curve here is
the lowest of all these lines. So the attacker is never underestimated, however coarse the grid, and
the grid is refined until that no longer matters.

Shapes: L points of a loss grid, V vertices of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from dp_accounting.dp_event import DpEvent

from taciturn.accounting import renyi
from taciturn.accounting.compose import Steps, counted_steps, merged
from taciturn.accounting.convolution import Tail, composed_tail
from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import Direction, connect_the_dots, loss_range, quadrature
from taciturn.accounting.tilting import Tilted, extent
from taciturn.errors import PrivacyParameterError

_LEAST = 1e-9  # true-positive rates below this are not resolved
_ACCURACY = 2e-5  # the share of the composed loss's variance that a grid may add
_SETTLED = 1e-3  # a curve is fine enough once a grid four times finer lowers it by less, relative
_REFINEMENTS = 4
_MAX_POINTS = 2**20
_NO_NOISE = 0.01  # a Gaussian step with less hides nothing: at FPR 1e-300, FNR is below 1e-300
_PROBES = np.concatenate((np.logspace(-6, -1, 26), np.linspace(0.1, 1, 19)))


class Curve(NamedTuple):
    """A piecewise linear bound on TPR over FPR; both ascend from FPR 0 to (1, 1)."""

    fpr_V: Floats
    tpr_V: Floats

    def at(self, fpr: Floats | float) -> Floats:
        """The bound at any FPR in [0, 1]."""
        return np.asarray(np.interp(fpr, self.fpr_V, self.tpr_V), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """Bounds on any attacker who must tell whether one unit was in the data.

    Attributes:
        curves: the largest TPR by FPR, of an attacker whose positive verdict is "it was in" and of
            one whose verdict is "it was not"; bounds on this object hold for both.
    """

    curves: tuple[Curve, ...]

    def true_positive_rate(self, fpr: float) -> float:
        """The largest share of true verdicts among the positives, if `fpr` of negatives get one.

        Raises:
            PrivacyParameterError: `fpr` is outside [0, 1].
        """
        if not 0 <= fpr <= 1:
            raise PrivacyParameterError(
                f"false-positive rate {fpr:g} must lie in [0, 1]; 0.01 is one false alarm in 100"
            )
        return max(float(curve.at(fpr)) for curve in self.curves)

    def false_negative_rate(self, alpha: float) -> float:
        """f(alpha): the smallest false-negative rate at a false-positive rate of `alpha`.

        Raises:
            PrivacyParameterError: `alpha` is outside [0, 1].
        """
        return 1 - self.true_positive_rate(alpha)

    @property
    def advantage(self) -> float:
        """The largest TPR - FPR: 0 if nothing can be told, 1 if everything can."""
        return max(float((curve.tpr_V - curve.fpr_V).max()) for curve in self.curves)


def tradeoff(event: DpEvent) -> Tradeoff:
    """Trade-off of an attacker after `event`, for adding and for removing one unit.

    An upper bound on the attacker everywhere, up to floating-point rounding (1e-12). Within a
    relative 1e-3 of the exact true-positive rate at false-positive rates from 1e-6 on, where every
    noise multiplier is at least 0.3, every sampling probability at least 1e-4 and the number of
    steps at most 100,000; outside of that it may be looser.

    Args:
        event: Gaussian and Poisson-sampled Gaussian steps, in any composition.

    Raises:
        PrivacyParameterError: a value of the event is outside its bound.
        GuaranteeError: an event of a kind that cannot be accounted for.
    """
    steps = counted_steps(event)
    if steps is None:
        return Tradeoff((_curve([0.0], [1.0]),))
    if not steps:
        return Tradeoff((_curve([0.0], [0.0]),))
    distinct = merged(steps)
    first = next(iter(distinct))
    if first.sampling_probability == 1 and first.noise_multiplier < _NO_NOISE:
        return Tradeoff((_curve([0.0], [1.0]),))
    return Tradeoff((_settled("remove", distinct), _settled("add", distinct)))


def from_epsilon_delta(epsilon: float, delta: float) -> Tradeoff:
    """Trade-off of an attacker if nothing but (epsilon, delta) is known: looser than that of the
    event.

    Two lines bound the true-positive rate (Wasserman & Zhou 2010; Kairouz et al. 2015, theorem
    2.1): delta + e^epsilon FPR, and the same with the verdicts exchanged.

    Raises:
        PrivacyParameterError: epsilon is below 0 or not a number, or delta outside [0, 1].
    """
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise PrivacyParameterError(
            f"epsilon={epsilon:g}, delta={delta:g} must lie in [0, inf] and [0, 1]; take them from "
            "a privacy report"
        )
    odds = math.exp(-epsilon)
    crossing = (1 - delta) * odds / (1 + odds), delta + (1 - delta) / (1 + odds)
    return Tradeoff((_curve([0.0, crossing[0], 1 - delta], [delta, crossing[1], 1.0]),))


def _settled(direction: Direction, steps: Steps) -> Curve:
    """The curve on a grid that is fine enough: a finer one hardly lowers it."""
    interval, finest = _intervals(direction, steps)
    curve = _on_grid(direction, steps, max(interval, finest))
    for _ in range(_REFINEMENTS):
        interval /= 4
        if interval < finest:
            break
        coarse, curve = curve, _on_grid(direction, steps, interval)
        if (coarse.at(_PROBES) <= curve.at(_PROBES) * (1 + _SETTLED)).all():
            break
    return curve


def _on_grid(direction: Direction, steps: Steps, interval: float) -> Curve:
    grids = [(connect_the_dots(kind, interval, direction), count) for kind, count in steps.items()]
    return _neyman_pearson(composed_tail(grids, 0.0, _LEAST))


def _neyman_pearson(tail: Tail) -> Curve:
    """Positive above a threshold on the loss: TPR is the mass there, FPR that of e^-loss times it.

    From the lowest loss that is known on, all positives count as found.
    """
    downward = tail.masses_L[::-1], tail.losses_L[::-1]
    tpr_V = tail.infinity_mass + np.cumsum(downward[0])
    fpr_V = np.cumsum(downward[0] * np.exp(-np.maximum(downward[1], -700.0)))
    return _curve([0.0, *fpr_V, fpr_V[-1]], [tail.infinity_mass, *tpr_V, 1.0])


def _curve(fpr: Sequence[float], tpr: Sequence[float]) -> Curve:
    """Vertices, cut at 1 (rounding is upwards), and the end of every curve: (1, 1)."""
    fpr_V, tpr_V = (np.minimum([*values, 1.0], 1.0) for values in (fpr, tpr))
    return Curve(fpr_V, tpr_V)


def _intervals(direction: Direction, steps: Steps) -> tuple[float, float]:
    """A grid interval to begin with, and the finest one whose grids are not too long.

    The first widens the composed loss by a share of what it is wide anyway.
    """
    samples = [(quadrature(kind, direction), count) for kind, count in steps.items()]
    parts = [Tilted.of(sample.losses_X, sample.log_masses_X, 0.0, n) for sample, n in samples]
    ranges = [loss_range(kind, direction) for kind in steps]
    widest = max(max(high, 0.0) - min(low, 0.0) for low, high in ranges)
    finest = max(widest, extent(parts, 0.0, _LEAST, 1e-12).length) / _MAX_POINTS
    deviation = max(renyi.composed_deviation(samples, 0.0), finest)
    split = renyi.grid_interval(samples, 0.0, _ACCURACY * deviation**2)
    return min(split, deviation / 50), finest
