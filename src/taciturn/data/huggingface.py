"""Reader of what the `datasets` library makes: data sets in memory, and folders that save_to_disk
wrote.

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


def read_dataset(data: Any, label: str) -> Rows:
    """The rows of a Dataset or an IterableDataset, or of one of their columns.

    Raises DataError for a data set with a transform, for several splits, and for other objects.
    """
    if isinstance(data, Mapping) and all(hasattr(split, "with_format") for split in data.values()):
        raise _several_splits(label, list(data), "data[{!r}]")
    column = getattr(data, "column_name", None)
    if column is not None:
        data = data.source
    if not hasattr(data, "with_format"):
        raise DataError(
            f"{label} of the library datasets cannot be read; give a Dataset, an IterableDataset, "
            "or a column of one, and nothing nested in a column"
        )
    stream = _as_arrow(data, label)
    if column is not None:
        stream = stream.select_columns([column]).with_format("arrow")

    def failed(kind: str) -> DataError:
        return DataError(
            f"{label} cannot be read as Arrow ({kind}); if the type of a column is not the same "
            "throughout, say it: data.cast_column(...)"
        )

    tables = shielded(iter(stream.iter(batch_size=ROWS_PER_BATCH)), failed)
    first = next(tables, None)
    if first is None:
        raise DataError(f"{label} holds no rows; give at least one")

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first.to_batches()
        for table in tables:
            yield from (conform(batch, first.schema) for batch in table.to_batches())

    return Rows(first.schema, shielded(batches(), failed))


def _as_arrow(data: Any, label: str) -> Any:
    """The data set, giving Arrow tables of the columns that its format shows."""
    column_format = getattr(data, "format", None)
    if not isinstance(column_format, Mapping):  # an IterableDataset has no format of columns
        _check_format(getattr(getattr(data, "_formatting", None), "format_type", None), {}, label)
        return data.with_format("arrow")
    _check_format(column_format["type"], column_format["format_kwargs"], label)
    columns = None if column_format["output_all_columns"] else column_format["columns"]
    return data.with_format("arrow", columns=columns)


def _check_format(kind: str | None, options: Mapping[str, Any], label: str) -> None:
    """Raise DataError unless the values are the same with this format and without."""
    if kind not in _ONLY_SHOWN:
        raise DataError(
            f"{label} has a transform (with_transform, set_transform or a format of one's own), "
            "which would not run here; apply it to the rows first: "
            "data.with_format(None).map(transform, batched=True)"
        )
    if "dtype" in options:
        raise DataError(
            f"{label} has a format that converts values to another dtype, which would not be done "
            "here; convert the columns with data.cast_column, or drop it with "
            "data.with_format(None)"
        )


def _several_splits(label: str, splits: Sequence[str], example: str) -> DataError:
    names = ", ".join(map(repr, splits))
    choice = f", such as {example.format(splits[0])}" if splits else ""
    return DataError(f"{label} holds the splits {names}; choose one{choice}")


@dataclass(frozen=True, slots=True)
class SavedDataset:
    """The files of a data set in the order of its rows, and the columns that its format shows."""

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None


def saved_dataset(filesystem: Any, folder: str, label: str) -> SavedDataset | None:
    """Files that `save_to_disk` wrote into a folder; None if it is not such a folder.

    Raises DataError for several splits, for a choice of rows that is kept apart from them (as
    early versions of the library did), and for a description that is damaged.
    """
    folder = folder.rstrip("/")
    splits = _described(filesystem, f"{folder}/dataset_dict.json").get("splits")
    if isinstance(splits, list):
        raise _several_splits(label, [str(name) for name in splits], "its folder {!r}")
    state = _described(filesystem, f"{folder}/state.json")
    if "_data_files" not in state:
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{label} was saved with a choice of rows apart from the rows; save it again: "
            "datasets.load_from_disk(...).flatten_indices().save_to_disk(...)"
        )
    _check_format(state.get("_format_type"), state.get("_format_kwargs") or {}, label)
    columns = None if state.get("_output_all_columns") else state.get("_format_columns")
    try:
        names = [PurePosixPath(entry["filename"]) for entry in state["_data_files"]]
        column_names = None if columns is None else tuple(map(str, columns))
    except (TypeError, KeyError):
        names = []
    if not names or any(name.name != str(name) for name in names):
        raise DataError(
            f"{label} has a state.json that does not name the files beside it; save it again"
        )
    return SavedDataset(tuple(f"{folder}/{name}" for name in names), column_names)


def _described(filesystem: Any, path: str) -> dict[str, Any]:
    """The JSON object in a small file of the library; empty if there is no such file."""
    if "http" in filesystem.protocol or not filesystem.isfile(path):
        return {}
    with filesystem.open(path, "rb") as file:
        try:
            content = json.loads(file.read())
        except ValueError:
            return {}
    return content if isinstance(content, dict) else {}
