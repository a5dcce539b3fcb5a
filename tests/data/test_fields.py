"""The columns that are trained on are found or asked for, and every row has text in them."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from taciturn.data.fields import text_columns
from taciturn.data.rows import UNIT
from taciturn.data.schema_fields import Fields, choose_fields
from taciturn.data.source import open_rows
from taciturn.data.sql.run import selected, with_unit
from taciturn.errors import MissingColumnError, RowError, SpecError
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
    for unit in ("p", "P"):
        found = choose({"p": TEXT, "note": TEXT}, privacy_unit=unit)
        assert found == Fields("text", ("note",))
    with pytest.raises(MissingColumnError, match="no column is called"):
        choose({"P": TEXT, "p": TEXT, "note": TEXT}, privacy_unit="p")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary("int8", TEXT)])
def test_every_string_type_is_text(kind: pa.DataType) -> None:
    assert choose({"note": kind}).columns == ("note",)


def test_ambiguity_lists_the_columns() -> None:
    with pytest.raises(
        MissingColumnError,
        match="among: id, note; name the one that holds the text",
    ):
        choose({"id": TEXT, "note": TEXT})
    with pytest.raises(MissingColumnError, match="among: n;"):
        choose({"n": NUMBER})


def test_a_missing_column_suggests_the_nearest() -> None:
    with pytest.raises(MissingColumnError, match="did you mean 'Note'"):
        choose({"id": TEXT, "Note": TEXT}, text_field="notes")


def test_names_are_meant_exactly() -> None:
    columns = {"Note": TEXT, "note": TEXT, "É": TEXT, "é": TEXT}
    for name in columns:
        assert choose(columns, text_field=name).columns == (name,)
    with pytest.raises(MissingColumnError, match="'Note' and 'note' differ from it in case only"):
        choose(columns, text_field="NOTE")


def test_columns_of_another_type_are_refused() -> None:
    with pytest.raises(
        RowError, match=r"""'n' holds int64.*'..., CAST\("n" AS VARCHAR\) AS "n"'"""
    ):
        choose({"n": NUMBER}, text_field="n")
    with pytest.raises(RowError, match=r'to_json\("a ""b"""\) AS "a ""b"""'):
        choose({'a "b"': TURNS}, text_field='a "b"')
    for other in (pa.list_(TEXT), NUMBER, pa.list_(pa.struct([("Role", TEXT), ("content", TEXT)]))):
        with pytest.raises(RowError, match=r"role, content.*list_transform"):
            choose({"n": other}, messages_field="n")


def test_the_advice_is_sql_that_works() -> None:
    rows = pa.table({'my "n"': [7], "s": [{"a": 1}]})
    for name, expected in {'my "n"': "7", "s": '{"a":1}'}.items():
        with pytest.raises(RowError) as caught:
            choose_fields(rows.schema, DataSpec(text_field=name))
        advice = str(caught.value).partition("select='..., ")[2].removesuffix("'")
        prepared = selected(open_rows(rows), advice)
        fields = choose_fields(prepared.schema, DataSpec(text_field=name))
        (batch,) = text_columns(prepared, fields).batches
        assert batch.column(0).to_pylist() == [expected]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary("int8", pa.binary())]
)
def test_bytes_are_text_where_they_are_named(kind: pa.DataType) -> None:
    """Parquet files of some writers have text without saying that it is text."""
    said = ["café à l'hôpital", "plain"]
    column = pa.array([each.encode() for each in said])
    if pa.types.is_dictionary(kind):
        column = column.dictionary_encode()
    data = pa.table({"note": column if pa.types.is_dictionary(kind) else column.cast(kind)})
    assert texts(data, text_field="note") == [said]
    assert texts(data.rename_columns(["text"])) == [said]
    with pytest.raises(MissingColumnError, match="name the one that holds the text"):
        texts(data)
    chat = [b'[{"role": "user"}]'.decode()]
    assert texts(pa.table({"chat": [chat[0].encode()]}), messages_field="chat") == [chat]
    with pytest.raises(RowError, match="not UTF-8") as caught:
        texts(pa.table({"note": [b"Secret\xff"]}), text_field="note")
    assert "Secret" not in str(caught.value)


def test_bytes_become_text_in_sql_by_decode() -> None:
    data = pa.table({"id": ["1"], "note": pa.array(["café".encode()])})
    found = selected(open_rows(data), "id, upper(decode(note)) AS text")
    assert [batch.to_pylist() for batch in found.batches] == [[{"id": "1", "text": "CAFÉ"}]]
    assert [
        batch.to_pylist() for batch in with_unit(open_rows(data), "decode(note)", ["id"]).batches
    ] == [[{"id": "1", UNIT: "café"}]]


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


def test_messages_may_hold_what_json_does_not_have() -> None:
    """Exports of databases have times and amounts beside role and content."""
    beside = {
        "at": pa.scalar(datetime(2024, 1, 2, 3, 4)),
        "day": pa.scalar(date(2024, 1, 2)),
        "hour": pa.scalar(time(3, 4)),
        "took": pa.scalar(timedelta(seconds=5)),
        "cost": pa.scalar(Decimal("1.50")),
        "raw": pa.scalar(b"caf\xc3\xa9"),
    }
    turn = pa.scalar(
        {"role": "user", "content": "é", **{name: each.as_py() for name, each in beside.items()}},
        pa.struct([("role", TEXT), ("content", TEXT), *((n, v.type) for n, v in beside.items())]),
    )
    found = texts(pa.table({"messages": pa.array([[turn.as_py()]], pa.list_(turn.type))}))
    assert json.loads(found[0][0]) == [
        {
            "role": "user",
            "content": "é",
            "at": "2024-01-02T03:04:00",
            "day": "2024-01-02",
            "hour": "03:04:00",
            "took": "0:00:05",
            "cost": "1.50",
            "raw": "café",
        }
    ]


def test_the_unit_travels_along() -> None:
    rows = with_unit(open_rows([{"p": "x", "part_0": "y", "text": "t"}]), "p", ["text"])
    found = text_columns(rows, Fields("text", ("text",)))
    assert [batch.to_pylist() for batch in found.batches] == [[{"part_0": "t", UNIT: "x"}]]
