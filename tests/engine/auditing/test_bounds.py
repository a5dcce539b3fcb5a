"""Bounds of a one-run audit: never above the truth more often than they say, and not idle.

Mechanisms whose epsilon is known: randomised response, randomised response that leaks with
probability delta, and a Gaussian one-shot.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from taciturn.accounting.gaussian import gaussian_epsilon
from taciturn.engine.auditing.bounds import (
    ApproximateDp,
    GaussianDp,
    Guesses,
    TradeOff,
    approximate_dp_tail,
    contradicts,
    epsilon_lower_bound,
    fewest_canaries,
    gaussian_epsilon_lower_bound,
    gaussian_lower_bound,
    guess,
    guess_numbers,
    p_value,
    tail,
)

LEVEL = 0.05
Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]


def played(scores: Scores, coins: Coins) -> list[Guesses]:
    return [guess(scores, coins, made) for made in guess_numbers(len(scores))]


def violations(
    rounds: int,
    canaries: int,
    mechanism: Callable[[Coins, np.random.Generator], Scores],
    bound: Callable[[Scores, Coins], float],
    truth: float,
) -> int:
    """In how many of `rounds` simulated audits the bound was above the truth."""
    rng = np.random.default_rng(2305)
    found = 0
    for _ in range(rounds):
        coins = rng.random(canaries) < 0.5
        found += bound(mechanism(coins, rng), coins) > truth
    return found


def acceptable(rounds: int) -> int:
    """More violations than this have probability below 1e-6 if each has probability LEVEL."""
    return int(stats.binom.isf(1e-6, rounds, LEVEL))


def gaussian(mu: float) -> Callable[[Coins, np.random.Generator], Scores]:
    """One canary per coordinate, each of sensitivity 1, noise 1 / mu."""
    return lambda coins, rng: mu * coins + rng.standard_normal(len(coins))


def leaking(epsilon: float, delta: float) -> Callable[[Coins, np.random.Generator], Scores]:
    """Randomised response that shows a coin, marked as sure, with probability delta."""

    def mechanism(coins: Coins, rng: np.random.Generator) -> Scores:
        honest = rng.random(len(coins)) < 1 / (1 + np.exp(-epsilon))
        sure = rng.random(len(coins)) < delta
        said = np.where(honest | sure, coins, ~coins)
        return np.where(said, 1.0, -1.0) * np.where(sure, 2.0, 1.0)

    return mechanism


def refuted_up_to(refuted: Callable[[float], bool]) -> float:
    if not refuted(0.0):
        return 0.0
    return float(optimize.bisect(lambda value: 0.5 - refuted(value), 0.0, 20.0, xtol=1e-9))


@pytest.mark.parametrize(
    ("guesses", "delta", "published"),
    [
        (Guesses(1000, 100, 75), 1e-4, 0.673),
        (Guesses(100_000, 1510, 1439), 1e-5, 2.675),
    ],
)
def test_it_prints_what_steinke_et_al_print(
    guesses: Guesses, delta: float, published: float
) -> None:
    """Appendix D and section 7 of arXiv 2305.08846v1; dropping delta or M misses them by 26e-3."""
    found = refuted_up_to(lambda epsilon: approximate_dp_tail(guesses, epsilon, delta) < LEVEL)
    assert found == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("made", [7, 40, 200])
def test_on_randomised_response_the_level_is_kept_exactly(epsilon: float, made: int) -> None:
    """V is binomial, so the probability of a violation is a sum, and not only an estimate."""
    accuracy = 1 / (1 + np.exp(-epsilon))

    def wrong_with_probability(bound: Callable[[Guesses], float]) -> float:
        above = [bound(Guesses(made, made, v)) > epsilon + 1e-6 for v in range(made + 1)]
        return float(stats.binom.pmf(np.flatnonzero(above), made, accuracy).sum())

    def off_by_one(guesses: Guesses) -> float:
        accuracies = np.linspace(0.5, 1 - 1e-9, 20_000)
        kept = accuracies[stats.binom.sf(guesses.correct, made, accuracies) < LEVEL]
        return float(np.log(kept[-1] / (1 - kept[-1]))) if len(kept) else 0.0

    assert wrong_with_probability(lambda g: epsilon_lower_bound([g], 0.0, 1 - LEVEL)) <= LEVEL
    if accuracy**made < LEVEL / 2:
        assert wrong_with_probability(off_by_one) > LEVEL


def test_on_a_gaussian_mechanism_bounds_stay_below_the_truth_and_come_near() -> None:
    mu, canaries, delta = 1.0, 400, 1e-5
    truth = gaussian_epsilon(1 / mu, delta)
    rng = np.random.default_rng(7)
    free, shaped = [], []
    for _ in range(60):
        coins = rng.random(canaries) < 0.5
        games = played(gaussian(mu)(coins, rng), coins)
        free.append(epsilon_lower_bound(games, delta, 1 - LEVEL))
        shaped.append(gaussian_lower_bound(games, 1 - LEVEL))
    assert sum(bound > truth for bound in free) == 0
    assert sum(bound > mu for bound in shaped) <= acceptable(60)
    assert np.median(free) > 0.15 * truth
    assert np.median(shaped) > 0.4 * mu


def test_noise_of_half_the_size_is_noticed() -> None:
    """The wrong engine: it claims mu = 1 and has 2. The same test lets the right one pass."""
    claim = GaussianDp(1.0)

    def refuted(scores: Scores, coins: Coins) -> float:
        return contradicts(guess(scores, coins, 750), claim, LEVEL)

    assert violations(20, 3000, gaussian(2.0), refuted, 0) >= 18
    assert violations(20, 3000, gaussian(1.0), refuted, 0) <= acceptable(20)


def test_a_leak_of_probability_delta_is_allowed_for() -> None:
    """The leak decides which canaries are guessed about: delta counts M times, not R times."""
    canaries, made, epsilon, delta = 1000, 10, 0.5, 0.01
    mechanism = leaking(epsilon, delta)

    def sound(scores: Scores, coins: Coins) -> float:
        return epsilon_lower_bound([guess(scores, coins, made)], delta, 1 - LEVEL)

    def per_guess(scores: Scores, coins: Coins) -> float:
        game = guess(scores, coins, made)
        return epsilon_lower_bound([Guesses(made, made, game.correct)], delta, 1 - LEVEL)

    def without_delta(scores: Scores, coins: Coins) -> float:
        return epsilon_lower_bound([guess(scores, coins, made)], 0.0, 1 - LEVEL)

    def tail_without_delta(scores: Scores, coins: Coins) -> float:
        game = guess(scores, coins, made)
        return refuted_up_to(lambda e: approximate_dp_tail(game, e, 0.0) < LEVEL)

    assert violations(100, canaries, mechanism, sound, epsilon) <= acceptable(100)
    for wrong in (per_guess, without_delta, tail_without_delta):
        assert violations(100, canaries, mechanism, wrong, epsilon) > acceptable(100)


def test_a_number_of_guesses_chosen_afterwards_is_a_lie() -> None:
    """Scores that know nothing: the shared confidence holds, the best of all numbers does not."""

    def nothing(coins: Coins, rng: np.random.Generator) -> Scores:
        return rng.standard_normal(len(coins))

    def honest(scores: Scores, coins: Coins) -> float:
        return epsilon_lower_bound(played(scores, coins), 0.0, 1 - LEVEL)

    def best_of_all(scores: Scores, coins: Coins) -> float:
        games = [guess(scores, coins, made) for made in range(1, len(scores) + 1)]
        return max(float(approximate_dp_tail(game, 0.0, 0.0) < LEVEL) for game in games)

    assert violations(200, 60, nothing, honest, 0.0) <= acceptable(200)
    assert violations(200, 60, nothing, best_of_all, 0.0) > acceptable(200)


def test_the_gaussian_bound_is_for_gaussian_mechanisms_only() -> None:
    """Randomised response is told from its neighbour with more certainty than a Gaussian is."""

    def shaped(scores: Scores, coins: Coins) -> float:
        return gaussian_epsilon_lower_bound(played(scores, coins), 1e-5, 1 - LEVEL)

    assert violations(30, 400, leaking(1.0, 0.0), shaped, 1.0) > acceptable(30)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 20), st.floats(0, 4), st.floats(0, 0.3))
def test_the_recursion_solves_its_inequalities(
    made: int, correct: int, abstained: int, epsilon: float, delta: float
) -> None:
    """Under (epsilon, delta)-DP they are linear: a solver finds the same largest probability."""
    guesses = Guesses(made + abstained, made, min(correct, made))
    expected = largest_tail(guesses, epsilon, delta)
    assert tail(guesses, ApproximateDp(epsilon, delta)) == pytest.approx(expected, abs=1e-6)


def largest_tail(guesses: Guesses, epsilon: float, delta: float) -> float:
    """max sum_{i >= correct} p_i subject to the inequalities of the module's docstring."""
    count, canaries = guesses.count, guesses.canaries
    right = np.arange(count + 1) / canaries
    rows, limits = [], []
    for v in range(1, count + 1):
        power = np.where(np.arange(count + 1) >= v, right, 0.0)
        error = np.where(np.arange(count + 1) >= v - 1, count / canaries - right, 0.0)
        for slope, constant in (
            (np.exp(epsilon), delta),
            (np.exp(-epsilon), 1 - np.exp(-epsilon) * (1 - delta)),
        ):
            rows.append(power - slope * error)
            limits.append(constant)
    solved = optimize.linprog(
        -1.0 * (np.arange(count + 1) >= guesses.correct),
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=np.ones((1, count + 1)),
        b_eq=[1.0],
    )
    return float(-solved.fun)


