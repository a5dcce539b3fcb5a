"""Microbatches hold whole units, each once, within their limits, at public widths."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.data.batch import BatchLimits, bucket_length, microbatches
from taciturn.engine.data.tokenize import TokenizedDataset, TokenizedRecord

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


def split(lengths: list[list[int]], limits: BatchLimits) -> list[Any]:
    drawn = np.arange(len(lengths), dtype=np.int64)
    return list(microbatches(cast(TokenizedDataset, Rows(lengths)), drawn, limits))


@given(units, st.integers(32, 1024), st.integers(1, 16), st.booleans())
def test_every_record_is_in_one_part_and_limits_hold(
    lengths: list[list[int]], tokens: int, n_units: int, packed: bool
) -> None:
    found: list[tuple[int, int]] = []
    for group in split(lengths, BatchLimits(tokens, n_units, MAX_TOKENS, packed)):
        seen = set()
        for part in group:
            b, width = part.input_ids_BT.shape
            assert width in WIDTHS
            assert b == 1 or part.computed_tokens <= tokens
            if part.packing is not None:
                assert packed
                rows, row_width = part.packing.shape
                assert rows < b
                assert b * width <= 4 * tokens, "it may have to be computed padded"
                assert row_width in WIDTHS
                seen_ids = part.packing.input_ids_RL[part.packing.record_RL < b]
                assert len(seen_ids) == int((part.input_ids_BT != 0).sum())
            assert part.n_units <= n_units
            for row, unit in zip(part.input_ids_BT, part.unit_of_B, strict=True):
                name = int(row[0]) - 1
                found.append((name, int((row != 0).sum())))
                seen.add((int(unit), name))
        # A row of the group is one unit: no unit is spread over two rows or shares one.
        assert len(seen) == len({unit for unit, _ in seen}) == len({name for _, name in seen})
    expected = [(unit, n) for unit, records in enumerate(lengths) for n in records]
    assert sorted(found) == sorted(expected)


def test_no_unit_is_in_two_groups() -> None:
    groups = split([[40] * 3] * 10, BatchLimits(256, 8, MAX_TOKENS))
    names = [{int(row[0]) for part in group for row in part.input_ids_BT} for group in groups]
    assert sum(len(each) for each in names) == len(set().union(*names)) == 10


def test_buckets_are_few_and_close() -> None:
    """Public widths: a quarter of a power of two apart, so that little is padding."""
    widths = sorted({bucket_length(n, 4096) for n in range(1, 4097)})
    assert widths[:10] == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    assert len(widths) == 33
    for n in range(17, 4097):
        assert n <= bucket_length(n, 4096) <= n * 1.25 + 4
    assert bucket_length(100, 100) == 100


def test_a_long_unit_does_not_pad_many_short_ones() -> None:
    lengths = [[16]] * 40 + [[128]]
    groups = split(lengths, BatchLimits(4096, 64, MAX_TOKENS))
    shapes = sorted(tuple(part.input_ids_BT.shape) for group in groups for part in group)
    assert shapes == [(1, 128), (40, 16)]


def test_a_few_short_units_are_padded_rather_than_run_alone() -> None:
    groups = split([[16], [16], [20]], BatchLimits(4096, 64, MAX_TOKENS))
    assert [tuple(part.input_ids_BT.shape) for group in groups for part in group] == [(3, 20)]


def computed(lengths: list[list[int]], limits: BatchLimits) -> int:
    return sum(part.computed_tokens for group in split(lengths, limits) for part in group)


def test_packed_rows_save_padding() -> None:
    """Sentences of many lengths in one draw."""
    generator = np.random.default_rng(0)
    lengths = [[int(n)] for n in generator.integers(9, 90, size=40)]
    padded, packed = (computed(lengths, BatchLimits(2048, 64, 512, each)) for each in (False, True))
    total = sum(n for (n,) in lengths)
    assert total <= packed < 1.08 * total
    assert padded > 1.15 * total


def test_records_of_one_length_stay_padded() -> None:
    """Nothing to save, so nothing is paid for masks and groups of rows."""
    groups = split([[64]] * 40, BatchLimits(2048, 64, 512, packed=True))
    assert all(part.packing is None for group in groups for part in group)


def test_unit_larger_than_a_microbatch_is_in_parts() -> None:
    (group,) = split([[60, 3, 40, 60, 9]], BatchLimits(64, 4, 64, packed=True))
    assert len(group) == 5
    assert all(part.packing is None for part in group)
