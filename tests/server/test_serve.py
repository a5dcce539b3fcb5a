"""`taciturn serve` as a process: a first token once, a check with remedies, an end that waits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from support.client import Client
from support.gateway import GatewayWorld, bearer
from taciturn.cli.main import app
from taciturn.errors import SpecError
from taciturn.server.app import create_app
from taciturn.server.bootstrap import open_gateway
from taciturn.server.models.storage import ObjectStore
from taciturn.server.preflight import check
from taciturn.server.schema.tables import audit_log, tokens, users
from taciturn.server.serve import first_admin, recovered_admin
from taciturn.server.settings import Settings

RUNNER = CliRunner(env={"COLUMNS": "200"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "taciturn", "serve"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_until_ready(url: str) -> None:
    for _ in range(2400):
        try:
            # No TLS here: certificates would be read for each call, in 40 ms.
            if httpx.get(f"{url}/v1/ready", verify=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the gateway did not come up")


def wait_until_deaf(port: int) -> None:
    deadline = time.monotonic() + 60
    with pytest.raises(OSError):  # noqa: PT012 - the one that is refused
        while time.monotonic() < deadline:
            socket.create_connection(("127.0.0.1", port)).close()
            time.sleep(0.05)


def test_from_a_fresh_machine_to_a_graceful_end(tmp_path: Path) -> None:
    """The first admin's token works; a request that is under way is finished after SIGTERM; the
    second start says no token, and the log holds none."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(tmp_path / "data", port) as process:
        wait_until_ready(url)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        token = re.search(r"tac_\S+", "".join(lines))
        assert token is not None
        me = httpx.get(f"{url}/v1/self", headers=bearer(token[0]))
        assert me.json()["roles"] == ["admin"]
        slow = _slow_request(port, token[0])
        process.send_signal(signal.SIGTERM)
        wait_until_deaf(port)
        assert b" 201 " in _finished(slow)
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0
        assert token[0] not in log
        assert all(json.loads(line) for line in log.splitlines())
    port = free_port()
    with serving(tmp_path / "data", port) as process:
        wait_until_ready(f"http://127.0.0.1:{port}")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert "tac_" not in output


BODY = b'{"name": "slow"}'