games = st.integers(1, 60).flatmap(
    lambda made: st.tuples(st.integers(made, 200), st.just(made), st.integers(0, made))
)


@settings(max_examples=60, deadline=None)
@given(games, st.floats(0, 5), st.sampled_from([0.0, 1e-6, 1e-3]))
def test_more_guesses_right_are_less_probable(
    game: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    canaries, made, correct = game
    found = p_value(Guesses(canaries, made, correct), epsilon, delta)
    assert 0 <= found <= 1
    if correct < made:
        assert p_value(Guesses(canaries, made, correct + 1), epsilon, delta) <= found + 1e-9


@settings(max_examples=60, deadline=None)
@given(games, st.floats(0.5, 0.99))
def test_bounds_fall_with_delta_and_confidence_and_rise_with_right_guesses(
    game: tuple[int, int, int], confidence: float
) -> None:
    canaries, made, correct = game
    guesses = Guesses(canaries, made, correct)
    bound = epsilon_lower_bound([guesses], 1e-4, confidence)
    surer = (1 + confidence) / 2
    assert epsilon_lower_bound([guesses], 1e-2, confidence) <= bound + 1e-9
    assert epsilon_lower_bound([guesses], 1e-4, surer) <= bound + 1e-9
    assert gaussian_lower_bound([guesses], surer) <= gaussian_lower_bound([guesses], confidence)
    if correct < made:
        better = Guesses(canaries, made, correct + 1)
        assert epsilon_lower_bound([better], 1e-4, confidence) >= bound - 1e-9


@pytest.mark.parametrize(
    "curve", [ApproximateDp(1.0, 1e-3), ApproximateDp(0.0, 0.0), GaussianDp(1.0)]
)
def test_a_trade_off_function_is_convex_increasing_and_at_most_chance(curve: TradeOff) -> None:
    power = np.linspace(0, 1, 201)
    error = np.array([curve.least_error(float(p)) for p in power])
    assert np.all(error <= power + 1e-12)
    assert np.all(np.diff(error) >= 0)
    assert np.all(np.diff(error, 2) >= -1e-12)


def test_what_is_contradicted_is_what_lies_above_the_tail() -> None:
    guesses, curve = Guesses(100, 50, 40), GaussianDp(0.5)
    found = tail(guesses, curve)
    assert 0 < found < 1
    assert contradicts(guesses, curve, found * 1.001)
    assert not contradicts(guesses, curve, found * 0.999)


def test_guessing_is_in_for_the_highest_and_out_for_the_lowest() -> None:
    scores = np.array([5.0, -3.0, 0.0, 4.0, -9.0])
    coins = np.array([True, True, True, False, False])
    assert guess(scores, coins, 1) == Guesses(5, 1, 1)
    assert guess(scores, coins, 2) == Guesses(5, 2, 2)
    assert guess(scores, coins, 3) == Guesses(5, 3, 2)
    assert guess(scores, coins, 5) == Guesses(5, 5, 3)


def test_the_confidence_is_shared_among_the_numbers_of_guesses() -> None:
    game = Guesses(100, 100, 70)
    twice = epsilon_lower_bound([game, Guesses(100, 10, 0)], 0.0, 0.9)
    assert twice == pytest.approx(epsilon_lower_bound([game], 0.0, 0.95), abs=1e-9)


def test_the_fewest_canaries_give_a_bound_and_one_less_gives_none() -> None:
    for delta, confidence in [(0.0, 0.95), (1e-5, 0.95), (1e-5, 0.99), (1e-3, 0.9)]:
        fewest = fewest_canaries(delta, confidence)
        assert fewest is not None
        for canaries, found in ((fewest, True), (fewest - 1, False)):
            best = [Guesses(canaries, made, made) for made in guess_numbers(canaries)]
            assert (epsilon_lower_bound(best, delta, confidence) > 0) is found
    assert fewest_canaries(0.1, 0.95) is None


@pytest.mark.parametrize("fields", [(10, 11, 5), (10, 5, 6), (10, 5, -1), (0, 0, 0)])
def test_impossible_games_are_refused(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= correct <= count <= canaries"):
        Guesses(*fields)


def test_impossible_arguments_are_refused() -> None:
    game = Guesses(10, 10, 9)
    with pytest.raises(ValueError, match="no game"):
        epsilon_lower_bound([], 0.0, 0.95)
    with pytest.raises(ValueError, match="confidence=1 must lie"):
        epsilon_lower_bound([game], 0.0, 1.0)
    with pytest.raises(ValueError, match="delta=1 must lie"):
        epsilon_lower_bound([game], 1.0, 0.95)
    with pytest.raises(ValueError, match="not a number"):
        guess(np.array([1.0, np.nan]), np.array([True, False]), 1)
    with pytest.raises(ValueError, match="count=3"):
        guess(np.array([1.0, 2.0]), np.array([True, False]), 3)
