"""A synthetic data set carries its guarantee, and is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from taciturn.engine.generation.synthetic import read_metadata, write_parquet
from taciturn.errors import OutputError


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet({"text": ["a", "b"]}, {"policy": "DP (epsilon=3)"}, path)
    assert pq.read_table(path).to_pydict() == {"text": ["a", "b"]}
    assert read_metadata(path) == {"policy": "DP (epsilon=3)"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]


def test_a_file_without_a_guarantee(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(OutputError, match="carries no guarantee"):
        read_metadata(tmp_path / "x.parquet")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="nothing was left"):
        write_parquet({"text": ["a"]}, {}, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []
