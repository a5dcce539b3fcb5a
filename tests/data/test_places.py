"""Places have the shape of one and one spelling, carry no credentials, and lie in each other."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.places import (
    canonical,
    host_and_port,
    inside,
    is_allowed,
    meet,
    prefix,
    spelled,
)
from taciturn.errors import SpecError

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
abfs://container:SECRET@account.dfs.core.windows.net/a.csv
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
s3://hospital//a.parquet
s3://hospital/../a.parquet
s3://arn:aws:s3:eu-west-1:1:accesspoint/x/a.parquet
s3://hospital%2Fx/a.parquet
abfs://container@account.example/a.csv
abfs://container@account.dfs.core.windows.net.evil.example/a.csv
hdfs://namenode/a.csv
/proc/self/root/data/notes.csv
//proc/1/cwd/notes.csv
/dev/fd/3.csv
/sys/a.csv
https://data.example//a.csv
https://data.example/%2e%2E/a.csv
https://data_.example/a.csv
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


SPELLINGS = {
    "/data/notes.csv": ("//data//notes.csv", "file:///data/notes.csv", "FILE:////data/notes.csv"),
    "/data/part-?.csv": ("file:///data/part-?.csv",),
    "/data/notes/": ("/data//notes//",),
    "s3://hospital/a.csv": ("s3a://hospital/a.csv", "S3://hospital/a.csv"),
    "gs://hospital/a.csv": ("gcs://hospital/a.csv",),
    "abfs://c@acct.dfs.core.windows.net/a.csv": ("abfss://C@ACCT.dfs.core.windows.net/a.csv",),
    "abfs://c/a.csv": ("az://c/a.csv",),
    "https://data.example/a~b.csv": (
        *("HTTPS://Data.Example:443/a~b.csv", "https://data.example./a%7eb.csv"),
        *("https://data.example:/a%7Eb.csv", "https://data.example/%61~b.csv"),
    ),
    "https://data.example/%C3%A9.csv": ("https://data.example/é.csv",),
    "https://[2001:db8::1]:8443/a.csv": ("https://[2001:DB8::1]:8443/a.csv",),
    "postgresql+psycopg://db/clinic#notes": ("postgresql+psycopg://DB:5432/clinic#notes",),
}
INSIDE = [
    ("/data/a.csv", "/data/"),
    ("/data/a.csv", "/data"),
    ("/data/a.csv", "/"),
    ("/data/*/a.csv", "/data/"),
    ("s3://hospital/a.csv", "s3://hospital"),
    ("s3://hospital/a.csv", "s3://"),
    ("https://data.example/a.csv", "https://data.example"),
    ("postgresql+psycopg://db/clinic#notes", "postgresql+psycopg://db/clinic"),
    ("postgresql+psycopg://db/clinic#notes", "postgresql+psycopg://db"),
]
OUTSIDE = [
    ("/database/a.csv", "/data"),
    ("/data#/a.csv", "/data"),
    ("/data*/a.csv", "/data"),
    ("/*/a.csv", "/data"),
    ("s3://hospital-b/a.csv", "s3://hospital"),
    ("https://data.example.evil.example/a.csv", "https://data.example"),
    ("https://data.example:8443/a.csv", "https://data.example"),
    ("http://data.example/a.csv", "https://data.example"),
    ("postgresql+psycopg://db/clinic2#notes", "postgresql+psycopg://db/clinic"),
]


@pytest.mark.parametrize("source", GOOD.split())
def test_known_shapes_pass(source: str) -> None:
    assert canonical(canonical(source)) == canonical(source)


@pytest.mark.parametrize("source", SECRETIVE.split())
def test_credentials_are_refused_with_the_remedy_and_not_quoted(source: str) -> None:
    with pytest.raises(SpecError, match="the worker has its own") as caught:
        canonical(source)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("source", [*BAD.split(), "/a b.csv ", "/a\x00.csv", "/a\n.csv", "", " "])
def test_everything_else_is_refused(source: str) -> None:
    with pytest.raises(SpecError):
        canonical(source)


@pytest.mark.parametrize("place", SPELLINGS)
def test_a_place_has_one_spelling(place: str) -> None:
    assert {canonical(each) for each in (place, *SPELLINGS[place])} == {place}


@given(st.text(alphabet="/:@?#*=&.[]abs3csv%\x00\ud800 ", max_size=40))
def test_no_text_gets_past_with_another_error(source: str) -> None:
    with contextlib.suppress(SpecError):
        assert canonical(canonical(source)) == canonical(source)
        assert source.isprintable()


def test_what_lies_in_what() -> None:
    for place, outer in INSIDE:
        assert inside(place, prefix(outer)), (place, outer)
        assert is_allowed(place, ["nonsense", outer])
    for place, outer in OUTSIDE:
        assert not inside(place, prefix(outer)), (place, outer)
        assert not is_allowed(place, ["nonsense", outer, ""])


@pytest.mark.parametrize(
    "text", ["/data/*/", "s3://b/[a]/", "data/", "ftp://", "/proc/", "s3:", ""]
)
def test_a_prefix_is_plain(text: str) -> None:
    with pytest.raises(SpecError):
        prefix(text)
    assert prefix("https://[2001:db8::1]/") == "https://[2001:db8::1]/"


def test_a_registered_pattern_allows_itself() -> None:
    """What was registered before there were prefixes stays allowed, however it was written."""
    assert spelled(["file:///data/*.csv", "hdfs://gone/a.csv"]) == ("/data/*.csv",)


def test_places_that_meet() -> None:
    assert meet("/data/", "/data/a.csv")
    assert meet("/data/a.csv", "/data/")
    assert meet("/data/a.csv", "/data/a.csv")
    assert not meet("/data/a.csv", "/data/a.csv.gz")
    assert not meet("/data/b/", "/data/a/")


def test_whom_a_worker_asks_by_name() -> None:
    assert host_and_port("https://data.example/a.csv") == ("data.example", 443)
    assert host_and_port("https://[2001:db8::1]:8443/a.csv") == ("2001:db8::1", 8443)
    assert host_and_port("postgresql+psycopg://db/clinic#notes") == ("db", 5432)
    assert host_and_port("s3://bucket/a.csv") is None
    assert host_and_port("/data/a.csv") is None
