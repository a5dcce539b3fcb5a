"""Batch and steps follow from public facts alone, and from how much work there may be."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest

from taciturn.accounting.calibrate import default_delta, noise_multiplier
from taciturn.planning.defaults import (
    FEWEST_STEPS,
    STEP_NOISE,
    STEPS,
    PublicFacts,
    batch_and_steps,
    default_units,
)
from taciturn.spec import FitSpec, parse


@lru_cache
def sigma(epsilon: float, n: int, batch: int, steps: int) -> float:
    return noise_multiplier(
        target_epsilon=epsilon,
        delta=default_delta(n),
        sampling_probability=batch / n,
        steps=steps,
    )


def chosen(
    n: int, epsilon: float | str = 3.0, most: float | None = None, **fields: Any
) -> tuple[int, int]:
    spec = parse(FitSpec, {"target_epsilon": epsilon, **fields})
    facts = PublicFacts(n, "tiny", 5_000_000, 512)

    def noise(batch: int, steps: int) -> float:
        assert isinstance(epsilon, float)
        return sigma(epsilon, n, batch, steps)

    return batch_and_steps(spec, facts, noise, most)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
def test_a_thousand_units_are_all_in_each_of_few_steps(epsilon: float) -> None:
    assert chosen(1108, epsilon) == (1108, FEWEST_STEPS)


def test_batch_and_steps_grow_with_the_number_of_units() -> None:
    found = [chosen(n) for n in (100, 1000, 3000, 12_000, 50_000, 1_000_000)]
    steps = [each[1] for each in found]
    assert steps == sorted(steps)
    assert steps[0] < steps[3] < steps[5]
    work = [batch * steps for batch, steps in found]
    assert work == sorted(work)
    assert len(set(work)) == len(work)


@pytest.mark.parametrize("n", [40, 1108, 12_000, 300_000])
@pytest.mark.parametrize("epsilon", [0.1, 3.0, 1000.0])
@pytest.mark.parametrize("times", [0.01, 0.5, 1, 4, 1000])
def test_the_limit_holds_and_steps_are_as_many_as_stay_quiet(
    n: int, epsilon: float, times: float
) -> None:
    most = max(FEWEST_STEPS, times * default_units(n))
    batch, steps = chosen(n, epsilon, most)
    assert batch * steps <= most
    assert 1 <= batch <= n
    assert steps in STEPS
    if steps > FEWEST_STEPS:
        assert sigma(epsilon, n, batch, steps) / batch <= STEP_NOISE
    if steps < STEPS[-1]:
        more = STEPS[STEPS.index(steps) + 1]
        smaller = max(1, min(n, int(most / more)))
        assert sigma(epsilon, n, smaller, more) / smaller > STEP_NOISE


@pytest.mark.parametrize(("n", "epsilon"), [(1108, 3.0), (12_000, 3.0), (12_000, 100.0)])
def test_more_time_never_leaves_more_noise(n: int, epsilon: float) -> None:
    noises = []
    for times in (0.25, 0.5, 1, 2, 4, 8, 16):
        batch, steps = chosen(n, epsilon, times * default_units(n))
        noises.append(sigma(epsilon, n, batch, steps) / (batch * math.sqrt(steps)))
    assert all(after <= 1.002 * before for before, after in pairwise(noises))


def test_time_that_buys_nothing_is_not_taken() -> None:
    assert chosen(1108, most=1e9) == (1108, FEWEST_STEPS)


def test_what_the_user_chose_is_kept() -> None:
    assert chosen(1000, batch_size=11, steps=7) == (11, 7)
    assert chosen(1000, steps=400) == (50, 400)
    assert chosen(1000, steps=7) == (1000, 7)
    assert chosen(1000, batch_size=100) == (100, 200)
    assert chosen(1000, batch_size=10) == (10, 400)
    assert chosen(1000, epochs=4, batch_size=100) == (100, 40)
    assert chosen(1000, most=1000, batch_size=100) == (100, 10)
    assert chosen(1000, most=1000, steps=100) == (10, 100)


@pytest.mark.parametrize("epochs", [0.01, 3, 30])
def test_epochs_are_the_work(epochs: float) -> None:
    batch, steps = chosen(1000, epochs=epochs)
    assert batch * steps / 1000 == pytest.approx(epochs, rel=0.02)


def test_ordinary_fits_are_three_epochs_of_small_batches_or_less() -> None:
    assert chosen(320, "unlimited") == (32, 30)
    assert chosen(320, "unlimited", most=320) == (32, 10)
    assert chosen(320, "unlimited", most=1e9) == (32, 30)
    assert chosen(320, "unlimited", most=100, steps=10) == (10, 10)
    assert chosen(320, "unlimited", batch_size=16, epochs=5) == (16, 100)
