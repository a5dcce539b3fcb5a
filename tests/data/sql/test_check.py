"""Only row-wise expressions pass; what is refused is named."""

from __future__ import annotations

import contextlib

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.sql.check import FUNCTIONS, check_list, check_single
from taciturn.errors import MissingColumnError, PreparationError

COLUMNS = ("id", "context", "note", "turns", "born")

ALLOWED = [
    "id",
    "*",
    "*, upper(note) AS loud",
    "id, json_extract_string(context, '$.text') AS text",
    "context ->> '$.a[0].b' AS text",
    "CASE WHEN note LIKE 'a%' THEN trim(note) ELSE coalesce(note, 'none') END AS text",
    "TRY_CAST(id AS BIGINT) // 10 AS decade",
    "id || ': ' || regexp_replace(note, '[0-9]+', '#', 'g') AS text",
    "note AS a, a || '!' AS b",
    "list_transform(turns, lambda t: {'role': t.who, 'content': t.what}) AS messages",
    "list_filter(turns, lambda t: t.who = 'nurse')",
    "born + INTERVAL 3 DAY AS shifted, extract(year FROM born)",
    'NOTE, "note", note -- all the same column',
    "'; DROP TABLE x; SELECT ' AS text",
    "context.patient.name",
]

REFUSED = {
    "sum(id)": "SUM",
    "count(*)": "COUNT",
    "string_agg(note)": "aggregate",
    "first(note)": "FIRST",
    "any_value(note)": "ANY_VALUE",
    "max(id) + 1": "MAX",
    "sum(id) FILTER (WHERE id > 1)": "SUM",
    "row_number() OVER ()": "window",
    "lag(note) OVER (ORDER BY id)": "window",
    "(SELECT 1)": "subquery",
    "note IN (SELECT note FROM other)": "subquery",
    "EXISTS (SELECT 1)": "subquery",
    "CASE WHEN (SELECT count(*) FROM t) > 5 THEN note END": "subquery",
    "unnest(turns)": "unnest",
    "random()": "RANDOM",
    "now()": "now",
    "current_date": "CURRENT_DATE",
    "current_timestamp": "CURRENT_TIMESTAMP",
    "today()": "CURRENT_DATE",
    "uuid()": "UUID",
    "gen_random_uuid()": "UUID",
    "age(born)": "age",
    "nextval('s')": "nextval",
    "list_transform(turns, lambda t: random())": "RANDOM",
    "list_transform(turns, lambda t: (SELECT max(note) FROM x))": "subquery",
    "list_filter(turns, lambda t: now() > t.at)": "now",
    "list_aggregate(turns, 'sum')": "list_aggregate",
    "[t FOR t IN turns]": "FOR t IN",
    "read_text('/etc/passwd')": "read_text",
    "getenv('HOME')": "getenv",
    "current_setting('x')": "current_setting",
    "getvariable('x')": "getvariable",
    "error(note)": "error",
    "query('SELECT 1')": "query",
    "repeat(note, 1000000)": "REPEAT",
    "printf('%999999999d', 1)": "printf",
    "COLUMNS('n.*')": "COLUMNS",
    "* EXCLUDE (id)": "star",
    "note.*": "star",
    "#1": "#1",
    "$1": "$1",
    "?": "?",
    "DISTINCT note": "DISTINCT",
    "note FROM other": "FROM",
    "note WHERE id > 1": "WHERE",
    "note ORDER BY id": "ORDER BY",
    "note LIMIT 3": "LIMIT",
    "note GROUP BY note": "GROUP BY",
    "note UNION SELECT 1": "UNION",
    "note; SELECT 1": "more than one statement",
    "SELECT note FROM data": "whole query",
    "WITH a AS (SELECT 1) SELECT note": "whole query",
    "note) FROM x --": "cannot be read|not SQL",
    "'unclosed": "not SQL",
    "": "not SQL|empty",
    "CAST(note AS": "not SQL",
}


@pytest.mark.parametrize("text", ALLOWED)
def test_row_wise_expressions_pass(text: str) -> None:
    check_list(text, COLUMNS)


@pytest.mark.parametrize("text", REFUSED)
def test_everything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(
        PreparationError, match=REFUSED[text].replace("$", r"\$").replace("?", r"\?")
    ) as caught:
        check_list(text, COLUMNS)
    assert ";" in str(caught.value)


@pytest.mark.parametrize("text", [text for text in REFUSED if text])
def test_a_refused_construct_is_refused_wherever_it_hides(text: str) -> None:
    for hidden in (f"lower({text})", f"id, ({text}) AS text", f"[{text}]", f"{{'k': {text}}}"):
        with pytest.raises((PreparationError, MissingColumnError)):
            check_list(hidden, COLUMNS)


@pytest.mark.parametrize("text", ["id", "split_part(id, '_', 1)", "md5(id)", "context.id"])
def test_a_single_expression_passes(text: str) -> None:
    check_single(text, COLUMNS)


@pytest.mark.parametrize("text", ["id, note", "id AS patient", "*"])
def test_several_expressions_are_no_unit(text: str) -> None:
    with pytest.raises(PreparationError, match="one expression"):
        check_single(text, COLUMNS)


def test_unknown_columns_are_named_with_the_nearest() -> None:
    with pytest.raises(MissingColumnError, match=r"'nots'.*did you mean 'note'"):
        check_list("lower(nots)", COLUMNS)
    with pytest.raises(MissingColumnError, match="add it to select"):
        check_single("rowid", COLUMNS)


def test_listed_functions_are_scalar_and_repeatable_in_duckdb() -> None:
    query = "SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()"
    catalog: dict[str, set[tuple[str, str | None]]] = {}
    for name, kind, stability in duckdb.connect().execute(query).fetchall():
        catalog.setdefault(name, set()).add((kind, stability))
    good = {("scalar", "CONSISTENT"), ("macro", None)}
    syntax = {"coalesce", "ifnull", "if"}  # written by the parser itself
    strange = {name for name in FUNCTIONS - syntax if not catalog.get(name, {("", "")}) <= good}
    assert strange == set()


@given(st.text(max_size=40))
def test_no_text_gets_past_with_another_error(text: str) -> None:
    with contextlib.suppress(PreparationError, MissingColumnError):
        check_list(text, COLUMNS)
