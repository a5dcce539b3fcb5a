"""A synthetic data set as one Parquet file that carries its guarantee with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from taciturn.data.filesystem import appearing_at_once
from taciturn.errors import OutputError

METADATA_KEY = "taciturn"
"""Key of the guarantee in the file's metadata, in JSON."""


def write_parquet(
    columns: Mapping[str, Sequence[str]], metadata: Mapping[str, object], path: Path
) -> None:
    """Write columns of text and the guarantee, whole or not at all; raises OutputError."""
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    described = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    with appearing_at_once(path) as partial, partial.open("wb") as file:
        pq.write_table(described, file)


def read_metadata(path: Path) -> dict[str, object]:
    """The guarantee in a file that `write_parquet` wrote; raises OutputError if it has none."""
    metadata = (pq.read_schema(path).metadata or {}).get(METADATA_KEY.encode())
    if metadata is None:
        raise OutputError(f"{path} carries no guarantee of taciturn's; nothing is known about it")
    value: dict[str, object] = json.loads(metadata)
    return value
