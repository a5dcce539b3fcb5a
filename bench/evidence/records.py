"""What was measured, one JSON object a line: added to, never rewritten, and looked up by its key.

A key says everything that a figure follows from: model, data, settings, seed. What is there under a
key is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def digest(value: object) -> str:
    """Names a JSON value: the first 12 hex digits of its SHA-256."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Records:
    """The rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, **wanted: object) -> list[Row]:
        """All rows whose key has these entries, oldest first.

        A last line that a killed process left half-written is not there.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if wanted.items() <= row["key"].items()]

    def measured(self, key: Mapping[str, Any], measure: Callable[[], Row]) -> Row:
        """The row of this key; `measure` is called if there is none."""
        plain = json.loads(json.dumps(dict(key)))
        for row in self.rows():
            if row["key"] == plain:
                return row
        row = {"key": plain, **measure()}
        self._add(row)
        return row

    def _add(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            file.truncate(len(whole))
            file.write(json.dumps(row).encode() + b"\n")
