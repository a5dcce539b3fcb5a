"""Anything that holds rows becomes the same stream, or says plainly why not."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy
import pandas
import polars
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import pytest

from taciturn.data.rows import BATCH_BYTES, ROWS_PER_BATCH, Skipped
from taciturn.data.source import open_rows
from taciturn.errors import DataError, DataNotFoundError, MissingDependencyError

ROWS = [{"id": "007", "text": "Rash, then\nfever."}, {"id": "8", "text": "Élan vital"}]
TABLE = pa.Table.from_pylist(ROWS)
SECRET = "FrançoisSecret"


def read(data: object) -> list[dict[str, Any]]:
    return [row for batch in open_rows(data).batches for row in batch.to_pylist()]


def refusal(data: object) -> DataError:
    """The error of reading all of `data`, after checking that nothing private is in it."""
    with pytest.raises(DataError) as caught:
        read(data)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    hidden = caught.value.__context__
    assert SECRET not in f"{hidden!r} {getattr(hidden, 'object', '')}"
    return caught.value


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"notes{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson", ".csv", ".parquet"])
def test_file_directory_glob_and_url_of_every_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    (tmp_path / "README.md").write_text("not rows")
    (tmp_path / "_SUCCESS").write_text("")
    assert read(str(path)) == read(path) == ROWS
    assert read(tmp_path) == ROWS
    assert read(f"{tmp_path}/*{suffix}") == ROWS
    assert read(path.as_uri()) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_several_files_share_a_schema_and_lacking_columns_are_null(
    tmp_path: Path, suffix: str
) -> None:
    write(tmp_path, suffix)
    (tmp_path / f"notes{suffix}").rename(tmp_path / f"a{suffix}")
    write(tmp_path, suffix, [{"text": "More."}])
    assert read(tmp_path) == [*ROWS, {"id": None, "text": "More."}]


def test_in_memory_sources() -> None:
    import datasets

    sources: list[object] = [
        ROWS,
        TABLE,
        TABLE.to_reader(),
        TABLE.to_batches()[0],
        pa.dataset.dataset(TABLE),
        TABLE.to_pandas(),
        TABLE.to_pandas().set_index(pandas.Index([5, 9])),
        polars.DataFrame(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list([ROWS[1], ROWS[0]]).select([1, 0]),
        datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    ]
    assert all(read(source) == ROWS for source in sources)


def test_a_list_of_strings_is_the_column_text() -> None:
    assert read(["a", "b"]) == [{"text": "a"}, {"text": "b"}]


def test_one_column_alone_is_a_table_of_one() -> None:
    frame, named = TABLE.to_pandas(), polars.DataFrame(ROWS)
    note = [{"note": row["text"]} for row in ROWS]
    text = [{"text": row["text"]} for row in ROWS]
    assert read(frame["text"]) == read(named["text"]) == text
    assert read(frame["text"].rename("note")) == read(named["text"].alias("note")) == note
    unnamed: list[object] = [
        frame["text"].rename(None),
        frame["text"].values,
        frame["text"].to_numpy(),
        frame["text"].astype("category"),
        numpy.array([row["text"] for row in ROWS]),
        pandas.Index(frame["text"].rename(None)),
        named["text"].alias(""),
        TABLE["text"],
        TABLE["text"].chunk(0),
        TABLE["text"].dictionary_encode(),
    ]
    assert all(read(column) == text for column in unnamed)


def test_a_choice_of_rows_in_arrow_is_honoured() -> None:
    data = pa.dataset.dataset(TABLE).filter(pyarrow.compute.field("id") == "8")
    assert read(data) == ROWS[1:]
    assert read(data.scanner(columns=["id"])) == [{"id": "8"}]


def test_tables_that_only_look_like_one_are_refused() -> None:
    """A Styler hides rows when it is shown; the objects of polars are addresses in memory."""
    frame = TABLE.to_pandas()
    for shown in (frame.style, frame.groupby("id"), numpy.array([["a"]]), frame.to_records()):
        assert ";" in str(refusal(shown))
    objects = polars.Series("id", [object()], dtype=polars.Object)
    for data in (objects, polars.DataFrame([objects])):
        assert "'id'" in str(refusal(data))


@pytest.mark.parametrize(
    "column",
    [pandas.arrays.SparseArray([0, 1]), pandas.Series([1j, 2]), pandas.Series([1, 2], dtype="c16")],
)
def test_pandas_columns_that_arrow_lacks_are_named(column: Any) -> None:
    assert "'x'" in str(refusal(pandas.DataFrame({"x": column})))


def test_names_that_are_no_names_are_refused() -> None:
    for rows in ([{1: "a"}], [{"\ud800": "a"}]):
        refusal(rows)


def test_memory_url_and_compression(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    with fsspec.open("memory://folder/notes.jsonl", "wb") as file:
        file.write(lines)
    (tmp_path / "notes.jsonl.gz").write_bytes(gzip.compress(lines))
    assert read("memory://folder/notes.jsonl") == ROWS
    assert read("memory://folder/*.jsonl") == ROWS
    assert read(tmp_path / "notes.jsonl.gz") == ROWS


class _Bucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 and of a web server as reading one object takes."""

    body = "\n".join(map(json.dumps, ROWS)).encode()
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(self.path.split("?")[0].endswith("/notes.jsonl"), send=False)

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            self._send(200, _LISTING.encode(), "application/xml")
        else:
            self._answer(self.path.split("?")[0].endswith("/notes.jsonl"), send=True)

    def _answer(self, found: bool, *, send: bool) -> None:
        body = self.body if found else b""
        self._send(200 if found else 404, body, "application/json", send=send)

    def _send(self, status: int, body: bytes, kind: str, *, send: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


_LISTING = f"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult><Name>bucket</Name><Prefix/><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>
<IsTruncated>false</IsTruncated><Contents><Key>folder/notes.jsonl</Key>
<LastModified>2025-01-01T00:00:00.000Z</LastModified><Size>{len(_Bucket.body)}</Size>
<StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Bucket) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_http_url(server: str) -> None:
    assert read(f"{server}/notes.jsonl?signature=abc") == ROWS
    error = refusal(f"{server}/other.jsonl?signature={SECRET}")
    assert isinstance(error, DataNotFoundError)
    assert "other.jsonl" in str(error)


