"""Whatever is given as data: it is read, or refused in words of ours that quote no cell.

TACITURN_FUZZ_EXAMPLES=5000 tries as many examples of each test; a few are for every day.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.rows import Skipped
from taciturn.data.source import open_rows
from taciturn.data.tokens.encoding import Tokenizer
from taciturn.data.tokens.tokenize import prepare
from taciturn.errors import TaciturnError
from taciturn.spec import DataSpec

pytestmark = pytest.mark.usefixtures("kept_processes")

EXAMPLES = int(os.environ.get("TACITURN_FUZZ_EXAMPLES", "15"))
few = settings(max_examples=EXAMPLES)
SECRET = "Schröter"
BYTES = SECRET.encode()


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_medical)


def read_or_refused(data: object, tokenizer: Tokenizer) -> None:
    """Read `data`, in three ways; raises what is neither that nor an error of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = _kept(lambda: open_rows(data).schema, None)
        _kept(lambda: list(open_rows(data, empty=True, skipped=Skipped()).batches), schema)
        for spec in (DataSpec(), _named(schema)):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "data"
                _kept(partial(prepare, data, spec, tokenizer, 8, folder, 0), schema)


def _kept(call: Callable[[], Any], schema: pa.Schema | None) -> Any:
    """What `call` gives, or None where it is refused without quoting a cell.

    Names of columns are public, also those that damage has made out of a row.
    """
    try:
        return call()
    except TaciturnError as error:
        said = "".join(traceback.format_exception(error))
    assert SECRET not in said or any(SECRET in name for name in (schema.names if schema else ()))
    return None


def _named(schema: pa.Schema | None) -> DataSpec:
    """A specification that names columns which are there, of whatever type."""
    names = [] if schema is None else [name for name in schema.names if name]
    if not names:
        return DataSpec()
    unit = '"' + names[-1].replace('"', '""') + '"'
    return DataSpec(text_field=names[0], privacy_unit=unit)


# ---- files

_PIECES = [
    b'"', b",", b";", b"\t", b"|", b"\n", b"\r\n", b"\r", b"{", b"}", b"[", b"]", b":", b'"text":',
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\\u00", b"\\ud83d", b"1e999", b"-", b"NaN", b"null",
    b"true", b"9" * 400, b'{"text": "a"}', b'{"text": "a", "id": [1, {}]}', b"text,id\n",
    b"sep=;\n", b"a,1\n", BYTES, b'"' + BYTES + b'"', b" " * 20, b"[" * 200, b'{"a":' * 60,
]  # fmt: skip
texts = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=3), max_size=25).map(b"".join)


def _valid(suffix: str) -> bytes:
    """A file of this format with some types in it."""
    rows = [{"text": f"{SECRET} {n}", "id": n, "tags": ["a", None]} for n in range(40)]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("word", table["text"].dictionary_encode())
    file = io.BytesIO()
    if suffix == ".parquet":
        pa.parquet.write_table(table, file)
    elif suffix == ".arrow":
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=15)
    elif suffix == ".arrow file":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=15)
    elif suffix in (".csv", ".tsv"):
        table.to_pandas()[["id", "text"]].to_csv(file, sep=";", index=False)
    else:
        file.write(json.dumps(rows, indent=1 if suffix == ".json" else None).encode())
    return file.getvalue()


VALID = {
    suffix: _valid(suffix)
    for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".arrow file")
}
_PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".BZ2": bz2.compress,
}


@st.composite
def mutated(draw: st.DrawFn, suffix: str) -> bytes:
    content = bytearray(VALID[suffix])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([1, 1, 1, 2, 8, 100]))
        match draw(st.sampled_from(["change", "insert", "delete", "cut"])):
            case "change":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "delete":
                del content[at : at + length]
            case "cut" if draw(st.booleans()):
                del content[at:]
    return bytes(content)


