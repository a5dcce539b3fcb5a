"""Columns of a dataset: whether what was found is what its owner stated, and whether it looks so.

Names that are read from data may be data: the first line of a CSV file without a header is a row, a
key of a JSON object may be a patient. So nothing is shown of them, nor of the types that hold names
themselves, before the owner has said that these are names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from taciturn.data.suffixes import FORMATS, suffix_of
from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import ColumnView, FoundColumns, StatedColumn

NamedBy = Literal["first line", "keys of rows", "schema", "first line, keys of rows or schema"]

_LONGEST_NAME = 40
_MOST_WORDS = 4
_FIGURES = re.compile(r"[\d\s.,:/+-]+")
_CODE = re.compile(r"[A-Za-z]{0,4}[-_]?\d{3,}")
_LISTED = re.compile(r"(?:large_)?list(?:_view)?<(?:item|element): (.*)>")
_CODED = re.compile(r"dictionary<values=(.*), indices=\w+, ordered=[01]>")
_PLAIN = re.compile(
    r"[a-z0-9_]+(?:\[[a-z]+(?:, tz=[A-Za-z0-9_+:/-]{1,60})?\]|\[\d+\]|\(\d+, -?\d+\))?"
)


def agree(stated_columns: Sequence[StatedColumn], columns: Sequence[ColumnView]) -> bool:
    """True if the owner has stated all that would be shown: every name, and types that hold names.

    The order doesn't matter: rows of JSON may come in any.
    """
    types = {column.name: column.type for column in stated_columns}
    return {column.name for column in columns} == set(types) and all(
        _is_plain(column.type) if types[column.name] is None else types[column.name] == column.type
        for column in columns
    )


def check_stated(names: Sequence[str]) -> None:
    """Raises ProblemError if two columns have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ProblemError(
            "invalid", f"columns: the name {twice[0]!r} is there twice; give each name once"
        )


def check_header(source: str, header: bool) -> None:
    """Raises ProblemError where there is no header line to be left out."""
    if not header and _format(source) not in ("csv", None):
        raise ProblemError(
            "invalid",
            "header=False is for text files (CSV, TSV); files and tables of other formats name "
            "their columns themselves",
        )


def disagreement(
    stated_columns: Sequence[StatedColumn], columns: Sequence[ColumnView]
) -> ProblemError:
    """Error for stated columns that are not those of the rows. It quotes nothing of the rows."""
    names = {column.name for column in columns}
    missing = [column.name for column in stated_columns if column.name not in names]
    unstated = len(names - {column.name for column in stated_columns})
    parts = [f"not found: {', '.join(map(repr, missing[:10]))}"] if missing else []
    parts += [f"found and not stated: {unstated}"] if unstated else []
    if not parts:
        parts = ["types that hold names themselves have to be stated, too, as `found` has them"]
    return ProblemError(
        "conflict",
        f"columns: these are not the ones that were found ({'; '.join(parts)}). Look at `found`; "
        "if text files have no header line, say header=False",
    )


def columns_to_confirm(columns: Sequence[ColumnView], source: str) -> FoundColumns:
    """Columns that are to be confirmed, for the owner."""
    return FoundColumns(columns=tuple(columns), named_by=_named_by(source), doubts=doubts(columns))


def doubts(columns: Sequence[ColumnView]) -> tuple[str, ...]:
    """Reasons to think that a name is a value of a row. No reason proves little: a row can look
    like names."""
    numbered_doubts = [
        (number, column.name, _doubt(column.name)) for number, column in enumerate(columns, 1)
    ]
    return tuple(
        f"column {number}, {name[:40]!r}, {why}" for number, name, why in numbered_doubts if why
    )


def _doubt(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if _FIGURES.fullmatch(name):
        return "is a number or a date"
    if _CODE.fullmatch(name):
        return "looks like somebody's number"
    if len(name) > _LONGEST_NAME or len(name.split()) > _MOST_WORDS:
        return "is long for a name"
    return None if name.isprintable() else "holds a character that cannot be printed"


def _is_plain(kind: str) -> bool:
    """True if a type says nothing but the kind of value that a column holds: no names of fields."""
    inside = _LISTED.fullmatch(kind) or _CODED.fullmatch(kind)
    return _is_plain(inside[1]) if inside else _PLAIN.fullmatch(kind) is not None


def _format(source: str) -> str | None:
    """Format of the files or the table; None for a folder, whose format isn't known."""
    if source.startswith("postgresql"):
        return "table"
    return FORMATS.get(suffix_of(source))


def _named_by(source: str) -> NamedBy:
    names: dict[str | None, NamedBy] = {
        "csv": "first line",
        "jsonl": "keys of rows",
        None: "first line, keys of rows or schema",
    }
    return names.get(_format(source), "schema")
