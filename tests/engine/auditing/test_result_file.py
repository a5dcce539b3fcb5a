"""Results are written whole, and for their owner only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taciturn.engine.auditing.result_file import write_result
from taciturn.errors import OutputError


def test_written_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result({"a": [1.5, None, "é"]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, "é"]}
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing was left"):
        write_result({}, tmp_path / "no" / "result.json")
