"""Microbatches hold whole units, each once, in shapes that follow from the unit alone."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.batch import (
    PADDED,
    BatchLimits,
    bucket_length,
    filled_units,
    microbatches,
    padded_counts,
    width_steps,
    widths,
)

MAX_TOKENS = 128
WIDTHS = {bucket_length(n, MAX_TOKENS) for n in range(2, MAX_TOKENS + 1)}
units = st.lists(
    st.lists(st.integers(2, MAX_TOKENS), min_size=1, max_size=5), min_size=1, max_size=30
)


class Rows:
    """Stands in for a dataset: unit u's records are all tokens u + 1."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = lengths

    def records(self, unit: int) -> list[TokenizedRecord]:
        return [
            TokenizedRecord(np.full(n, unit + 1, np.int32), np.arange(n) > 0)
            for n in self.lengths[unit]
        ]


def split(
    lengths: list[list[int]], limits: BatchLimits, drawn: list[int] | None = None
) -> list[tuple[UnitBatch, ...]]:
    units = np.array(range(len(lengths)) if drawn is None else drawn, dtype=np.int64)
    return list(microbatches(cast(TokenizedDataset, Rows(lengths)), units, limits))


@given(units, st.integers(32, 1024), st.integers(1, 16))
def test_packed_rows_hold_each_record_of_one_unit_once(
    lengths: list[list[int]], tokens: int, n_units: int
) -> None:
    limits = BatchLimits(tokens, n_units, MAX_TOKENS, packed=True)
    shapes = limits.shapes(5)
    found: dict[int, list[int]] = {}
    records = 0
    for group in split(lengths, limits):
        records += sum(part.records for part in group)
        for part in group:
            assert part.positions_BT is not None
            rows, width = part.input_ids_BT.shape
            assert part.n_units == 1 or (part.n_units, rows // part.n_units, width) in shapes
            for ids, weights, positions in zip(
                part.input_ids_BT, part.loss_weights_BT, part.positions_BT, strict=True
            ):
                unit = int(ids[0]) - 1
                if unit < 0:
                    assert not weights.any()
                    continue
                starts = [*(positions == 0).nonzero().flatten().tolist(), int((ids > 0).sum())]
                assert set(ids[: starts[-1]].tolist()) == {unit + 1}
                assert not weights[starts[:-1]].any()
                found.setdefault(unit, []).extend(np.diff(starts).tolist())
                for start, stop in pairwise(starts):
                    assert float(weights[start:stop].sum()) == pytest.approx(1)
                    assert positions[start:stop].tolist() == list(range(stop - start))
    assert {unit: sorted(own) for unit, own in found.items()} == {
        unit: sorted(own) for unit, own in enumerate(lengths)
    }
    assert records == sum(map(len, lengths))


@given(units, st.integers(32, 1024), st.integers(1, 16))
def test_rows_of_a_unit_follow_from_it_alone(
    lengths: list[list[int]], tokens: int, n_units: int
) -> None:
    limits = BatchLimits(tokens, n_units, MAX_TOKENS, packed=True)
    in_company = {
        unit: (part.input_ids_BT.shape, part.input_ids_BT[rows].tolist())
        for group in split(lengths, limits)
        for part in group
        for unit in range(len(lengths))
        if (rows := (part.input_ids_BT[:, 0] == unit + 1)).any() and len(group) == 1
    }
    for unit, found in in_company.items():
        ((part,),) = split(lengths, limits, [unit])
        rows = part.input_ids_BT[:, 0] == unit + 1
        assert found == (part.input_ids_BT.shape, part.input_ids_BT[rows].tolist())


@given(units, st.integers(32, 1024), st.integers(1, 16), st.sampled_from(sorted(PADDED)))
def test_all_shapes_of_whole_units_are_known_before(
    lengths: list[list[int]], tokens: int, n_units: int, steps: int
) -> None:
    limits = BatchLimits(tokens, n_units, MAX_TOKENS, steps=steps)
    shapes = limits.shapes(5)
    assert len(set(shapes)) == len(shapes)
    for group in split(lengths, limits):
        part = group[0]
        rows, width = part.input_ids_BT.shape
        shape = part.n_units, rows // part.n_units, width
        # A unit that is larger than a microbatch is in parts, of which there may be one.
        assert shape in shapes or (part.n_units == 1 and rows == max(1, tokens // width))


@pytest.mark.parametrize(
    ("records", "counts"), [(1, (1,)), (5, (1, 2, 3, 4, 6)), (8, (1, 2, 3, 4, 6, 8))]
)
def test_numbers_of_sequences_that_a_unit_is_given(records: int, counts: tuple[int, ...]) -> None:
    assert padded_counts(records) == counts


@given(units, st.integers(32, 1024), st.integers(1, 16))
def test_every_record_is_in_one_part_and_limits_hold(
    lengths: list[list[int]], tokens: int, n_units: int
) -> None:
    found: list[tuple[int, int]] = []
    for group in split(lengths, BatchLimits(tokens, n_units, MAX_TOKENS)):
        seen = set()
        for part in group:
            b, width = part.input_ids_BT.shape
            assert width in WIDTHS
            assert b == 1 or b * width <= tokens
            assert part.n_units == 1 or b <= n_units
            filled = (part.loss_weights_BT != 0).any(1)
            assert part.records == int(filled.sum())
            assert not filled[part.unit_of_B >= part.n_units - part.n_fillers].any()
            for row, unit in zip(part.input_ids_BT, part.unit_of_B, strict=True):
                if row.any():
                    name = int(row[0]) - 1
                    found.append((name, int((row != 0).sum())))
                    seen.add((int(unit), name))
        # A row of the group is one unit: no unit is spread over two rows or shares one.
        assert len(seen) == len({unit for unit, _ in seen}) == len({name for _, name in seen})
    expected = [(unit, n) for unit, records in enumerate(lengths) for n in records]
    assert sorted(found) == sorted(expected)


@given(units, st.integers(32, 1024), st.integers(1, 16), st.data())
def test_shapes_follow_from_the_unit_alone(
    lengths: list[list[int]], tokens: int, n_units: int, data: st.DataObject
) -> None:
    """Whoever else is drawn, in whatever order."""
    limits = BatchLimits(tokens, n_units, MAX_TOKENS)
    unit = data.draw(st.integers(0, len(lengths) - 1))
    company = data.draw(st.permutations(range(len(lengths))))
    (alone,) = split(lengths, limits, [unit])
    (beside,) = [
        group for group in split(lengths, limits, list(company)) if of(group, unit) is not None
    ]
    assert [part.input_ids_BT.shape for part in alone] == [
        part.input_ids_BT.shape for part in beside
    ]
    assert [part.n_units for part in alone] == [part.n_units for part in beside]
    for one, other in zip(alone, beside, strict=True):
        mine, theirs = (
            rows_of(part, place)
            for part, place in ((one, of(alone, unit)), (other, of(beside, unit)))
        )
        assert torch.equal(mine.input_ids_BT, theirs.input_ids_BT)
        assert torch.equal(mine.loss_weights_BT, theirs.loss_weights_BT)


def of(group: tuple[UnitBatch, ...], unit: int) -> int | None:
    """The place of a unit in a group."""
    first = group[0]
    rows = (first.input_ids_BT[:, 0] == unit + 1).nonzero()[:, 0].tolist()
    return int(first.unit_of_B[rows[0]]) if rows else None


def rows_of(part: UnitBatch, place: int | None) -> UnitBatch:
    assert place is not None
    rows = part.unit_of_B == place
    return UnitBatch(
        part.input_ids_BT[rows],
        part.loss_weights_BT[rows],
        torch.zeros_like(part.unit_of_B[rows]),
        1,
    )


def test_no_unit_is_in_two_groups() -> None:
    groups = split([[40] * 3] * 10, BatchLimits(256, 8, MAX_TOKENS))
    names = [
        {int(row[0]) for part in group for row in part.input_ids_BT if row.any()}
        for group in groups
    ]
    assert sum(len(each) for each in names) == len(set().union(*names)) == 10


def test_buckets_are_few_and_close() -> None:
    """Public widths: a quarter of a power of two apart, so that little is padding."""
    found = sorted({bucket_length(n, 4096) for n in range(1, 4097)})
    assert found[:10] == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    assert len(found) == 33
    assert tuple(found) == widths(4096)
    for n in range(17, 4097):
        assert n <= bucket_length(n, 4096) <= n * 1.25 + 4
    assert bucket_length(100, 100) == 100
    assert widths(16) == (16,)
    assert widths(5) == (5,)


@pytest.mark.parametrize("expected", [128, 512, 2048])
def test_fillers_are_a_small_part_of_a_draw(expected: int) -> None:
    """As many units as are expected, of lengths all over."""
    generator = np.random.default_rng(0)
    lengths = [[int(n)] for n in generator.integers(9, 90, size=expected)]
    groups = split(lengths, BatchLimits(2048, filled_units(expected, 512), 512))
    fillers = sum(part.n_fillers for group in groups for part in group)
    assert fillers <= expected / 4


def test_units_of_a_microbatch_can_be_split_evenly() -> None:
    limits = [BatchLimits(10**6, units, 512) for units in range(1, 50)]
    found = {each.units_of(64, 1) for each in limits}
    assert found == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48}
    assert BatchLimits(64, 1, 512).units_of(16, 8) == 1


def test_unit_larger_than_a_microbatch_is_in_parts_of_one_shape() -> None:
    (group,) = split([[60, 3, 40, 60, 9]], BatchLimits(128, 4, 64))
    assert [tuple(part.input_ids_BT.shape) for part in group] == [(2, 64)] * 3
    assert [part.records for part in group] == [2, 2, 1]


def test_places_that_cost_nothing_are_filled() -> None:
    """Where a microbatch takes the time of many tokens anyway, it has as many."""
    few = BatchLimits(8192, 1000, 512, places=4)
    free = BatchLimits(8192, 1000, 512, places=4, free_tokens=4096)
    assert [few.units_of(width, 1) for width in (16, 64, 512)] == [4, 4, 4]
    assert [free.units_of(width, 1) for width in (16, 64, 512)] == [256, 64, 8]
    assert [free.units_of(width, 8) for width in (16, 64, 512)] == [32, 8, 1]
    assert BatchLimits(8192, 100, 512, places=4, free_tokens=4096).units_of(16, 1) == 96
    assert BatchLimits(2048, 1000, 512, places=4, free_tokens=4096).units_of(16, 1) == 128
    assert BatchLimits(2048, 8, 512).units_of(16, 1) == 8


@pytest.mark.parametrize("steps", [4, 2, 1])
def test_fewer_lengths_waste_as_much_as_is_reckoned(steps: int) -> None:
    """Of lengths that are spread evenly over their logarithm."""
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(64), np.log(4096), size=20_000))
    whole = np.ceil(lengths).astype(int)
    padded = np.array([bucket_length(int(n), 4096, steps) for n in whole])
    assert (padded / whole).mean() == pytest.approx(PADDED[steps], abs=0.03)
    assert set(widths(4096, 1)) <= set(widths(4096, 2)) <= set(widths(4096, 4))


def test_lengths_are_fewer_where_a_microbatch_costs_more() -> None:
    assert width_steps(256, 512, 0) == 4
    assert [width_steps(1024, 512, free) for free in (100, 12_000)] == [4, 1]
    assert [width_steps(size, 512, 4000) for size in (64, 100_000)] == [1, 4]
    lengths = [[n] for n in (5, 17, 21, 33, 60, 90)]
    shapes = {
        steps: {
            part.input_ids_BT.shape[1]
            for (part,) in split(lengths, BatchLimits(4096, 8, MAX_TOKENS, steps=steps))
        }
        for steps in (4, 1)
    }
    assert shapes == {4: {16, 20, 24, 40, 64, 96}, 1: {16, 32, 64, 128}}
    assert BatchLimits(1, 1, MAX_TOKENS, steps=1).widths == (16, 32, 64, 128)
