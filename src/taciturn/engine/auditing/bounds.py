"""Proof about epsilon from one run: right guesses of who was in, turned into a lower bound.

The game: M canaries are each in the data by a fair coin of their own; whoever sees the result
guesses about R of them (R fixed beforehand) and is right about V. A private mechanism makes many
right guesses improbable; the bound is the largest epsilon at which what was seen is too improbable.

Two bounds on P(V >= v) hold at once, so the smaller one counts and nothing is to be corrected for:

- `approximate_dp_tail`: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2;
- `tail`: Mahloujifar, Melis, Chaudhuri 2024 (arXiv 2410.22235), for any trade-off function.

The second in short. Let f be the convex, symmetric trade-off function of adding or removing one
canary, F = 1 - f, and p_v = P(V = v). Flip one canary's coin: "guessed right, v right in all"
becomes "guessed wrong, v - 1 right in all". Averaged over canaries and coins (F is concave),

    sum_{i >= v} i p_i / M  <=  F( sum_{i >= v} (R - i + 1) p_{i-1} / M )        for v = 1 .. R.

The averages are over all M canaries, not over R: which ones are guessed about may depend on the
result. If P(V >= v) = t were possible, these inequalities would bound p_{v-1}, p_{v-2}, ... from
below; if they then add up to more than 1, it was not. Mass above v can be moved to v without
breaking an inequality below, and both sums grow with the ones before, so the tightest choice at
each step gives the least total. Nothing says that canaries are told apart independently of each
other, so even many of them do not bring the bound up to the truth.

Counts and probabilities only; nothing here is private by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from taciturn.accounting.gaussian import gaussian_epsilon

# Relative margin for the rounding of a few thousand floating-point additions.
_ROUNDING = 1e-9
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Guesses:
    """Outcome of one game of guesses.

    Attributes:
        canaries: M, in or out by independent fair coins.
        count: R, the number of guesses, fixed before anything was seen; at most M.
        correct: V, how many of them were right.

    Raises:
        ValueError: not 0 <= correct <= count <= canaries, or no canaries.
    """

    canaries: int
    count: int
    correct: int

    def __post_init__(self) -> None:
        if not (0 <= self.correct <= self.count <= self.canaries and self.canaries > 0):
            raise ValueError(
                f"correct={self.correct}, count={self.count}, canaries={self.canaries} must "
                "satisfy 0 <= correct <= count <= canaries, and there must be canaries"
            )


class TradeOff(Protocol):
    """A trade-off function f, convex and symmetric, by the inverse of F = 1 - f."""

    def least_error(self, power: float) -> float:
        """The least false positive rate of a test of true positive rate `power`, in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class ApproximateDp:
    """Trade-off function of (epsilon, delta)-DP (Dong, Roth, Su 2022, proposition 3)."""

    epsilon: float
    delta: float

    def least_error(self, power: float) -> float:
        """See TradeOff."""
        rising = math.exp(-self.epsilon) * (power - self.delta)
        turned = 1 - self.delta - math.exp(min(self.epsilon, 700.0)) * (1 - power)
        return min(1.0, max(0.0, rising, turned))


@dataclass(frozen=True, slots=True)
class GaussianDp:
    """Trade-off function of a Gaussian mechanism, N(0, 1) against N(mu, 1)."""

    mu: float

    def least_error(self, power: float) -> float:
        """See TradeOff."""
        return float(special.ndtr(special.ndtri(power) - self.mu))


def guess(scores_M: NDArray[np.float64], included_M: NDArray[np.bool_], count: int) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, as many of each; abstain between.

    Equal scores are told apart by their place, which must not depend on the coins.

    Args:
        scores_M: higher where a canary seems to have been in; from the result alone.
        included_M: the coins.
        count: guesses in all; an odd one is an "in".

    Raises:
        ValueError: a score is not a number, or `count` is not in [1, M].
    """
    if np.isnan(scores_M).any():
        raise ValueError("a score is not a number; give it the lowest or highest value instead")
    if not 1 <= count <= len(scores_M):
        raise ValueError(f"count={count} must lie in [1, {len(scores_M)}]")
    order = np.argsort(scores_M, kind="stable")
    n_out = count // 2
    correct = (
        included_M[order[len(order) - (count - n_out) :]].sum() + (~included_M[order[:n_out]]).sum()
    )
    return Guesses(len(scores_M), count, int(correct))


def guess_numbers(canaries: int) -> tuple[int, ...]:
    """Numbers of guesses that an audit makes of so many canaries: all, half, a quarter, an eighth.

    Fixed here, so that nobody chooses after seeing which number does best; the confidence is shared
    among them (`epsilon_lower_bound`).
    """
    return tuple(sorted({max(1, canaries >> shift) for shift in range(4)}, reverse=True))


def approximate_dp_tail(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Upper bound on P(V >= correct) under (epsilon, delta)-DP; theorem 5.2 and appendix D.

    A Binomial(R, e^epsilon / (1 + e^epsilon)) tail, and 2 M delta times the largest
    P(v - i <= Binomial < v) / i. M, not R: a leak of probability delta may choose what is guessed.
    """
    count, correct = guesses.count, guesses.correct
    if correct == 0:
        return 1.0
    accuracy = float(special.expit(epsilon))
    tail = float(stats.binom.sf(correct - 1, count, accuracy))
    if delta == 0:
        return tail
    below = np.cumsum(stats.binom.pmf(np.arange(correct)[::-1], count, accuracy))
    steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * guesses.canaries * delta * steepest)


