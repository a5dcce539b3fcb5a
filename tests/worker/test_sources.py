"""Sources are read where their owner may, and nowhere else; and are known by what they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.postgres import NoPostgresError, postgres
from taciturn.data.addresses import is_reachable
from taciturn.data.source import open_rows
from taciturn.errors import DataNotFoundError
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import RemoteProbe
from taciturn.wire.worker import SourceRef
from taciturn.worker import sources
from taciturn.worker.failures import SourceRefusedError
from taciturn.worker.job import Runner
from taciturn.worker.sources import Source, known_addresses, open_source
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, notes, source, write


def asked(path: Path | str, **changes: Any) -> SourceRef:
    return source(path).model_copy(update=changes)


def marks(found: Source) -> tuple[set[str], set[str]]:
    said = list(found.marks())
    assert [each.first for each in said] == [True] + [False] * (len(said) - 1)
    places = {mark for each in said for mark in each.places}
    return places, {mark for each in said for mark in each.contents}


def read(found: Source) -> list[str]:
    return [row for batch in open_rows(found.rows).batches for row in batch["text"].to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    write(notes(3), path / "notes.jsonl")
    return path


def test_a_file_is_known_by_any_name_and_by_its_content(folder: Path, tmp_path: Path) -> None:
    path = folder / "notes.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    os.link(path, tmp_path / "hard.jsonl")
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    for suffix, smaller in (("gz", gzip), ("bz2", bz2), ("xz", lzma)):
        content = smaller.compress(path.read_bytes())
        (tmp_path / f"zipped.jsonl.{suffix}").write_bytes(content)
    write(notes(4), tmp_path / "other.jsonl")
    (tmp_path / "alias").symlink_to(folder)
    places, contents = marks(open_source(asked(path)))
    assert len(places) == 2
    assert len(contents) == 1
    for name in (
        f"/{path}",
        f"file://{path}",
        f"{folder}/*.jsonl",
        f"{folder}/",
        f"{tmp_path}/alias/",
    ):
        assert marks(open_source(asked(name))) == (places, contents), name
    assert marks(open_source(asked(tmp_path / "link.jsonl"))) == (places, contents)
    hard = marks(open_source(asked(tmp_path / "hard.jsonl")))
    assert len(hard[0] & places) == 1
    for name in ("copy.jsonl", "zipped.jsonl.gz", "zipped.jsonl.bz2", "zipped.jsonl.xz"):
        copied = marks(open_source(asked(tmp_path / name)))
        assert not copied[0] & places
        assert copied[1] == contents
    other = marks(open_source(asked(tmp_path / "other.jsonl")))
    assert not (other[0] | other[1]) & (places | contents)
    elsewhere = marks(open_source(asked(path, mark_key="33" * 32)))
    assert not (elsewhere[0] | elsewhere[1]) & (places | contents)


def test_a_folder_meets_each_of_its_files_and_empty_files_are_alike_to_nobody(
    folder: Path, tmp_path: Path
) -> None:
    write(notes(5), folder / "more.jsonl")
    (folder / "empty.jsonl").touch()
    places, contents = marks(open_source(asked(f"{folder}/")))
    assert (len(places), len(contents)) == (6, 2)
    one = marks(open_source(asked(folder / "more.jsonl")))
    assert one[0] < places
    assert one[1] < contents


def test_many_files_are_told_in_several_messages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FILES_AT_ONCE", 1)
    write(notes(5), folder / "more.jsonl")
    assert len(list(open_source(asked(f"{folder}/")).marks())) == 2


def test_a_source_lies_in_a_prefix_also_once_links_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "link.jsonl").symlink_to(folder / "notes.jsonl")
    (mine / "folder").symlink_to(folder)
    prefixes = (f"{mine}/",)
    for name in ("link.jsonl", "*.jsonl", "folder/notes.jsonl", "", "**/*.jsonl"):
        with pytest.raises(SourceRefusedError, match="a link"):
            open_source(asked(f"{mine}/{name}", prefixes=prefixes))
    for path in (folder / "notes.jsonl", f"{tmp_path}/*/notes.jsonl", "/proc/self/root/a.jsonl"):
        with pytest.raises(SourceRefusedError):
            open_source(asked(path, prefixes=prefixes))
    both = (*prefixes, str(folder))
    assert read(open_source(asked(mine / "link.jsonl", prefixes=both)))
    assert read(open_source(asked(f"{mine}/folder/", prefixes=(f"{mine}/folder",))))
    registered = (f"{folder}/*.jsonl",)  # before there were prefixes
    assert read(open_source(asked(f"{folder}/*.jsonl", prefixes=registered)))


def test_what_gateway_and_workers_keep_is_never_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(folder / "notes.jsonl")
    for name in (
        folder / "notes.jsonl",
        f"{folder}/",
        tmp_path / "link.jsonl",
        f"{tmp_path}/*/*.jsonl",
    ):
        with pytest.raises(SourceRefusedError, match="keep"):
            open_source(asked(name, own=(f"{folder}/",)))
        with pytest.raises(SourceRefusedError, match="keep"):
            open_source(asked(name), (f"file://{folder}",))
    assert open_source(asked(folder / "notes.jsonl"), (f"{folder}-b/", "s3://store/"))


def test_a_file_that_takes_anothers_place_is_not_read(folder: Path, tmp_path: Path) -> None:
    path = folder / "notes.jsonl"
    found = open_source(asked(path))
    assert len(read(found)) == 3
    os.replace(write(notes(3), tmp_path / "new.jsonl"), path)
    with pytest.raises(DataNotFoundError, match="replaced"):
        read(found)
    path.unlink()
    path.symlink_to(write(notes(3), tmp_path / "new.jsonl"))
    with pytest.raises(DataNotFoundError):
        list(found.marks())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "notes.jsonl")
    with pytest.raises(DataNotFoundError):
        open_source(asked(tmp_path / "notes.jsonl"))


PUBLIC = "8.8.8.8 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808"
NOT_PUBLIC = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.100.100.200 192.0.0.192
168.63.129.16 224.0.0.1 255.255.255.255 ::1 :: fe80::1 fd00:ec2::254 ff02::1 ::ffff:127.0.0.1
::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1::1
"""


