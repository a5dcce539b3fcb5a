"""Rows of a registered data set: what cannot be used contributes nothing, and nobody is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from taciturn.engine.data.declared import DeclaredRows
from taciturn.engine.data.split import Split
from taciturn.engine.data.tokenize import SKIPPED, TokenizedDataset, prepare
from taciturn.errors import MissingColumnError, PreparationError, SpecError
from taciturn.preparation.rows import UNIT
from taciturn.spec import DataSpec

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
