"""Rows of a registered data set: what cannot be used contributes nothing, and nobody is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from taciturn.data.declared import DeclaredRows
from taciturn.data.rows import UNIT
from taciturn.data.schema_fields import Fields
from taciturn.data.split import Split
from taciturn.data.tokens.encoding import DeclaredEncoder, most_characters
from taciturn.data.tokens.plain import plain_tokens
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import SKIPPED, prepare
from taciturn.errors import DataError, MissingColumnError, PreparationError, SpecError
from taciturn.spec import DataSpec

pytestmark = pytest.mark.usefixtures("kept_processes")

OWNERS = DataSpec(privacy_unit="split_part(id, '_', 1)")
NOTES = [{"id": f"p{i % 4}_{i}", "text": f"Visit number {i}.", "n": str(i)} for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_medical)


def made(
    rows: object, tokenizer: Any, folder: Path, spec: DataSpec = OWNERS, split: Split | None = None
) -> TokenizedDataset:
    return prepare(DeclaredRows(rows, 100, split), spec, tokenizer, 64, folder / "data", seed=0)


def skipped(folder: Path) -> int:
    return int(json.loads((folder / "data" / SKIPPED).read_text())["rows"])


def content(data: TokenizedDataset) -> set[tuple[tuple[int, ...], ...]]:
    return {
        tuple(tuple(record.input_ids.tolist()) for record in data.records(unit))
        for unit in range(data.n_units)
    }


def test_units_are_the_owners_whatever_is_selected(tmp_path: Path, tokenizer: Any) -> None:
    spec = OWNERS.model_copy(update={"select": "md5(id || text) AS id, text"})
    assert made(NOTES, tokenizer, tmp_path, spec).n_units == 4


@pytest.mark.parametrize(("unit", "n_units"), [("id", 4), ("ID", 12), ("lower(id)", 4)])
@pytest.mark.parametrize("select", [None, "*", '"ID" AS id, Text AS text', "upper(id) AS ID, text"])
def test_units_are_of_the_column_that_the_owner_named(
    unit: str, n_units: int, select: str | None, tmp_path: Path, tokenizer: Any
) -> None:
    """ID is a row's number, and id the patient's, whatever a selection calls what it makes."""
    rows = [
        {"ID": note["n"], "id": note["id"].partition("_")[0], "text": note["text"]}
        for note in NOTES
    ]
    spec = DataSpec(privacy_unit=unit, select=select, text_field="text")
    assert made(rows, tokenizer, tmp_path, spec).n_units == n_units


def test_the_units_name_is_no_field(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(MissingColumnError):
        made(NOTES, tokenizer, tmp_path, OWNERS.model_copy(update={"text_field": UNIT}))


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "p9_1", "text": None},
        {"id": "p9_1", "text": "  "},
        {"id": None, "text": "whose?"},
        {"id": "_1", "text": "whose?"},
        {"id": "p9_1", "text": "x", "n": "many"},
    ],
)
def test_bad_row_contributes_nothing(bad: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    spec = OWNERS.model_copy(update={"select": "text, CAST(n AS INTEGER) AS n"})
    (tmp_path / "without").mkdir()
    alone = made(NOTES, tokenizer, tmp_path / "without", spec)
    assert content(made([bad, *NOTES], tokenizer, tmp_path, spec)) == content(alone)
    assert skipped(tmp_path) == 1
    assert skipped(tmp_path / "without") == 0


def test_text_that_is_not_utf8_contributes_nothing(tmp_path: Path, tokenizer: Any) -> None:
    texts = pa.array([b"fine", b"\xff\xfe", b"fine, too"]).cast(pa.string(), safe=False)
    data = made(pa.table({"id": ["a", "b", "c"], "text": texts}), tokenizer, tmp_path)
    assert data.n_units == 2


def test_chat_that_the_template_refuses_contributes_nothing(tmp_path: Path, tokenizer: Any) -> None:
    good = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [
        {"id": "a_1", "messages": json.dumps(good)},
        {"id": "b_1", "messages": "not JSON"},
        {"id": "a_2", "messages": json.dumps(good)},
    ]
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    chatty = tokenizer.__class__.from_pretrained(tokenizer.name_or_path)
    chatty.chat_template = template
    data = made(rows, chatty, tmp_path)
    targets = {
        int(sum(r.targets.sum() for r in data.records(unit))) for unit in range(data.n_units)
    }
    assert 0 in targets, "its gradient is zero"
    assert skipped(tmp_path) == 1


@pytest.mark.parametrize("side", ["train", "test"])
def test_only_units_of_the_side_are_there(side: Any, tmp_path: Path, tokenizer: Any) -> None:
    split = Split(bytes(range(32)), side, 0.5)
    expected = {f"p{i}" for i in range(4) if split.holds(f"p{i}")}
    assert made(NOTES, tokenizer, tmp_path, split=split).n_units == len(expected)


def test_nobody_may_be_left(tmp_path: Path, tokenizer: Any) -> None:
    spec = OWNERS.model_copy(update={"select": "CAST(text AS INTEGER) AS n, text"})
    assert made(NOTES, tokenizer, tmp_path, spec).n_units == 0
    assert skipped(tmp_path) == 12


def test_a_table_without_rows(tmp_path: Path, tokenizer: Any) -> None:
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    pa.parquet.write_table(schema.empty_table(), tmp_path / "none.parquet")
    assert made(str(tmp_path / "none.parquet"), tokenizer, tmp_path).n_units == 0


def test_what_is_wrong_with_columns_is_said(tmp_path: Path, tokenizer: Any) -> None:
    """It depends on the schema, which is public."""
    with pytest.raises(MissingColumnError):
        made(NOTES, tokenizer, tmp_path, OWNERS.model_copy(update={"select": "nothing AS text"}))
    with pytest.raises(PreparationError):
        made(NOTES, tokenizer, tmp_path, OWNERS.model_copy(update={"select": "max(text) AS text"}))


def test_there_must_be_an_owners_unit(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(SpecError, match="privacy_unit"):
        made(NOTES, tokenizer, tmp_path, DataSpec())


@pytest.mark.parametrize("field", ["text", "messages"])
def test_a_row_that_is_too_large_contributes_nothing(
    field: str, tmp_path: Path, tokenizer: Any
) -> None:
    chatty = tokenizer.__class__.from_pretrained(tokenizer.name_or_path)
    chatty.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

    def value(length: int) -> str:
        turns = [("user", "Q " * (length // 2)), ("assistant", "A")]
        chat = [{"role": role, "content": words} for role, words in turns]
        return "Q" * length if field == "text" else json.dumps(chat)

    rows = [{"id": f"p{n}_1", field: value(length)} for n, length in enumerate((5, 9, 17 << 20))]
    data = made(rows, chatty, tmp_path)
    assert data.n_units == 2
    assert skipped(tmp_path) == 1


def test_a_long_text_is_read_as_far_as_it_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    lengths: list[int] = []
    tokenizer = copy.copy(tokenizer)

    class Noting(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, **options: Any) -> Any:
            lengths.extend(map(len, text))
            return super().__call__(text, **options)

    text = "The patient has a cough. " * 40_000
    (whole,) = plain_tokens(tokenizer, [text])
    tokenizer.__class__ = Noting
    data = made([{"id": "p1_1", "text": text}], tokenizer, tmp_path)
    (record,) = data.records(0)
    assert record.input_ids.tolist()[1:] == whole[:63]
    assert max(lengths) == most_characters(tokenizer, 64) < 2000


def test_a_row_with_tokens_that_the_model_does_not_know(tokenizer: Any) -> None:
    encoder = DeclaredEncoder(Fields("text", ("text",)), tokenizer, 9, vocabulary=40)
    batch = pa.record_batch([pa.array(["!", "The patient"], pa.large_string())], ["part_0"])
    found = [record for part in encoder.encode(batch) for record in _records(part)]
    assert found == [(3, True), (1, False)]
    assert encoder.skipped.rows == 1


def _records(part: Any) -> list[tuple[int, bool]]:
    starts = [0, *part.lengths.cumsum()]
    return [
        (int(n), bool(part.targets[start : start + n].any()))
        for start, n in zip(starts, part.lengths, strict=False)
    ]


GOOD = [b'{"id": "a_1", "text": "fine", "n": 1}', b'{"id": "b_1", "text": "too", "n": 2.5}']


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "c_1", "text": ',
        b'{"id": "c_1", "text": "\xff"}',
        b'{"id": "c_1", "text": "\\ud800"}',
        b'["c_1", "text"]',
        b"[" * 100_000,
    ],
)
def test_line_that_cannot_be_read_contributes_nothing(
    line: bytes, tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], line, GOOD[1]]) + b"\n")
    assert made(str(path), tokenizer, tmp_path).n_units == 2
    assert skipped(tmp_path) == 1
    with pytest.raises(DataError):
        prepare(str(path), OWNERS, tokenizer, 64, tmp_path / "own", seed=0)


@pytest.mark.parametrize("row", [b"c_1,x,too many", b"c_1", b"c_1,\xff"])
def test_row_of_a_csv_file_that_cannot_be_read_contributes_nothing(
    row: bytes, tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "notes.csv"
    path.write_bytes(b"\n".join([b"id,text", b"a_1,fine", row, b"b_1,too"]) + b"\n")
    assert made(str(path), tokenizer, tmp_path).n_units == 2
    assert skipped(tmp_path) == 1


def test_row_of_an_arrow_file_that_is_not_utf8_contributes_nothing(
    tmp_path: Path, tokenizer: Any
) -> None:
    texts = pa.array([b"fine", b"\xff", b"too"]).cast(pa.string(), safe=False)
    table = pa.table({"id": ["a_1", "c_1", "b_1"], "text": texts})
    path = tmp_path / "notes.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert made(str(path), tokenizer, tmp_path).n_units == 2
    assert skipped(tmp_path) == 1
