"""Requests to a gateway made of arguments; errors say value, bound and remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from taciturn.errors import DataError, MissingDependencyError, SpecError
from taciturn.spec import Spec, parse

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound=BaseModel)

_READERS = {".csv": "read_csv", ".parquet": "read_parquet"}


def request(kind: type[R], **fields: Any) -> R:
    """Make a wire value; raises SpecError for what it does not allow."""
    if issubclass(kind, Spec):
        return parse(kind, fields)
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if not where:
            raise SpecError(message) from None
        if _is_secret(kind, where):  # a password is not quoted
            bound = first.get("ctx", {}).get("min_length")
            remedy = message if bound is None else f"give {bound} characters at least"
            raise SpecError(f"{where}: {remedy}") from None
        raise SpecError(f"{where}={first.get('input')!r}: {message}") from None


def _is_secret(kind: type[BaseModel], where: str) -> bool:
    field = kind.model_fields.get(where.partition(".")[0])
    return field is not None and "SecretStr" in repr(field)


def body_of(value: BaseModel) -> dict[str, Any]:
    """Return a request's fields that are not as they would be anyway."""
    fields = value.model_dump(mode="json", exclude_defaults=True)
    kind = getattr(value, "kind", None)
    return fields if kind is None else {"kind": kind.value, **fields}


def public_texts(data: object, text_field: str | None) -> list[str]:
    """Texts that are declared public, from a list, a frame or a file.

    Raises:
        SpecError, DataError: they cannot be read; nothing was sent.
    """
    import pandas as pd

    if isinstance(data, str | Path):
        data = _read(Path(data).expanduser())
    if isinstance(data, pd.DataFrame):
        column = text_field or "text"
        if column not in data:
            raise DataError(
                f"no column {column!r} in the data; columns: {', '.join(map(str, data.columns))}"
            )
        data = data[column].tolist()
    if isinstance(data, pd.Series | pd.Index):
        data = data.tolist()
    if not isinstance(data, Sequence) or not all(isinstance(text, str) for text in data):
        raise DataError(
            f"data of type {type(data).__name__} cannot be sent to a gateway; give a list of "
            "strings, a pandas frame with text_field, or a file of JSONL, CSV or Parquet"
        )
    return list(data)


def _read(path: Path) -> Any:
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return pd.DataFrame(read_rows(path))  # pandas' own reader turns the patient 007 into 7
    reader = _READERS.get(suffix)
    if reader is None or not path.is_file():
        raise DataError(f"{path} is not a file of JSONL, CSV or Parquet; give one that is here")
    try:
        return getattr(pd, reader)(path)
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path.name} needs {error.name or 'pyarrow'}; install pyarrow"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, one on each line; raises DataError, which quotes none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is not a JSON object")
        rows.append(row)
    return rows


def read_table(path: Path) -> pd.DataFrame:
    """A downloaded table; raises DataError or MissingDependencyError."""
    frame: pd.DataFrame = _read(path)
    return frame
