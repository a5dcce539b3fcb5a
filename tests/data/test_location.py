"""Folders that name a column, as Hive's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from taciturn.data.location import locate
from taciturn.data.source import open_rows
from taciturn.data.tokens.tokenize import prepare
from taciturn.errors import DataError, DataNotFoundError
from taciturn.spec import DataSpec


def read(data: object) -> list[dict[str, Any]]:
    return [row for batch in open_rows(data).batches for row in batch.to_pylist()]


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"text": [text]}), path)
    elif path.suffix == ".csv":
        path.write_text(f"text\n{text}\n")
    else:
        path.write_text(f'{{"text": "{text}"}}\n')
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_folders_name_columns_of_text(tmp_path: Path, suffix: str) -> None:
    for place in ("007", "S%C3%BCd%2FOst", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / "d" / f"hospital={place}" / "my%20year=2020" / f"part-0{suffix}")
    write(tmp_path / "d" / f"part-1{suffix}", "y")
    found = {row["hospital"]: row for row in read(tmp_path / "d") if row["text"] == "x"}
    assert found.keys() == {"007", "Süd/Ost", None}
    assert {row["my year"] for row in found.values()} == {"2020"}
    assert {"text": "y", "hospital": None, "my year": None} in read(tmp_path / "d")


def test_a_partition_can_be_the_unit(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from taciturn.embedded import model_path

    for n in range(6):
        write(tmp_path / "d" / f"patient={n // 2}" / f"{n}.parquet", f"note {n}")
    tokenizer = AutoTokenizer.from_pretrained(str(model_path()))
    spec = DataSpec(privacy_unit="patient", text_field="text")
    assert prepare(tmp_path / "d", spec, tokenizer, 16, tmp_path / "out", 0).n_units == 3


def test_only_folders_that_the_caller_did_not_write_out_count(tmp_path: Path) -> None:
    north = tmp_path / "study=a" / "hospital=north"
    path = write(north / "year=2020" / "a.csv")
    assert read(path) == [{"text": "x"}]
    assert read(north) == read(f"{north}/*/a.csv") == [{"text": "x", "year": "2020"}]
    whole = [{"text": "x", "hospital": "north", "year": "2020"}]
    assert read(f"{tmp_path}/study=a/hosp*/year=2020/*.csv") == whole
    assert read(f"file://{tmp_path}/study=a") == whole


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_column_named_by_file_and_folder_is_refused(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "text=Kern" / f"a{suffix}", "Kern")
    with pytest.raises(DataError, match="'text' twice") as caught:
        read(tmp_path)
    assert "Kern" not in str(caught.value)


def test_a_column_named_by_two_folders_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a=Kern" / "a=2" / "a.csv")
    with pytest.raises(DataError, match="both name the column 'a'") as caught:
        read(tmp_path)
    assert "Kern" not in str(caught.value)


def test_equals_signs_alone_name_nothing(tmp_path: Path) -> None:
    write(tmp_path / "d" / "=x" / "a.csv")
    write(tmp_path / "d" / "x=y.csv")
    assert read(tmp_path / "d") == [{"text": "x"}] * 2


def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataNotFoundError, match="empty"):
        locate("")
    assert read(".") == [{"text": "x"}]
