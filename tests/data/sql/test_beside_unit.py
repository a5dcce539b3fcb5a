"""The owner's unit stands beside what a practitioner selects: computed first, out of reach."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.rows import UNIT, Rows, Skipped
from taciturn.data.sql import run
from taciturn.data.sql.process import SessionApart
from taciturn.data.sql.run import selected_beside_unit, with_owners_unit
from taciturn.data.sql.session import TABLE
from taciturn.errors import (
    DataError,
    LostProcessError,
    MissingColumnError,
    PreparationError,
    TaciturnError,
    TimeLimitError,
)

OWNERS = "split_part(id, '_', 1)"
NOTES = [{"id": f"p{i % 3}_{i}", "text": f"note {i}", "n": str(i)} for i in range(12)]


def stream(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Rows:
    table = pa.Table.from_pylist(rows, schema)
    return Rows(table.schema, iter(table.to_batches(max_chunksize=5)))


def prepared(
    select: str, rows: list[dict[str, Any]] = NOTES, skipped: Skipped | None = None
) -> pa.Table:
    skipped = skipped or Skipped()
    found = selected_beside_unit(with_owners_unit(stream(rows), OWNERS, skipped), select, skipped)
    return pa.Table.from_batches(list(found.batches), found.schema)


@pytest.mark.parametrize(
    "select",
    [
        "text",
        "*",
        "*, upper(text) AS loud",
        "md5(id || text) AS id, text",
        "'one' AS id, text",
        "text -- and a comment",
        "text, n AS split_part",
        f"struct_pack({UNIT} := text) AS text",
        f"list_transform([1], lambda {UNIT}: 1) AS text",
    ],
)
def test_no_selection_changes_the_unit(select: str) -> None:
    found = prepared(select)
    assert found.column(UNIT).to_pylist() == [f"p{i % 3}" for i in range(12)]
    assert found.schema.names.count(UNIT) == 1
    assert found.schema.names[-1] == UNIT


@pytest.mark.parametrize(
    "select",
    [
        UNIT,
        f"{UNIT} AS text",
        f"'x' AS {UNIT}, text",
        f"'x' AS {UNIT.upper()}, text",
        f'"{UNIT}" || text AS text',
        f"upper({UNIT.upper()}) AS text",
        f"* EXCLUDE ({UNIT})",
        f"* REPLACE ('x' AS {UNIT})",
        f"* RENAME ({UNIT} AS other)",
        "COLUMNS('.*')",
        "rows_of_this_batch AS text",
        "to_json(rows_of_this_batch) AS text",
        "rows_of_this_batch.*",
        f"list_transform([1], lambda x: {UNIT}) AS text",
        f"{UNIT}: 'x', text",
        f"text, text AS a, a AS {UNIT}",
    ],
)
def test_no_selection_reads_or_makes_the_unit(select: str) -> None:
    with pytest.raises(TaciturnError):
        prepared(select)


def test_data_with_a_column_of_the_name_are_refused() -> None:
    rows = [{"id": "p1_1", UNIT.upper(): "p2", "text": "x"}]
    with pytest.raises(DataError, match="name that is taken"):
        with_owners_unit(stream(rows), OWNERS, Skipped())


def test_rows_that_fail_are_left_out_and_counted() -> None:
    skipped = Skipped()
    rows = [*NOTES, {"id": "p9_1", "text": "x", "n": "many"}, {"id": "p9_2", "text": "y", "n": "3"}]
    found = prepared("text, CAST(n AS INTEGER) AS n", rows, skipped)
    assert found.num_rows == 13
    assert found.column(UNIT).to_pylist().count("p9") == 1
    assert skipped.rows == 1


@pytest.mark.parametrize("missing", [None, "", " ", "nan", "NULL_3", "none"])
def test_rows_without_a_unit_are_left_out_and_counted(missing: str | None) -> None:
    skipped = Skipped()
    rows = [{"id": missing, "text": "whose?", "n": "1"}, *NOTES]
    assert prepared("text", rows, skipped).num_rows == 12
    assert skipped.rows == 1


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["1", "2", "x", ""]), max_size=40), st.integers(0, 39))
def test_a_row_moves_no_other_row(values: list[str], dropped: int) -> None:
    """Neighbours: what is made of the others is the same with and without one unit's rows."""
    rows = [{"id": f"p{i}_0", "text": value, "n": value} for i, value in enumerate(values)]
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "n")])

    def made(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        skipped = Skipped()
        unit = with_owners_unit(stream(given, schema), OWNERS, skipped)
        found = selected_beside_unit(unit, "CAST(n AS INTEGER) AS n", skipped)
        return [row for batch in found.batches for row in batch.to_pylist()]

    without = [row for row in rows if row["id"] != f"p{dropped}_0"]
    assert [row for row in made(rows) if row[UNIT] != f"p{dropped}"] == made(without)


LONG = "x" * 1000
GROWING = f"replace(replace(replace(text, 'n', '{LONG}'), 'x', '{LONG}'), 'x', '{LONG}')"
ENDLESS = (
    "len(list_filter(string_split(text, ''), lambda x: "
    "len(list_filter(string_split(text, ''), lambda y: "
    "len(list_filter(string_split(text, ''), lambda z: z = x OR y = z)) > 1)) > 1))"
)


@pytest.mark.parametrize(
    ("expression", "text"),
    [(GROWING, "n" * 40), (ENDLESS, "a" * 3000)],
)
def test_a_row_that_takes_all_time_or_memory_takes_no_other_with_it(
    expression: str, text: str
) -> None:
    rows = [{**note, UNIT: "p"} for note in NOTES]
    rows.insert(4, {"id": "p5_1", "text": text, "n": "x", UNIT: "p"})
    skipped = Skipped(row_limit_s=1.0)
    select = f"id, CASE WHEN n = 'x' THEN CAST({expression} AS VARCHAR) ELSE n END AS text"
    found = selected_beside_unit(stream(rows), select, skipped)
    assert [n for batch in found.batches for n in batch.column("text").to_pylist()] == [
        note["n"] for note in NOTES
    ]
    assert skipped.rows == 1


def test_a_process_that_is_ended_takes_no_other_row_with_it() -> None:
    table = pa.table({"a": [1, 2, 3]})
    with SessionApart() as apart:
        assert apart.attempt(f"SELECT a + 1 AS b FROM {TABLE}", table, 5.0) is not None
        assert apart._process is not None
        os.killpg(apart._process.pid, signal.SIGKILL)
        assert apart.attempt(f"SELECT a FROM {TABLE}", table, 5.0) is None
        found = apart.attempt(f"SELECT a FROM {TABLE}", table, 5.0)
        apart.check()
    assert found is not None
    assert found.to_pydict() == {"a": [1, 2, 3]}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux about processes")
def test_the_process_that_rows_are_run_in_has_a_limit_of_memory() -> None:
    table = pa.table({"a": [1]})
    with SessionApart() as apart:
        assert apart.attempt(f"SELECT a FROM {TABLE}", table, 5.0) == table
        assert apart._process is not None
        own = Path(f"/proc/{apart._process.pid}")
        (child,) = (own / f"task/{apart._process.pid}/children").read_text().split()
        limits = Path(f"/proc/{child}/limits").read_text().splitlines()
        (line,) = (each for each in limits if each.startswith("Max address space"))
        assert line.split()[3].isdecimal()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux about processes")
def test_no_rows_answer_is_taken_for_anothers() -> None:
    """Whatever ends the process that answers, and whenever: between two requests, too."""
    tables = [pa.table({"a": [number]}) for number in range(4)]
    with SessionApart() as apart:
        for table in tables:
            assert apart.attempt(f"SELECT a FROM {TABLE}", table, 5.0) in (table, None)
            assert apart._process is not None or table is not tables[0]
            if apart._process is not None:
                children = Path(f"/proc/{apart._process.pid}/task/{apart._process.pid}/children")
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
                time.sleep(0.5)
        assert apart.attempt(f"SELECT a FROM {TABLE}", tables[1], 5.0) in (tables[1], None)
        assert apart.attempt(f"SELECT a FROM {TABLE}", tables[2], 5.0) == tables[2]
        apart.check()


def slow_rows(skipped: Skipped, count: int) -> int:
    """How many of so many endless rows, between two that are not, come out."""
    rows = [{"id": f"p{i}_1", "text": "a" * 3000, "n": "x", UNIT: f"p{i}"} for i in range(count)]
    rows = [{**NOTES[0], UNIT: "q"}, *rows, {**NOTES[1], UNIT: "q"}]
    select = f"CASE WHEN n = 'x' THEN CAST({ENDLESS} AS VARCHAR) ELSE n END AS text"
    table = pa.Table.from_pylist(rows)
    found = selected_beside_unit(Rows(table.schema, iter(table.to_batches())), select, skipped)
    return sum(batch.num_rows for batch in found.batches)


def in_its_time() -> None:
    """Rows that never end, each: together they take what a public number allows, and no more.

    Without that limit, 16 of them would take 0.2 s each, more than the 2 s.
    """
    began_s = time.monotonic()
    with pytest.raises(TimeLimitError):
        slow_rows(Skipped.within(2.0, n_units=10**6), 16)
    assert time.monotonic() - began_s < 10.0


def test_a_selection_that_is_slow_on_all_rows_ends_in_its_time() -> None:
    in_its_time()


def test_a_row_that_never_ends_costs_its_share_of_the_time_and_no_more() -> None:
    """So no row decides whether the others find the time that is theirs."""
    skipped = Skipped.within(3600.0, n_units=10**6)
    began_s = time.monotonic()
    assert slow_rows(skipped, 4) == 2
    assert skipped.rows == 4
    assert time.monotonic() - began_s < 4 * (skipped.row_limit_s + 0.5) + 8.0


def test_mutant_without_a_time_for_all_rows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Skipped, "check", lambda self: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        in_its_time()


@pytest.mark.parametrize(
    ("units", "each_s"), [(1, 2.0), (900, 2.0), (3600, 0.5), (9000, 0.2), (10**9, 0.2)]
)
def test_a_row_has_its_share_of_the_time(units: int, each_s: float) -> None:
    assert Skipped.within(3600.0, units).row_limit_s == pytest.approx(each_s)


def test_a_result_that_is_too_large_is_none() -> None:
    table = pa.table({"a": ["x" * 1000]})
    with SessionApart() as apart:
        assert apart.attempt(f"SELECT repeat(a, 60000) AS a FROM {TABLE}", table, 9.0) is not None
        assert apart.attempt(f"SELECT repeat(a, 80000) AS a FROM {TABLE}", table, 9.0) is None
        assert apart.attempt(f"SELECT a FROM {TABLE}", table, 9.0) == table


def test_where_no_process_can_be_started_no_row_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("taciturn.data.sql.process.subprocess.Popen", refused)
    with pytest.raises(LostProcessError, match="cannot be started"):
        prepared("text")


def test_a_unit_that_is_not_text_is_left_out() -> None:
    ids = pa.array([b"a_1", b"\xff\xfe_1", b"b_1"]).cast(pa.string(), safe=False)
    table = pa.table({"id": ids, "text": ["x", "y", "z"]})
    skipped = Skipped()
    rows = with_owners_unit(Rows(table.schema, iter(table.to_batches())), "id", skipped)
    assert [u for b in rows.batches for u in b.column(UNIT).to_pylist()] == ["a_1", "b_1"]
    assert skipped.rows == 1


# What a practitioner could do if the unit were computed after the selection, as it is for one's own
# rows: the checks above must see it.


def _selection_first(select: str, rows: list[dict[str, Any]]) -> list[str]:
    chosen = run.selected(stream(rows), select)
    found = run.with_unit(chosen, OWNERS, [])
    return [unit for batch in found.batches for unit in batch.column(0).to_pylist()]


def test_mutant_that_selects_first_has_other_units() -> None:
    made = _selection_first("md5(id || text) AS id, text", NOTES)
    assert len(set(made)) == 12
    assert len(set(prepared("md5(id || text) AS id, text").column(UNIT).to_pylist())) == 3


def test_mutant_without_the_first_lock_reads_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB's reading is checked by itself, whatever sqlglot has read; and what runs is given no
    column that holds a unit."""
    monkeypatch.setattr(run, "check_list", lambda *_: None)
    for select in (f"{UNIT} AS text", f"upper({UNIT}) AS text", f"* EXCLUDE ({UNIT})"):
        with pytest.raises((PreparationError, MissingColumnError)):
            prepared(select)
