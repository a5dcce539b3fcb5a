"""The goals, each with what was measured and whether it is met.

A goal over several cells takes the worst of them. What was not measured is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from steps.registry import GHOST, HOOKS, PLAIN, PRIVATE
from steps.results import Growth, Results, Row

LORA_TIME, LORA_FLOPS, LORA_MEMORY = 1.05, 1.03, 1.10
EPOCH_TIME = 1.00
FULL_TIME = FULL_FLOPS = 1.15
FULL_LONGEST = 512
OPACUS_FULL, OPACUS_ANY = 2.0, 1.0
LONG_TOKENS, LONG_MEMORY = 4096, 1.05
UNIT_TIME = 1.05
GROWTH_SLOPE, GROWTH_R_SQUARED = 1.05, 0.95
ROWS_MEMORY = 1.10


@dataclass(frozen=True, slots=True)
class Goal:
    """One line: `met` is None where nothing was measured."""

    what: str
    goal: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class _Value:
    """A ratio and the cell it belongs to."""

    where: str
    value: float


def goals(results: Results) -> list[Goal]:
    """All goals of the benchmark, in the order of the tables."""
    return [
        _most("LoRA step with DP / plain loop: time", LORA_TIME, _times(results, _lora)),
        _most("LoRA: operations", LORA_FLOPS, _flops(results, _lora)),
        _most("LoRA: peak memory", LORA_MEMORY, _memory(results, _lora)),
        _most("LoRA epoch with DP / HF Trainer, real lengths", EPOCH_TIME, _epochs(results)),
        _most(f"full, T ≤ {FULL_LONGEST}: time", FULL_TIME, _times(results, _short_full)),
        _most(f"full, T ≤ {FULL_LONGEST}: operations", FULL_FLOPS, _flops(results, _short_full)),
        _least("Opacus' fastest mode / ours: full", OPACUS_FULL, _against(results, _full)),
        _least("Opacus' fastest mode / ours: anywhere", OPACUS_ANY, _anywhere(results)),
        _most(f"T = {LONG_TOKENS}: peak memory", LONG_MEMORY, _memory(results, _long)),
        _most("units of several sequences / record level", UNIT_TIME, _unit_times(results)),
        _time_growth(results),
        _row_growth(results),
    ]


def _lora(row: Row) -> bool:
    return row.method == "lora" and row.unit_size == 1


def _full(row: Row) -> bool:
    return row.method == "full" and row.unit_size == 1


def _short_full(row: Row) -> bool:
    return _full(row) and row.tokens <= FULL_LONGEST


def _long(row: Row) -> bool:
    return row.tokens == LONG_TOKENS and row.unit_size == 1


def _ours(results: Results, chosen: Callable[[Row], bool]) -> Iterator[Row]:
    return (row for row in results.steps if row.variant == PRIVATE and chosen(row))


def _times(results: Results, chosen: Callable[[Row], bool]) -> Iterator[_Value]:
    for row in _ours(results, chosen):
        if row.ratio is not None:
            yield _Value(f"T={row.tokens}", row.ratio.median)


def _flops(results: Results, chosen: Callable[[Row], bool]) -> Iterator[_Value]:
    for row in _ours(results, chosen):
        plain = results.row(row.cell, PLAIN)
        if row.flops is not None and plain is not None and plain.flops:
            yield _Value(f"T={row.tokens}", row.flops / plain.flops)


def _memory(results: Results, chosen: Callable[[Row], bool]) -> Iterator[_Value]:
    for row in _ours(results, chosen):
        plain = results.row(row.cell, PLAIN)
        if row.peak_bytes is not None and plain is not None and plain.peak_bytes:
            yield _Value(f"{row.method} T={row.tokens}", row.peak_bytes / plain.peak_bytes)


def _epochs(results: Results) -> Iterator[_Value]:
    row = results.epoch("lora", PRIVATE)
    if row is not None and row.trainer_ratio is not None:
        yield _Value("an epoch", row.trainer_ratio.median)


def _against(results: Results, chosen: Callable[[Row], bool]) -> Iterator[_Value]:
    for ours in _ours(results, chosen):
        modes = [results.row(ours.cell, name) for name in (HOOKS, GHOST)]
        ratios = [mode.ratio.median for mode in modes if mode is not None and mode.ratio]
        if ours.ratio is not None and ratios:
            yield _Value(f"{ours.method} T={ours.tokens}", min(ratios) / ours.ratio.median)


def _anywhere(results: Results) -> Iterator[_Value]:
    yield from _against(results, lambda row: True)
    for method in ("lora", "full"):
        ours = results.epoch(method, PRIVATE)
        modes = [results.epoch(method, name) for name in (HOOKS, GHOST)]
        ratios = [mode.ratio.median for mode in modes if mode is not None and mode.ratio]
        if ours is not None and ours.ratio is not None and ratios:
            yield _Value(f"{method} real lengths", min(ratios) / ours.ratio.median)


def _unit_times(results: Results) -> Iterator[_Value]:
    for row in _ours(results, lambda row: row.unit_size > 1):
        if row.records_ratio is not None:
            yield _Value(f"{row.method} T={row.tokens}", row.records_ratio.median)


def _time_growth(results: Results) -> Goal:
    found = [f"{method}: {_fit(fit)}" for method, fit in results.growth.items()]
    goal = f"slopes ≤ {GROWTH_SLOPE}, R² ≥ {GROWTH_R_SQUARED}"
    what = "time against tokens of a batch, log-log"
    met = all(_linear(fit) for fit in results.growth.values()) if found else None
    return Goal(what, goal, "; ".join(found), met)


def _fit(fit: Growth) -> str:
    return (
        f"slope {fit.slope:.3f}, R² {fit.r_squared:.3f}, at the large end {fit.tail_slope:.3f} "
        f"({fit.tokens[0]:,} to {fit.tokens[-1]:,} tokens)"
    )


def _linear(fit: Growth) -> bool:
    """No faster than tokens, at the large end either, where fixed costs no longer hide it."""
    steepest = max(fit.slope, fit.tail_slope)
    return steepest <= GROWTH_SLOPE and fit.r_squared >= GROWTH_R_SQUARED


def _row_growth(results: Results) -> Goal:
    goal = f"≤ {ROWS_MEMORY:.2f}x from the fewest rows to the most"
    what = "peak memory against training rows"
    if not results.rows:
        return Goal(what, goal, "", None)
    said = ", ".join(f"{row.rows:,}: {row.peak_bytes / 2**20:,.0f} MiB" for row in results.rows)
    growth = results.rows[-1].peak_bytes / results.rows[0].peak_bytes
    return Goal(what, goal, f"{said} ({growth:.2f}x)", growth <= ROWS_MEMORY)


def _most(what: str, bound: float, values: Iterable[_Value]) -> Goal:
    found = list(values)
    met = max(each.value for each in found) <= bound if found else None
    return Goal(what, f"≤ {bound:.2f}x", _said(found), met)


def _least(what: str, bound: float, values: Iterable[_Value]) -> Goal:
    found = list(values)
    met = min(each.value for each in found) >= bound if found else None
    return Goal(what, f"≥ {bound:.2f}x", _said(found), met)


def _said(values: Iterable[_Value]) -> str:
    return ", ".join(f"{each.where}: {each.value:.3f}" for each in values)
