"""What a connection can cost before anybody knows who it is: raw sockets against a gateway that
goes on to serve others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import bearer
from taciturn.server.bootstrap import open_gateway
from taciturn.server.http.connections import Callers
from taciturn.server.serve import first_admin
from taciturn.server.settings import Settings

HEADER, FIELDS, TARGET, BODY, CONNECTIONS = 4096, 20, 1024, 65536, 16
HEAD_S, IDLE_S = 1.5, 1.5
LIMITS = {
    "TACITURN_HEADER_LIMIT_BYTES": str(HEADER),
    "TACITURN_HEADER_FIELDS": str(FIELDS),
    "TACITURN_TARGET_LIMIT_BYTES": str(TARGET),
    "TACITURN_HEAD_S": str(HEAD_S),
    "TACITURN_BODY_IDLE_S": str(IDLE_S),
    "TACITURN_REQUEST_LIMIT_BYTES": str(BODY),
    "TACITURN_ADDRESS_CONNECTIONS": str(CONNECTIONS),
}
HEAD = b"GET /v1/health HTTP/1.1\r\nHost: gateway\r\n"
POST = b"POST /v1/sessions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """The last thing that was said before the gateway hung up; no status where nothing was."""

    status: int | None
    problem: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Door:
    """A gateway that listens, with narrow limits."""

    port: int
    admin: str
    pid: int

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """A line of its own. `host`: an address of ours, all of 127.0.0.0/8 are."""
        found = socket.create_connection(("127.0.0.1", self.port), source_address=(host, 0))
        found.settimeout(20)
        return found

    def told(self, *parts: bytes) -> Answer:
        """What comes back to these bytes."""
        with closing(self.connect()) as line:
            with suppress(OSError):
                for part in parts:
                    line.sendall(part)
            return heard(line)

    def cpu_s(self) -> float:
        """Processor time that the gateway has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def heard(line: socket.socket) -> Answer:
    began, data = time.monotonic(), b""
    with suppress(ConnectionResetError):
        while part := line.recv(65536):
            data += part
    seconds = time.monotonic() - began
    if not data:
        return Answer(None, {}, seconds)
    head, _, body = data.rpartition(b"\r\n\r\n")
    status = int(head.rpartition(b"HTTP/1.1 ")[2][:3])
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    return Answer(status, problem, seconds)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("gateway")
    gateway = open_gateway(Settings(data_dir=folder))
    admin = first_admin(gateway)
    gateway.engine.dispose()
    assert admin is not None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    environment = {
        **os.environ,
        **LIMITS,
        "TACITURN_DATA_DIR": str(folder),
        "TACITURN_PORT": str(port),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taciturn", "serve"], env=environment, stdout=log, stderr=log
        )
    try:
        for _ in range(1200):
            with suppress(httpx.TransportError):
                # No TLS here: certificates would be read for each call, in 40 ms.
                if httpx.get(f"http://127.0.0.1:{port}/v1/ready", verify=False).is_success:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield Door(port, admin, process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def others(door: Door) -> Iterator[list[float]]:
    """Somebody who works on, as they do through workers' heartbeats: how long each answer took."""
    waits: list[float] = []
    over = threading.Event()

    def work() -> None:
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, headers=bearer(door.admin), timeout=60) as client:
            while not over.wait(0.02):  # not as fast as they can: the processor has other tests
                began = time.monotonic()
                answer = client.get(f"http://127.0.0.1:{door.port}/v1/self")
                assert answer.status_code == 200
                waits.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join(60)
    assert waits


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([HEAD, b"X: " + b"a" * HEADER + b"\r\n\r\n"], 431, "headers_too_large"),
        ([HEAD + b"X: " + b"a" * 10 * HEADER + b"\r\n\r\n"], 431, "headers_too_large"),
        ([HEAD, b"X: ", b"a" * HEADER], 431, "headers_too_large"),
        ([HEAD, b"a: b\r\n" * FIELDS, b"\r\n"], 431, "headers_too_large"),
        ([HEAD, b"a:b\r\n" * HEADER, b"\r\n"], 431, "headers_too_large"),
        ([b"GET /" + b"a" * TARGET + b" HTTP/1.1\r\nHost: x\r\n\r\n"], 414, "target_too_long"),
        ([b"GET /?" + b"a" * 10 * HEADER], 414, "target_too_long"),
        ([b"A" * 2 * HEADER], 414, "target_too_long"),
        ([b"\x16\x03\x01\x02\x00\x01\x00 hello\r\n\r\n"], 400, "malformed"),
        ([HEAD, b"no colon\r\n\r\n"], 400, "malformed"),
        ([b"EVIL1 /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"], 405, "method_not_allowed"),
        ([CHUNKED, b"no number\r\n"], 400, "malformed"),
        ([CHUNKED, b"1;", b"a" * 10 * HEADER], 400, "malformed"),
        ([CHUNKED, b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * HEADER], 400, "malformed"),
        ([CHUNKED, b"1\r\n \r\n" * 20_000], 400, "malformed"),
        ([POST, b"Content-Length: %d\r\n\r\n" % (BODY + 1)], 413, "too_large"),
        ([POST, b"Content-Length: 99999999999999999999\r\n\r\n"], 413, "too_large"),
        ([CHUNKED, (b"1000\r\n" + b" " * 4096 + b"\r\n") * (BODY // 4096 + 1)], 413, "too_large"),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_what_is_too_much_is_refused_with_a_problem(
    door: Door, parts: list[bytes], status: int, code: str
) -> None:
    answer = door.told(*parts)
    assert (answer.status, answer.problem.get("code")) == (status, code)
    assert answer.seconds < 10


def test_what_is_just_within_the_limits_is_answered(door: Door) -> None:
    with closing(door.connect()) as line:
        more = b"a: b\r\n" * (FIELDS - 2)
        filler = b"X: " + b"a" * (HEADER - len(HEAD) - len(more) - 8) + b"\r\n\r\n"
        for many in (1, 1, 1, 5):  # the last ones before those before them are answered
            line.sendall(many * (HEAD + more + filler))
            data = b""
            while data.count(b'{"status":"ok"}') < many:
                data += line.recv(65536)
            assert data.count(b"HTTP/1.1 200") == many


def test_an_endless_head_costs_nothing_and_others_are_served(door: Door) -> None:
    """100 MB of header from an unauthenticated connection, again and again."""
    cpu_s, sent = door.cpu_s(), 0
    with others(door) as waits:
        time.sleep(0.5)
        alone = len(waits)
        used_alone_s, cpu_s = door.cpu_s() - cpu_s, door.cpu_s()
        for _ in range(5):
            with closing(door.connect()) as line, suppress(OSError):
                line.sendall(HEAD + b"X: ")
                for _ in range(100):
                    line.sendall(b"a" * 2**20)
                    sent += 2**20
    each_s = used_alone_s / max(alone, 1)
    assert sent < 50 * 2**20, "the gateway has read it all"
    assert door.cpu_s() - cpu_s < 2 + 3 * each_s * (len(waits) - alone)
    assert max(waits) < 3


@pytest.mark.parametrize(
    "dripped",
    [HEAD + b"X: ", b"G", POST + b"Content-Length: 5\r\n\r\n", CHUNKED],
    ids=["field", "line", "body", "chunks"],
)
def test_a_slow_client_is_told_so_and_others_are_served(door: Door, dripped: bytes) -> None:
    with others(door), closing(door.connect()) as line:
        line.sendall(dripped)
        answer = heard(line)
    assert (answer.status, answer.problem.get("code")) == (408, "too_slow")
    assert min(HEAD_S, IDLE_S) * 0.8 < answer.seconds < 10


def test_a_byte_now_and_then_buys_no_time(door: Door) -> None:
    """Neither in the head, nor in a body, which has to come at a rate; nor in the next request."""
    complete = HEAD + b"\r\n"
    for first in (HEAD + b"X: ", POST + b"Content-Length: 60000\r\n\r\n", complete + HEAD + b"X: "):
        began = time.monotonic()
        with closing(door.connect()) as line, suppress(OSError):
            line.sendall(first)
            while time.monotonic() - began < 15:
                time.sleep(0.2)
                line.sendall(b"a")
        assert time.monotonic() - began < 12


def test_who_says_nothing_hears_nothing_and_is_let_go(door: Door) -> None:
    with closing(door.connect()) as line:
        answer = heard(line)
    assert answer.status is None
    assert answer.seconds < 10


def test_a_body_that_nobody_reads_ends(door: Door) -> None:
    """What goes on after the answer, where the length was said to be without end."""
    with closing(door.connect()) as line:
        line.sendall(
            b"GET /v1/health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        sent = 0
        with suppress(OSError):
            while sent < 200 * 2**20:
                line.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        assert sent < 100 * 2**20


def test_one_address_has_so_many_connections_and_others_come_in(door: Door) -> None:
    with ExitStack() as lines:
        for _ in range(CONNECTIONS):
            lines.enter_context(closing(door.connect("127.0.0.3")))
        time.sleep(0.1)
        with closing(door.connect("127.0.0.3")) as line:
            answer = heard(line)
        assert (answer.status, answer.problem.get("code")) == (429, "too_many_requests")
        assert "TACITURN_ADDRESS_CONNECTIONS" in answer.problem["detail"]
        with others(door):
            time.sleep(0.2)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # whoever hangs up makes room
        with closing(door.connect("127.0.0.3")) as line:
            line.sendall(HEAD + b"\r\n")
            with suppress(ConnectionResetError):
                if line.recv(65536).startswith(b"HTTP/1.1 200"):
                    return
        time.sleep(0.1)
    raise AssertionError("nobody is let in any more")


def test_a_proxy_is_not_one_caller_and_a_network_is() -> None:
    callers = Callers(Settings(address_connections=2, trusted_proxies="10.0.0.0/8"), files=1000)
    assert [callers.enter("10.1.2.3") for _ in range(500)] == [None] * 500
    assert callers.enter("192.0.2.1") is None
    assert callers.enter("::ffff:192.0.2.1") is None
    refusal = callers.enter("192.0.2.1")
    assert refusal is not None
    assert refusal.code == "too_many_requests"
    assert callers.enter("2001:db8::1") is None
    assert callers.enter("2001:db8::2") is None
    assert callers.enter("2001:db8::ffff:1") is not None
    assert callers.enter("2001:db8:1::1") is None
    for address in ("192.0.2.1", "192.0.2.1"):
        callers.leave(address)
    assert callers.enter("192.0.2.1") is None


def test_some_files_are_left_for_other_things_than_connections() -> None:
    callers = Callers(Settings(trusted_proxies="*"), files=1024)
    refusals = [callers.enter("192.0.2.1") for _ in range(1024)]
    assert refusals.index(next(each for each in refusals if each)) == 1024 - 128
    assert refusals[-1] is not None
    assert refusals[-1].code == "unavailable"
