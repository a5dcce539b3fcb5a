"""Calibration meets its budget from below, quickly, and says why where it cannot."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.accounting.calibrate import TOLERANCE, check_delta, default_delta, noise_multiplier
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.errors import PrivacyParameterError

SETTING: dict[str, Any] = {
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "sampling_probability": 0.01,
    "steps": 300,
}


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(min_value=math.log(low), max_value=math.log(high)).map(math.exp)


def spent(noise: float, setting: dict[str, Any]) -> float:
    event = dpsgd_event(
        sampling_probability=setting["sampling_probability"],
        noise_multiplier=noise,
        steps=setting["steps"],
    )
    return epsilon(event, setting["delta"])


@settings(max_examples=25)
@given(
    log_uniform(0.0100001, 999.999),
    log_uniform(0.001, 1),
    log_uniform(1, 1e4).map(round),
    log_uniform(1e-9, 1e-4),
)
def test_meets_the_target_from_below(
    target: float, probability: float, steps: int, delta: float
) -> None:
    setting = {
        "target_epsilon": target,
        "sampling_probability": probability,
        "steps": steps,
        "delta": delta,
    }
    start = time.process_time()
    noise = noise_multiplier(**setting)
    assert time.process_time() - start < 1.5
    assert target * (1 - TOLERANCE) <= spent(noise, setting) <= target


@pytest.mark.parametrize("target", [0.01, 1000.0])
@pytest.mark.parametrize(("probability", "steps"), [(0.001, 1), (0.01, 10_000), (1.0, 10_000)])
def test_both_ends_of_the_range(target: float, probability: float, steps: int) -> None:
    setting = SETTING | {
        "target_epsilon": target,
        "sampling_probability": probability,
        "steps": steps,
    }
    noise = noise_multiplier(**setting)
    assert target * (1 - TOLERANCE) <= spent(noise, setting) <= target


def test_the_same_question_has_the_same_answer() -> None:
    assert noise_multiplier(**SETTING) == noise_multiplier(**SETTING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_epsilon": 0.0}, r"target_epsilon=0 must lie in \[0.01, 1000\]"),
        ({"target_epsilon": -1.0}, "target_epsilon=-1 "),
        ({"target_epsilon": 1001.0}, "target_epsilon=1001 "),
        ({"target_epsilon": math.nan}, "target_epsilon=nan "),
        ({"target_epsilon": math.inf}, "target_epsilon=inf "),
        ({"delta": 0.0}, "delta=0 "),
        ({"delta": 1.0}, "delta=1 "),
        ({"sampling_probability": 0.0}, "sampling_probability=0 "),
        ({"sampling_probability": 1.5}, "sampling_probability=1.5 "),
        ({"steps": 0}, "steps=0 "),
        ({"sampling_probability": 1e-7, "steps": 10}, "the chance that a unit is sampled"),
        ({"target_epsilon": 0.01, "sampling_probability": 1.0, "steps": 10**9}, "fewer steps"),
    ],
)
def test_refuses_with_value_bound_and_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyParameterError, match=message):
        noise_multiplier(**(SETTING | change))


@given(st.integers(min_value=1, max_value=10**18))
def test_default_delta_is_the_largest_power_of_ten(n_units: int) -> None:
    delta = default_delta(n_units)
    exponent = round(-math.log10(delta))
    assert delta == float(f"1e-{exponent}")  # the float that 1e-k is written as
    bound = Fraction(1, 10 * n_units)
    assert Fraction(1, 10**exponent) <= bound < Fraction(10, 10**exponent)
    check_delta(delta, n_units)


@pytest.mark.parametrize(
    ("n_units", "delta"),
    [(1, 0.1), (10, 1e-2), (11, 1e-3), (999, 1e-4), (1000, 1e-4), (1001, 1e-5), (1108, 1e-5)],
)
def test_default_delta_by_hand(n_units: int, delta: float) -> None:
    assert default_delta(n_units) == delta


@given(st.integers(min_value=0, max_value=12))
def test_default_delta_at_powers_of_ten_is_exact(exponent: int) -> None:
    assert default_delta(10**exponent) == float(f"1e-{exponent + 1}")


def test_delta_must_be_below_one_in_n() -> None:
    check_delta(1e-4, 1108)
    with pytest.raises(
        PrivacyParameterError,
        match=r"^delta=0.1 must be above 0 and below 1/n_units=0.0009; lower it, for example to",
    ):
        check_delta(0.1, 1108)
    for delta in (1 / 1000, 0.0, -1e-5, math.nan):
        with pytest.raises(PrivacyParameterError):
            check_delta(delta, 1000)
    with pytest.raises(PrivacyParameterError, match="n_units=0"):
        default_delta(0)
