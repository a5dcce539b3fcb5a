"""Types come back from their names."""

from __future__ import annotations

import contextlib
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.arrow_types import (
    MOST_CHARACTERS,
    OpaqueType,
    name_of_type,
    parse_type,
    type_of_column,
)
from taciturn.errors import DataError
from taciturn.wire.datasets import ColumnView

FLAT = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(16), pa.date32(),
    pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("us"), pa.timestamp("ms"),
    pa.timestamp("us", "UTC"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("s", "+02:00"),
    pa.decimal128(38, 2), pa.decimal256(76, -3), pa.month_day_nano_interval(),
]  # fmt: skip
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_ .é-]{0,8}", fullmatch=True)


def nested(inside: Any) -> Any:
    fields = st.lists(st.tuples(NAMES, inside), max_size=3, unique_by=lambda each: each[0])
    return (
        inside.map(pa.list_)
        | inside.map(pa.large_list)
        | fields.map(pa.struct)
        | st.tuples(st.sampled_from([pa.string(), pa.int64()]), inside).map(lambda x: pa.map_(*x))
    )


@given(st.recursive(st.sampled_from(FLAT), nested, max_leaves=6))
def test_a_type_is_read_back(kind: pa.DataType) -> None:
    assert str(parse_type(str(kind))) == str(kind)


def test_a_dictionary_is_its_values() -> None:
    assert parse_type(str(pa.dictionary(pa.int32(), pa.string()))) == pa.string()


@pytest.mark.parametrize(
    "text", ["", "strin", "list<>", "list<item>", "struct<a>", "decimal128(99, 1)", "map<>",
             "list<item: " * 30 + "int8" + ">" * 30, "fixed_size_binary[x]", "timestamp[us, tz=\n]"]
)  # fmt: skip
def test_what_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_type(text)


@given(st.text(alphabet="listruc<>:, map()[]int8a", max_size=30))
def test_no_text_gets_past_with_another_error(text: str) -> None:
    with contextlib.suppress(DataError):
        parse_type(text)


@pytest.mark.parametrize("text", ["extension<arrow.uuid>", "sparse_union<a: string=0>", "x" * 5000])
def test_a_column_of_any_type_has_one_that_can_be_passed_on(text: str) -> None:
    kind = type_of_column(text)
    assert isinstance(kind, OpaqueType)
    assert str(kind) == text
    array = pa.ExtensionArray.from_storage(kind, pa.nulls(2))
    assert pa.record_batch([array], ["x"]).to_pylist() == [{"x": None}] * 2
    assert type_of_column(text).equals(kind)
    assert type_of_column("string") == pa.string()


def test_the_name_of_a_type_fits_into_a_view() -> None:
    wide = pa.struct([(f"field {index}", pa.string()) for index in range(1000)])
    text = name_of_type(wide)
    assert ColumnView(name="x", type=text).type == text
    assert len(text) == MOST_CHARACTERS
    assert isinstance(type_of_column(text), OpaqueType)
    assert name_of_type(pa.string()) == "string"
