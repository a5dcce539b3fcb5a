"""Alpaca, ShareGPT and OpenAI's chats, read as they come; what they have beyond that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from taciturn.data.declared import DeclaredRows
from taciturn.data.fields import text_columns
from taciturn.data.schema_fields import Fields, choose_fields
from taciturn.data.source import open_rows
from taciturn.data.tokens.tokenize import SKIPPED, prepare
from taciturn.errors import RowError, SpecError
from taciturn.spec import DataSpec, parse

ALPACA = [
    {"id": "a", "instruction": "Name the ward.", "input": "", "output": "East."},
    {"id": "b", "instruction": "Shorten it.", "input": "A long note.", "output": "Note."},
]
SHAREGPT = [
    {
        "id": "a",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Does it close?"},
            {"from": "gpt", "value": "It does."},
        ],
    }
]
OPENAI = [
    {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Does it close?"}]},
            {"role": "assistant", "content": "It does.", "weight": 1},
        ]
    }
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Does it close?"},
    {"role": "assistant", "content": "It does."},
]


def read(data: object, **spec: Any) -> tuple[Fields, list[tuple[str, ...]]]:
    rows = open_rows(data)
    fields = choose_fields(rows.schema, DataSpec(**spec))
    table = pa.Table.from_batches(list(text_columns(rows, fields).batches))
    return fields, list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.parametrize("spec", [{}, {"format": "alpaca"}])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_alpaca(spec: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    whole = json.dumps(ALPACA, indent=2)
    path.write_text(whole if suffix == "json" else "\n".join(map(json.dumps, ALPACA)))
    fields, rows = read(str(path), **spec)
    assert fields.kind == "answer"
    assert rows == [("Name the ward.", "East."), ("Shorten it.\nA long note.", "Note.")]


def test_alpaca_without_inputs_or_with_other_names() -> None:
    bare = [{"instruction": "Name it.", "input": None, "output": "East."}]
    assert read(bare)[1] == [("Name it.", "East.")]
    renamed = [{"ask": "Name it.", "input": "The ward.", "say": "East."}]
    named = {"format": "alpaca", "question_field": "ask", "answer_field": "say"}
    assert read(renamed, **named)[1] == [("Name it.\nThe ward.", "East.")]


def test_sharegpt() -> None:
    as_text = [{**row, "conversations": json.dumps(row["conversations"])} for row in SHAREGPT]
    for data in (SHAREGPT, as_text):
        fields, ((chat,),) = read(data)
        assert (fields.kind, fields.format) == ("messages", "sharegpt")
        assert json.loads(chat) == CHAT
    apart = [{"system": "Be brief.", "conversations": SHAREGPT[0]["conversations"][1:]}]
    assert json.loads(read(apart)[1][0][0]) == CHAT
    other = [{"turns": SHAREGPT[0]["conversations"]}]
    assert json.loads(read(other, format="sharegpt", messages_field="turns")[1][0][0]) == CHAT


def test_openai() -> None:
    assert json.loads(read(OPENAI, format="openai")[1][0][0]) == CHAT
    fields, ((chat,),) = read([{"conversations": CHAT}])
    assert fields.format == "openai"
    assert json.loads(chat) == CHAT


def test_two_formats_at_once_are_not_guessed() -> None:
    with pytest.raises(Exception, match="text_field"):
        read([ALPACA[0] | SHAREGPT[0]])
    assert read([ALPACA[0] | SHAREGPT[0]], format="alpaca")[0].kind == "answer"


TURN = {"role": "user", "content": "SECRET"}
ANSWER = {"role": "assistant", "content": "SECRET"}


@pytest.mark.parametrize(
    ("format", "row", "named"),
    [
        ("sharegpt", [{"from": "human", "value": "SECRET"}], "no turn is the assistant's"),
        ("sharegpt", [{"from": "SECRET", "value": "x"}, {"from": "gpt", "value": "x"}], "'from'"),
        ("sharegpt", [{"from": "observation", "value": "SECRET"}], "function_call, observation"),
        ("sharegpt", [{"from": "gpt", "value": None}], "text in both"),
        ("sharegpt", "SECRET", "text in both"),
        ("openai", [TURN, {**ANSWER, "weight": 0}], "'weight'"),
        ("openai", [TURN, {**ANSWER, "tool_calls": [{"id": "SECRET"}]}], "'tool_calls'"),
        ("openai", [TURN, {"role": "tool", "content": "SECRET"}, ANSWER], "tool"),
        ("openai", [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "text in both"),
    ],
)
def test_bad_rows(format: str, row: Any, named: str) -> None:
    column = {"sharegpt": "conversations", "openai": "messages"}[format]
    with pytest.raises(RowError) as error:
        read([{column: json.dumps(row)}], format=format)
    message = str(error.value)
    assert column in message
    assert named in message
    assert "SECRET" not in message
    assert "; " in message


@pytest.mark.parametrize(
    ("data", "column"),
    [
        ([ALPACA[0] | {"history": [["a", "b"]]}], "history"),
        ([ALPACA[0] | {"system": "Be brief."}], "system"),
        ([SHAREGPT[0] | {"tools": "[]"}], "tools"),
    ],
)
def test_columns_that_would_change_what_is_learned(data: Any, column: str) -> None:
    with pytest.raises(RowError, match=f"column '{column}' .* leave it out"):
        read(data)
    assert read([{**data[0], column: None}])[1]


def test_fields_of_another_format_are_refused() -> None:
    for fields in (
        {"format": "alpaca", "text_field": "text"},
        {"format": "sharegpt", "question_field": "q", "answer_field": "a"},
    ):
        with pytest.raises(SpecError, match="format="):
            parse(DataSpec, fields)
    with pytest.raises(SpecError, match="alpaca"):
        parse(DataSpec, {"format": "vicuna"})


def test_only_the_answers_are_targets(tmp_path: Path) -> None:
    from support.tiny_tokenizers import make

    tokenizer = make("qwen2")
    for name, data in {"alpaca": ALPACA, "chat": SHAREGPT}.items():
        spec = DataSpec(privacy_unit="id")
        prepared = prepare(data, spec, tokenizer, 256, tmp_path / name, 0)
        (record,) = prepared.records(0)
        learned = tokenizer.decode(record.input_ids[record.targets.astype(bool)])
        assert "East." in learned or "It does." in learned
        assert "Name" not in learned
        assert "close" not in learned
        assert "brief" not in learned


def test_a_bad_row_of_a_registered_data_set_contributes_nothing(tmp_path: Path) -> None:
    """Whether a row fails is a fact about it: behind a gateway no job stops for one."""
    from support.tiny_tokenizers import make

    bad = {"id": "b", "conversations": [{"from": "observation", "value": "x"}]}
    data = DeclaredRows([SHAREGPT[0], bad], 10)
    prepared = prepare(data, DataSpec(privacy_unit="id"), make("qwen2"), 256, tmp_path / "data", 0)
    assert prepared.n_units == 1
    assert json.loads((tmp_path / "data" / SKIPPED).read_text()) == {"rows": 1}