@few
@given(data=st.data(), suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl"]))
def test_files_of_texts_that_mean_something_to_a_parser(
    data: st.DataObject, suffix: str, tokenizer: Tokenizer
) -> None:
    _file(data.draw(texts), suffix, data, tokenizer)


@few
@given(data=st.data(), suffix=st.sampled_from([".parquet", ".arrow", ".csv", ".json"]))
def test_files_of_any_bytes(data: st.DataObject, suffix: str, tokenizer: Tokenizer) -> None:
    start = data.draw(st.sampled_from([b"", b"ARROW1\0\0", b"PAR1", b"\xff\xff\xff\xff"]))
    _file(start + data.draw(st.binary(max_size=60)), suffix, data, tokenizer)


@few
@given(data=st.data(), suffix=st.sampled_from(sorted(VALID)))
def test_damaged_files(data: st.DataObject, suffix: str, tokenizer: Tokenizer) -> None:
    _file(data.draw(mutated(suffix)), suffix.split()[0], data, tokenizer)


def _file(content: bytes, suffix: str, data: st.DataObject, tokenizer: Tokenizer) -> None:
    packed = data.draw(st.sampled_from(sorted(_PACKED)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"notes{suffix}{packed}"
        path.write_bytes(_PACKED[packed](content))
        read_or_refused(path, tokenizer)


def test_what_is_not_damaged_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Else all that the tests above see could be one refusal."""
    for suffix, content in VALID.items():
        path = tmp_path / f"notes{suffix.split()[0]}"
        path.write_bytes(content)
        assert list(open_rows(path).batches)


# ---- places

_PARTS = ["*", "**", "?", "[", "]", "[!a]", "/", "//", "..", "~x", "=", "a=b/", "%2F", "%", "#",
          ":", "::", "\\", "\0", "\udcff", "é", "{", ".csv", ".CSV.GZ", "notes", "\n", "?a=b",
          " "]  # fmt: skip
places = st.tuples(
    st.sampled_from(["", "{here}/", "file://{here}/", "file:{here}/", "memory://", "nope://",
                     "zip://", "zip://a::{here}/", "simplecache::", "data:", "://"]),
    st.lists(st.sampled_from(_PARTS) | st.text(max_size=2), max_size=6).map("".join),
)  # fmt: skip


@few
@given(place=places)
def test_places_of_any_name(
    place: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing outside of one folder is named: no network, and no walk through a disk."""
    here = tmp_path_factory.getbasetemp() / "here"
    (here / "d").mkdir(parents=True, exist_ok=True)
    (here / "d" / "notes.csv").write_text(f"text\n{SECRET}\n")
    start, rest = place
    rest = rest.replace("..", "").lstrip("/") if start != "{here}/" else rest.replace("..", "")
    with contextlib.chdir(here):
        _kept(lambda: list(open_rows(start.format(here=here) + rest).batches), None)


# ---- Python objects

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(SECRET)
    | st.binary(max_size=3) | st.dates() | st.datetimes() | st.times() | st.timedeltas()
    | st.decimals() | st.uuids() | st.complex_numbers() | st.just(object())
    | st.sampled_from([float("nan"), "\ud800", b"\xff", 2**63, -(2**64), range(3), {1}, len, pd.NA,
                       pd.NaT, np.float32(1), np.array([1]), np.datetime64("NaT")])
)  # fmt: skip
keys = st.sampled_from(["text", "id", "a", "", "\ud800", 'q"', "a.b"]) | st.text(max_size=2)
nested = st.recursive(
    leaves,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(keys, inside, max_size=3)
        | st.dictionaries(st.integers() | st.none(), inside, max_size=2)
        | st.tuples(inside, inside)
    ),
    max_leaves=8,
)


@few
@given(rows=st.lists(st.dictionaries(keys, nested, max_size=4), max_size=5))
def test_dicts_of_anything(rows: list[Any], tokenizer: Tokenizer) -> None:
    read_or_refused(rows, tokenizer)


@few
@given(rows=st.lists(nested | st.dictionaries(st.integers() | st.none(), leaves), max_size=4))
def test_lists_of_anything(rows: list[Any], tokenizer: Tokenizer) -> None:
    read_or_refused(rows, tokenizer)


def test_numbers_of_more_digits_than_python_writes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    read_or_refused([{"text": "a", "x": 10**5000}, {"text": "b", "x": SECRET}], tokenizer)
    (tmp_path / "a.json").write_text(f'[{{"text": "{SECRET}", "x": {"9" * 5000}}}]')
    read_or_refused(tmp_path / "a.json", tokenizer)


def test_nesting_however_deep(tokenizer: Tokenizer) -> None:
    for depth in (10, 50, 900, 1500):
        lists: Any = SECRET
        objects: Any = SECRET
        for _ in range(depth):
            lists, objects = [lists], {"a": objects}
        for value in (lists, objects):
            read_or_refused([{"text": "a", "x": value}], tokenizer)
            read_or_refused([{"text": "a", "x": value}, {"text": "a", "x": 1}], tokenizer)


# ---- frames

_UNTIDY: list[Callable[[], Any]] = [
    lambda: pd.Series([SECRET, 1, None], dtype=object),
    lambda: pd.Series([SECRET, b"\xff", 1.5], dtype=object),
    lambda: pd.Series(["\ud800", SECRET, ""], dtype=object),
    lambda: pd.Series([UUID(int=1), UUID(int=2), None], dtype=object),
    lambda: pd.Series([{"a": 1}, [SECRET], ()], dtype=object),
    lambda: pd.Series([{"a": 1}, {"b": SECRET}, None], dtype=object),
    lambda: pd.Series([[{"role": "user", "content": SECRET}]] * 3, dtype=object),
    lambda: pd.Series([Decimal("1.5"), Decimal("NaN"), Decimal("1e40")], dtype=object),
    lambda: pd.Series([date(1, 1, 1), datetime(9999, 12, 31, tzinfo=UTC), None], dtype=object),
    lambda: pd.Series([time(1), timedelta(days=10**8), None], dtype=object),
    lambda: pd.Series([pd.NA, pd.NaT, float("nan")], dtype=object),
    lambda: pd.Series([pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2021", tz="Asia/Tokyo"), None],
                      dtype=object),
    lambda: pd.Series([object(), len, SECRET], dtype=object),
    lambda: pd.Series([10**30, -1, 0], dtype=object),
    lambda: pd.Series([SECRET, "b", None], dtype="category"),
    lambda: pd.Series([1, 2, None], dtype="category"),
    lambda: pd.Categorical([pd.Interval(0, 1), pd.Interval(1, 2), None]),
    lambda: pd.Series([SECRET, "b", None], dtype="string"),
    lambda: pd.Series([SECRET, "b", None], dtype=pd.ArrowDtype(pa.string())),
    lambda: pd.Series([[SECRET], None, []], dtype=pd.ArrowDtype(pa.list_(pa.string()))),
    lambda: pd.Series([1, 2, 3], dtype=pd.ArrowDtype(pa.decimal256(60, 3))),
    lambda: pd.Series([1, None, 3], dtype="Int8"),
    lambda: pd.Series([1.5, None, 3], dtype="Float32"),
    lambda: pd.Series([True, None, False], dtype="boolean"),
    lambda: pd.Series([1, 2, 3], dtype="float16"),
    lambda: pd.Series([1j, 2, 3], dtype="complex128"),
    lambda: pd.Series([1, 2, 3], dtype=np.longdouble),
    lambda: pd.date_range("2020", periods=3, tz="Europe/Berlin"),
    lambda: pd.Series(pd.to_datetime(["1700-01-01", "2020-01-01", None])),
    lambda: pd.timedelta_range("1D", periods=3),
    lambda: pd.period_range("2020", periods=3, freq="M"),
    lambda: pd.interval_range(0, 3),
    lambda: pd.arrays.SparseArray([0, 0, 1]),
    lambda: pd.arrays.SparseArray([SECRET, None, None]),
    lambda: np.array([b"a", b"b", b"\xff"]),
    lambda: np.array(["2020", "NaT", "2021"], dtype="datetime64[D]"),
]  # fmt: skip
_NAMES = ["text", "id", "text", 1, "1", None, float("nan"), ("a", "b"), ("a", ""), "\ud800", "",
          b"x", pd.Timestamp("2020"), 'q"', "__privacy_unit__", "ID", True]  # fmt: skip
untidy = st.sampled_from(_UNTIDY).map(lambda made: made())


@st.composite
def pandas_frames(draw: st.DrawFn) -> Any:
    columns = draw(st.lists(untidy, min_size=1, max_size=4))
    names = draw(
        st.lists(st.sampled_from(_NAMES), min_size=len(columns), max_size=len(columns))
        | st.just(["text", "id", "x", "y"][: len(columns)])
    )
    frame = pd.concat([pd.Series(column) for column in columns], axis=1)
    frame.columns = pd.Index(names, dtype=object, tupleize_cols=draw(st.booleans()))
    return frame.loc[[]] if draw(st.sampled_from([False] * 5 + [True])) else frame


@few
@given(data=st.data())
def test_pandas_frames(data: st.DataObject, tokenizer: Tokenizer) -> None:
    read_or_refused(data.draw(pandas_frames()), tokenizer)


@few
@given(made=st.sampled_from(_UNTIDY), how=st.sampled_from(["as", "Series", "to_numpy", "array"]))
def test_pandas_columns_alone(made: Any, how: str, tokenizer: Tokenizer) -> None:
    column = made()
    if how != "as":
        column = pd.Series(column)
    if how == "to_numpy":
        column = column.to_numpy()
    read_or_refused(column.array if how == "array" else column, tokenizer)


_POLARS: list[Callable[[], Any]] = [
    lambda: pl.Series([SECRET, None, ""]),
    lambda: pl.Series([SECRET, None, "b"], dtype=pl.Categorical),
    lambda: pl.Series(["a", None, "b"], dtype=pl.Enum(["a", "b"])),
    lambda: pl.Series([object(), None, SECRET], dtype=pl.Object),
    lambda: pl.Series([None, None, None], dtype=pl.Null),
    lambda: pl.Series([[SECRET], None, []]),
    lambda: pl.Series([[1, 2], [3, 4], [5, 6]], dtype=pl.Array(pl.Int8, 2)),
    lambda: pl.Series([{"a": SECRET}, None, {"a": "b"}]),
    lambda: pl.Series([b"\xff", None, b""]),
    lambda: pl.Series([Decimal("1.5"), None, Decimal(3)]),
    lambda: pl.Series([datetime(1, 1, 1), None, datetime(9999, 1, 1)], dtype=pl.Datetime("ms")),
    lambda: pl.Series([datetime(2020, 1, 1), None, None], dtype=pl.Datetime("ns", "Asia/Tokyo")),
    lambda: pl.Series([timedelta(1), None, timedelta(-1)], dtype=pl.Duration("ns")),
    lambda: pl.Series([time(1), None, time(23, 59)]),
    lambda: pl.Series([2**127 - 1, None, -1], dtype=pl.Int128),
    lambda: pl.Series([2**64 - 1, 0, None], dtype=pl.UInt64),
    lambda: pl.Series([float("nan"), None, float("inf")], dtype=pl.Float32),
    lambda: pl.Series([True, None, False]),
    lambda: pl.Series([[[SECRET]], None, [None]], dtype=pl.List(pl.List(pl.Categorical))),
]
polars_columns = st.sampled_from(_POLARS).map(lambda made: made())


@few
@given(columns=st.lists(polars_columns, max_size=4), alone=st.booleans())
def test_polars_frames(columns: list[pl.Series], alone: bool, tokenizer: Tokenizer) -> None:
    if alone and columns:
        read_or_refused(columns[0], tokenizer)
    names = ["text", "id", "ID", ""]
    named = [column.alias(name) for column, name in zip(columns, names, strict=False)]
    read_or_refused(pl.DataFrame(named), tokenizer)
    read_or_refused(pl.DataFrame(named).lazy(), tokenizer)


# ---- Arrow


class _Odd(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.string(), "taciturn.odd")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> _Odd:
        return cls()


def _union(mode: str) -> pa.Array:
    types, children = pa.array([0, 1, 0], pa.int8()), [pa.array([SECRET] * 3), pa.array([1, 2, 3])]
    if mode == "sparse":
        return pa.UnionArray.from_sparse(types, children)
    return pa.UnionArray.from_dense(types, pa.array([0, 0, 1], pa.int32()), children)


def _wrong_text() -> pa.Array:
    """Bytes that are no UTF-8 under a type that says so."""
    return pa.array([b"\xff\xfe", BYTES, b"a"]).view(pa.string())


_ARROW: list[Callable[[], pa.Array]] = [
    lambda: pa.array([SECRET, None, ""]),
    lambda: pa.array([SECRET, None, "b"], pa.large_string()),
    lambda: pa.array([SECRET * 3, None, "b"], pa.string_view()),
    lambda: pa.array([BYTES, None, b"\xff"]),
    lambda: pa.array([BYTES * 3, None, b"\xff"], pa.binary_view()),
    lambda: pa.array([b"abc", None, b"\xff\xff\xff"], pa.binary(3)),
    lambda: pa.nulls(3),
    lambda: pa.array([SECRET, None, "b"]).dictionary_encode(),
    lambda: pa.array([1, None, 3]).dictionary_encode(),
    lambda: pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None]), pa.array([SECRET, None]).dictionary_encode()
    ),
    lambda: pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([[SECRET], None])),
    lambda: pa.RunEndEncodedArray.from_arrays(pa.array([2, 3]), pa.array([SECRET, None])),
    lambda: pa.ExtensionArray.from_storage(_Odd(), pa.array([SECRET, None, "b"])),
    lambda: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * 3, pa.binary(16))),
    lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None, SECRET])),
    lambda: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2))
    ),
    lambda: _union("sparse"),
    lambda: _union("dense"),
    _wrong_text,
    lambda: pa.array([[SECRET], None, []]),
    lambda: pa.array([[SECRET], None, []], pa.list_view(pa.string())),
    lambda: pa.array([[SECRET], None, []], pa.large_list(pa.string())),
    lambda: pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    lambda: pa.array([{"a": SECRET}, None, {}]),
    lambda: pa.array([{}, None, {}], pa.struct([])),
    lambda: pa.StructArray.from_arrays([pa.array([SECRET] * 3), pa.array([1, 2, 3])], ["a", "a"]),
    lambda: pa.array([[("a", SECRET)], None, []], pa.map_(pa.string(), pa.string())),
    lambda: pa.array([[{"role": "user", "content": SECRET}], None, []]),
    lambda: pa.array([1.5, None, float("nan")], pa.float16()),
    lambda: pa.array([1, None, 3], pa.decimal256(70, 60)),
    lambda: pa.array([1, None, 3], pa.decimal32(5, 1)),
    lambda: pa.array([2**63, None, 3], pa.uint64()),
    lambda: pa.array([-(2**62), None, 2**62], pa.timestamp("s")),
    lambda: pa.array([2**62, None, 0], pa.timestamp("ns", "Nowhere/Atlantis")),
    lambda: pa.array([2**30, None, -(2**31)], pa.date32()),
    lambda: pa.array([2**62, None, -(2**62)], pa.date64()),
    lambda: pa.array([2**62, None, -1], pa.time64("ns")),
    lambda: pa.array([2**62, None, -1], pa.duration("s")),
    lambda: pa.array([(1, 2, 3), None, (0, 0, 0)], pa.month_day_nano_interval()),
    lambda: pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8())),
]
arrow_columns = st.sampled_from(_ARROW).map(lambda made: made())
_ARROW_NAMES = ["text", "id", "ID", "", "text", "messages", 'q"', "__privacy_unit__"]


