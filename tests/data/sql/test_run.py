"""`select` and `privacy_unit` see one row at a time, in a DuckDB that reaches nothing else."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.rows import ROWS_PER_BATCH, UNIT
from taciturn.data.source import open_rows
from taciturn.data.sql import run as preparation
from taciturn.data.sql.run import selected, with_unit
from taciturn.errors import DataError, MissingColumnError, PreparationError, RowError

SECRET = "FrançoisSecret"
ROWS = [
    {"id": "12_1", "context": '{"text": "A", "n": 1}', "name": "p q"},
    {"id": "12_2", "context": '{"text": "B", "n": 2}', "name": "r"},
]


def select(data: object, text: str) -> list[dict[str, Any]]:
    prepared = selected(open_rows(data), text)
    return [row for batch in prepared.batches for row in batch.to_pylist()]


def units(data: object, text: str) -> list[str]:
    rows = with_unit(open_rows(data), text, [])
    return [value for batch in rows.batches for value in batch.column(UNIT).to_pylist()]


def test_select_prepares_columns() -> None:
    text = "id, json_extract_string(context, '$.text') AS text, split_part(id, '_', 2)::INT AS n"
    assert select(ROWS, text) == [
        {"id": "12_1", "text": "A", "n": 1},
        {"id": "12_2", "text": "B", "n": 2},
    ]


def test_row_order_is_kept_over_many_batches() -> None:
    data = pa.table({"n": range(3 * ROWS_PER_BATCH)})
    assert [row["m"] for row in select(data, "n + 1 AS m")] == list(range(1, data.num_rows + 1))


@settings(max_examples=10)
@given(st.lists(st.text(alphabet="abcÀ'\"_;-", max_size=8), min_size=2, max_size=6), st.data())
def test_one_row_never_changes_another(texts: list[str], data: st.DataObject) -> None:
    """The property that the sensitivity bound rests on: dropping a row drops its result only."""
    dropped = data.draw(st.integers(0, len(texts) - 1))
    expression = "upper(text) || '/' || coalesce(split_part(text, '_', 1), '-') AS text"
    whole = select(texts, expression)
    rest = select([t for index, t in enumerate(texts) if index != dropped], expression)
    assert rest == [row for index, row in enumerate(whole) if index != dropped]


def test_unit_is_a_column_or_an_expression() -> None:
    assert units(ROWS, "split_part(id, '_', 1)") == ["12", "12"]
    assert units(ROWS, "id") == ["12_1", "12_2"]
    renamed = [{"patient id": row["id"], UNIT + "x": 1} for row in ROWS]
    assert units(renamed, "patient id") == ["12_1", "12_2"]
    assert units([{"n": 7}, {"n": 8}], "n") == ["7", "8"]


@pytest.mark.parametrize("missing", [None, "", "  ", "nan", "None", "NULL", "<NA>"])
def test_units_that_stand_for_nothing_are_refused(missing: str | None) -> None:
    with pytest.raises(RowError, match="patient") as caught:
        units([{"patient": "a"}, {"patient": missing}], "patient")
    assert not any(character.isdigit() for character in str(caught.value))


def test_units_from_a_float_column_with_nan_are_refused() -> None:
    with pytest.raises(RowError):
        units(pa.table({"patient": [1.0, float("nan")]}), "patient")


@pytest.mark.parametrize("expression", ["CAST(name AS INT)", "name::DATE", "strptime(name, '%Y')"])
def test_errors_of_rows_are_not_quoted(expression: str) -> None:
    data = [{"name": SECRET}]
    for apply in (select, units):
        with pytest.raises(PreparationError, match="TRY_CAST") as caught:
            apply(data, expression)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None
        assert expression in str(caught.value)


def test_errors_without_rows_are_explained() -> None:
    with pytest.raises(PreparationError, match="No function matches"):
        select(ROWS, "abs(id)")
    with pytest.raises(MissingColumnError, match="did you mean 'context'"):
        select(ROWS, "contexts")
    with pytest.raises(DataError, match="two columns named"):
        select(ROWS, "id, id")


@pytest.mark.parametrize(
    "text",
    [
        "sum(id)",
        "row_number() OVER ()",
        "(SELECT max(id) FROM rows_of_this_batch)",
        "random()",
        "current_date",
        "unnest([1, 2])",
        "rowid",
        "rows_of_this_batch",
        "id FROM rows_of_this_batch UNION SELECT id",
        "id; SELECT id",
        "DISTINCT id",
        "COLUMNS('i.*')",
        "list_sort([id])",
        "lower(DISTINCT id)",
        "#1",
        "$1",
        "grouping(id)",
    ],
)
def test_the_second_lock_holds_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: sqlglot lets everything pass. DuckDB's own reading is still refused."""
    monkeypatch.setattr(preparation, "check_list", lambda *_: None)
    with pytest.raises((PreparationError, MissingColumnError)):
        select(ROWS, text)


def test_times_do_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    text = "strftime('2020-01-01 00:00:00+05'::TIMESTAMPTZ, '%H') AS hour"
    assert select(ROWS, text)[0] == {"hour": "19"}


def test_nested_json_survives() -> None:
    data = [{"turns": [{"who": "user", "what": "a"}]}]
    (row,) = select(
        data, "list_transform(turns, lambda t: {'role': t.who, 'content': t.what}) AS messages"
    )
    assert row == {"messages": [{"role": "user", "content": "a"}]}
    (row,) = select(data, "to_json(turns) AS text")
    assert json.loads(row["text"]) == data[0]["turns"]
