"""One stream of Arrow record batches from anything that holds rows.

Files and URLs, pandas and polars frames and columns of them, Arrow tables and arrays,
`datasets.Dataset`, lists of strings or of mappings. Nothing is read ahead further than one batch;
optional libraries are recognised by the object that the caller holds, never imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from taciturn.data.database import Table, is_table, read_table
from taciturn.data.huggingface import read_dataset
from taciturn.data.jsonl import read_objects
from taciturn.data.location import Location, locate
from taciturn.data.readers import NAMES_ITSELF, read_files
from taciturn.data.rows import (
    ROWS_PER_BATCH,
    Rows,
    Skipped,
    not_empty,
    shield,
    shielded,
    sliced,
    unique_columns,
)
from taciturn.errors import DataError

_KNOWN = (
    "a path, glob, directory or URL of JSONL, JSON, CSV, TSV, Parquet or Arrow, a pandas or polars "
    "frame, or one column of it, an Arrow table, array, reader or dataset, a datasets.Dataset, a "
    "list of strings, or a list of dicts"
)


def open_rows(
    data: object,
    *,
    empty: bool = False,
    skipped: Skipped | None = None,
    names: Sequence[str] | None = None,
) -> Rows:
    """Open `data` as a stream of record batches of at most ROWS_PER_BATCH rows.

    A list of strings becomes the column "text", as does one column alone that has no name. CSV
    columns are all text. With `empty`, data without a row are not an error, as long as they have
    columns.

    Args:
        data: a Location and a Table, too, where they are known already.
        skipped: counts rows of files that cannot be read, which are left out; without it they are
            an error. What is damaged beyond a row is an error anyway.
        names: of the columns of CSV files that begin with a row, and not with a line of names;
            empty: column_1, column_2, ...

    Raises DataNotFoundError, MissingDependencyError, or DataError (nothing in it, damaged, or of a
    kind that cannot be read); no message quotes a row.
    """
    rows, label = _open(data, skipped, names)
    unique_columns(rows.schema, label)
    rows = _without_dictionaries_of_views(rows)
    rows_in_batches = Rows(rows.schema, sliced(rows.batches))
    return rows_in_batches if empty else not_empty(rows_in_batches, label)


def _without_dictionaries_of_views(rows: Rows) -> Rows:
    """Polars makes them of its categories; Arrow has no way yet to do anything with them."""
    kinds = [_without_view(field.type) for field in rows.schema]
    if kinds == rows.schema.types:
        return rows
    schema = pa.schema(list(zip(rows.schema.names, kinds, strict=True)))

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            arrays = [
                column
                if column.type.equals(kind)
                else pa.DictionaryArray.from_arrays(
                    column.indices, column.dictionary.cast(kind.value_type), ordered=kind.ordered
                )
                for column, kind in zip(batch.columns, kinds, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return Rows(schema, batches())


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return pa.dictionary(kind.index_type, pa.large_string(), kind.ordered)
    return kind


def _open(data: object, skipped: Skipped | None, names: Sequence[str] | None) -> tuple[Rows, str]:
    if isinstance(data, str) and is_table(data):
        data = Table(data)
    if isinstance(data, str | os.PathLike):
        data = locate(os.fsdecode(data))
    if isinstance(data, Location):
        return read_files(data, skipped, names), data.label
    label = "the table" if isinstance(data, Table) else f"the {type(data).__name__}"
    if names is not None:
        raise DataError(f"{label} {NAMES_ITSELF}")
    return read_table(data) if isinstance(data, Table) else (_in_memory(data, label), label)


def _in_memory(data: Any, label: str) -> Rows:
    if isinstance(data, list | tuple):
        return _read_list(data, label)
    if "datasets" in _libraries(data):
        return read_dataset(data, label)
    if "pandas" in _libraries(data) and not hasattr(data, "__arrow_array__"):
        return _read_pandas(_frame(data, label), label)
    if "numpy" in _libraries(data) and hasattr(data, "tolist"):
        return _read_numpy(data, label)
    return _read_arrow(data, label)


def _libraries(data: object) -> set[str]:
    """Libraries of its class and of the classes that it derives from, as our own frames do."""
    return {kind.__module__.partition(".")[0] for kind in type(data).__mro__}


def _read_list(data: list[Any] | tuple[Any, ...], label: str) -> Rows:
    if not data:
        raise DataError("the list holds no rows; give at least one")
    if all(isinstance(item, str) or item is None for item in data):
        return Rows(pa.schema([("text", pa.string())]), _text_batches(data, label))
    if all(isinstance(item, Mapping) for item in data):
        return read_objects(data, label)
    kinds = sorted({type(item).__name__ for item in data})
    raise DataError(f"{label} holds {', '.join(kinds)}; give either strings or dicts")


def _text_batches(data: list[Any] | tuple[Any, ...], label: str) -> Iterator[pa.RecordBatch]:
    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(data), ROWS_PER_BATCH):
            part = pa.array(data[start : start + ROWS_PER_BATCH], pa.string())
            yield pa.RecordBatch.from_arrays([part], names=["text"])

    return shielded(batches(), lambda _: DataError(f"{label} holds a string that is not UTF-8"))


def _read_arrow(data: Any, label: str) -> Rows:
    """Arrow's own types, and whatever speaks Arrow's stream protocol (polars does)."""

    def failed(kind: str) -> DataError:
        return DataError(f"{label} cannot be read as Arrow ({kind}); give {_KNOWN}")

    if hasattr(data, "to_frame") and hasattr(data, "name"):  # a column of polars
        data = data.to_frame(data.name or "text")
    if "polars" in _libraries(data) and hasattr(data, "__arrow_c_stream__"):
        _without_objects(data.schema, label)
    if hasattr(data, "__arrow_array__"):
        data = shield(lambda: pa.array(data), failed)
    if isinstance(data, pa.Array | pa.ChunkedArray):
        data = pa.table({"text": data})
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        data = data.to_reader()
    if isinstance(data, pa.dataset.Dataset):
        unique_columns(data.schema, label)
        size = {"batch_size": ROWS_PER_BATCH, "batch_readahead": 1, "fragment_readahead": 1}
        data = shield(lambda: data.scanner(**size), failed)
    if isinstance(data, pa.dataset.Scanner):
        data = shield(data.to_reader, failed)
    if not hasattr(data, "__arrow_c_stream__"):
        remedy = "call .collect() on it first" if hasattr(data, "collect") else f"give {_KNOWN}"
        raise DataError(f"data of type {type(data).__name__} cannot be read; {remedy}")
    if not isinstance(data, pa.RecordBatchReader):
        # not for our own readers: Arrow's C stream would turn Ctrl-C in their source into text
        data = shield(lambda: pa.RecordBatchReader.from_stream(data), failed)
    return Rows(data.schema, shielded(iter(data), failed))


def _without_objects(schema: Mapping[str, Any], label: str) -> None:
    """Polars gives the addresses of Python objects for the objects: two equal ones would differ."""
    for name, kind in schema.items():
        if str(kind) == "Object":
            raise DataError(
                f"{label} has Python objects in its column {name!r}; convert them, for example to "
                "text with pl.col(...).map_elements(str, return_dtype=pl.String)"
            )


def _read_numpy(data: Any, label: str) -> Rows:
    """An array of texts, as `frame["text"].to_numpy()` gives it."""
    if data.ndim != 1 or data.dtype.names is not None:
        raise DataError(
            f"{label} has {data.ndim} dimensions and dtype {data.dtype}; give one of one dimension "
            "that holds strings, or a data frame"
        )
    return _read_list(data.tolist(), label)


def _frame(data: Any, label: str) -> Any:
    """The data frame; one column of it alone is named as it was, or "text"."""
    names = {kind.__name__ for kind in type(data).__mro__}
    if "DataFrame" in names:
        return data
    if "Series" in names:
        return data.to_frame("text" if data.name is None else data.name)
    if "Index" in names and "MultiIndex" not in names:
        return data.to_frame(index=False, name="text" if data.name is None else data.name)
    raise DataError(f"{label} of pandas is not a table or a column; give a DataFrame or a Series")


def _read_pandas(data: Any, label: str) -> Rows:
    """A frame by slices; the index is not data."""

    def failed(kind: str) -> DataError:
        return DataError(f"{label} cannot be read as Arrow ({kind}); use plain types")

    names = [str(name) for name in data.columns]
    columns = [data.iloc[:, index] for index in range(len(names))]
    types = [_pandas_type(column, name) for column, name in zip(columns, names, strict=True)]
    schema = shield(lambda: pa.schema(list(zip(names, types, strict=True))), failed)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(data), ROWS_PER_BATCH):
            part = slice(start, start + ROWS_PER_BATCH)
            arrays = [
                _pandas_array(column.iloc[part], kind)
                for column, kind in zip(columns, types, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return Rows(schema, shielded(batches(), failed))


def _pandas_type(column: Any, name: str) -> pa.DataType:
    """The Arrow type of a column; only object columns have to be looked through."""
    if column.dtype == object:
        return shield(
            lambda: _pandas_array(column, None).type,
            lambda _: DataError(
                f"column {name!r} mixes types, or holds objects that Arrow has no type for; "
                "convert it to one, for example with astype(str)"
            ),
        )
    return shield(
        lambda: pa.Array.from_pandas(column.iloc[:0]).type,
        lambda _: DataError(
            f"column {name!r} is of dtype {column.dtype}, which Arrow does not have; convert it, "
            "for example with astype"
        ),
    )


def _pandas_array(column: Any, kind: pa.DataType | None) -> pa.Array:
    array = pa.Array.from_pandas(column, type=kind)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
