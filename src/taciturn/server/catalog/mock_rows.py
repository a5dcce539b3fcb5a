"""Mock rows: the owner's, checked to be rows, or made from a schema alone.

Rows from the schema depend on names and types of columns and on nothing else: the same schema gives
the same rows, and no row of the data has a part in them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import ColumnView

_ROWS = 3
_MOST_BYTES = 512 << 10
_MOST_DEPTH = 12
_FIRST_DAY = date(2026, 1, 5)

_LIST = re.compile(r"(?:large_)?list<[^:<>]*: (.*)>", re.S)
_STRUCT = re.compile(r"struct<(.+)>", re.S)
_INTEGER = re.compile(r"u?int\d+")
_FRACTION = re.compile(r"(halffloat|float|double|decimal\d+\(.*\))")


def check_mock(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ProblemError unless these are plain rows of a size that a preview may have."""
    for row in rows:
        _check_value(row, 0)
    size = len(json.dumps(rows))
    if size > _MOST_BYTES:
        raise ProblemError(
            "invalid",
            f"mock: {size >> 10} KB of rows is more than a preview's {_MOST_BYTES >> 10}; give "
            "fewer or shorter ones",
        )


def _check_value(value: Any, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ProblemError("invalid", f"mock: nested more than {_MOST_DEPTH} deep; make it flatter")
    if isinstance(value, float) and not math.isfinite(value):
        raise ProblemError("invalid", "mock: a number is not finite; write null or a text")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ProblemError("invalid", "mock: a whole number has more than 64 bits; write a text")
    children = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple):
        for child in children:
            _check_value(child, depth + 1)


def shaped(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[ColumnView]
) -> list[dict[str, Any]]:
    """Rows with exactly these columns; what is missing is null."""
    return [{column.name: row.get(column.name) for column in columns} for row in rows]


def rows_of(columns: Sequence[ColumnView]) -> list[dict[str, Any]]:
    """Rows that a schema alone says."""
    return [
        {column.name: _value(column.type, column.name, index) for column in columns}
        for index in range(1, _ROWS + 1)
    ]


def _value(kind: str, name: str, index: int) -> Any:
    """A plausible value of an Arrow type; null for types that only a reader of rows could fill."""
    if _INTEGER.fullmatch(kind):
        return index
    if _FRACTION.fullmatch(kind):
        return index + 0.5
    if kind in ("string", "large_string", "string_view"):
        return f"{name}_{index}"
    if kind == "bool":
        return index % 2 == 1
    day = _FIRST_DAY + timedelta(days=index)
    if kind.startswith("date"):
        return day.isoformat()
    if kind.startswith("timestamp"):
        return f"{day.isoformat()}T08:00:00"
    if kind.startswith("time"):
        return f"08:00:0{index}"
    inside = _LIST.fullmatch(kind)
    if inside:
        return [_value(inside[1], name, index)]
    fields = _STRUCT.fullmatch(kind)
    if fields:
        typed_fields = (part.strip().partition(": ") for part in _parts(fields[1]))
        return {field: _value(of, field, index) for field, _, of in typed_fields}
    return None


def _parts(inside: str) -> list[str]:
    """Parts between commas that are in no brackets."""
    parts, level, start = [], 0, 0
    for place, character in enumerate(inside):
        level += (character in "<[(") - (character in ">])")
        if character == "," and level == 0:
            parts.append(inside[start:place])
            start = place + 1
    return [*parts, inside[start:]]
