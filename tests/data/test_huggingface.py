"""What a caller did to a data set of `datasets` is honoured or refused, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from taciturn.data.source import open_rows
from taciturn.errors import DataError

ROWS = [{"text": "Anna Kern has a cough", "id": 1}, {"text": "Anna Kern has a fever", "id": 2}]
DATA = datasets.Dataset.from_list(ROWS)


def read(data: object) -> list[dict[str, Any]]:
    return [row for batch in open_rows(data).batches for row in batch.to_pylist()]


def refusal(data: object) -> str:
    with pytest.raises(DataError) as caught:
        read(data)
    return str(caught.value)


def without_names(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [text.replace("Anna Kern", "[NAME]") for text in rows["text"]]}


def test_a_transform_is_refused_with_the_way_to_apply_it() -> None:
    hidden = DATA.with_transform(without_names)
    set_in_place = datasets.Dataset.from_list(ROWS)
    set_in_place.set_transform(without_names)
    partly = DATA.with_transform(without_names, columns=["text"], output_all_columns=True)
    for data in (hidden, set_in_place, partly, hidden.select([0]), hidden["text"]):
        said = refusal(data)
        assert "data.with_format(None).map(transform, batched=True)" in said
        assert "Anna" not in said
    applied = hidden.with_format(None).map(without_names, batched=True)
    assert [row["text"] for row in read(applied)] == ["[NAME] has a cough", "[NAME] has a fever"]


def test_formats_that_only_show_values_differently_change_nothing() -> None:
    for kind in (None, "python", "numpy", "torch", "pandas", "polars", "arrow"):
        assert read(DATA.with_format(kind)) == ROWS


def test_columns_of_a_format_are_those_that_are_read() -> None:
    assert read(DATA.with_format("torch", columns=["id"])) == [{"id": 1}, {"id": 2}]
    assert read(DATA.with_format(None, columns=["text"])) == [{"text": r["text"]} for r in ROWS]
    assert read(DATA.with_format("numpy", columns=["id"], output_all_columns=True)) == ROWS


def test_a_format_that_converts_values_is_refused() -> None:
    assert "dtype" in refusal(DATA.with_format("numpy", dtype="int8"))


def test_choices_of_rows_are_honoured() -> None:
    assert read(DATA.select([1])) == ROWS[1:]
    assert read(DATA.filter(lambda row: row["id"] == 2)) == ROWS[1:]
    assert read(DATA.sort("id", reverse=True)) == ROWS[::-1]
    assert read(DATA.train_test_split(test_size=1, shuffle=False)["test"]) == ROWS[1:]


def test_what_an_iterable_dataset_still_has_to_do_is_done() -> None:
    stream = DATA.to_iterable_dataset()
    mapped = stream.map(without_names, batched=True).filter(lambda row: row["id"] == 2)
    for data in (mapped, mapped.with_format("torch"), stream.with_format("numpy").skip(1)):
        assert [row["id"] for row in read(data)] == [2]
    assert read(mapped)[0]["text"] == "[NAME] has a fever"


def test_one_column_alone_is_a_table_of_one() -> None:
    assert read(DATA.select([1])["text"]) == [{"text": ROWS[1]["text"]}]
    assert read(DATA.with_format("numpy", columns=["id"])["text"])[0] == {"text": ROWS[0]["text"]}
    assert read(DATA.to_iterable_dataset()["text"])[0] == {"text": ROWS[0]["text"]}
    nested = datasets.Dataset.from_dict({"note": [{"text": "a"}]})
    assert "nested" in refusal(nested["note"]["text"])


def test_other_objects_of_the_library_are_refused() -> None:
    assert "Features" in refusal(datasets.Features({"a": datasets.Value("int8")}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.disable_progress_bars()
    DATA.select([1, 0]).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def test_saved_folder_is_read_in_its_order(saved: Path) -> None:
    assert read(saved) == read(f"{saved}/") == read(saved.as_uri()) == ROWS[::-1]
    (file,) = saved.glob("data-00000*")
    assert read(file) == ROWS[1:]


def test_columns_of_a_saved_format_are_those_that_are_read(tmp_path: Path) -> None:
    DATA.with_format("torch", columns=["id"]).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == [{"id": 1}, {"id": 2}]


def test_what_the_library_knows_about_rows_is_no_row(tmp_path: Path) -> None:
    DATA.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "dataset_info.json").write_text('{"description": "x"}')
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert read(tmp_path) == ROWS


def test_saved_splits_are_named(tmp_path: Path) -> None:
    datasets.DatasetDict(train=DATA, test=DATA.select([1])).save_to_disk(tmp_path / "saved")
    assert "'train', 'test'" in refusal(tmp_path / "saved")
    assert read(tmp_path / "saved" / "test") == ROWS[1:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
        ({"_format_type": "custom"}, "transform"),
        ({"_format_kwargs": {"dtype": "int8"}}, "dtype"),
        ({"_data_files": [{"filename": "../../etc/passwd"}]}, "beside it"),
        ({"_data_files": [{"filename": ".."}]}, "cannot be read"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "cannot be read"),
        ({"_data_files": []}, "beside it"),
        ({"_data_files": 3}, "beside it"),
        ({"_format_columns": 3}, "beside it"),
        ({"_format_columns": ["gone"]}, "cannot be read"),
    ],
)
def test_saved_folders_that_cannot_be_read_as_they_are(
    saved: Path, change: dict[str, Any], said: str
) -> None:
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | change))
    assert said in refusal(saved)


def test_a_state_of_something_else_is_data_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(ROWS[0]))
    assert read(tmp_path) == ROWS[:1]
