"""The noise that a budget asks for, and the delta that a number of units asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

from dp_accounting.dp_event import DpEvent
from scipy import optimize

from taciturn.accounting.compose import check_delta_range, renyi_bound
from taciturn.accounting.compose import epsilon as epsilon_of
from taciturn.accounting.events import dpsgd_event
from taciturn.errors import PrivacyParameterError

MIN_EPSILON, MAX_EPSILON = 0.01, 1000.0
MIN_NOISE, MAX_NOISE = 0.01, 1e6

TOLERANCE = 1e-3
"""How far below its target epsilon may stay, relative."""

_LOG_NOISES = math.log(MIN_NOISE), math.log(MAX_NOISE)
_SECANTS, _EVALUATIONS = 10, 60


def noise_multiplier(
    *, target_epsilon: float, delta: float, sampling_probability: float, steps: int
) -> float:
    """The smallest noise multiplier whose `compose.epsilon` is at most `target_epsilon`.

    Args:
        target_epsilon: in [0.01, 1000].
        delta: probability left out of the promise.
        sampling_probability: chance of each unit to join a step, in (0, 1].
        steps: logical steps, at least 1.

    Returns:
        Noise standard deviation over l2 sensitivity. `compose.epsilon` was computed at it and is
        at most `target_epsilon` and at least (1 - TOLERANCE) of it.

    Raises:
        PrivacyParameterError: an argument is outside its bound, or no noise multiplier in
            [0.01, 1e6] gives that epsilon.
    """
    if not MIN_EPSILON <= target_epsilon <= MAX_EPSILON:
        raise PrivacyParameterError(
            f"target_epsilon={target_epsilon:g} must lie in [{MIN_EPSILON:g}, {MAX_EPSILON:g}]; "
            "choose for example 3"
        )
    check_delta_range(delta)

    def run(log_noise: float) -> DpEvent:
        return dpsgd_event(
            sampling_probability=sampling_probability,
            noise_multiplier=math.exp(log_noise),
            steps=steps,
        )

    def excess(bound: Callable[[DpEvent, float], float]) -> Callable[[float], float]:
        return lambda log_noise: _log_ratio(bound(run(log_noise), delta), target_epsilon)

    run(0.0)  # refuses what is outside its bound
    _check_sampled(delta, sampling_probability, steps)
    return math.exp(_search(excess(epsilon_of), _start(excess(renyi_bound))))


def check_delta(delta: float, n_units: int) -> None:
    """Refuse a delta that would let a whole unit be published: it must be below 1 / n_units.

    Raises:
        PrivacyParameterError: delta is not in (0, 1 / n_units).
    """
    _check_units(n_units)
    if not 0 < delta < 1 / n_units:
        raise PrivacyParameterError(
            f"delta={delta:g} must be above 0 and below 1/n_units={1 / n_units:.2g}; "
            f"{'raise' if delta <= 0 else 'lower'} it, for example to {default_delta(n_units):g}"
        )


def default_delta(n_units: int) -> float:
    """The largest power of ten at most 1 / (10 n_units), as the float nearest to it.

    Raises:
        PrivacyParameterError: n_units is below 1.
    """
    _check_units(n_units)
    # The smallest k with 10^k >= 10 n, in integers: a logarithm could round across a power.
    return float(f"1e-{len(str(10 * n_units - 1))}")


def _start(excess: Callable[[float], float]) -> float:
    """Log-noise at which the Rényi bound meets the target: never too small."""
    low, high = _LOG_NOISES
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    return float(optimize.brentq(excess, low, high, xtol=0.02))


def _search(excess: Callable[[float], float], start: float) -> float:
    """Log-noise at which `excess`, falling, lies in [-TOLERANCE, 0]: secants within a bracket.

    Where epsilon jumps, the upper end of the jump.
    """
    low, high = _LOG_NOISES
    log_noise, slope, last = start, -1.5, (math.nan, math.nan)
    for evaluation in range(_EVALUATIONS):
        value = excess(log_noise)
        if -TOLERANCE <= value <= 0:
            return log_noise
        low, high = (log_noise, high) if value > 0 else (low, log_noise)
        if high - low < 1e-9:
            break
        if last[0] != log_noise and math.isfinite(last[1]):
            slope = min((value - last[1]) / (log_noise - last[0]), -0.2)
        last = log_noise, value
        log_noise -= (value + TOLERANCE / 2) / slope
        # Where epsilon jumps, secants stall: then halve.
        if not low < log_noise < high or evaluation >= _SECANTS:
            log_noise = (low + high) / 2
    if high >= _LOG_NOISES[1] - 1e-6:
        raise PrivacyParameterError(
            f"a noise multiplier of {MAX_NOISE:g} is not enough for this target_epsilon; "
            "take fewer steps, a smaller batch or a larger epsilon"
        )
    return high


def _check_sampled(delta: float, sampling_probability: float, steps: int) -> None:
    """Refuse a run in which a unit is sampled at all with a chance of at most delta: such a unit
    could be published as it is."""
    chance = 1.0
    if sampling_probability < 1:
        chance = -math.expm1(steps * math.log1p(-sampling_probability))
    if chance <= delta:
        raise PrivacyParameterError(
            f"delta={delta:g} must be below {chance:.2g}, the chance that a unit is sampled at "
            "all, or no noise would be needed; lower delta"
        )


def _log_ratio(epsilon: float, target: float) -> float:
    return math.log(max(epsilon, 1e-9) / target) if epsilon < math.inf else 100.0


def _check_units(n_units: int) -> None:
    if n_units < 1:
        raise PrivacyParameterError(
            f"n_units={n_units} must be at least 1; there is no one to protect"
        )
