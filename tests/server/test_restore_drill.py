"""The restore drill of docs/operate/backup.md: spend, back up, destroy, restore, verify.

The dump is made by the programs that an operator would use. An anchor that is newer than a backup
finds that the backup is old; without one, an old state looks true.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from support.gateway import GatewayWorld, fit
from support.postgres import PostgresServer
from taciturn.cli.main import app
from taciturn.server.database import open_database
from taciturn.server.ledger import SealKey
from taciturn.server.schema import versions


@dataclass(frozen=True)
class Installation:
    """Database that can be dumped, destroyed and restored."""

    url: str
    dump: Callable[[Path], object]
    destroy: Callable[[], object]
    restore: Callable[[Path], object]


def _sqlite(folder: Path) -> Installation:
    path = folder / "gateway.db"

    def dump(copy_path: Path) -> None:
        with closing(sqlite3.connect(path)) as live, closing(sqlite3.connect(copy_path)) as copy:
            live.backup(copy)

    def destroy() -> None:
        for file in folder.glob("gateway.db*"):
            file.unlink()

    return Installation(f"sqlite:///{path}", dump, destroy, lambda copy: shutil.copy(copy, path))


def _postgresql(server: PostgresServer, name: str) -> Installation:
    login = ["--host", str(server.folder), "--username", "taciturn"]

    def dump(copy: Path) -> None:
        _run("pg_dump", *login, "--format=custom", "--file", str(copy), name)

    def restore(copy: Path) -> None:
        server.create(name)
        _run("pg_restore", *login, "--dbname", name, str(copy))

    return Installation(server.create(name), dump, lambda: server.drop(name), restore)


def _run(program: str, *arguments: str) -> None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    path = shutil.which(program) or str(installed[-1])
    subprocess.run([path, *arguments], check=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    if request.param == "sqlite":
        return _sqlite(tmp_path)
    return _postgresql(request.getfixturevalue("cluster"), "drill")


def verify(installation: Installation, key: Path, *options: str) -> tuple[int, str]:
    command = ["ledger", "verify", "--database", installation.url, "--key", str(key), *options]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    return result.exit_code, result.output


def test_a_backup_is_restored_and_an_old_one_is_found(
    installation: Installation, tmp_path: Path
) -> None:
    key_file, early, late = tmp_path / "ledger.key", tmp_path / "early", tmp_path / "late"
    first_anchor, last_anchor = str(tmp_path / "first.json"), str(tmp_path / "last.json")
    key = SealKey.generate()
    key_file.write_text(key.to_text(), encoding="utf-8")
    engine = open_database(installation.url)
    versions.upgrade(engine)
    world = GatewayWorld.for_jobs(engine, tmp_path, key=key)
    world.submit(fit(target_epsilon=1.0), key="key-00001")
    installation.dump(early)
    assert verify(installation, key_file, "--write-anchor", first_anchor)[0] == 0
    world.submit(fit(target_epsilon=0.5), key="key-00002")
    balance = _balance(world)
    installation.dump(late)
    assert verify(installation, key_file, "--write-anchor", last_anchor)[0] == 0

    engine.dispose()
    installation.destroy()
    installation.restore(late)
    code, text = verify(installation, key_file, "--anchor", first_anchor, "--anchor", last_anchor)
    assert (code, "IN ORDER" in text) == (0, True), text
    assert _balance(_opened(installation, tmp_path, world)) == balance

    installation.destroy()
    installation.restore(early)
    assert verify(installation, key_file, "--anchor", first_anchor)[0] == 0
    code, text = verify(installation, key_file, "--anchor", last_anchor)
    assert (code, "NOT IN ORDER" in text) == (1, True), text


def _balance(world: GatewayWorld) -> object:
    answer = world.get("budgets/patients", "olga")
    assert answer.status_code == 200, answer.text
    return answer.json()["taken"]


def _opened(installation: Installation, folder: Path, before: GatewayWorld) -> GatewayWorld:
    """Return the gateway on the restored database; people's tokens are in it, too."""
    engine: Engine = open_database(installation.url)
    after = GatewayWorld.open(engine, folder, key=before.gateway.seal_key)
    after.tokens, after.users = before.tokens, before.users
    return after
