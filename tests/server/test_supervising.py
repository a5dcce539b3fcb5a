"""`taciturn serve` as several processes: one gateway to whoever asks, whichever of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.gateway import bearer
from taciturn.errors import SpecError
from taciturn.server.bootstrap import open_gateway
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.schema.tables import audit_log
from taciturn.server.serve import first_admin
from taciturn.server.settings import Settings
from taciturn.server.supervising import supervise
from taciturn.wire.identity import Role

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and how sockets are dealt")
COUNT = 3
METRICS_TOKEN = "a token for Prometheus"


@dataclass(frozen=True)
class Running:
    """A gateway in several processes."""

    process: subprocess.Popen[bytes]
    url: str
    gateway: Gateway
    admin: str

    def children(self) -> list[int]:
        """Its serving processes; the first one first."""
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ask(self, path: str = "self", token: str | None = None) -> httpx.Response:
        """On a new connection, so that any of them may answer."""
        return httpx.get(f"{self.url}/v1/{path}", headers=bearer(token or self.admin), timeout=20)


@contextmanager
def running(folder: Path, port: int) -> Iterator[Running]:
    gateway = open_gateway(Settings(data_dir=folder))
    admin = first_admin(gateway)
    assert admin is not None
    with _process(folder, port) as process:
        yield Running(process, f"http://127.0.0.1:{port}", gateway, admin)
    gateway.engine.dispose()


@contextmanager
def _process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "TACITURN_DATA_DIR": str(folder),
        "TACITURN_PORT": str(port),
        "TACITURN_PROCESSES": str(COUNT),
        "TACITURN_METRICS_TOKEN": METRICS_TOKEN,
    }
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taciturn", "serve"], env=environment, stdout=log, stderr=log
        )
        try:
            _until(lambda: _ready(port, process))
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("gateway"), _free_port()) as found:
        yield found


def test_all_of_them_answer_and_all_is_counted_and_on_record(here: Running) -> None:
    before = _answers(here)
    asked = 40
    assert all(here.ask().status_code == 200 for _ in range(asked))
    assert _answers(here) == before + asked
    with here.gateway.engine.begin() as connection:
        rows = connection.execute(audit_log.select()).all()
    assert sum(row.resource == "/v1/self" for row in rows) >= asked
    serving = {pid for pid in here.children() if _has_served(pid, here.gateway)}
    assert len(serving) == COUNT


def test_a_revoked_token_opens_no_door_any_more(here: Running) -> None:
    """Those who remember its holder are told, and do not wait until they forget."""
    directory = Directory(here.gateway)
    user = directory.create_user(f"user-{os.urandom(3).hex()}", [Role.PRACTITIONER])
    made = directory.create_token(kind="api", name="x", user_id=user, lifetime_ms=10**7)
    assert all(here.ask(token=made.text).status_code == 200 for _ in range(20))
    gone = httpx.delete(f"{here.url}/v1/tokens/{made.id}", headers=bearer(made.text))
    assert gone.is_success
    time.sleep(0.1)  # less than they would remember by themselves
    assert Counter(here.ask(token=made.text).status_code for _ in range(20)) == {401: 20}


def test_whichever_dies_the_gateway_goes_on(here: Running) -> None:
    for number in range(COUNT):
        before = here.children()
        os.kill(before[number], signal.SIGKILL)
        answers = [here.ask().status_code for _ in range(10)]  # some wait for the next one
        assert answers == [200] * 10
        _until(lambda before=before: len(set(here.children()) - set(before)) == 1)
    worker = httpx.post(f"{here.url}/v1/worker/jobs/job_x/next", headers=bearer("tac_x"))
    assert worker.status_code in (401, 503)


def test_an_end_is_orderly_and_a_death_leaves_nobody(tmp_path: Path) -> None:
    port = _free_port()
    with running(tmp_path, port) as found:
        children = found.children()
        found.process.send_signal(signal.SIGTERM)
        assert found.process.wait(20) == 0
        assert not any(map(_lives, children))
        with pytest.raises(httpx.TransportError):
            found.ask()
    with _process(tmp_path, port) as process:
        again = Running(process, found.url, found.gateway, found.admin)
        children = again.children()
        assert again.ask().status_code == 200
        process.kill()
        process.wait()
        _until(lambda: not any(map(_lives, children)))
    with _process(tmp_path, port) as process:
        assert Running(process, found.url, found.gateway, found.admin).ask().status_code == 200


def test_a_gateway_whose_processes_cannot_start_gives_up(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from taciturn.server.supervising import supervise\n"
        "sys.exit(supervise('127.0.0.1', 0, 2, lambda siblings, sockets: sys.exit(5)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 1


INHERITS = """
import ctypes, os, pathlib, sys, time
# As the first process of a container does, it gets those whose parent has gone.
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from taciturn.server.supervising import supervise

def serve(siblings, sockets):
    if siblings.first and os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.3)
            pathlib.Path(sys.argv[1]).touch()
        os._exit(0)
    time.sleep(60)

sys.exit(supervise("127.0.0.1", 0, 2, serve))
"""


def test_the_first_process_of_a_container_buries_strangers(tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    process = subprocess.Popen([sys.executable, "-c", INHERITS, str(dead)])
    try:
        _until(dead.exists)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_taken_address_is_said_and_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taciturn.server.supervising._BIND_S", 0.2)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    for shared in (False, True):
        with socket.socket() as taken:
            if shared:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(SpecError, match=f"127.0.0.1:{port} cannot be listened on"):
                supervise("127.0.0.1", port, 2, lambda *_: None)


def _answers(here: Running) -> float:
    """What Prometheus is told, by whichever process it asks."""
    text = httpx.get(f"{here.url}/metrics", headers=bearer(METRICS_TOKEN)).text
    lines = [line for line in text.splitlines() if line.startswith("taciturn_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if 'route="/v1/self"' in line)


def _has_served(pid: int, gateway: Gateway) -> bool:
    """Whoever has served has written to the audit log, and so has the database open."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(each))
        except FileNotFoundError:
            continue
    return str((gateway.settings.data_dir / "gateway.db").resolve()) in found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _ready(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/ready", timeout=20).is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(found: object) -> None:
    deadline = time.monotonic() + 60
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