def test_addresses_that_are_not_public_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in PUBLIC.split():
        assert is_reachable(ip_address(text), ()), text
    for text in NOT_PUBLIC.split():
        assert not is_reachable(ip_address(text), ()), text
        assert not is_reachable(ip_address(text), ("203.0.113.0/24", "fc00:1::/32")), text
    assert is_reachable(ip_address("10.1.2.3"), ("10.1.0.0/16",))
    assert is_reachable(ip_address("::ffff:10.1.2.3"), ("10.1.0.0/16",))
    for name in ("localhost", "2130706433", "127.1", "0x7f.1", "::1", "[::1]".strip("[]")):
        with pytest.raises(SourceRefusedError, match="TACITURN_SOURCE_NETWORKS"):
            known_addresses(name, 80)
    one_bad = [(2, 1, 6, "", (each, 80)) for each in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: one_bad)
    with pytest.raises(SourceRefusedError):
        known_addresses("rebinding.example", 80)


class Web(BaseHTTPRequestHandler):
    """A web server with one file, and a path that points there."""

    content = b"text\nNote\n"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']}{self.path}")
        moved = self.path.startswith("/moved")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", "/notes.csv")
        self.send_header("Content-Length", str(0 if moved else len(self.content)))
        self.end_headers()
        if self.command == "GET" and not moved:
            self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def web() -> Iterator[tuple[int, list[str]]]:
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Web,), {"asked": seen}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        server.server_close()


