"""The goals table says yes, no or nothing by what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steps.goals import goals
from steps.growth import log_log_fit
from steps.measure import Spread
from steps.registry import GHOST, HOOKS, PLAIN, PRIVATE
from steps.report import quoted
from steps.results import EpochRow, Growth, Results, Row, RowsPeak


def row(
    variant: str,
    method: str,
    tokens: int,
    ratio: float,
    *,
    unit_size: int = 1,
    failure: bool = False,
) -> Row:
    """A row whose time, operations and memory all are `ratio` times the plain loop's."""
    key = (f"{method}/T{tokens}/{unit_size}", method, tokens, 8, unit_size, variant)
    if failure:
        return Row(*key, failure="NotImplementedError: no")
    spread = Spread(ratio, ratio, ratio)
    amount = round(1000 * ratio)
    return Row(*key, spread, spread, spread if unit_size > 1 else None, amount, amount)


def results(ratio: float, opacus: float) -> Results:
    """Ours at `ratio` and Opacus' hooks at `opacus` everywhere; ghost fails."""
    found = Results()
    for method in ("lora", "full"):
        for tokens in (64, 4096):
            found.steps += [row(PLAIN, method, tokens, 1), row(PRIVATE, method, tokens, ratio)]
            found.steps += [
                row(HOOKS, method, tokens, opacus),
                row(GHOST, method, tokens, 1, failure=True),
            ]
        found.steps += [row(PRIVATE, method, 64, ratio, unit_size=4)]
        spread = Spread(ratio, ratio, ratio)
        found.epochs += [EpochRow(method, PRIVATE, 100, spread, spread, spread)]
        found.growth[method] = Growth((64, 64_000), (1.0, 1.0), ratio, 0.999, ratio)
    found.rows = [RowsPeak(1000, 1000), RowsPeak(10**6, round(1000 * ratio))]
    return found


def test_everything_met() -> None:
    assert [goal.met for goal in goals(results(0.99, 2.5))] == [True] * 12


def test_everything_missed() -> None:
    assert [goal.met for goal in goals(results(1.2, 1.1))] == [False] * 12


def test_nothing_measured_is_neither() -> None:
    assert {goal.met for goal in goals(Results())} == {None}


def test_one_bad_cell_is_enough() -> None:
    found = results(0.99, 2.5)
    found.steps += [row(PLAIN, "lora", 256, 1), row(PRIVATE, "lora", 256, 1.3)]
    missed = [goal.what for goal in goals(found) if not goal.met]
    assert len(missed) == 3
    assert all("LoRA" in what for what in missed)


def test_fit_finds_the_exponent() -> None:
    xs = [1.0, 10.0, 100.0, 1000.0]
    assert log_log_fit(xs, [3 * x**1.5 for x in xs]) == pytest.approx((1.5, 1.0))


def test_documents_quote_the_fastest_mode_of_each_cell() -> None:
    found = results(1.004, 1.5)
    rows = {row[0]: row[1:] for row in quoted(found)["times"]}
    assert rows["LoRA, with DP"][:4] == ["1.00x", "", "", "1.00x"]
    assert rows["full, Opacus' fastest mode"][:4] == ["1.50x", "", "", "1.50x"]
    assert quoted(found)["lora_memory"] == {"least": 1.004, "most": 1.004}


def test_what_documents_quote_follows_from_what_was_measured() -> None:
    text = (Path(__file__).parents[1] / "results" / "private_step.json").read_text(encoding="utf-8")
    assert json.loads(text)["quoted"] == quoted(Results.joined([text]))
