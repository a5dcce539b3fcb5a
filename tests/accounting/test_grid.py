"""The published grid: calibrated epsilons agree with dp_accounting's PLD to a thousandth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from taciturn.accounting.compose import epsilon


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "accounting_grid.py"
    spec = importlib.util.spec_from_file_location("accounting_grid", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = _load()


def test_the_grid_is_worth_publishing() -> None:
    assert sum(row.interval == bench.DEFAULT_INTERVAL for row in bench.GRID) >= 20
    assert {row.sampling_probability < 1 for row in bench.GRID} == {True, False}


@pytest.mark.parametrize("row", bench.GRID, ids=repr)
def test_agrees_with_dp_accounting(row: object) -> None:
    assert isinstance(row, bench.Setting)
    event = row.event(row.calibrated())
    ours, theirs = epsilon(event, row.delta), row.reference(event)
    assert ours <= row.target_epsilon
    assert ours == pytest.approx(theirs, rel=1e-3)
