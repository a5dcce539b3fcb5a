"""The closed form of Balle & Wang, against dp_accounting and against its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.gaussian import gaussian_epsilon, hockey_stick

noises = st.floats(min_value=0.05, max_value=1e4)
deltas = st.floats(min_value=-12, max_value=-1).map(lambda exponent: 10**exponent)


def balle_wang(epsilon: float, noise: float) -> float:
    """Balle & Wang 2018, theorem 8, sensitivity 1."""
    upper = norm.cdf(0.5 / noise - epsilon * noise)
    return float(upper - np.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise))


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("loss", [-3.0, -0.1, 0.0, 0.2, 2.0, 5.0])
def test_divergence_is_the_formula(noise: float, loss: float) -> None:
    ours = hockey_stick(np.array([loss]), noise)[0]
    assert ours == pytest.approx(balle_wang(loss, noise), abs=1e-14)
    theirs = GaussianPrivacyLoss(noise).get_delta_for_epsilon(loss)
    assert ours == pytest.approx(theirs, abs=1e-13)


@given(noises, deltas)
def test_inverse_of_the_formula(noise: float, delta: float) -> None:
    found = gaussian_epsilon(noise, delta)
    at, below = hockey_stick(np.array([found, found * (1 - 1e-6) - 1e-9]), noise)
    assert at <= delta
    assert found == 0 or below >= delta * (1 - 1e-9)


@given(noises, deltas)
def test_one_step_without_sampling_is_the_gaussian_mechanism(noise: float, delta: float) -> None:
    event = dpsgd_event(sampling_probability=1.0, noise_multiplier=noise, steps=1)
    assert epsilon(event, delta) == pytest.approx(gaussian_epsilon(noise, delta), rel=1e-12)


def test_many_steps_are_one_with_less_noise() -> None:
    event = dpsgd_event(sampling_probability=1.0, noise_multiplier=30.0, steps=400)
    assert epsilon(event, 1e-6) == pytest.approx(gaussian_epsilon(1.5, 1e-6), rel=1e-12)
