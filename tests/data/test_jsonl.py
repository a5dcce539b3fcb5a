"""JSON as it is written: one object per line, one array, or objects on several lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pytest

from taciturn.data import jsonl
from taciturn.data.rows import Skipped
from taciturn.data.source import open_rows
from taciturn.errors import DataError

ROWS = [
    {"text": 'a "quoted" [1, {\\', "n": 1.5e10, "deep": {"list": [1, 2]}},
    {"text": "é\u2028\n" * 5, "n": None, "deep": None},
    {"text": "", "n": -1e-3, "deep": {"list": []}},
]
SECRET = "Schröter"


def read(data: object) -> list[dict[str, Any]]:
    return [row for batch in open_rows(data).batches for row in batch.to_pylist()]


WAYS = {
    "one per line": "\n".join(json.dumps(row) for row in ROWS),
    "one per line on windows": "\ufeff " + " \r\n".join(json.dumps(row) for row in ROWS) + "\r\n",
    "array": json.dumps(ROWS),
    "indented array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "windows": "\ufeff \r\n" + json.dumps(ROWS, indent=1).replace("\n", "\r\n") + "\r\n",
    "one per line of an array": "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
    "indented objects": "\n".join(json.dumps(row, indent=4) for row in ROWS),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [1, 7, 100, 4 << 20])
def test_every_way_of_writing_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, block: int
) -> None:
    """Wherever blocks end: within a character, a number, an escape."""
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    path = tmp_path / "notes.json"
    path.write_bytes(WAYS[way].encode())
    assert read(path) == ROWS


def test_compressed_arrays_and_arrays_of_other_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(WAYS["indented array"].encode()))
    (tmp_path / "b.jsonl").write_text(WAYS["array"])
    assert read(tmp_path / "a.json.gz") == read(tmp_path / "b.jsonl") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        f'[{{"text": "{SECRET}"}}',
        f'[{{"text": "{SECRET}"}}, ',
        f'[{{"text": "{SECRET}"}} {{"text": "b"}}]',
        f'[{{"text": "{SECRET}"}}] {{"text": "b"}}',
        f'[{{"text": "{SECRET}"}}]]',
        f'[{{"text": "{SECRET}',
        f'[{{"text": "{SECRET}\n"}}]',
        f'["{SECRET}"]',
        f'[["{SECRET}"]]',
        f"[{{'text': '{SECRET}'}}]",
        f'{{"text":\n"{SECRET}"}}}}',
        "[" * 100_000,
        '[{"a":' * 100_000,
    ],
)
def test_damaged_arrays_are_refused_without_their_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json") as caught:
        read(tmp_path / "a.json")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "damaged", ['{"text": ', '{"text": "', '["a"]', "[1, 2]", '"a"', "{}}", "[[]]"]
)
def test_a_damaged_first_row_is_one_row(tmp_path: Path, damaged: str) -> None:
    """At a gateway it is left out; whether a job fails does not hang on it."""
    (tmp_path / "a.jsonl").write_text(damaged + "\n" + json.dumps(ROWS[0]) + "\n")
    skipped = Skipped()
    rows = open_rows(tmp_path / "a.jsonl", empty=True, skipped=skipped)
    assert [row for batch in rows.batches for row in batch.to_pylist()] == ROWS[:1]
    assert skipped.rows == 1


@pytest.mark.parametrize("block", [1, 2, 4 << 20])
@pytest.mark.parametrize("other", ["12345", '"a b"', "[1, {}]", '{"text": "\\ud83d"}', "null"])
def test_an_element_that_is_no_row_is_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str, block: int
) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
    for elements in ([json.dumps(ROWS[0]), other], [json.dumps(ROWS[0]), other, "{}"]):
        (tmp_path / "a.json").write_text(f"[\n{', '.join(elements)}\n]")
        skipped = Skipped()
        rows = open_rows(tmp_path / "a.json", empty=True, skipped=skipped)
        found = [row for batch in rows.batches for row in batch.to_pylist()]
        assert (found[0], len(found), skipped.rows) == (ROWS[0], len(elements) - 1, 1)
    with pytest.raises(DataError):
        read(tmp_path / "a.json")


BIG = 123456789012345678901234567890

WRONG_IN_DUCKDB: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "digits of an integer are lost": (
        [f'{{"id": {BIG}}}', '{"id": 1}'],
        [{"id": str(BIG)}, {"id": "1"}],
    ),
    "digits beside a fraction are lost": (
        ['{"id": 9007199254740993}', '{"id": 0.5}'],
        [{"id": "9007199254740993"}, {"id": "0.5"}],
    ),
    "a text of a mixed column gets quotes": (
        ['{"id": 7}', '{"id": "007"}'],
        [{"id": "7"}, {"id": "007"}],
    ),
    "a UUID loses its capitals": (
        ['{"id": "550E8400-E29B-41D4-A716-446655440000"}'],
        [{"id": "550E8400-E29B-41D4-A716-446655440000"}],
    ),
    "a date is no text": (['{"text": "2020-1-2"}'], [{"text": "2020-1-2"}]),
    "a key that differs in case is renamed": (['{"id": 1, "ID": 2}'], [{"id": 1, "ID": 2}]),
    "a nested one is lost": (['{"a": {"id": 1, "ID": 2}}'], [{"a": {"id": 1, "ID": 2}}]),
    "the first of two equal keys wins": (['{"a": 1, "a": 2}'], [{"a": 2}]),
    "a damaged line is a row of nulls": (
        ['{"text": "a"}', '{"text": ', '{"text": "b"}'],
        [{"text": "a"}, {"text": "b"}],
    ),
    "a line that is no object replaces all columns": (
        ['{"text": "a"}', f'["{SECRET}"]'],
        [{"text": "a"}],
    ),
    "half of a character is a row of nulls": (
        ['{"text": "\\ud83d"}', '{"text": "b"}'],
        [{"text": "b"}],
    ),
}


@pytest.mark.parametrize("fault", WRONG_IN_DUCKDB)
def test_values_that_duckdb_gets_wrong_are_right(tmp_path: Path, fault: str) -> None:
    """Why rows are not read by DuckDB, which is faster; a version that passes would do."""
    lines, right = WRONG_IN_DUCKDB[fault]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = open_rows(path, skipped=Skipped())
    assert [row for batch in rows.batches for row in batch.to_pylist()] == right
    with duckdb.connect() as connection:
        query = f"SELECT * FROM read_json('{path}', sample_size=-1, ignore_errors=true, "
        query += "format='newline_delimited')"
        assert connection.sql(query).to_arrow_table().to_pylist() != right


def test_an_error_of_duckdb_quotes_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "{SECRET}", "text": "b"}}\n', encoding="utf-8")
    assert read(path) == [{"text": "b"}]
    with duckdb.connect() as connection, pytest.raises(duckdb.Error, match=SECRET):
        connection.sql(f"SELECT * FROM read_json('{path}')").fetchall()


def test_an_array_is_held_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 1000)
    read_bytes = 0

    class File(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read_bytes
            found = super().read(size)
            read_bytes += len(found)
            return found

    rows = [{"text": f"note {n}"} for n in range(1000)]
    found: Iterator[list[Any]] = jsonl._of_file(
        File(json.dumps(rows, indent=1).encode()), "x", None
    )
    given = len(next(found))
    assert read_bytes <= 3000
    assert given < 100
    assert given + sum(map(len, found)) == 1000


def test_one_long_value_is_not_read_again_for_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 1000)
    tries = 0
    decode = jsonl._DECODER.raw_decode

    def counted(text: str, at: int) -> Any:
        nonlocal tries
        tries += 1
        return decode(text, at)

    monkeypatch.setattr(jsonl._DECODER, "raw_decode", counted)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 1_000_000}], indent=1))
    assert len(read(tmp_path / "a.json")[0]["text"]) == 1_000_000
    assert tries < 40


def test_what_is_nested_deeply_becomes_text() -> None:
    value: Any = "x"
    for _ in range(100):
        value = [value]
    (row,) = read([{"text": "a", "x": value}])
    assert json.loads(row["x"]) == value
