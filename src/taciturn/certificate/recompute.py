"""Epsilon from events, by Google's accountant alone: none of taciturn's arithmetic is used."""

from __future__ import annotations

import math

from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant

from taciturn.errors import CertificateError

TOLERANCE = 5e-3
"""How far above the stated epsilon the recomputed one may lie, relative: both are upper estimates
on grids of their own."""

# Grid intervals in shares of epsilon: each gives an upper estimate, so the lowest one counts.
_SHARES = (2e-4, 4e-5, 8e-6)
_SMALLEST = 1e-4  # an epsilon below this is not resolved further
_MAX_POINTS = 2**19  # of one step's losses; seconds, and some hundred MB


def recomputed_epsilon(event: DpEvent, stated_epsilon: float, delta: float) -> float:
    """Epsilon of `event` at `delta` by `dp_accounting`'s PLD accountant, add or remove one unit.

    The grid is refined until the estimate confirms `stated_epsilon`, or can no more come down to
    it: a grid five times finer leaves at most a fifth of the error, so a quarter of the last gain
    is to come.
    """
    best, last = math.inf, math.inf
    finest = _largest_loss(event) / _MAX_POINTS
    for share in _SHARES:
        interval = max(share * max(stated_epsilon, _SMALLEST), finest)
        if interval == last:
            break
        last = interval
        accountant = PLDAccountant(value_discretization_interval=interval)
        epsilon = float(accountant.compose(event).get_epsilon(delta))
        to_come, best = (best - epsilon) / 2, min(best, epsilon)
        if best <= stated_epsilon * (1 + TOLERANCE) or best - to_come > stated_epsilon * (
            1 + TOLERANCE
        ):
            break
    return best


def _largest_loss(event: DpEvent) -> float:
    """Reach of a single step's losses: of a Gaussian, ten deviations beyond the mean."""
    match event:
        case dp_event.GaussianDpEvent():
            noise = float(event.noise_multiplier)
            return 0.5 / noise**2 + 10 / noise
        case dp_event.PoissonSampledDpEvent() | dp_event.SelfComposedDpEvent():
            return _largest_loss(event.event)
        case dp_event.ComposedDpEvent():
            return max(map(_largest_loss, event.events), default=0.0)
    return 0.0


def check_epsilon(event: DpEvent, stated_epsilon: float, delta: float) -> float:
    """The recomputed epsilon; raises CertificateError if it exceeds the stated one."""
    epsilon = recomputed_epsilon(event, stated_epsilon, delta)
    if not epsilon <= stated_epsilon * (1 + TOLERANCE):
        raise CertificateError(
            f"the events cost epsilon={epsilon:.6g} at delta={delta:.3g} (dp_accounting, PLD), "
            f"more than the stated {stated_epsilon:.6g}: the certificate promises too much"
        )
    return epsilon
