"""Columns: what was read from data is shown to nobody before its owner says that it is names."""

from __future__ import annotations

from typing import Any

import pytest

from support.gateway import COLUMNS, GatewayWorld, refused
from taciturn.server.catalog.columns import agree, columns_to_confirm, doubts
from taciturn.wire.datasets import ColumnView, StatedColumn

PATIENT = ("P0017", "François Dupont", "1961-04-02", "suffers from pancreatic cancer")
ROW = tuple(ColumnView(name=value, type="string") for value in PATIENT)
"""What a CSV file without a header line has for names."""
CSV = {"source": "/data/notes.csv", "unit": "md5(column_1)"}
OTHERS = ("paul", "petra", "ann", "oscar", "adam")
NAMES = ["id", "name", "born", "note"]


def everywhere(world: GatewayWorld, who: str) -> str:
    """All that a person is shown of datasets, and of the job that looked."""
    paths = ["/datasets", "/datasets/phee", "/datasets/phee/preview", "/jobs", "/models"]
    paths += [f"/jobs/{job['id']}{part}" for job in world.ask("ann", "GET", "/jobs").json()
              ["items"] for part in ("", "/result", "/events", "/files/schema.json")]  # fmt: skip
    shown = [world.ask(who, "GET", path).text for path in paths]
    select = {"select": "upper(nothing)"}
    return "".join([*shown, world.ask(who, "POST", "/datasets/phee/selections", select).text])


def test_a_first_row_is_shown_to_its_owner_alone(world: GatewayWorld) -> None:
    world.register(**CSV)
    for holder in ("user:paul", "group:cardio", "user:oscar"):
        world.grant(holder)
    world.probed("phee", ROW)
    for who in OTHERS:
        shown = everywhere(world, who)
        assert not [value for value in PATIENT if value in shown]
        assert world.ask(who, "GET", "/datasets/phee").json().get("found") is None
    assert world.ask("paul", "GET", "/datasets/phee").json()["state"] == "unconfirmed"
    detail = refused(world.ask("paul", "GET", "/datasets/phee/preview"), 409, "not_ready")
    assert "its owner has yet to confirm its columns" in detail
    found = world.ask("olga", "GET", "/datasets/phee").json()
    assert found["columns"] is None
    assert tuple(column["name"] for column in found["found"]["columns"]) == PATIENT
    assert found["found"]["named_by"] == "first line"
    assert len(found["found"]["doubts"]) == 2


def test_what_is_confirmed_is_what_was_found(world: GatewayWorld) -> None:
    """Bound to names and types: another schema that has come meanwhile is not confirmed with it."""
    world.register(**CSV)
    world.probed("phee", COLUMNS)
    detail = refused(world.state_columns("phee", ROW), 409, "conflict")
    assert "found and not stated: 2" in detail
    assert "'context'" not in detail
    refused(world.state_columns("phee", COLUMNS[:1]), 409, "conflict")
    refused(world.state_columns("phee", None), 422, "invalid")
    answer = world.state_columns("phee", COLUMNS).json()
    assert (answer["state"], answer["found"]) == ("ready", None)
    assert [column["name"] for column in answer["columns"]] == ["id", "context"]
    assert world.state_columns("phee", COLUMNS).json() == answer
    refused(world.state_columns("phee", ROW), 409, "conflict")
    refused(world.state_columns("phee", None, header=False), 409, "conflict")


def test_columns_that_are_stated_need_no_second_step(lite: GatewayWorld) -> None:
    lite.register(**CSV, columns=["context", "id"])
    lite.probed("phee", COLUMNS)
    assert lite.ask("olga", "GET", "/datasets/phee").json()["state"] == "ready"


@pytest.mark.parametrize("columns", [["id"], ["id", "text"], ["id", "context", "text"]])
def test_what_was_not_stated_waits(lite: GatewayWorld, columns: list[str]) -> None:
    lite.register(**CSV, columns=columns)
    lite.probed("phee", COLUMNS)
    assert lite.ask("olga", "GET", "/datasets/phee").json()["state"] == "unconfirmed"


def test_a_type_that_holds_names_is_stated_too(lite: GatewayWorld) -> None:
    """Of an object that is used as a dictionary, fields are keys, and a key may be a patient."""
    kind = "struct<François Dupont: string, Ada Moreau: string>"
    nested = (COLUMNS[0], ColumnView(name="context", type=kind))
    lite.register(source="/data/notes.jsonl", columns=["id", "context"])
    lite.probed("phee", nested)
    lite.grant()
    assert "Dupont" not in everywhere(lite, "paul")
    by_name = tuple(ColumnView(name=each.name, type="string") for each in nested)
    assert "types that hold names" in refused(lite.state_columns("phee", by_name), 409, "conflict")
    assert lite.state_columns("phee", nested).json()["state"] == "ready"
    assert "Dupont" in everywhere(lite, "paul")


