"""CSV, Parquet and Arrow files to rows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from taciturn.data.jsonl import read_jsonl
from taciturn.data.location import Location
from taciturn.data.rows import (
    BATCH_BYTES,
    ROWS_PER_BATCH,
    Rows,
    Skipped,
    conform,
    shield,
    shielded,
    surviving,
    unique_columns,
)
from taciturn.data.suffixes import suffix_of
from taciturn.errors import DataError

_CSV_BLOCK_BYTES = 8 << 20
_CSV_HEADER_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_DECLARED = re.compile(rb"sep=([,;\t|])\r?\n")
_QUOTED = re.compile(rb'(?:^|(?<=[,;\t|]))"(?:[^"]|"")*(?:"|$)')  # else a quote is a character
_ARROW_FILE = b"ARROW1"
NAMES_ITSELF = (
    "names its columns itself; only CSV and TSV files may come without a line of names. Leave "
    "header=False out"
)
_NO_HEADER_ADVICE = (
    f"without a header line it must hold rows of as many columns as were named, each below "
    f"{_CSV_BLOCK_BYTES >> 20} MiB, in UTF-8, with commas between them in .csv, tabs in .tsv, or "
    "what a first line such as sep=; says"
)


@dataclass(frozen=True, slots=True)
class _File:
    """One file: its columns, and a way to read its rows."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]


def read_files(
    location: Location, skipped: Skipped | None = None, names: Sequence[str] | None = None
) -> Rows:
    """The rows of the location's files, one file after the other, under one schema.

    A column that a file lacks is null there; columns that folders name come last.

    Args:
        skipped: counts rows that cannot be read, which are left out; without it they are an error.
        names: of the columns of CSV files without a header line; empty: column_1, column_2, ...
    """
    if names is not None and location.format != "csv":
        raise DataError(f"{location.label} {NAMES_ITSELF}")
    if location.format == "jsonl":
        return read_jsonl(location, skipped)
    open_file, advice = _READERS[location.format]
    if names is not None:
        open_file, advice = partial(_csv, names=names), _NO_HEADER_ADVICE

    def failed(kind: str) -> DataError:
        name = {"csv": "CSV"}.get(location.format, location.format.capitalize())
        return DataError(f"{location.label} cannot be read as {name} ({kind}); {advice}")

    def files() -> list[_File]:
        files_by_path = ((path, open_file(location, path, skipped)) for path in location.paths)
        return [
            _partitioned(location, path, file) for path, file in files_by_path if file is not None
        ]

    parts = shield(files, failed)
    if not parts:
        raise DataError(f"{location.label} holds no rows; give at least one")
    schema = _unified([part.schema for part in parts], location.label)
    batches = (conform(batch, schema) for part in parts for batch in part.batches())
    return Rows(schema, shielded(batches, failed))


def _unified(schemas: list[pa.Schema], label: str) -> pa.Schema:
    """One schema for all files."""

    def failed(_: str) -> DataError:
        return DataError(f"{label} has files whose columns differ in type; give one kind of file")

    for schema in schemas:
        unique_columns(schema, label)
    bare = [schema.remove_metadata() for schema in schemas]
    return shield(lambda: pa.unify_schemas(bare, promote_options="permissive"), failed)


def _partitioned(location: Location, path: str, file: _File) -> _File:
    """The file with the columns that the folders it lies in name."""
    values = location.partition(path)
    if not values:
        return file
    location.check_columns(path, file.schema.names)
    fields = [pa.field(name, pa.string()) for name in values]
    schema = pa.schema([*file.schema, *fields])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in file.batches():
            repeated = [
                pa.repeat(pa.scalar(value, pa.string()), batch.num_rows)
                for value in values.values()
            ]
            yield pa.RecordBatch.from_arrays([*batch.columns, *repeated], schema=schema)

    return _File(schema, batches)


