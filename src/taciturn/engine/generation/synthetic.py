"""A synthetic data set as one Parquet file that carries its guarantee with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from taciturn.errors import OutputError, SpecError

METADATA_KEY = "taciturn"
"""Key of the guarantee in the file's metadata, in JSON."""


def check_output(path: Path) -> None:
    """Refuse a place where the file cannot be written, before anything is generated."""
    if path.suffix != ".parquet":
        raise SpecError(f"output {path} must end in .parquet; choose for example synthetic.parquet")
    if path.exists():
        raise OutputError(f"{path} already exists; choose another file or remove it")
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} is not there; create it or choose another output")


def write_parquet(
    columns: Mapping[str, Sequence[str]], metadata: Mapping[str, object], path: Path
) -> None:
    """Write columns of text and the guarantee, whole or not at all; raises OutputError."""
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    described = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        pq.write_table(described, partial)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; nothing was left") from None
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, object]:
    """The guarantee in a file that `write_parquet` wrote; raises OutputError if it has none."""
    found = (pq.read_schema(path).metadata or {}).get(METADATA_KEY.encode())
    if found is None:
        raise OutputError(f"{path} carries no guarantee of taciturn's; nothing is known about it")
    value: dict[str, object] = json.loads(found)
    return value