def contradicts(guesses: Guesses, curve: TradeOff, probability: float) -> bool:
    """True if P(V >= correct) = `probability` is impossible for a mechanism with this `curve`.

    Then it is less, since what the inequalities ask for grows with it. Rounding errs to False.
    """
    share = guesses.count / guesses.canaries
    power = probability * guesses.correct / guesses.canaries
    error = probability * share - power
    limit = share * (1 + _ROUNDING)
    for correct in range(guesses.correct - 1, -1, -1):
        if power + error > limit:
            return True
        least_error = curve.least_error(min(power, 1.0))
        if least_error <= error:
            return False  # so are all that follow: neither sum grows any more
        power += correct / (guesses.count - correct) * (least_error - error)
        error = least_error
    return power + error > limit


def tail(guesses: Guesses, curve: TradeOff) -> float:
    """Upper bound on P(V >= correct) for a mechanism with this trade-off function."""
    if not contradicts(guesses, curve, 1.0):
        return 1.0
    possible, impossible = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (possible + impossible) / 2
        if contradicts(guesses, curve, middle):
            impossible = middle
        else:
            possible = middle
    return impossible


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of so many correct guesses under (epsilon, delta)-DP."""
    steinke = approximate_dp_tail(guesses, epsilon, delta)
    return min(steinke, tail(guesses, ApproximateDp(epsilon, delta)))


def epsilon_lower_bound(games: Sequence[Guesses], delta: float, confidence: float) -> float:
    """The epsilon that the mechanism exceeds, with `confidence`, at this delta; 0 if none shows.

    Guarantee: for a mechanism that is (epsilon, delta)-DP under addition or removal of one
    canary, the bound is above epsilon with probability at most 1 - confidence, over coins and
    mechanism. Nothing else is assumed.

    Args:
        games: the same canaries with different numbers of guesses, fixed beforehand. 1 - confidence
            is split evenly among them (Bonferroni).
        delta: in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: an argument is outside its bound.
    """
    level = _level(games, confidence)
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta:g} must lie in [0, 1)")

    def refuted(game: Guesses, epsilon: float) -> bool:
        return approximate_dp_tail(game, epsilon, delta) < level or contradicts(
            game, ApproximateDp(epsilon, delta), level
        )

    return max(_largest(partial(refuted, game)) for game in games)


def gaussian_lower_bound(games: Sequence[Guesses], confidence: float) -> float:
    """The mu that the mechanism exceeds, with `confidence`, if its trade-off function is Gaussian.

    Tighter than `epsilon_lower_bound`, which must allow for mechanisms that give some canaries away
    with near certainty. It holds for mechanisms of the Gaussian shape only: one Gaussian step or
    several, and DP-SGD as far as its trade-off function is near a Gaussian one.
    """
    level = _level(games, confidence)

    def refuted(game: Guesses, mu: float) -> bool:
        return contradicts(game, GaussianDp(mu), level)

    return max(_largest(partial(refuted, game)) for game in games)


def gaussian_epsilon_lower_bound(
    games: Sequence[Guesses], delta: float, confidence: float
) -> float:
    """`gaussian_lower_bound` as epsilon at `delta`, in (0, 1)."""
    mu = gaussian_lower_bound(games, confidence)
    return gaussian_epsilon(1 / mu, delta) if mu > 0 else 0.0


def can_show(canaries: int, delta: float, confidence: float) -> bool:
    """True if so many canaries could give a bound above 0, if all guesses were right."""
    games = [Guesses(canaries, count, count) for count in guess_numbers(canaries)]
    return epsilon_lower_bound(games, delta, confidence) > 0


def fewest_canaries(delta: float, confidence: float) -> int | None:
    """The least number of canaries that could give a bound above 0; None if it is not below 200.

    Then `delta` is too large: a leak of that probability would explain all guesses being right.
    """
    return next((n for n in range(1, 200) if can_show(n, delta, confidence)), None)


def _level(games: Sequence[Guesses], confidence: float) -> float:
    if not games:
        raise ValueError("there is no game to draw a conclusion from; play at least one")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence:g} must lie in (0, 1), for example 0.95")
    return (1 - confidence) / len(games)


def _largest(refuted: Callable[[float], bool]) -> float:
    """The largest refuted value, up to a small error below; 0 if 0 is not refuted."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low
