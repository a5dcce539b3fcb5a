"""The curve of a run: on or below the true one, and close to it; what guesses refute of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.engine.auditing.bounds import GaussianDp, Guesses, gaussian_epsilon_lower_bound
from taciturn.engine.auditing.claim import (
    DpSgdRun,
    PrivacyProfile,
    epsilon_lower_bound_of_run,
)

RUNS = [
    DpSgdRun(1.0, 1.0, 1),
    DpSgdRun(1.0, 0.05, 1),
    DpSgdRun(1.0, 2.0, 4),
    DpSgdRun(0.5, 0.5, 4),
    DpSgdRun(0.02, 1.0, 3000),
    DpSgdRun(0.25, 0.1, 1),
]


@pytest.mark.parametrize("run", RUNS)
def test_two_accountants_agree(run: DpSgdRun) -> None:
    event = dpsgd_event(
        sampling_probability=run.sampling_probability,
        noise_multiplier=run.noise_multiplier,
        steps=run.steps,
    )
    assert run.epsilon(1e-5) == pytest.approx(epsilon(event, 1e-5), rel=2e-3)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 9])
def test_without_sampling_it_is_the_gaussian_curve(sigma: float, steps: int) -> None:
    profile = PrivacyProfile.of(DpSgdRun(1.0, sigma, steps))
    exact = GaussianDp(steps**0.5 / sigma)
    for power in np.linspace(0.001, 0.999, 57):
        found, true = profile.least_error(power), exact.least_error(power)
        assert true * 0.98 - 2e-4 <= found <= true + 1e-9


def test_with_sampling_the_best_test_is_no_better_than_the_curve() -> None:
    """The likelihood-ratio test of one step, in closed form, on both sides."""
    q, sigma = 0.3, 0.7
    profile = PrivacyProfile.of(DpSgdRun(q, sigma, 1))
    for threshold in np.linspace(-2, 3, 41):
        error = stats.norm.sf(threshold / sigma)
        power = (1 - q) * error + q * stats.norm.sf((threshold - 1) / sigma)
        assert profile.least_error(power) <= error + 1e-9
        assert profile.least_error(1 - error) <= 1 - power + 1e-9
        if threshold >= 0.5:  # before, the curve is that of the other side
            assert profile.least_error(power) >= 0.9 * error - 1e-3


def test_advantage_is_the_total_variation_distance() -> None:
    q, sigma = 0.3, 0.7
    exact = q * (2 * stats.norm.cdf(0.5 / sigma) - 1)
    assert PrivacyProfile.of(DpSgdRun(q, sigma, 1)).advantage == pytest.approx(exact, rel=1e-3)


def test_hardly_any_noise_promises_hardly_anything() -> None:
    profile = PrivacyProfile.of(DpSgdRun(1.0, 0.02, 1))
    assert profile.advantage == pytest.approx(1.0)
    assert [profile.least_error(power) for power in (0.0, 0.5, 1.0)] == pytest.approx([0, 0, 0])


def test_bound_is_that_of_the_gaussian_curve_where_there_is_no_sampling() -> None:
    guesses, run = Guesses(2000, 200, 185), DpSgdRun(1.0, 1.0, 1)
    found = epsilon_lower_bound_of_run(guesses, run, 1e-5, 0.95)
    exact = gaussian_epsilon_lower_bound([guesses], 1e-5, 0.95)
    assert exact * 0.96 <= found <= exact * 1.02


def test_bound_does_not_depend_on_where_the_search_starts() -> None:
    guesses = Guesses(2000, 200, 185)
    found = [
        epsilon_lower_bound_of_run(guesses, DpSgdRun(1.0, sigma, 1), 1e-5, 0.95)
        for sigma in (0.3, 1.0, 3.0)
    ]
    assert max(found) <= min(found) * 1.03


def test_guesses_of_a_coin_prove_nothing() -> None:
    assert epsilon_lower_bound_of_run(Guesses(1000, 100, 50), RUNS[0], 1e-5, 0.95) == 0


def test_more_confidence_proves_less() -> None:
    guesses = Guesses(2000, 200, 185)
    bounds = [epsilon_lower_bound_of_run(guesses, RUNS[0], 1e-5, c) for c in (0.9, 0.99, 0.9999)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]