@few
@given(data=st.data(), columns=st.lists(arrow_columns, max_size=4))
def test_arrow_tables(data: st.DataObject, columns: list[pa.Array], tokenizer: Tokenizer) -> None:
    count = len(columns)
    names = data.draw(
        st.lists(st.sampled_from(_ARROW_NAMES), min_size=count, max_size=count)
        | st.just(["text", "id", "x", "y"][:count])
    )
    table = pa.Table.from_arrays(columns, names=names)
    how = data.draw(st.sampled_from(["table", "column", "dataset", "parquet", "arrow"]))
    if how == "column" and columns:
        read_or_refused(data.draw(st.sampled_from([columns[0], table.columns[0]])), tokenizer)
    elif how == "dataset":
        read_or_refused(pa.dataset.dataset(table), tokenizer)
    elif how in ("parquet", "arrow"):
        _written(table, how, tokenizer)
    else:
        read_or_refused(table, tokenizer)


def _written(table: pa.Table, suffix: str, tokenizer: Tokenizer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"notes.{suffix}"
        try:
            if suffix == "parquet":
                pa.parquet.write_table(table, path)
            else:
                with pa.ipc.new_file(path, table.schema) as writer:
                    writer.write_table(table)
        except (pa.ArrowException, ValueError, TypeError, OSError):
            return  # nobody has such a file
        read_or_refused(path, tokenizer)