def test_without_a_header_line_names_are_stated_or_invented(world: GatewayWorld) -> None:
    """A refused registration can be mended: the name of a dataset is never free again."""
    world.register(**CSV)
    world.probed("phee", ROW)
    stated = [{"name": name} for name in NAMES]
    body = {"header": False, "columns": stated}
    answer = world.ask("olga", "PUT", "/datasets/phee/columns", body).json()
    assert (answer["state"], answer["found"], answer["header"]) == ("probing", None, False)
    assert world.ask("olga", "PUT", "/datasets/phee/columns", body).json() == answer
    assert "looking at" in refused(world.state_columns("phee", ROW), 409, "not_ready")
    world.probed("phee", tuple(ColumnView(name=name, type="string") for name in NAMES))
    assert world.ask("olga", "GET", "/datasets/phee").json()["state"] == "ready"
    world.register(name="b", source="/data/b.csv", budget=None, header=False)
    invented = tuple(ColumnView(name=f"column_{n}", type="string") for n in (1, 2, 3))
    world.probed("b", invented)
    ready = world.ask("olga", "GET", "/datasets/b").json()
    assert ready["state"] == "ready"
    assert world.state_columns("b", None, header=False).json() == ready


def test_another_look_that_finds_something_else_waits_again(world: GatewayWorld) -> None:
    world.ready(**CSV)
    world.grant()
    again = world.ask("olga", "POST", "/datasets/phee/probes")
    assert again.json()["state"] == "probing"
    world.probed("phee", COLUMNS[::-1])
    assert world.ask("paul", "GET", "/datasets/phee").json()["state"] == "ready"
    world.ask("olga", "POST", "/datasets/phee/probes")
    world.probed("phee", (*COLUMNS, *ROW))
    shown = everywhere(world, "paul")
    assert "unconfirmed" in shown
    assert "Dupont" not in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "/data/a.parquet", "header": False}, "name their columns themselves"),
        ({"source": "postgresql+psycopg://h/d#t", "header": False}, "name their columns"),
        ({"columns": ["id", "id"]}, "'id' is there twice"),
        ({"columns": []}, "columns"),
        ({"columns": ["x" * 201]}, "columns"),
    ],
)
def test_a_statement_that_means_nothing_is_refused(
    lite: GatewayWorld, changes: dict[str, Any], words: str
) -> None:
    assert words in refused(lite.register(**changes), 422, "invalid")


def test_the_same_registration_again_says_the_same_of_columns(lite: GatewayWorld) -> None:
    stated = {**CSV, "columns": ["id", "context"]}
    assert lite.register(**stated).json() == lite.register(**stated).json()
    refused(lite.register(**{**stated, "columns": ["id"]}), 409, "conflict")
    refused(lite.register(**stated, header=False), 409, "conflict")


@pytest.mark.parametrize(
    "kind",
    ["string", "int64", "timestamp[us, tz=Europe/Paris]", "decimal128(10, 2)", "list<item: string>",
     "large_list<element: list<item: double>>", "fixed_size_binary[16]", "time64[us]",
     "dictionary<values=string, indices=int32, ordered=0>"],
)  # fmt: skip
def test_types_without_names_need_not_be_stated(kind: str) -> None:
    assert agree([StatedColumn(name="a")], [ColumnView(name="a", type=kind)])


@pytest.mark.parametrize(
    "kind",
    ["struct<a: string>", "list<Dupont: string>", "list<item: struct<a: int8>>", "struct<a: ...",
     "map<string, string ('Dupont')>", "extension<Dupont>", "Dupont", "timestamp[us, tz=M Dupont]",
     "dictionary<values=struct<a: string>, indices=int32, ordered=0>"],
)  # fmt: skip
def test_types_that_may_hold_names_are(kind: str) -> None:
    found = [ColumnView(name="a", type=kind)]
    assert not agree([StatedColumn(name="a")], found)
    assert agree([StatedColumn(name="a", type=kind)], found)


def test_values_of_a_row_are_doubted_and_names_are_not() -> None:
    for name in (
        "17",
        "1961-04-02",
        "3,5",
        "P0017",
        "",
        " ",
        "suffers from a form of cancer",
        "\x07",
    ):
        assert doubts([ColumnView(name=name, type="string")]), name
    for name in ("id", "patient_id", "date of birth", "icd10", "Größe", "HbA1c", "note"):
        assert not doubts([ColumnView(name=name, type="string")]), name


@pytest.mark.parametrize(
    ("source", "by"),
    [("/a.csv", "first line"), ("s3://b/*.tsv.gz", "first line"), ("/a.jsonl", "keys of rows"),
     ("/a.parquet", "schema"), ("postgresql+psycopg://h/d#t", "schema"),
     ("/data/", "first line, keys of rows or schema")],
)  # fmt: skip
def test_where_names_come_from_is_said(source: str, by: str) -> None:
    assert columns_to_confirm(COLUMNS, source).named_by == by
