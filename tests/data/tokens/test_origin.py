"""Prepared data know what they were made of; no call about anything else goes on with them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from taciturn.data.declared import DeclaredRows
from taciturn.data.split import Split
from taciturn.data.tokens import tokenize
from taciturn.data.tokens.origin import Origin, canonical_source
from taciturn.data.tokens.tokenize import check_prepared, prepare
from taciturn.errors import CheckpointError, DataNotFoundError
from taciturn.spec import DataSpec

NOTES = [
    {"id": f"p{i // 3}", "ward": f"w{i // 6}", "text": f"note {i}", "other": f"else {i}"}
    for i in range(12)
]
SPEC = DataSpec(privacy_unit="id", max_records_per_unit=2)


@dataclass
class Words:
    """A tokenizer whose tokens are the bytes of words, and what may differ between two of them."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    chat_template: str | None = None
    vocabulary: tuple[str, ...] = ("a", "b")

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.vocabulary)}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(NOTES, SPEC, Words(), 16, tmp_path / "data", 0)
    return tmp_path / "data"


def check(
    folder: Path,
    data: object = NOTES,
    spec: DataSpec = SPEC,
    tokenizer: Words | None = None,
    max_tokens: int = 16,
    seed: int = 0,
) -> None:
    check_prepared(data, spec, tokenizer or Words(), max_tokens, folder, seed)


def test_the_same_call_goes_on(prepared: Path) -> None:
    check(prepared)
    check(prepared, data=pd.DataFrame(NOTES))  # the same rows, held by something else
    assert [path.name for path in prepared.parent.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("privacy_unit", None),
        ("privacy_unit", "ward"),
        ("text_field", "other"),
        ("select", "id, ward, upper(text) AS text"),
        ("messages_field", "text"),
        ("max_records_per_unit", 3),
    ],
)
def test_another_field_is_named_and_refused(prepared: Path, field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"was begun with {field}=.*give the same"):
        check(prepared, spec=SPEC.model_copy(update={field: value}))


def test_question_and_answer_are_fields_too(tmp_path: Path) -> None:
    asked = DataSpec(question_field="text", answer_field="other")
    prepare(NOTES, asked, Words(), 16, tmp_path / "data", 0)
    swapped = DataSpec(question_field="other", answer_field="text")
    with pytest.raises(CheckpointError, match="question_field='text', this call has"):
        check(tmp_path / "data", spec=swapped)


def test_another_bound_on_tokens_or_another_seed_is_refused(prepared: Path) -> None:
    with pytest.raises(CheckpointError, match="max_tokens=16, this call has max_tokens=15"):
        check(prepared, max_tokens=15)
    with pytest.raises(CheckpointError, match="seed=0, this call has seed=1"):
        check(prepared, seed=1)


def test_another_tokenizer_is_refused_even_if_it_gives_the_same_ids(prepared: Path) -> None:
    for other in (Words(vocabulary=("b", "a")), Words(eos_token_id=3)):
        with pytest.raises(CheckpointError, match="another tokenizer"):
            check(prepared, tokenizer=other)
    with pytest.raises(CheckpointError, match="another chat template"):
        check(prepared, tokenizer=Words(chat_template="{{ messages }}"))


