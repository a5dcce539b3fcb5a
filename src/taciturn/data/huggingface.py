"""What the `datasets` library makes: data sets in memory, and folders that save_to_disk wrote.

What a caller has done to a data set is honoured or refused, never passed over: a transform that
takes names out of texts runs only when rows are read through the library. Nothing here imports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from taciturn.data.rows import ROWS_PER_BATCH, Rows, conform, shielded
from taciturn.errors import DataError

ABOUT = ("dataset_info.json", "dataset_infos.json")
"""Files that the library writes beside rows."""

_ONLY_SHOWN = {None, "python", "arrow", "numpy", "pandas", "polars", "torch", "tensorflow", "jax"}
"""Formats in which a value is shown as another kind of object, and stays the same value."""


def read_dataset(data: Any, shown: str) -> Rows:
    """The rows of a Dataset or an IterableDataset, or of one of their columns.

    Raises DataError for a data set with a transform, for several splits, and for other objects.
    """
    if isinstance(data, Mapping) and all(hasattr(each, "with_format") for each in data.values()):
        raise _several_splits(shown, list(data), "data[{!r}]")
    column = getattr(data, "column_name", None)
    if column is not None:
        data = data.source
    if not hasattr(data, "with_format"):
        raise DataError(
            f"{shown} of the library datasets cannot be read; give a Dataset, an IterableDataset, "
            "or a column of one, and nothing nested in a column"
        )
    stream = _as_arrow(data, shown)
    if column is not None:
        stream = stream.select_columns([column]).with_format("arrow")

    def failed(kind: str) -> DataError:
        return DataError(
            f"{shown} cannot be read as Arrow ({kind}); if the type of a column is not the same "
            "throughout, say it: data.cast_column(...)"
        )

    tables = shielded(iter(stream.iter(batch_size=ROWS_PER_BATCH)), failed)
    first = next(tables, None)
    if first is None:
        raise DataError(f"{shown} holds no rows; give at least one")

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first.to_batches()
        for table in tables:
            yield from (conform(batch, first.schema) for batch in table.to_batches())

    return Rows(first.schema, shielded(batches(), failed))


def _as_arrow(data: Any, shown: str) -> Any:
    """The data set, giving Arrow tables of the columns that its format shows."""
    known = getattr(data, "format", None)
    if not isinstance(known, Mapping):  # an IterableDataset has no format of columns
        _check_format(getattr(getattr(data, "_formatting", None), "format_type", None), {}, shown)
        return data.with_format("arrow")
    _check_format(known["type"], known["format_kwargs"], shown)
    columns = None if known["output_all_columns"] else known["columns"]
    return data.with_format("arrow", columns=columns)


def _check_format(kind: str | None, options: Mapping[str, Any], shown: str) -> None:
    """Raise DataError unless the values are the same with this format and without."""
    if kind not in _ONLY_SHOWN:
        raise DataError(
            f"{shown} has a transform (with_transform, set_transform or a format of one's own), "
            "which would not run here; apply it to the rows first: "
            "data.with_format(None).map(transform, batched=True)"
        )
    if "dtype" in options:
        raise DataError(
            f"{shown} has a format that converts values to another dtype, which would not be done "
            "here; convert the columns with data.cast_column, or drop it with "
            "data.with_format(None)"
        )


def _several_splits(shown: str, splits: Sequence[str], example: str) -> DataError:
    named = ", ".join(map(repr, splits))
    choice = f", such as {example.format(splits[0])}" if splits else ""
    return DataError(f"{shown} holds the splits {named}; choose one{choice}")


@dataclass(frozen=True, slots=True)
class SavedDataset:
    """The files of a data set in the order of its rows, and the columns that its format shows."""

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None


def saved_dataset(filesystem: Any, folder: str, shown: str) -> SavedDataset | None:
    """What `save_to_disk` wrote into a folder; None if it is not such a folder.

    Raises DataError for several splits, for a choice of rows that is kept apart from them (as
    early versions of the library did), and for a description that is damaged.
    """
    folder = folder.rstrip("/")
    splits = _described(filesystem, f"{folder}/dataset_dict.json").get("splits")
    if isinstance(splits, list):
        raise _several_splits(shown, [str(name) for name in splits], "its folder {!r}")
    state = _described(filesystem, f"{folder}/state.json")
    if "_data_files" not in state:
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{shown} was saved with a choice of rows apart from the rows; save it again: "
            "datasets.load_from_disk(...).flatten_indices().save_to_disk(...)"
        )
    _check_format(state.get("_format_type"), state.get("_format_kwargs") or {}, shown)
    columns = None if state.get("_output_all_columns") else state.get("_format_columns")
    try:
        names = [PurePosixPath(each["filename"]) for each in state["_data_files"]]
        chosen = None if columns is None else tuple(map(str, columns))
    except (TypeError, KeyError):
        names = []
    if not names or any(name.name != str(name) for name in names):
        raise DataError(
            f"{shown} has a state.json that does not name the files beside it; save it again"
        )
    return SavedDataset(tuple(f"{folder}/{name}" for name in names), chosen)


def _described(filesystem: Any, path: str) -> dict[str, Any]:
    """The JSON object in a small file of the library; empty if there is no such file."""
    if "http" in filesystem.protocol or not filesystem.isfile(path):
        return {}
    with filesystem.open(path, "rb") as file:
        try:
            found = json.loads(file.read())
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}
