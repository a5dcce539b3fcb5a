"""Schedules are public functions of the step."""

from __future__ import annotations

import pytest

from taciturn.planning.optimizer import OptimizerChoice, OptimizerConfig


def test_linear_decay_ends_above_zero_after_the_last_step() -> None:
    config = OptimizerConfig(1.0, steps=6, warmup_steps=2, decay="linear")
    rates = [config.rate(step) for step in range(6)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])
    assert config.rate(6) == 0


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.05, 3), (7.0, 7), (99.0, 50)])
def test_a_warm_up_is_steps_or_a_share(warmup: float, steps: int) -> None:
    assert OptimizerChoice(warmup=warmup).settings(50) == {"warmup_steps": steps}


def test_what_nobody_decides_is_left_open() -> None:
    assert OptimizerChoice().settings(50) == {}
    assert OptimizerChoice(decay=False, beta1=0.5).settings(50) == {"decay": False, "beta1": 0.5}
