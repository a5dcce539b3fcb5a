"""Units come together, contribute at most their bound, and never decide about each other."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data import bounding
from taciturn.data.bounding import FIRST, grouped, single_record_units
from taciturn.data.rows import UNIT, Rows
from taciturn.errors import RowError

SCHEMA = pa.schema([("value", pa.int64()), (UNIT, pa.string())])
Pairs = list[tuple[str, int]]


def rows_of(pairs: Pairs, batch: int = 7) -> Rows:
    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(pairs), batch):
            names, values = zip(*pairs[start : start + batch], strict=True)
            yield pa.record_batch([pa.array(values), pa.array(names)], schema=SCHEMA)

    return Rows(SCHEMA, batches())


def keep(pairs: Pairs, limit: int, seed: int = 0, batch: int = 7) -> dict[str, list[int]]:
    """The values kept of each unit; a unit is known by the first value that it can hold."""
    found: list[list[int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in grouped(rows_of(pairs, batch), limit, seed, Path(folder)):
            assert part.schema.names == ["value", FIRST]
            for value, first in zip(*(column.to_pylist() for column in part.columns), strict=True):
                if first:
                    found.append([])
                found[-1].append(value)
        assert not any(path.is_file() for path in Path(folder).rglob("*"))
    names = {value: name for name, value in pairs}
    units = {names[kept[0]]: kept for kept in found}
    assert len(units) == len(found)
    return units


def by_unit(pairs: Pairs) -> dict[str, list[int]]:
    units: dict[str, list[int]] = {}
    for name, value in pairs:
        units.setdefault(name, []).append(value)
    return units


PAIRS = st.lists(st.sampled_from("abcdeé"), min_size=1, max_size=60).map(
    lambda names: [(name, number) for number, name in enumerate(names)]
)


@settings(max_examples=25)
@given(PAIRS, st.integers(1, 5), st.integers(1, 20))
def test_every_unit_keeps_min_of_bound_and_count(pairs: Pairs, limit: int, batch: int) -> None:
    found = keep(pairs, limit, batch=batch)
    assert found.keys() == by_unit(pairs).keys()
    for name, own in by_unit(pairs).items():
        kept = found[name]
        assert kept == sorted(set(kept))
        assert set(kept) <= set(own)
        assert len(kept) == min(limit, len(own))


@settings(max_examples=25)
@given(PAIRS, st.integers(1, 4), st.integers(0, 2**32), st.integers(1, 20))
def test_dropping_a_unit_never_changes_another(
    pairs: Pairs, limit: int, seed: int, batch: int
) -> None:
    """Neighbouring data sets differ in exactly one unit after bounding, as before it."""
    whole = keep(pairs, limit, seed, batch)
    dropped = pairs[seed % len(pairs)][0]
    rest = [pair for pair in pairs if pair[0] != dropped]
    del whole[dropped]
    assert keep(rest, limit, seed) == whole


@settings(max_examples=10)
@given(st.integers(0, 2**63), st.integers(1, 300))
def test_a_huge_unit_keeps_the_same_rows_however_it_is_cut(seed: int, batch: int) -> None:
    pairs = [("a", n) for n in range(300)] + [("b", n) for n in range(300, 303)]
    assert keep(pairs, 4, seed, batch) == keep(pairs, 4, seed, 303)


@pytest.mark.parametrize("limit", [2, 1000])
def test_files_that_are_too_large_are_dealt_out_again(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four levels down, with one unit that no dealing-out can split, nothing else changes."""
    names = ["a"] * 400 + [f"p{n % 200}" for n in range(1000)]
    pairs = [(name, number) for number, name in enumerate(names)]
    at_once = keep(pairs, limit)
    monkeypatch.setattr(bounding, "_FILE_BYTES", 100)
    monkeypatch.setattr(bounding, "_BUFFER_BYTES", 100)
    assert keep(pairs, limit) == at_once


def test_checksums_deal_out_evenly_at_every_level() -> None:
    units = pa.chunked_array([pa.array([f"patient-{n:06}" for n in range(64_000)])])
    for level in range(bounding._MOST_LEVELS):
        counts = np.bincount(bounding._partitions(units, level), minlength=64)
        assert counts.min() > 800
        assert counts.max() < 1200


def test_the_choice_is_uniform_over_subsets() -> None:
    """Chi-square over the 10 pairs out of 5 records; fixed keys, 27.9 is exceeded once in 1000."""
    trials = 4000
    chosen = Counter(
        tuple(bounding._selected_positions("p", 5, 2, seed).tolist()) for seed in range(trials)
    )
    expected = trials / 10
    subsets = list(combinations(range(5), 2))
    assert sum((chosen[subset] - expected) ** 2 / expected for subset in subsets) < 27.9
    assert set(chosen) == set(subsets)


def test_units_choose_independently() -> None:
    """With one key, two units of equal size don't keep the same positions."""
    choices = {tuple(bounding._selected_positions(f"p{n}", 20, 3, 1).tolist()) for n in range(200)}
    assert len(choices) > 150


def test_rows_keep_the_order_of_the_stream() -> None:
    pairs = [("b", 5), ("a", 9), ("b", 3), ("a", 1), ("b", 4)]
    assert keep(pairs, 10) == {"a": [9, 1], "b": [5, 3, 4]}


def test_without_a_unit_every_record_is_one() -> None:
    (batch,) = single_record_units(rows_of([("a", 1), ("a", 2)]))
    assert batch.column(FIRST).to_pylist() == [True, True]


def test_an_error_of_the_source_keeps_its_type(tmp_path: Path) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from rows_of([("a", 1)]).batches
        raise RowError("column 'x' is empty")

    with pytest.raises(RowError, match="'x' is empty"):
        list(grouped(Rows(SCHEMA, batches()), 1, 0, tmp_path))


def test_files_are_removed_as_soon_as_they_are_read(tmp_path: Path) -> None:
    pairs = [(f"p{n}", n) for n in range(1000)]
    seen = [len(list(tmp_path.iterdir())) for _ in grouped(rows_of(pairs, 100), 1, 0, tmp_path)]
    assert seen == list(range(64, 0, -1))
    assert list(tmp_path.iterdir()) == []
