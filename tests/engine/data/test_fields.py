"""The columns that are trained on are found or asked for, and every row has text in them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from taciturn.engine.data.fields import text_columns
from taciturn.engine.data.source import open_rows
from taciturn.errors import MissingColumnError, RowError, SpecError
from taciturn.preparation.fields import Fields, choose_fields
from taciturn.preparation.rows import UNIT
from taciturn.preparation.selection import with_unit
from taciturn.spec import DataSpec

TEXT, NUMBER = pa.string(), pa.int64()
TURNS = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))


def choose(columns: dict[str, pa.DataType], **spec: str) -> Fields:
    return choose_fields(pa.schema(list(columns.items())), DataSpec(**spec))


def texts(data: object, **spec: str) -> list[list[str]]:
    rows = open_rows(data)
    found = text_columns(rows, choose_fields(rows.schema, DataSpec(**spec)))
    return [column.to_pylist() for batch in found.batches for column in batch.columns]


def test_named_fields_win() -> None:
    columns = {"text": TEXT, "q": TEXT, "a": TEXT, "chat": TURNS}
    assert choose(columns, text_field="a") == Fields("text", ("a",))
    assert choose(columns, question_field="q", answer_field="a") == Fields("answer", ("q", "a"))
    assert choose(columns, messages_field="chat") == Fields("messages", ("chat",))


def test_defaults() -> None:
    assert choose({"id": TEXT, "text": TEXT, "messages": TURNS}) == Fields("text", ("text",))
    assert choose({"id": TEXT, "messages": TURNS}) == Fields("messages", ("messages",))
    assert choose({"n": NUMBER, "note": TEXT}) == Fields("text", ("note",))
    assert choose({"p": TEXT, "note": TEXT}, privacy_unit="p") == Fields("text", ("note",))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary("int8", TEXT)])
def test_every_string_type_is_text(kind: pa.DataType) -> None:
    assert choose({"note": kind}).columns == ("note",)


def test_ambiguity_lists_the_columns() -> None:
    with pytest.raises(MissingColumnError, match="id, note; name it with text_field"):
        choose({"id": TEXT, "note": TEXT})
    with pytest.raises(MissingColumnError, match="among: n;"):
        choose({"n": NUMBER})


def test_a_missing_column_suggests_the_nearest() -> None:
    with pytest.raises(MissingColumnError, match="did you mean 'Note'"):
        choose({"id": TEXT, "Note": TEXT}, text_field="notes")


def test_columns_of_another_type_are_refused() -> None:
    with pytest.raises(RowError, match=r"'n' holds int64.*CAST\(n AS VARCHAR\)"):
        choose({"n": NUMBER}, text_field="n")
    with pytest.raises(RowError, match="role, content"):
        choose({"n": pa.list_(TEXT)}, messages_field="n")


def test_contradicting_specs_are_refused() -> None:
    with pytest.raises(SpecError, match="go together"):
        choose({"q": TEXT}, question_field="q")
    with pytest.raises(SpecError, match="exclude each other"):
        choose({"q": TEXT}, text_field="q", messages_field="q")


@pytest.mark.parametrize("bad", [None, "", " \n\t", "\u00a0"])
@pytest.mark.parametrize("good", [0, 1, 20_000])
def test_rows_without_text_are_refused_without_a_count(bad: str | None, good: int) -> None:
    with pytest.raises(RowError, match="'text' is empty, null") as caught:
        texts(["fine"] * good + [bad])
    message = str(caught.value).replace("UTF-8", "")
    assert not any(character.isdigit() for character in message)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    broken = pa.array([b"Secret\xff\xfe"]).view(pa.string())
    with pytest.raises(RowError, match="UTF-8") as caught:
        texts(pa.table({"text": broken}))
    assert "Secret" not in str(caught.value)


def test_messages_become_json() -> None:
    turns = [{"role": "user", "content": "é"}]
    assert texts([{"messages": turns}]) == [['[{"role": "user", "content": "é"}]']]
    assert texts([{"messages": '[{"role": "user"}]'}]) == [['[{"role": "user"}]']]
    with pytest.raises(RowError):
        texts([{"messages": turns}, {"messages": None}])


def test_the_unit_travels_along() -> None:
    rows = with_unit(open_rows([{"p": "x", "part_0": "y", "text": "t"}]), "p", ["text"])
    found = text_columns(rows, Fields("text", ("text",)))
    assert [batch.to_pylist() for batch in found.batches] == [[{"part_0": "t", UNIT: "x"}]]
