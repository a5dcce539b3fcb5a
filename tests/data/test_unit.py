"""A unit's name says what the unit is of, so that equal names are equal units."""

from __future__ import annotations

import pytest

from taciturn.data.unit import unit_name, without_select
from taciturn.spec import DataSpec


def name(unit: str | None, select: str | None = None) -> str:
    return unit_name(DataSpec(privacy_unit=unit, select=select))


@pytest.mark.parametrize("select", [None, "*", "id, text", "id, upper(text) AS text", "text, *"])
def test_a_column_of_the_data_is_its_own_name(select: str | None) -> None:
    assert name("id", select) == "id"
    assert name("lower(id)", select) == "lower(id)"
    assert name(None, select) == "one record"


@pytest.mark.parametrize(
    ("select", "unit", "expected"),
    [
        ("text, row AS id", "id", "id, where id = row"),
        ("text, row AS ID", "id", "id, where ID = row"),
        ("a AS id, b AS ID", "id", "id, where id = a; ID = b"),
        ("a AS ID, b AS id", "id", "id, where ID = a; id = b"),
        ("text, lower(id) AS id", "id", "id, where id = LOWER(id)"),
        ("text, info.id", "id", "id, where id = info.id"),
        ("pid AS p, text", "split_part(p, '_', 1)", "split_part(p, '_', 1), where p = pid"),
        ("a AS b, b AS c, text", "c", "c, where c = b; b = a"),
        ('x AS "a b", text', "a b", "a b, where a b = x"),
    ],
)
def test_a_column_that_is_made_says_of_what(select: str, unit: str, expected: str) -> None:
    assert name(unit, select) == expected
    assert name(unit, f"{select}, 1 AS other") == expected  # the rest of a list is no matter
    assert without_select(expected) == unit
    spec = DataSpec(privacy_unit=unit, select=select)
    assert unit_name(spec, selected=False) == unit


def test_sql_that_cannot_be_read_is_refused_elsewhere() -> None:
    assert name("id", "id,, (") == "id"
    assert name("id (", "row AS id") == "id ("


def test_a_certificate_can_hold_every_name() -> None:
    long = " || ".join(f"c{i}" for i in range(400))
    other = f"{long} || d"
    assert len(name(long)) <= 1000
    assert name(long) != name(other)
    assert name(long).startswith("c0 || c1")
