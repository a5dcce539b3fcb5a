"""Results are written whole, for their owner only, and never over something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taciturn.engine.auditing.result_file import check_result_file, write_result
from taciturn.errors import OutputError, SpecError


def test_written_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    check_result_file(path)
    write_result({"a": [1.5, None, "é"]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, "é"]}
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="already exists"):
        check_result_file(path)


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"must end in \.json"):
        check_result_file(tmp_path / "result.txt")
    with pytest.raises(OutputError, match="is not there"):
        check_result_file(tmp_path / "no" / "result.json")
    with pytest.raises(OutputError, match="nothing was left"):
        write_result({}, tmp_path / "no" / "result.json")
