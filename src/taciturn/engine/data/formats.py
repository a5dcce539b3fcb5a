"""CSV and Parquet files to rows."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from taciturn.engine.data.jsonl import read_jsonl
from taciturn.engine.data.location import Location
from taciturn.errors import DataError
from taciturn.preparation.rows import (
    BATCH_BYTES,
    ROWS_PER_BATCH,
    Rows,
    conform,
    shield,
    shielded,
    unique_columns,
)

_CSV_BLOCK_BYTES = 8 << 20


def read_files(location: Location) -> Rows:
    """The rows of the location's files, one file after the other, under one schema."""
    return _READERS[location.format](location)


def _unified(schemas: list[pa.Schema], shown: str) -> pa.Schema:
    """One schema for all files; a column that a file lacks is null there."""

    def failed(_: str) -> DataError:
        return DataError(f"{shown} has files whose columns differ in type; give one kind of file")

    for schema in schemas:
        unique_columns(schema, shown)
    bare = [schema.remove_metadata() for schema in schemas]
    return shield(lambda: pa.unify_schemas(bare, promote_options="permissive"), failed)


def _read_csv(location: Location) -> Rows:
    """Every column as text: a guessed type would turn the patient 007 into 7. Empty means null."""

    def failed(kind: str) -> DataError:
        return DataError(
            f"{location.shown} cannot be read as CSV ({kind}); it must hold a header line and "
            "comma-separated rows of equal length, in UTF-8"
        )

    def headers() -> list[pa.Schema]:
        return [_csv_header(location, path) for path in location.paths]

    schema = _unified(shield(headers, failed), location.shown)
    return Rows(schema, shielded(_csv_batches(location, schema), failed))


def _csv_header(location: Location, path: str) -> pa.Schema:
    with location.open(path) as file:
        if not file.read(1):
            raise DataError(f"{location.shown} holds no rows; give at least one")
    with location.open(path) as file, _csv_reader(file, {}) as reader:
        return pa.schema([(name, pa.string()) for name in reader.schema.names])


def _csv_reader(file: object, types: dict[str, pa.DataType]) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True
        ),
    )


def _csv_batches(location: Location, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    types = dict(zip(schema.names, schema.types, strict=True))
    for path in location.paths:
        with location.open(path) as file, _csv_reader(file, types) as reader:
            for batch in reader:
                yield conform(batch, schema)


def _read_parquet(location: Location) -> Rows:
    def failed(kind: str) -> DataError:
        return DataError(f"{location.shown} cannot be read as Parquet ({kind}); is it complete?")

    def schemas() -> list[pa.Schema]:
        return [_parquet_schema(location, path) for path in location.paths]

    schema = _unified(shield(schemas, failed), location.shown)
    return Rows(schema, shielded(_parquet_batches(location, schema), failed))


def _parquet_schema(location: Location, path: str) -> pa.Schema:
    with location.open(path) as file:
        return pa.parquet.read_schema(file)


def _parquet_batches(location: Location, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in location.paths:
        with location.open(path) as file:
            # buffer_size: columns are read piece by piece, not a whole row group at once
            parquet = pa.parquet.ParquetFile(file, buffer_size=BATCH_BYTES)
            for batch in parquet.iter_batches(_parquet_batch_rows(parquet.metadata)):
                yield conform(batch, schema)


def _parquet_batch_rows(metadata: pa.parquet.FileMetaData) -> int:
    """Fewer rows per batch where rows are long."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups) / max(1, metadata.num_rows)
    return max(1, min(ROWS_PER_BATCH, int(BATCH_BYTES / max(1.0, size))))


_READERS = {"jsonl": read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
