"""Every name reads the column that is spelled exactly so, whatever else the data's names are.

What comes out is compared with a plain reading in Python of the same references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.declared import DeclaredRows, declared_records
from taciturn.data.rows import UNIT, Rows, Skipped, folded
from taciturn.data.sql.process import SessionApart
from taciturn.data.sql.run import selected, selected_beside_unit, with_owners_unit, with_unit
from taciturn.data.sql.sandbox import try_selection
from taciturn.data.sql.session import LockedSession
from taciturn.data.tokens.tokenize import _records
from taciturn.errors import DataError, MissingColumnError, PreparationError
from taciturn.spec import DataSpec

pytestmark = pytest.mark.usefixtures("kept_processes")

N_ROWS = 3
ODD = [
    *("id", "ID", "Id", "iD", "text", "TEXT", "Text", "unit", "UNIT"),
    *("É", "é", "E\u0301", "e\u0301", "ß", "ẞ", "SS", "ss", "İ", "I", "ı", "i", "ﬁ", "FI", "ſ"),
    *("select", "SELECT", "from", "order", "current_date", "TRUE", "null", "lambda", "varchar"),
    *("a.b", "a", "b", 'q"q', "q'q", 'Q"Q', "new\nline", "with space", "--", "/*", ";", "$1", "?"),
    *("", "n", "N", "c0", "C0", "c1", "r0", "R0", "p2_0", "part_0", "first_of_unit", "__UNIT__"),
    *("rows_of_this_batch", "Rows_Of_This_Batch", "main", "memory", "rowid", "*", "\u00a0", "名前"),
]  # fmt: skip
NAMES = st.lists(
    st.one_of(st.sampled_from(ODD), st.text("aAbBéÉ\"' .", max_size=4)),
    min_size=2, max_size=8, unique=True,
)  # fmt: skip


def cell(names: Sequence[str], name: str, row: int) -> str:
    return f"{names.index(name)} of {row}"


def table(names: Sequence[str]) -> pa.Table:
    columns = [[cell(names, name, row) for row in range(N_ROWS)] for name in names]
    return pa.Table.from_arrays([pa.array(column) for column in columns], names=list(names))


def stream(data: pa.Table) -> Rows:
    return Rows(data.schema, iter(data.to_batches(max_chunksize=2)))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def writable(name: str) -> bool:
    """Whether SQL has a way to write a name: quotes hold anything but nothing."""
    return name != ""


def columns_of(rows: Rows) -> list[list[Any]]:
    found = pa.Table.from_batches(list(rows.batches), rows.schema)
    return [column.to_pylist() for column in found.columns]


Item = tuple[str, str, list[str]]
"""Its SQL, its name, and what it gives for each row."""


@st.composite
def items(draw: st.DrawFn, names: Sequence[str]) -> list[Item]:
    """Expressions with what a plain reading makes of them; every alias has a name of its own."""
    made: list[Item] = []
    known = [name for name in names if writable(name)]
    results: dict[str, list[str]] = {}
    aliases = draw(
        st.lists(st.sampled_from([n for n in ODD if writable(n)]), unique=True, max_size=6)
    )
    for alias in aliases:
        reference = draw(st.sampled_from([*known, *(a for a in results)] or ["none"]))
        if reference in names:
            values = [cell(names, reference, row) for row in range(N_ROWS)]
        elif reference in results:
            values = results[reference]
        else:
            continue
        parameter = draw(st.sampled_from(ODD).filter(writable))
        shape = draw(st.integers(0, 3))
        sql, found = {
            0: (quoted(reference), values),
            1: (f"{quoted(reference)} || '!'", [f"{value}!" for value in values]),
            2: (
                f"list_transform(['x'], lambda {quoted(parameter)}: "
                f"{quoted(parameter)} || {quoted(reference)})[1]",
                ["xx" if parameter == reference else f"x{value}" for value in values],
            ),
            3: (
                f"CASE WHEN {quoted(reference)} IS NULL THEN '' ELSE ({quoted(reference)}) END",
                values,
            ),
        }[shape]
        made.append((f"{sql} AS {quoted(alias)}", alias, found))
        results[alias] = found
    return made


@settings(max_examples=60)
@given(NAMES, st.data())
def test_every_reference_reads_its_own_column(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(items(names))
    plain = data.draw(st.lists(st.sampled_from(names).filter(writable), unique=True, max_size=2))
    if not any(writable(name) for name in names) or not (chosen or plain):
        return
    taken = {name for _, name, _ in chosen}
    plain = [name for name in plain if name not in taken]
    select = ", ".join([sql for sql, _, _ in chosen] + [quoted(name) for name in plain])
    if not select:
        return
    expected = [found for _, _, found in chosen]
    expected += [[cell(names, name, row) for row in range(N_ROWS)] for name in plain]
    expected_names = [name for _, name, _ in chosen] + plain

    found = selected(stream(table(names)), select)
    assert found.schema.names == expected_names
    assert columns_of(found) == expected

    unit = data.draw(st.sampled_from(names))
    units = [cell(names, unit, row) for row in range(N_ROWS)]
    skipped = Skipped()
    beside = selected_beside_unit(
        with_owners_unit(stream(table(names)), unit, skipped), select, skipped
    )
    assert beside.schema.names == [*expected_names, UNIT]
    assert columns_of(beside) == [*expected, units]
    assert skipped.rows == 0


@settings(max_examples=25)
@given(NAMES, st.data())
def test_a_gateways_trial_reads_the_same(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(items(names))
    if not chosen:
        return
    rows = [{name: cell(names, name, row) for name in names} for row in range(N_ROWS)]
    answer = try_selection(
        {
            "columns": [[name, "string"] for name in names],
            "rows": rows,
            "select": ", ".join(sql for sql, _, _ in chosen),
        }
    )
    assert answer["columns"] == [[name, "string"] for _, name, _ in chosen]
    assert answer["rows"] == [
        {name: found[row] for _, name, found in chosen} for row in range(N_ROWS)
    ]


@settings(max_examples=40)
@given(NAMES, st.data())
def test_units_and_fields_are_the_columns_of_that_name(
    names: list[str], data: st.DataObject
) -> None:
    unit, text = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    expected = [[cell(names, name, row) for row in range(N_ROWS)] for name in (text, unit)]
    assert columns_of(with_unit(stream(table(names)), unit, [text])) == expected
    if unit and text:
        spec = DataSpec(privacy_unit=unit, text_field=text)
        own, _ = _records(table(names), spec, Skipped())
        assert columns_of(own) == expected
        others, _ = declared_records(DeclaredRows(table(names), 3), spec, Skipped())
        assert columns_of(others) == expected
    if writable(unit):
        assert columns_of(with_unit(stream(table(names)), f"({quoted(unit)})", [text])) == expected


@settings(max_examples=60)
@given(NAMES, st.data())
def test_another_case_means_the_only_one_that_differs_in_case(
    names: list[str], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(names).filter(writable)) if any(names) else "x"
    asked = data.draw(st.sampled_from([name.upper(), name.lower(), name.swapcase(), name.title()]))
    rows, sql = stream(table(names)), f"{quoted(asked)} || '!' AS new"
    same = [each for each in names if each == asked]
    same = same or [each for each in names if folded(each) == folded(asked)]
    if len(same) != 1:
        with pytest.raises(MissingColumnError):
            selected(rows, sql)
        return
    assert columns_of(selected(rows, sql)) == [
        [f"{cell(names, same[0], row)}!" for row in range(N_ROWS)]
    ]


def test_rows_and_patients() -> None:
    """ID is a row's number, and id the patient's: the unit is the one that is written."""
    rows = pa.table({"ID": ["1", "2", "3", "4"], "id": ["a", "a", "b", "b"], "note": list("wxyz")})
    for unit, expected in {"id": list("aabb"), "ID": list("1234"), '"id"': list("aabb")}.items():
        assert columns_of(with_unit(stream(rows), unit, []))[-1] == expected
        owners = with_owners_unit(stream(rows), unit, Skipped())
        assert columns_of(owners) == [list("1234"), list("aabb"), list("wxyz"), expected]
    for unit in ("Id", "upper(iD)", '"Id"'):
        with pytest.raises(MissingColumnError, match="'ID' and 'id' differ from it in case only"):
            with_unit(stream(rows), unit, [])
    assert columns_of(selected(stream(rows), 'id, upper("ID") AS x, Note')) == [
        list("aabb"), list("1234"), list("wxyz"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("upper(text) AS TEXT, TEXT || '!' AS b", {"TEXT": "X", "b": "X!"}),
        ("upper(text) AS TEXT, text || '!' AS b", {"TEXT": "X", "b": "x!"}),
        ("upper(text) AS text, TEXT || '!' AS b", {"text": "X", "b": "x!"}),
        ("upper(text) AS a, text AS A, a || A AS b", {"a": "X", "A": "x", "b": "Xx"}),
        ("text AS t, T || '!' AS b", {"t": "x", "b": "x!"}),
        ("list_transform(['q'], lambda TEXT: text || TEXT)[1] AS b", {"b": "xq"}),
        ("list_transform(['q'], lambda text: text || TEXT)[1] AS b", {"b": "qq"}),
        (
            "list_transform(['q'], lambda x: list_transform(['r'], lambda X: x || X)[1])[1] AS b",
            {"b": "qr"},
        ),
        ("s.K AS b, s.k.inner AS c", {"b": {"inner": "in"}, "c": "in"}),
        ("upper(TEXT)", {'upper("TEXT")': "X"}),
        ("Text", {"text": "x"}),
    ],
)
def test_results_and_parameters_are_told_apart(select: str, expected: dict[str, Any]) -> None:
    rows = pa.table({"text": ["x"], "s": [{"k": {"inner": "in"}}]})
    assert columns_of(selected(stream(rows), select)) == [[value] for value in expected.values()]
    assert selected(stream(rows), select).schema.names == list(expected)


@pytest.mark.parametrize(
    "select",
    [
        "upper(text) AS Text, TEXT || '!' AS b",
        "b || '!' AS a, text AS b",
        "text || '!' AS b, list_transform(['q'], lambda x: x), x AS c",
        "list_transform(['q'], lambda x: list_transform(['r'], lambda X: text || xX)[1])",
    ],
)
def test_what_could_be_two_or_is_not_there_yet_is_refused(select: str) -> None:
    with pytest.raises(MissingColumnError):
        selected(stream(pa.table({"text": ["x"]})), select)


def test_fields_of_a_struct_that_sql_cannot_tell_apart() -> None:
    struct = pa.StructArray.from_arrays([pa.array(["1"]), pa.array(["2"])], ["ID", "id"])
    rows = pa.table({"text": ["x"], "s": pa.array([[struct[0]]], pa.list_(struct.type))})
    for select in ("s[1].id AS a", "list_transform(s, lambda x: x.ID) AS a", "s[1]['iD'] AS a"):
        with pytest.raises(PreparationError, match="'ID' and 'id' cannot be told apart"):
            selected(stream(rows), select)
    assert columns_of(selected(stream(rows), "to_json(s) AS a")) == [['[{"ID":"1","id":"2"}]']]
    assert columns_of(selected(stream(rows), "s"))[0] == [[{"ID": "1", "id": "2"}]]


ODDLY_TYPED = {
    "half": pa.array([1.0], pa.float16()),
    "decimal": pa.array([1], pa.decimal256(50, 2)),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2]], pa.list_(pa.float32(), 2))
    ),
    "union": pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array(["x"])]
    ),
    "run": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])),
    "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "view": pa.array([["x"]], pa.list_view(pa.string())),
    "bytes": pa.array([b"\xff"]),
    "nothing": pa.nulls(1),
}


@pytest.mark.parametrize("name", ODDLY_TYPED)
def test_a_column_that_nobody_reads_may_be_of_any_type(name: str) -> None:
    odd = ODDLY_TYPED[name]
    rows = pa.table({"text": ["a"], "id": ["1"], "x": odd})
    for select in (None, "*", "upper(id) AS id, upper(text) AS text", "*, x AS y, text || id AS z"):
        spec = DataSpec(text_field="text", privacy_unit="id", select=select)
        own, _ = _records(rows, spec, Skipped())
        others, _ = declared_records(DeclaredRows(rows, 1), spec, Skipped())
        text = "A" if select and "upper" in select else "a"
        assert columns_of(own) == columns_of(others) == [[text], ["1"]]
    found = selected(stream(rows), "*, x AS y")
    assert columns_of(found)[-1] == columns_of(found := selected(stream(rows), "x"))[0]
    answer = try_selection(
        {
            "columns": [["text", "string"], ["x", str(odd.type)]],
            "rows": [{"text": "a"}],
            "select": "*, upper(text) AS loud",
        }
    )
    assert answer["rows"] == [{"text": "a", "x": None, "loud": "A"}]
    assert answer["columns"][0] == ["text", "string"]


def test_a_type_that_only_a_name_is_known_of_cannot_be_read() -> None:
    columns = [["text", "string"], ["x", "extension<made.up>"]]
    answer = try_selection({"columns": columns, "rows": [], "select": "x AS text"})
    assert answer == {"columns": [["text", "extension<made.up>"]], "rows": []}
    answer = try_selection({"columns": columns, "rows": [], "select": "to_json(x) AS text"})
    assert "whose type no expression can read" in answer["refused"]


def test_duckdb_is_given_no_name_and_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever got past both checks could neither look up a column by its name nor see a unit."""
    seen: list[tuple[str, list[str]]] = []
    real = SessionApart.attempt

    def spied(session: SessionApart, statement: str, rows: pa.Table, limit_s: float) -> Any:
        seen.append((statement, rows.schema.names))
        return real(session, statement, rows, limit_s)

    monkeypatch.setattr(SessionApart, "attempt", spied)
    rows = pa.table({"ID": ["1"], "id": ["a"], "Note": ["x"], "other": ["y"]})
    skipped = Skipped()
    owners = with_owners_unit(stream(rows), "lower(id)", skipped)
    found = selected_beside_unit(owners, "upper(Note) AS text, *", skipped)
    assert columns_of(found) == [["X"], ["1"], ["a"], ["x"], ["y"], ["a"]]
    assert [names for _, names in seen] == [["n", "c1"], ["n", "c2"]]
    assert not any(
        name in statement for statement, _ in seen for name in ("id", "ID", "Note", UNIT)
    )