def test_s3_url(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    assert read("s3://bucket/folder/notes.jsonl") == ROWS
    assert read("s3://bucket/folder/*.jsonl") == ROWS


def test_absent_places_are_named() -> None:
    for place in ("/nowhere/notes.jsonl", "/nowhere/*.csv", "memory://nowhere/a.parquet"):
        error = refusal(place)
        assert isinstance(error, DataNotFoundError)
        assert place in str(error)
    assert "protocol" in str(refusal("nope://a/b.csv"))
    assert isinstance(refusal(f"http://127.0.0.1:1/{'x'}.jsonl"), DataNotFoundError)


@pytest.mark.parametrize(
    "place", ["zip://a.csv::{}", "memory://[/a.csv", "postgresql://[/clinic#notes", "simplecache::"]
)
def test_urls_that_lead_to_nothing_that_can_be_opened(tmp_path: Path, place: str) -> None:
    assert isinstance(refusal(place.format(tmp_path)), DataNotFoundError)


def test_credentials_in_a_url_are_not_shown() -> None:
    error = refusal(f"http://user:{SECRET}@127.0.0.1:1/x.jsonl?token={SECRET}#{SECRET}")
    assert "127.0.0.1:1/x.jsonl" in str(error)


def test_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match="pip install gcsfs"):
        open_rows("gs://bucket/notes.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_empty_files_hold_no_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("")
    assert "no rows" in str(refusal(path))


def test_a_header_alone_and_empty_containers_hold_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n")
    for empty in (path, [], TABLE.slice(0, 0), pandas.DataFrame({"text": []})):
        assert "no rows" in str(refusal(empty))


def test_unknown_and_mixed_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert ".docx" in str(refusal(tmp_path / "a.docx"))
    assert isinstance(refusal(tmp_path), DataNotFoundError)
    write(tmp_path, ".csv")
    write(tmp_path, ".jsonl")
    assert "mixes" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        f'{{"text": "ok"}}\n{{"text": "{SECRET}',
        f'["{SECRET}"]',
        f'"{SECRET}"',
        f'[{{"text": "{SECRET}"}}',
        f'{{"text": "\\ud800 {SECRET}"}}',
    ],
)
def test_damaged_json_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    refusal(path)


@pytest.mark.parametrize(
    "text", [f"a,b\n1,2\n{SECRET},3,4\n", f'a,b\n"{SECRET}', f"a,b\n{SECRET}\xff,2\n"]
)
def test_damaged_csv_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    refusal(path)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet")
    path.write_bytes(path.read_bytes()[:-20])
    refusal(path)


def test_csv_columns_are_text_and_empty_means_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n007,a\n,b\n")
    assert [row["id"] for row in read(path)] == ["007", None]


HEADERLESS = '17,"Dupont, F.",a; b; c; d\n18,Moreau,\n'


def unnamed(path: Path, names: tuple[str, ...], *, skips: bool = False) -> tuple[list[str], Any]:
    """Columns and rows of CSV files without a header line."""
    rows = open_rows(str(path), names=names, empty=True, skipped=Skipped() if skips else None)
    return rows.schema.names, [row for batch in rows.batches for row in batch.to_pylist()]


def test_csv_without_a_header_line_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(HEADERLESS)
    names = ("id", "name", "note")
    found = [("17", "Dupont, F.", "a; b; c; d"), ("18", "Moreau", None)]
    assert unnamed(path, names) == (
        list(names),
        [dict(zip(names, row, strict=True)) for row in found],
    )
    invented = ["column_1", "column_2", "column_3"]
    assert unnamed(path, ()) == (invented, [dict(zip(invented, row, strict=True)) for row in found])
    (tmp_path / "rows.tsv").write_text("1\ta, b\n")
    assert unnamed(tmp_path / "rows.tsv", ("a", "b"))[1] == [{"a": "1", "b": "a, b"}]
    path.write_text("sep=;\n1;2\n")
    with pytest.warns(UserWarning, match="semicolons"):
        assert unnamed(path, ("a", "b"))[1] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("first", ["", "a;b;c;d;e;f\n", "1,2,3\n", "only\n", "\ufffe\n"])
def test_how_rows_are_read_does_not_follow_from_the_first_of_them(
    tmp_path: Path, first: str
) -> None:
    """Nor does whether they are: who is in the first row must not change what the others say."""
    path = tmp_path / "rows.csv"
    path.write_text(first)
    names, alone = unnamed(path, ("a", "b"), skips=True)
    assert names == ["a", "b"]
    path.write_text(f"{first}3,4\n5,6\n")
    names, rows = unnamed(path, ("a", "b"), skips=True)
    assert names == ["a", "b"]
    assert [row for row in rows if row not in alone] == [{"a": "3", "b": "4"}, {"a": "5", "b": "6"}]


def test_columns_that_are_not_as_many_as_were_named_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(HEADERLESS)
    with pytest.raises(DataError, match="as many columns as were named") as caught:
        unnamed(tmp_path / "rows.csv", ("a", "b"))
    assert "Dupont" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_names_its_columns_itself_is_given_no_names(tmp_path: Path, suffix: str) -> None:
    for data in (str(write(tmp_path, suffix)), ROWS, "postgresql://host/db#table"):
        with pytest.raises(DataError, match="names its columns itself"):
            open_rows(data, names=("a", "b"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text\na,b\n")
    assert "'text'" in str(refusal(path))


def test_mixed_types_become_text_wherever_they_occur() -> None:
    late = [{"id": n, "x": {"k": 1}} for n in range(ROWS_PER_BATCH + 1)] + [{"id": "a", "x": "b"}]
    rows = read(late)
    assert (rows[0], rows[-1]) == ({"id": "0", "x": '{"k": 1}'}, {"id": "a", "x": "b"})


def test_late_keys_and_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"a": None}, {"a": [{"role": "user"}], "b": 2.5}, {"a": [{"content": "x"}], "b": 1}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert read(path)[1:] == [
        {"a": [{"role": "user", "content": None}], "b": 2.5},
        {"a": [{"role": None, "content": "x"}], "b": 1.0},
    ]


def test_objects_used_as_dictionaries_become_json() -> None:
    rows = read([{"x": {f"k{n}": n}} for n in range(200)])
    assert json.loads(rows[7]["x"]) == {"k7": 7}


def test_object_columns_of_mixed_types_in_pandas_are_named() -> None:
    frame = pandas.DataFrame({"x": pandas.Series([1, SECRET], dtype=object)})
    assert "'x'" in str(refusal(frame))


@pytest.mark.parametrize("data", [7, None, object(), polars.DataFrame(ROWS).lazy(), [1, "a"]])
def test_other_objects_are_refused_with_a_remedy(data: object) -> None:
    assert ";" in str(refusal(data))


def test_dataset_dict_asks_for_a_split() -> None:
    import datasets

    data = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    assert "data['train']" in str(refusal(data))


def test_batches_are_bounded_in_rows_and_bytes() -> None:
    short = open_rows(["x"] * (3 * ROWS_PER_BATCH + 1)).batches
    assert [batch.num_rows for batch in short] == [ROWS_PER_BATCH] * 3 + [1]
    long = open_rows(pa.table({"text": ["y" * (BATCH_BYTES // 4)] * 20})).batches
    assert max(batch.nbytes for batch in long) <= BATCH_BYTES


def test_reading_is_lazy() -> None:
    """A later batch that fails must not be read before the first one is used."""
    schema = pa.schema([("text", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch([["a"]], schema=schema)
        raise ValueError(SECRET)

    stream = open_rows(pa.RecordBatchReader.from_batches(schema, batches())).batches
    assert next(stream).to_pylist() == [{"text": "a"}]
    with pytest.raises(DataError) as caught:
        next(stream)
    assert SECRET not in str(caught.value)
