"""Splits by unit: a unit's side is its own business, and the same whenever it is asked for."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.rows import UNIT, Rows
from taciturn.data.split import Split

KEY = bytes(range(32))
units = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30)
shares = st.floats(0.01, 0.99)


def side(names: list[str], which: str, share: float, key: bytes = KEY) -> set[str]:
    split = Split(key, which, share)  # type: ignore[arg-type]
    return {name for name in names if split.holds(name)}


@given(units, shares)
def test_each_unit_is_on_one_side(names: list[str], share: float) -> None:
    train, test = side(names, "train", share), side(names, "test", share)
    assert train | test == set(names)
    assert not train & test


@given(units, shares, st.integers(0, 29))
def test_a_unit_moves_no_other(names: list[str], share: float, dropped: int) -> None:
    others = [name for index, name in enumerate(names) if index != dropped]
    assert side(others, "test", share) == side(names, "test", share) & set(others)


@given(units, shares, shares)
def test_a_larger_test_side_holds_the_smaller_one(
    names: list[str], one: float, other: float
) -> None:
    assert side(names, "test", min(one, other)) <= side(names, "test", max(one, other))


def test_share_is_about_what_was_asked_for() -> None:
    names = [f"patient {i}" for i in range(20_000)]
    assert abs(len(side(names, "test", 0.1)) - 2000) < 6 * 42


def test_the_key_decides() -> None:
    names = [f"patient {i}" for i in range(2000)]
    one, other = (side(names, "test", 0.5, key) for key in (KEY, KEY[::-1]))
    assert abs(len(one & other) - 500) < 6 * 20


def test_all_rows_of_a_unit_go_together() -> None:
    names = [f"p{i % 5}" for i in range(50)]
    batch = pa.record_batch([pa.array(names), pa.array(range(50))], [UNIT, "n"])
    split = Split(KEY, "train", 0.5)
    (kept,) = split.rows_of_side(Rows(batch.schema, iter([batch]))).batches
    counts = {name: kept.column(0).to_pylist().count(name) for name in set(names)}
    assert set(counts.values()) <= {0, 10}


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_outside_its_bound(share: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        Split(KEY, "test", share)


def test_key_is_shown_nowhere() -> None:
    assert KEY.hex() not in repr(Split(KEY, "test", 0.5))
    assert str(KEY) not in repr(Split(KEY, "test", 0.5))
