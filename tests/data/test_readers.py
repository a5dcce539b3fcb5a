"""CSV of other countries and programs, and Arrow files."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from taciturn.data.readers import _dialect
from taciturn.data.source import open_rows
from taciturn.data.suffixes import compression_of, suffix_of
from taciturn.errors import DataError


def read(data: object) -> list[dict[str, Any]]:
    return [row for batch in open_rows(data).batches for row in batch.to_pylist()]


def csv(folder: Path, text: str | bytes, name: str = "notes.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("patient;note\n1;He came, in\n", "semicolons"),
        ("patient\tnote\n1\tHe came, in\n", "tabs"),
        ("patient|note\n1|He came, in\n", "vertical bars"),
        ('"patient";"one, two, three";note\n1;;"He came, in"\n', "semicolons"),
        (b"\xef\xbb\xbfpatient;note\r\n1;He came, in\r\n", "semicolons"),
        ("sep=;\npatient;note\n1;He came, in\n", "semicolons"),
        ("\n\npatient;note\n1;He came, in\n", "semicolons"),
        ('"patient";"note"\n1;"He came, in"\n', "semicolons"),
    ],
)
def test_what_separates_columns_is_seen_in_the_header_and_said(
    tmp_path: Path, text: str | bytes, delimiter: str
) -> None:
    with pytest.warns(UserWarning, match=f"notes.csv' is read with {delimiter}"):
        (row,) = read(csv(tmp_path, text))
    assert (row["patient"], row["note"]) == ("1", "He came, in")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.csv", 'patient,"a;b;c;d",note\n1,x,He; came in\n'),
        ("notes.csv", "patient,note;\n1,He; came; in\n"),  # as many of both: the suffix says it
        ("notes.csv", "note\nHe; came in\n"),
        ("notes.tsv", "patient\tnote\n1\tHe, came in\n"),
        ("notes.TSV.gz", "patient\tnote\n1\tHe, came in\n"),
    ],
)
def test_what_the_suffix_says_needs_no_word(tmp_path: Path, name: str, text: str) -> None:
    content = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = read(csv(tmp_path, content, name))
    assert list(row) == [
        each.strip('"') for each in text.split("\n")[0].replace("\t", ",").split(",")
    ]


@pytest.mark.parametrize(
    "header", ['patient,note 5" tube', 'a;b"c', 'a "b",c|d', '"a""b",c', 'a|"b,c', '"', "a"]
)
def test_rows_have_no_say_in_what_separates_columns(header: str) -> None:
    """Not even where one of them closes a quote that the header has within a name."""
    for row in ('1,x";;;;;;', '1;;;;"x;;;;;', "\t\t\t", '"', '||||||"\n;;;;;;;;;;"'):
        for own in (",", "\t"):
            alone = _dialect(f"{header}\n".encode(), own)
            assert _dialect(f"{header}\n{row}\n".encode(), own) == alone


def test_an_empty_file_among_others_holds_no_rows(tmp_path: Path) -> None:
    for name, text in {"a": "text\nx\n", "b": "", "c": "\n", "d": "\ufeff"}.items():
        csv(tmp_path, text, f"{name}.csv")
    assert read(tmp_path) == [{"text": "x"}]
    (tmp_path / "a.csv").unlink()
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path)


def test_files_of_one_folder_are_separated_as_each_says(tmp_path: Path) -> None:
    csv(tmp_path, "id,text\n1,a\n", "a.csv")
    csv(tmp_path, "id;text\n2;b\n", "b.csv")
    with pytest.warns(UserWarning, match="semicolons"):
        assert read(tmp_path) == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]


def test_suffixes_in_capitals_and_of_signed_urls(tmp_path: Path) -> None:
    assert read(csv(tmp_path, gzip.compress(b"text\nx\n"), "NOTES.CSV.GZ")) == [{"text": "x"}]
    assert suffix_of("https://example/notes.CSV.Gz?signature=a.b") == ".csv"
    assert compression_of("https://example/notes.CSV.Gz?signature=a.b") == "gzip"
    assert compression_of("notes.csv") is None


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"]})
    for kind, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with new(tmp_path / f"{kind}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        assert read(tmp_path / f"{kind}.arrow") == table.to_pylist()
    assert len(read(tmp_path)) == 6


def test_offsets_of_a_damaged_arrow_file_lead_nowhere(tmp_path: Path) -> None:
    """Arrow believes what a file says about its own lengths, unless it is asked to look."""
    path = tmp_path / "notes.arrow"
    table = pa.table({"text": ["Schröter"] * 4})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join((9 * n).to_bytes(4, "little") for n in range(5))
    content = path.read_bytes()
    assert offsets in content
    path.write_bytes(content.replace(offsets, offsets[:8] + b"\xff\xff\xff\x7f" + offsets[12:]))
    with pytest.raises(DataError, match="cannot be read as Arrow"):
        read(path)