def _csv(
    location: Location, path: str, skipped: Skipped | None, names: Sequence[str] | None = None
) -> _File | None:
    """Every column as text: a guessed type would turn the patient 007 into 7. Empty means null.

    None for a file without even a header line. With `names` there is none, and nothing of how the
    file is read follows from its first row: a file without a row has columns, too.
    """
    with location.open(path) as file:
        head = file.read(_CSV_HEADER_BYTES).removeprefix(_BOM).lstrip(b"\r\n")
    if not head.strip():
        return _File(_texts(names), lambda: iter(())) if names else None
    own = "\t" if suffix_of(path) == ".tsv" else ","
    delimiter, lines_before = _dialect(head, own) if names is None else _declared(head, own)
    if delimiter != own:
        warnings.warn(
            f"{location.label} is read with {_DELIMITERS[delimiter]} between its columns, as in "
            "its header line",
            stacklevel=2,
        )
    read = pa.csv.ReadOptions(
        block_size=_CSV_BLOCK_BYTES,
        skip_rows=lines_before,
        column_names=list(names) if names else None,
        autogenerate_column_names=names is not None and not names,
    )

    def reader(
        file: IO[bytes], types: dict[str, pa.DataType], uneven: Skipped | None
    ) -> pa.csv.CSVStreamingReader:
        def skip(row: pa.csv.InvalidRow) -> str:
            uneven.rows += 1  # type: ignore[union-attr]
            return "skip"

        parse = pa.csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=None if uneven is None else skip,
        )
        convert = pa.csv.ConvertOptions(
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            check_utf8=skipped is None,
        )
        return pa.csv.open_csv(file, read, parse, convert)

    read_names: Sequence[str] = names or ()
    if not read_names:
        with location.open(path) as file, reader(file, {}, skipped and Skipped()) as csv:
            read_names = csv.schema.names
    invented = names is not None and not names
    schema = _texts(
        [f"column_{n}" for n, _ in enumerate(read_names, 1)] if invented else read_names
    )

    def batches() -> Iterator[pa.RecordBatch]:
        types = dict.fromkeys(read_names, pa.string())
        with location.open(path) as file, reader(file, types, skipped) as csv:
            yield from (batch.rename_columns(schema.names) for batch in csv)

    return _File(schema, batches)


def _texts(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def _declared(head: bytes, own: str) -> tuple[str, int]:
    """Delimiter and lines to skip of a file whose first line is a row: the suffix tells the
    delimiter, or Excel's line does."""
    declaration = _DECLARED.match(head)
    return (declaration[1].decode(), 1) if declaration else (own, 0)


def _dialect(head: bytes, own: str) -> tuple[str, int]:
    """Delimiter between columns, and the number of lines before the header.

    Only the first line is looked at, even if a quote is open at its end: names of columns are
    public, and which rows are there must not change how they are read. What occurs most often in
    it, outside of quotes, separates; of equals, the one that the suffix says. Excel's line "sep=;"
    says it itself.
    """
    if _DECLARED.match(head):
        return _declared(head, own)
    line = _QUOTED.sub(b"", re.split(rb"[\r\n]", head, maxsplit=1)[0])
    counts = {delimiter: line.count(delimiter.encode()) for delimiter in _DELIMITERS}
    return max(counts, key=lambda delimiter: (counts[delimiter], delimiter == own)), 0


def _parquet(location: Location, path: str, skipped: Skipped | None) -> _File:
    with location.open(path) as file:
        schema = pa.parquet.read_schema(file)

    def batches() -> Iterator[pa.RecordBatch]:
        with location.open(path) as file:
            # buffer_size: columns are read piece by piece, not a whole row group at once
            parquet = pa.parquet.ParquetFile(file, buffer_size=BATCH_BYTES)
            yield from parquet.iter_batches(_parquet_batch_rows(parquet.metadata))

    return _File(schema, batches)


def _parquet_batch_rows(metadata: pa.parquet.FileMetaData) -> int:
    """Fewer rows per batch where rows are long."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups) / max(1, metadata.num_rows)
    return max(1, min(ROWS_PER_BATCH, int(BATCH_BYTES / max(1.0, size))))


def _arrow(location: Location, path: str, skipped: Skipped | None) -> _File:
    """Arrow's IPC format, as a file or a stream; `datasets` writes streams."""
    with location.open(path) as file:
        schema, _ = _ipc(file)
    column_names = location.columns
    if column_names is not None:
        schema = pa.schema([schema.field(name) for name in column_names])

    def batches() -> Iterator[pa.RecordBatch]:
        with location.open(path) as file:
            for batch in _ipc(file)[1]:
                # lengths and offsets in a damaged file lead anywhere
                if skipped is None:
                    parts = iter([_validated(batch)])
                else:
                    parts = surviving(batch, _validated, skipped)
                yield from (
                    part if column_names is None else part.select(column_names) for part in parts
                )

    return _File(schema, batches)


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


def _ipc(file: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    start = file.read(len(_ARROW_FILE))
    file.seek(0)
    if start != _ARROW_FILE:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    whole = pa.ipc.open_file(file)
    return whole.schema, (whole.get_batch(index) for index in range(whole.num_record_batches))


_READERS: dict[str, tuple[Callable[[Location, str, Skipped | None], _File | None], str]] = {
    "csv": (
        _csv,
        "it must hold a header line and rows of equally many columns, each below "
        f"{_CSV_BLOCK_BYTES >> 20} MiB, in UTF-8, with commas, semicolons, tabs or vertical bars "
        "between columns",
    ),
    "parquet": (_parquet, "is it complete?"),
    "arrow": (_arrow, "is it complete?"),
}
