"""Lines of uploads: their forms, and that a refusal quotes nothing of them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from taciturn.data.source import open_rows
from taciturn.server.fine_tuning.records import CHAT, COMPLETION, PREFERENCE, Records
from taciturn.server.problems import ProblemError

SECRET = "Ms Secret"
TURNS = [{"role": "user", "content": SECRET}, {"role": "assistant", "content": "I see."}]
CHAT_LINE = {"patient": "p1", "messages": TURNS}
PAIR = {
    "input": {"messages": TURNS[:1]},
    "preferred_output": TURNS[1:],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}


def records(*rows: Any, others: tuple[str, ...] = ("patient",), unit: str | None = None) -> Records:
    """Records of a file of these lines."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return Records(io.BytesIO(b"\n".join(lines)), others, unit)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (CHAT_LINE, CHAT),
        ({"patient": "p", "prompt": "Hello", "completion": " you"}, COMPLETION),
        ({"patient": "p", **PAIR}, PREFERENCE),
    ],
)
def test_each_form_has_its_columns(row: dict[str, Any], form: Any) -> None:
    read = records(row, b"", row)
    lines = [json.loads(line) for line in read]
    assert read.form is form
    assert len(lines) == 2
    assert lines[0].keys() == {"patient", *form.columns}


@pytest.mark.parametrize(
    "second",
    [
        b"\xff\xfe",
        b"not JSON " + SECRET.encode(),
        b'["a list"]',
        b'{"patient": "p", "patient": "q", "messages": []}',
        b"[" * 100_000,
        {SECRET: 1},
        {**CHAT_LINE, SECRET: 1},
        {**CHAT_LINE, "tools": []},
        {**CHAT_LINE, "patient": {"name": SECRET}},
        {**CHAT_LINE, "patient": None},
        {"patient": "p", "messages": []},
        {"patient": "p", "messages": TURNS[:1]},
        {"patient": "p", "messages": [{"role": SECRET, "content": ""}]},
        {"patient": "p", "messages": [{**TURNS[1], "weight": 0}]},
        {"patient": "p", "messages": [{"role": "assistant", "content": [SECRET]}]},
        {"patient": "p", "prompt": SECRET, "completion": ""},
        b'{"patient": "\\ud800", "messages": [{"role": "assistant", "content": ""}]}',
    ],
)
def test_a_line_that_is_no_record_is_refused_by_its_number(second: Any) -> None:
    with pytest.raises(ProblemError) as caught:
        list(records(CHAT_LINE, second, unit="patient"))
    assert caught.value.code == "invalid"
    assert "line 2" in caught.value.detail
    assert SECRET not in caught.value.detail


def test_a_file_without_a_record_is_refused() -> None:
    with pytest.raises(ProblemError, match="no record"):
        list(records())


def test_types_are_those_that_a_worker_finds(tmp_path: Any) -> None:
    """The upload states them beforehand; a dataset with others would wait for its owner."""
    for row, form in ((CHAT_LINE, CHAT), ({"patient": "p", **PAIR}, PREFERENCE)):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(records(row)))
        schema = open_rows(str(path)).schema
        kinds = {name: str(schema.field(name).type) for name in form.columns}
        assert kinds == dict(form.columns)