def _slow_request(port: int, token: str) -> socket.socket:
    """A request whose body has come in half."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {token}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        + BODY[:5]
    )
    time.sleep(0.2)
    return connection


def _finished(connection: socket.socket) -> bytes:
    connection.sendall(BODY[5:])
    with connection:
        return connection.recv(4096).split(b"\r\n")[0]


def test_of_many_gateways_that_start_at_once_one_makes_the_first_admin(
    world: GatewayWorld,
) -> None:
    made: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: made.append(first_admin(world.gateway))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = [each for each in made if each]
    assert len(tokens) == 1
    me = world.client.get("/v1/self", headers=bearer(tokens[0])).json()
    assert (me["name"], me["roles"]) == ("admin", ["admin"])


def test_a_lost_admin_is_let_in_again_on_the_machine_and_on_record(tmp_path: Path) -> None:
    environment = {"TACITURN_DATA_DIR": str(tmp_path)}
    first = first_admin(open_gateway(Settings(data_dir=tmp_path)))
    assert first is not None
    gateway = open_gateway(Settings(data_dir=tmp_path))
    with gateway.engine.begin() as connection:
        connection.execute(update(users).values(disabled=True, roles="owner"))
    result = RUNNER.invoke(app, ["serve", "--new-admin-token"], env=environment)
    assert result.exit_code == 0, result.output
    found = re.findall(r"tac_[0-9a-z]{20}_[\w-]+", result.output)
    assert len(found) == 1
    client = Client(create_app(gateway))
    me = client.get("/v1/self", headers=bearer(found[0])).json()
    assert (me["name"], me["roles"]) == ("admin", ["admin"])
    assert client.get("/v1/self", headers=bearer(first)).status_code == 401
    with gateway.engine.connect() as connection:
        row = connection.execute(select(audit_log).order_by(audit_log.c.id)).first()
        kept = connection.execute(select(tokens.c.id).where(tokens.c.name == "recovery")).scalar()
    assert row is not None
    assert (row.actor, row.action, row.resource) == ("operator", "admin:recover", "users/admin")
    assert json.loads(row.details) == {"token": kept}
    assert found[0] not in str(row)


def test_a_new_admin_token_does_without_a_first_start(world: GatewayWorld) -> None:
    """Also where the user is not there, and on both databases."""
    token = recovered_admin(world.gateway)
    me = world.client.get("/v1/self", headers=bearer(token)).json()
    assert (me["name"], me["roles"]) == ("admin", ["admin"])
    assert world.recorded()[0].action == "admin:recover"


def test_the_check_uses_the_store_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes files and cannot rename them, as some object stores' rights have it."""
    settings = Settings(data_dir=tmp_path, storage_url=f"file://{tmp_path / 'store'}")
    assert all(finding.fine for finding in check(settings) if finding.what == "storage")
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert left == []

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("no renaming")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.mv", refused)
    monkeypatch.setattr("fsspec.spec.AbstractFileSystem.mv", refused)
    (problem,) = [each for each in check(settings) if each.what == "storage"]
    assert "PermissionError" in problem.text
    monkeypatch.setattr(ObjectStore, "write", lambda *_: None)
    monkeypatch.setattr(ObjectStore, "get", lambda *_: iter([b"stale"]))
    (problem,) = [each for each in check(settings) if each.what == "storage"]
    assert "other bytes" in problem.text


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"data_dir": "/dev/null/nowhere"}, "data folder"),
        ({"storage_url": "file:///proc/nowhere"}, "storage"),
        ({"oidc_issuer": "https://login.example"}, "OIDC login"),
        ({"host": "0.0.0.0"}, "transport"),
        ({"database_url": "postgresql+psycopg://127.0.0.1:1/x?connect_timeout=1"}, "database"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_found_with_its_remedy(
    tmp_path: Path, settings: dict[str, str], what: str
) -> None:
    found = check(Settings.model_validate({"data_dir": tmp_path, **settings}))
    problems = [finding for finding in found if not finding.fine]
    assert [finding.what for finding in problems] == [what]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("trusted", [None, "10.3.0.0/16"])
def test_behind_a_proxy_the_check_says_whose_logins_fail(
    tmp_path: Path, trusted: str | None
) -> None:
    settings = Settings(
        data_dir=tmp_path, public_url="https://gateway.example", trusted_proxies=trusted
    )
    (proxy,) = [each for each in check(settings) if each.what == "proxy"]
    assert proxy.fine
    assert ("for everybody" in proxy.text) is (trusted is None)


def test_a_missing_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = [each for each in check(Settings(data_dir=tmp_path)) if not each.fine]
    assert "taciturn[engine]" in problems[0].remedy


def test_the_check_and_the_migration_as_they_are_typed(tmp_path: Path, empty_url: str) -> None:
    environment = {
        "TACITURN_DATABASE_URL": empty_url,
        "TACITURN_LEDGER_KEY": "11" * 32,
        "TACITURN_DATA_DIR": str(tmp_path),
    }
    if empty_url.startswith("postgresql"):
        failed = RUNNER.invoke(app, ["serve", "--check"], env=environment)
        assert failed.exit_code == 1
        assert "taciturn serve --migrate" in failed.output
    migrated = RUNNER.invoke(app, ["serve", "--migrate"], env=environment)
    assert migrated.exit_code == 0, migrated.output
    passed = RUNNER.invoke(app, ["serve", "--check"], env=environment)
    assert passed.exit_code == 0, passed.output
    assert "seals of 0 namespace(s) are in order" in passed.output


def test_a_wrong_setting_is_named_without_its_value(tmp_path: Path) -> None:
    for environment in ({"TACITURN_PORT": "canary"}, {"TACITURN_OIDC_ROLES": "canary"}):
        result = RUNNER.invoke(app, ["serve", "--check"], env=environment)
        assert isinstance(result.exception, SpecError)
        assert "canary" not in str(result.exception)