def test_results_out_of_order_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: an engine that gives rows back in another order, or not all of them."""
    rows = pa.table({"id": ["a", "b", "c", "d"]})
    real = LockedSession.run

    def shuffled(session: LockedSession, statement: str, given: pa.Table, **limits: Any) -> Any:
        return real(session, f"FROM ({statement}) ORDER BY n DESC", given, **limits)

    assert columns_of(with_unit(stream(rows), "upper(id)", [])) == [list("ABCD")]
    monkeypatch.setattr(LockedSession, "run", shuffled)
    with pytest.raises(PreparationError, match="one result for each row"):
        columns_of(with_unit(stream(rows), "upper(id)", []))


def test_a_statement_that_is_not_what_was_meant_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mutant: an engine that writes a statement down otherwise than it has read it."""
    rows = pa.table({"ID": ["1"], "id": ["a"]})
    real = LockedSession.sql_of
    monkeypatch.setattr(LockedSession, "sql_of", lambda *given: real(*given).replace("c1", "c0"))
    with pytest.raises(PreparationError, match="written down exactly"):
        with_unit(stream(rows), "upper(id)", [])


def test_mutant_that_lets_duckdb_look_names_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With names compared without case the wrong column is the unit, and the tests above see it."""
    rows = pa.table({"ID": ["1", "2"], "id": ["a", "a"]})
    monkeypatch.setattr(
        "taciturn.data.sql.names._Names._meaning",
        lambda self, name, known: known[next(k for k in known if folded(k) == folded(name))],
    )
    assert columns_of(with_unit(stream(rows), "upper(id)", [])) != [["A", "A"]]


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ("Note.x", "field 'x' from expression \"Note\""),
        ("upper(Note) AS loud, loud.x", 'table "loud" not found'),
        ("list_transform([Note], lambda q: q.k)", 'from expression "q"'),
        ("half + 1", "it reads 'half', halffloat"),
        ("upper(raw) AS text", r"upper\(BLOB\).*bytes become text by decode\(\.\.\.\)"),
        ("Note.upper()", r"Note\.upper\(\), where upper\(\.\.\.\) is meant"),
    ],
)
def test_what_cannot_be_run_is_told_in_the_words_of_who_wrote_it(select: str, said: str) -> None:
    half = pa.array([1.0], pa.float16())
    rows = pa.table({"id": ["1"], "Note": ["x"], "half": half, "raw": [b"x"]})
    with pytest.raises(PreparationError, match=said):
        selected(stream(rows), select)


def test_the_name_of_the_unit_is_taken() -> None:
    for name in (UNIT, UNIT.upper()):
        with pytest.raises(DataError, match="name that is taken"):
            with_owners_unit(stream(pa.table({"id": ["1"], name: ["2"]})), "id", Skipped())
        with pytest.raises(DataError, match="name that is taken"):
            selected(stream(pa.table({"id": ["1"]})), f"id AS {name}")


def test_one_field_may_be_named_twice() -> None:
    rows = pa.table({"id": ["1"], "text": ["x"]})
    spec = DataSpec(question_field="text", answer_field="text", privacy_unit="id")
    for found, _ in (
        _records(rows, spec, Skipped()),
        declared_records(DeclaredRows(rows, 1), spec, Skipped()),
    ):
        assert columns_of(found) == [["x"], ["x"], ["1"]]


def test_what_is_nested_too_deeply_is_refused_and_no_traceback() -> None:
    rows = pa.table({"id": ["1"]})
    for text in (
        "(" * 400 + "id" + ")" * 400,
        "list_transform([id], lambda x: " * 200 + "1" + ")" * 200,
    ):
        for apply in (selected, lambda rows, text: with_unit(rows, text, [])):
            try:
                apply(stream(rows), text)
            except DataError:
                continue
