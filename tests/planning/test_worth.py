"""What a fit is expected to be worth is what was measured, and is told with its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.program import run_python
from taciturn.planning import worth
from taciturn.planning.worth import FITTED, MEASURED, WORTHLESS, Worth, expected_worth

TINY = 4_737_280


def of(**fields: Any) -> Worth:
    given: dict[str, Any] = {
        "remaining_noise": 1.3e-3, "n_units": 1108, "epsilon": 3.0, "delta": 1e-5,
        "parameters": TINY, "method": "auto",
    }  # fmt: skip
    return expected_worth(**{**given, **fields})


def test_the_curve_is_fitted_to_the_table(root: Path) -> None:
    """Whoever adds a row runs bench/worth.py and puts its numbers in the module."""
    done = run_python(root / "bench" / "worth.py")
    assert "\nas it is in taciturn.planning.worth\n" in done.stdout
    assert FITTED.noise > 0
    assert FITTED.size >= 0


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.source}-{row.epsilon:g}")
def test_what_was_measured_is_within_what_is_said(row: worth.MeasuredRun) -> None:
    assert row.source
    assert row.kind in ("measured", "simulated")
    assert 0 < row.share < 1
    assert 1 <= row.batch_size <= row.n_units
    said = of(
        remaining_noise=row.remaining_noise,
        n_units=row.n_units,
        epsilon=row.epsilon,
        delta=row.delta,
        parameters=row.parameters,
    )
    assert said.low is not None
    assert said.high is not None
    assert said.low - 0.05 <= row.share <= said.high + 0.05


def test_less_noise_and_larger_models_are_never_worth_less() -> None:
    noises = [worth.expected_share(noise, TINY) for noise in (1e-6, 1e-4, 1e-3, 1e-2, 1)]
    assert noises == sorted(noises, reverse=True)
    sizes = [worth.expected_share(1e-3, size) for size in (10**5, TINY, 10**8, 10**9, 10**11)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-2]  # nothing so large was run, so it counts as the largest


def test_it_says_a_range_what_more_units_buy_and_how_many_it_takes() -> None:
    said = of()
    assert said.low is not None
    assert said.high is not None
    assert said.more_share is not None
    assert said.least_units is not None
    assert 0.2 < said.low < said.high < 0.6
    assert said.high < said.more_share + 0.1
    assert 100 <= said.least_units <= 1000
    assert said.text.startswith("expect about 25% to 35% of what an ordinary fit would learn; with")
    assert "with 3,000 units, in 2.7 times the time, about" in said.text
    assert f"fewer than about {said.least_units:,} units: don't" in said.text


def test_too_few_units_are_told_not_to() -> None:
    said = of(n_units=50, remaining_noise=0.03)
    assert said.text.startswith(f"don't: with 50 units expect less than {WORTHLESS:.0%}")
    assert f"it takes about {said.least_units:,} units at this epsilon" in said.text
    short = of(n_units=5000, remaining_noise=0.03)
    assert "give it more time" in short.text


def test_almost_all_is_no_range() -> None:
    assert "expect about 90% or more" in of(remaining_noise=1e-7, n_units=10**8).text


def test_what_was_not_measured_is_not_claimed() -> None:
    full = of(method="full")
    assert (full.low, full.high, full.least_units) == (None, None, None)
    assert "no run with method='full' was measured" in full.text
    assert "a guess" not in of().text
    large = of(parameters=134_515_008)
    assert "none of its size was run" in large.text
    assert "none of its size was run" in of(parameters=7 * 10**9).text
    assert "no run with so little or so much noise" in of(remaining_noise=1.0).text
    near, far = of(), of(parameters=7 * 10**9)
    assert near.low is not None
    assert near.high is not None
    assert far.low is not None
    assert far.high is not None
    assert "fitted to 4 measured plans of taciturn/tiny-medical" in near.basis
    assert "simulated" not in near.basis
    assert f"missed by {100 * FITTED.share_error:.0f} percentage points" in near.basis


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 100.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_the_least_noise_is_that_of_every_unit_in_every_step(epsilon: float, delta: float) -> None:
    from taciturn.accounting.calibrate import noise_multiplier

    exact = noise_multiplier(
        target_epsilon=epsilon, delta=delta, sampling_probability=1.0, steps=20
    )
    assert worth._gaussian_mu(epsilon, delta) == pytest.approx(20**0.5 / exact, rel=5e-3)
