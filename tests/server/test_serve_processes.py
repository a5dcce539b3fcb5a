"""`taciturn serve` as several processes on PostgreSQL: one gateway, whichever of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from support.gateway import bearer
from support.postgres import PostgresServer
from taciturn.cli.main import app
from taciturn.errors import SpecError
from taciturn.server import serve
from taciturn.server.bootstrap import open_engine, open_gateway
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.schema import versions
from taciturn.server.schema.tables import audit_log
from taciturn.server.settings import Settings
from taciturn.wire.identity import Role

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")
COUNT = 2
METRICS_TOKEN = "a token for Prometheus"


@dataclass(frozen=True)
class Running:
    """A gateway in several processes."""

    process: subprocess.Popen[bytes]
    url: str
    gateway: Gateway
    admin: str

    def children(self) -> list[int]:
        """Its serving processes; multiprocessing has a process of its own beside them."""
        pid = self.process.pid
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in pids if b"spawn_main" in command(int(each))]

    def ask(self, path: str = "self", token: str | None = None) -> httpx.Response:
        """On a new connection, so that any of them may answer."""
        return get(f"{self.url}/v1/{path}", token or self.admin)


def get(url: str, token: str | None = None) -> httpx.Response:
    """Answer to a GET on a new connection. There is no TLS, whose certificates take longer to load
    than the answer takes to come."""
    headers = {} if token is None else bearer(token)
    return httpx.get(url, headers=headers, timeout=60, verify=False)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def process(settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (Path(settings["TACITURN_DATA_DIR"]) / "log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "taciturn", "serve"],
            env={**os.environ, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            until(lambda: is_ready(settings["TACITURN_PORT"], running))
            yield running
        finally:
            running.kill()
            running.wait()


@pytest.fixture(scope="module")
def settings(cluster: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {
        "TACITURN_DATABASE_URL": cluster.create("processes"),
        "TACITURN_LEDGER_KEY": "11" * 32,
        "TACITURN_DATA_DIR": str(tmp_path_factory.mktemp("gateway")),
        "TACITURN_PORT": str(port),
        "TACITURN_PROCESSES": str(COUNT),
        "TACITURN_METRICS_TOKEN": METRICS_TOKEN,
    }


@pytest.fixture(scope="module")
def here(settings: dict[str, str]) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        own = Settings()
    versions.upgrade(open_engine(own))
    gateway = open_gateway(own)
    admin = serve.first_admin(gateway)
    assert admin is not None
    with process(settings) as running:
        yield Running(running, f"http://127.0.0.1:{settings['TACITURN_PORT']}", gateway, admin)
    gateway.engine.dispose()


def test_all_of_them_answer_and_all_is_counted_and_on_record(here: Running) -> None:
    before, asked = answers(here), 40
    assert all(here.ask().status_code == 200 for _ in range(asked))
    assert answers(here) == before + asked
    with here.gateway.engine.begin() as connection:
        rows = connection.execute(audit_log.select()).all()
    assert sum(row.resource == "/v1/self" for row in rows) >= asked
    assert len(here.children()) == COUNT


def test_a_revoked_token_opens_no_door_any_more(here: Running) -> None:
    """Those who remember its holder are notified, and do not wait until they forget."""
    directory = Directory(here.gateway)
    user = directory.create_user(f"user-{os.urandom(3).hex()}", [Role.PRACTITIONER])

    def statuses() -> Counter[int]:
        made = directory.create_token(kind="api", name="x", user_id=user, lifetime_ms=10**7)
        assert all(here.ask(token=made.text).status_code == 200 for _ in range(20))
        gone = httpx.delete(f"{here.url}/v1/tokens/{made.id}", headers=bearer(made.text))
        assert gone.is_success
        time.sleep(0.3)  # less than they would remember by themselves
        return Counter(here.ask(token=made.text).status_code for _ in range(20))

    # On a busy machine a notification may be late once, and not every time.
    assert any(statuses() == {401: 20} for _ in range(5))


@pytest.mark.thorough
def test_whichever_dies_the_gateway_goes_on(here: Running) -> None:
    for number in range(COUNT):
        before = here.children()
        os.kill(before[number], signal.SIGKILL)
        assert [here.ask().status_code for _ in range(10)] == [200] * 10
        until(lambda before=before: len(set(here.children()) - set(before)) == 1)


@pytest.mark.thorough
def test_an_end_is_orderly_and_a_death_leaves_nobody(
    here: Running, settings: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = {**settings, "TACITURN_PORT": str(port), "TACITURN_DATA_DIR": str(tmp_path)}
    url = f"http://127.0.0.1:{port}"
    with process(own) as running:
        found = Running(running, url, here.gateway, here.admin)
        until(lambda: len(found.children()) == COUNT)
        children = found.children()
        time.sleep(3)  # until all serve
        running.send_signal(signal.SIGTERM)
        assert running.wait(240) == 0
        until(lambda: not any(map(is_alive, children)))
        with pytest.raises(httpx.TransportError):
            found.ask()
    with process(own) as running:
        again = Running(running, url, here.gateway, here.admin)
        children = again.children()
        assert again.ask().status_code == 200
        running.kill()
        running.wait()
        until(lambda: not any(map(is_alive, children)))


def broken() -> None:
    """An application that cannot be made."""
    raise RuntimeError("no")


@pytest.mark.thorough
def test_a_gateway_whose_processes_cannot_start_gives_up(tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text(
        "import sys\n"
        "from taciturn.server.serve import run\n"
        "from taciturn.server.settings import Settings\n"
        "def broken():\n    raise RuntimeError('no')\n"
        "if __name__ == '__main__':\n"
        "    url = 'postgresql+psycopg://nowhere/x'\n"
        "    sys.exit(run(Settings(port=0, processes=2, database_url=url), broken))\n"
    )
    done = subprocess.run([sys.executable, program], timeout=120, check=False, capture_output=True)
    assert done.returncode == 1, done.stderr
    assert b"the gateway cannot serve" in done.stderr


def test_a_taken_address_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serve, "_BIND_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve.run(Settings(port=port, data_dir=tmp_path), broken)


def test_sqlite_serves_one_process(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).process_count == 1
    for url in ({}, {"TACITURN_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}"}):
        environment = {"TACITURN_DATA_DIR": str(tmp_path), "TACITURN_PROCESSES": "2", **url}
        refused = CliRunner(env=environment).invoke(app, ["serve"])
        assert isinstance(refused.exception, SpecError)
        assert str(refused.exception).startswith("TACITURN_PROCESSES: ")
        assert (
            "2 processes on SQLite, which serves 1; set TACITURN_PROCESSES=1, or name a Postgre"
            in (str(refused.exception))
        )


def answers(here: Running) -> float:
    """What Prometheus is told, by whichever process it asks."""
    text = get(f"{here.url}/metrics", METRICS_TOKEN).text
    lines = [line for line in text.splitlines() if line.startswith("taciturn_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if 'route="/v1/self"' in line)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_ready(port: str, running: subprocess.Popen[bytes]) -> bool:
    assert running.poll() is None
    try:
        return get(f"http://127.0.0.1:{port}/v1/ready").is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