def test_a_real_tokenizer_is_the_same_after_it_was_used(tiny_medical: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first, second = (AutoTokenizer.from_pretrained(tiny_medical) for _ in range(2))
    prepare(NOTES, SPEC, first, 16, tmp_path / "data", 0)
    second(["a", "a longer text"], padding=True, truncation=True, max_length=2)
    check_prepared(NOTES, SPEC, second, 16, tmp_path / "data", 0)
    second.add_tokens(["hypertension"])
    with pytest.raises(CheckpointError, match="another tokenizer"):
        check_prepared(NOTES, SPEC, second, 16, tmp_path / "data", 0)


def row_left_out(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return rows[:-1]


def another_text(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*rows[:-1], {**rows[-1], "text": "Private 1"}]


def another_owner(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same texts in the same order, of units with other borders."""
    return [{**row, "id": f"p{i // 2}"} for i, row in enumerate(rows)]


@pytest.mark.parametrize("changed", [row_left_out, another_text, another_owner])
def test_other_rows_are_refused_and_not_quoted(prepared: Path, changed: Any) -> None:
    with pytest.raises(CheckpointError, match="rows are not those") as caught:
        check(prepared, data=changed(NOTES))
    assert "Private 1" not in str(caught.value)
    assert not any(char.isdigit() for char in str(caught.value))
    assert [path.name for path in prepared.parent.iterdir()] == ["data"]


def test_units_alone_tell_data_apart(tmp_path: Path) -> None:
    """Every text is the same one, so only who owns what can differ."""
    same = [{"id": f"p{i // 3}", "text": "note"} for i in range(12)]
    prepare(same, DataSpec(privacy_unit="id"), Words(), 16, tmp_path / "data", 0)
    moved = [{**row, "id": f"p{i // 4}"} for i, row in enumerate(same)]
    with pytest.raises(CheckpointError, match="rows are not those"):
        check(tmp_path / "data", data=moved, spec=DataSpec(privacy_unit="id"))


def test_a_file_is_read_again_only_if_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.csv"
    pd.DataFrame(NOTES).to_csv(path, index=False)
    folder = tmp_path / "run" / "data"
    prepare(str(path), SPEC, Words(), 16, folder, 0)
    read: list[object] = []
    real = tokenize.prepare

    def noting(data: object, *rest: Any) -> Any:
        read.append(data)
        return real(data, *rest)

    monkeypatch.setattr(tokenize, "prepare", noting)
    check(folder, data=str(path))
    assert read == []
    path.write_text(path.read_text())  # the same content, written anew: read, and found the same
    check(folder, data=str(path))
    assert read == [str(path)]


def test_a_file_changed_in_place_with_its_old_times_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    pd.DataFrame(NOTES).to_csv(path, index=False)
    before = path.stat()
    prepare(str(path), SPEC, Words(), 16, tmp_path / "run" / "data", 0)
    text = path.read_text()
    with path.open("r+") as file:
        file.write(text.replace("note 3", "NOTE 3"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)
    with pytest.raises(CheckpointError, match="rows are not those"):
        check(tmp_path / "run" / "data", data=str(path))


def test_another_file_with_other_rows_is_refused(tmp_path: Path) -> None:
    for name, rows in (("a.csv", NOTES), ("b.csv", NOTES[3:])):
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
    prepare(str(tmp_path / "a.csv"), SPEC, Words(), 16, tmp_path / "run" / "data", 0)
    with pytest.raises(CheckpointError, match="rows are not those"):
        check(tmp_path / "run" / "data", data=str(tmp_path / "b.csv"))


@pytest.mark.parametrize("name", ["tokens.arrow", "units.arrow", "origin.json"])
def test_prepared_data_that_were_edited_are_refused(prepared: Path, name: str) -> None:
    path = prepared / name
    content = path.read_bytes()
    edited = content.replace(b'"privacy_unit":"id"', b'"privacy_unit":"ad"')
    if name != "origin.json":
        middle = len(content) // 2
        edited = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(edited)
    with pytest.raises(CheckpointError):
        check(prepared)


def test_no_origin_no_resume(prepared: Path) -> None:
    for damage in (b"{}", b"", None):
        (prepared / "origin.json").unlink()
        if damage is not None:
            (prepared / "origin.json").write_bytes(damage)
        with pytest.raises(CheckpointError, match="begin anew"):
            check(prepared)
        (prepared / "origin.json").touch()


def test_the_digest_of_rows_is_that_of_whole_units(tmp_path: Path) -> None:
    """However many rows come at a time, and without the canaries that follow them."""
    frames = [pd.DataFrame(NOTES), NOTES]
    origins = []
    for number, data in enumerate(frames):
        prepare(data, SPEC, Words(), 16, tmp_path / str(number), 0)
        origins.append(Origin.read(tmp_path / str(number)))
    planted = _canaries()
    prepare(NOTES, SPEC, Words(), 16, tmp_path / "planted", 0, planted)
    origins.append(Origin.read(tmp_path / "planted"))
    assert len({origin.rows for origin in origins}) == 1
    check(tmp_path / "planted")


def _canaries() -> Any:
    from taciturn.data.tokens.planted import PlantedUnits

    return PlantedUnits("random", ("xyz", "uvw"), np.array([True, False]))


def test_the_report_names_what_was_prepared(prepared: Path, tmp_path: Path) -> None:
    assert Origin.read(prepared).privacy_unit == "id"
    prepare(NOTES, DataSpec(), Words(), 16, tmp_path / "other", 0)
    assert Origin.read(tmp_path / "other").privacy_unit == "one record"


def test_declared_rows_are_compared_by_what_was_declared_alone(tmp_path: Path) -> None:
    """A job that failed over a row would tell of it: rows are not read again."""
    path = tmp_path / "notes.csv"
    pd.DataFrame(NOTES).to_csv(path, index=False)
    split = Split(b"k" * 16, "train", 0.25)
    data = DeclaredRows(str(path), 30, split)
    folder = tmp_path / "run" / "data"
    prepare(data, SPEC, Words(), 16, folder, 0)
    pd.DataFrame(NOTES[:1]).to_csv(path, index=False)
    check(folder, data=data)
    path.unlink()
    check(folder, data=data)
    with pytest.raises(CheckpointError, match="n_units=30, this call has n_units=31"):
        check(folder, data=replace(data, n_units=31))
    others = [
        replace(data, source=str(tmp_path / "other.csv")),
        replace(data, split=None),
        replace(data, split=Split(b"k" * 16, "test", 0.25)),
        replace(data, split=Split(b"q" * 16, "train", 0.25)),
    ]
    for other in others:
        with pytest.raises(CheckpointError, match="another data set"):
            check(folder, data=other)


def test_a_data_set_has_one_name_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        pd.DataFrame(NOTES).to_csv(folder / name, index=False)
    (tmp_path / "link.csv").symlink_to(folder / "a.csv")
    monkeypatch.chdir(tmp_path)
    file, whole = str(folder / "a.csv"), str(folder)
    spellings = ["notes/a.csv", "notes//a.csv", "notes/../notes/a.csv", "link.csv", Path(file)]
    assert {canonical_source(each) for each in (*spellings, f"file://{file}")} == {file}
    patterns = ["notes", "notes/", "notes/*.csv", f"{folder}/[ab].csv", f"file://{folder}/?.csv"]
    assert {canonical_source(each) for each in patterns} == {whole}
    assert canonical_source("postgresql://host/base#t") == "host/base#t"
    assert canonical_source("postgresql+psycopg://host/base#t") == "host/base#t"
    assert canonical_source(NOTES) is None
    with pytest.raises(DataNotFoundError):
        canonical_source("elsewhere.csv")