def test_the_web_is_asked_at_addresses_that_were_looked_up_and_does_not_lead_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("aiohttp")
    real, looked_up = socket.getaddrinfo, list[str]()

    def once(host: Any, *arguments: Any, **named: Any) -> Any:
        looked_up.append(str(host))
        assert looked_up.count("data.example") <= 1, "looked up twice"
        return real("127.0.0.1" if host == "data.example" else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    here = {"prefixes": ("http://",), "networks": ("127.0.0.0/8",)}
    with web() as (port, seen):
        url = f"http://data.example:{port}"
        found = open_source(asked(f"{url}/notes.csv", **here))
        assert read(found) == ["Note"]
        assert len(marks(found)[1]) == 1
        assert set(seen) == {f"data.example:{port}/notes.csv"}
        looked_up.clear()
        with pytest.raises(DataNotFoundError, match="RedirectError"):
            list(open_source(asked(f"{url}/moved.csv", **here)).marks())
        looked_up.clear()
        before = len(seen)
        with pytest.raises(SourceRefusedError, match="not public"):
            open_source(asked(f"{url}/notes.csv", prefixes=("http://",)))
        with pytest.raises(SourceRefusedError, match="lies in no"):
            open_source(asked(f"{url}/notes.csv", prefixes=("https://", "http://data.example/")))
        assert len(seen) == before


class Relay(socketserver.BaseRequestHandler):
    """Passes a connection on to a server's socket in a folder: PostgreSQL, as if on a network."""

    target: str

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as inner:
            inner.connect(self.target)
            pairs = ((self.request, inner), (inner, self.request))
            threads = [threading.Thread(target=self._pass, args=pair) for pair in pairs]
            for each in threads:
                each.start()
            for each in threads:
                each.join()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(65536):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)


@contextmanager
def clinic() -> Iterator[int]:
    """A database with notes, a view of them, and a copy; yields its port here."""
    with postgres() as cluster:
        cluster.create("clinic")
        with psycopg.connect(
            host=str(cluster.folder), user="taciturn", dbname="clinic", autocommit=True
        ) as connection:
            connection.execute("CREATE TABLE notes AS SELECT 'Note' AS text, 1 AS id")
            connection.execute("CREATE VIEW shown AS SELECT text FROM notes")
            connection.execute("CREATE TABLE copied AS SELECT * FROM notes")
            connection.execute("CREATE TABLE others AS SELECT 'Another' AS text, 1 AS id")
        kind = type("Handler", (Relay,), {"target": f"{cluster.folder}/.s.PGSQL.5432"})
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield int(server.server_address[1])
            server.shutdown()


def test_a_table_is_asked_at_addresses_that_were_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq, which looks names up by itself, would not find this one."""
    monkeypatch.setenv("PGUSER", "taciturn")
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **k: real("127.0.0.1" if host == "db.example" else host, *a, **k),
    )
    here = {"prefixes": ("postgresql+psycopg://",), "networks": ("127.0.0.0/8",)}
    try:
        with clinic() as port:
            url = f"postgresql+psycopg://db.example:{port}/clinic"
            notes = open_source(asked(f"{url}#notes", **here))
            assert read(notes) == ["Note"]
            places, contents = marks(notes)
            assert (len(places), len(contents)) == (1, 1)
            assert marks(open_source(asked(f"{url}#public.notes", **here))) == (places, contents)
            assert places < marks(open_source(asked(f"{url}#shown", **here)))[0]
            copied = marks(open_source(asked(f"{url}#copied", **here)))
            assert copied[1] == contents
            assert not copied[0] & places
            others = marks(open_source(asked(f"{url}#others", **here)))
            assert not (others[0] | others[1]) & (places | contents)
            with pytest.raises(SourceRefusedError, match="not public"):
                open_source(asked(f"{url}#notes", prefixes=here["prefixes"]))
    except NoPostgresError as error:
        pytest.skip(str(error))


def test_a_source_under_another_budget_ends_the_job_before_a_row_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "notes.jsonl"
    monkeypatch.setattr(
        "taciturn.worker.jobs.probe.open_rows", lambda *_: pytest.fail("rows were read")
    )
    for taken in marks(open_source(asked(path))):
        gateway = FakeGateway(
            assignment(RemoteProbe(dataset="notes"), source=asked(path)), taken=frozenset(taken)
        )
        Runner(tmp_path / "root").run(gateway.client())
        assert gateway.outcome.code is FailureCode.SOURCE_REFUSED
        assert "ask its administrator" in gateway.incidents[-1]
        assert gateway.files == {}


@pytest.mark.parametrize("change", [{"prefixes": ()}, {"own": ("/",)}])
def test_a_source_that_may_not_be_read_ends_the_job(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = asked(folder / "notes.jsonl", **change)
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=rows))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED
    assert gateway.sources == []
    inside = asked(write(notes(3), tmp_path / "root" / "notes.jsonl"))
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=inside))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED
