"""References have the shape of one, and carry no credentials."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.server.problems import ProblemError
from taciturn.server.references import check_source

GOOD = """
/data/notes.parquet
/data/notes.jsonl.gz
/data/2026-*/part-?.csv
/data/notes/
s3://hospital/phee.parquet
s3://hospital/notes/*.jsonl
s3://hospital/part-?.parquet
gs://bucket/a/b.ndjson
abfs://container@account.dfs.core.windows.net/a.csv
https://data.example/notes.csv.xz
file:///data/notes.json
postgresql+psycopg://db.example/clinic#notes
postgresql+psycopg://db.example:5433/clinic#ward.notes
"""

SECRETIVE = """
s3://key:SECRET@hospital/a.parquet
https://user:SECRET@data.example/a.csv
https://SECRET@data.example/a.csv
https://data.example/a.csv?sig=SECRET
https://data.example/a.csv?SECRET
s3://hospital/a.parquet?X-Amz-Signature=SECRET
abfs://container:SECRET@account.example/a.csv
postgresql+psycopg://olga:SECRET@db/clinic#notes
postgresql+psycopg://olga@db/clinic#notes
postgresql+psycopg://db/clinic?password=SECRET#notes
"""

BAD = """
notes.parquet
./notes.parquet
/data/../etc/notes.csv
/etc/passwd
/data/notes.pickle
/data/notes
/
s3://
s3:///a.parquet
s3://hospital/a.txt
s3://hospital/a.parquet#x
zip://a.csv::https://data.example/a.zip
memory://a.csv
ftp://data.example/a.csv
sqlite:///a.db#t
postgresql://db/clinic#notes
postgresql+psycopg://db/clinic
postgresql+psycopg://db/clinic#notes;DROP
postgresql+psycopg:///clinic#notes
postgresql+psycopg://a,b/clinic#notes
file://host/a.csv
https://[::1/a.csv
https://data.example:99999/a.csv
"""


@pytest.mark.parametrize("source", GOOD.split())
def test_known_shapes_pass(source: str) -> None:
    check_source(source)


@pytest.mark.parametrize("source", SECRETIVE.split())
def test_credentials_are_refused_with_the_remedy_and_not_quoted(source: str) -> None:
    with pytest.raises(ProblemError, match="the worker has its own") as caught:
        check_source(source)
    assert "SECRET" not in caught.value.detail
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("source", [*BAD.split(), "/a b.csv ", "/a\x00.csv", "/a\n.csv", "", " "])
def test_everything_else_is_refused(source: str) -> None:
    with pytest.raises(ProblemError) as caught:
        check_source(source)
    assert caught.value.code == "invalid"


@given(st.text(alphabet="/:@?#*=&.[]abs3csv\x00\ud800 ", max_size=40))
def test_no_text_gets_past_with_another_error(source: str) -> None:
    with contextlib.suppress(ProblemError):
        check_source(source)
        assert source.isprintable()
