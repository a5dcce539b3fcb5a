"""`taciturn ledger show | verify`, as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from support.ledger import KEY, LedgerWorld, steps
from taciturn.accounting.compose import epsilon
from taciturn.cli.ledger import app
from taciturn.errors import DatabaseError, MissingDependencyError, SigningKeyError, SpecError
from taciturn.server.database import open_database
from taciturn.server.schema import versions
from taciturn.server.schema.ledger_file import LedgerFile

RUNNER = CliRunner(env={"COLUMNS": "160"})


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A ledger with a budget, a grant, and a job that has run for 40 steps."""
    made = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_database(made)
    versions.upgrade(engine)
    world = LedgerWorld(engine)
    world.open()
    world.grant("user:ada")
    token = world.started("job-7", grants=["user:ada"])
    world.charge(40, token, "job-7")
    world.ledger.record_exception(world.op(), "patients", "wild", approvals=["user:eve"])
    engine.dispose()
    return made


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.key"
    path.write_text(KEY.to_text() + "\n", encoding="ascii")
    return path


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TACITURN_DATABASE_URL", "TACITURN_LEDGER_KEY", "TACITURN_URL", "TACITURN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `taciturn ledger ...`; errors are raised as they are."""
    result = RUNNER.invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_show_lists_budgets_and_grants(url: str) -> None:
    code, output = run("show", "--database", url)
    assert code == 0
    assert "patients" in output
    assert "user:ada" in output
    assert "3.1%" in output  # 40 of 100 steps of 7.9%
    assert "1 release(s) without guarantee" in output
    assert "job-7" not in output


def test_show_of_one_namespace_lists_its_jobs(url: str, key: Path) -> None:
    code, output = run("show", "patients", "--database", url, "--key", key)
    assert code == 0
    assert "job-7" in output
    assert f"{epsilon(steps(40), 1e-6):.4g}" in output


def test_verify_says_what_it_checked(url: str, key: Path) -> None:
    code, output = run("verify", "--database", url)
    assert (code, "IN ORDER: 6 entries of 1 namespace(s); seals NOT checked" in output) == (0, True)
    code, output = run("verify", "--database", url, "--key", key)
    assert (code, "seals checked; 0 anchor(s)" in output) == (0, True)


def test_settings_come_from_the_environment(
    url: str, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACITURN_DATABASE_URL", url)
    monkeypatch.setenv("TACITURN_LEDGER_KEY", KEY.to_text())
    assert "seals checked" in run("verify")[1]


def test_verify_finds_an_edited_row(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER ledger_entries_no_update"))
        connection.execute(text("UPDATE ledger_entries SET recorded_at_ms = 0 WHERE sequence = 4"))
    code, output = run("verify", "--database", url)
    assert code == 1
    assert "entry 4" in output
    assert "NOT IN ORDER" in output


def test_an_anchor_is_written_and_checked(url: str, key: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    code, _ = run("verify", "--database", url, "--write-anchor", anchor)
    assert code == 0
    assert [each["entries"] for each in json.loads(anchor.read_text())] == [6]
    world = LedgerWorld(open_database(url))
    world.numbers = iter(range(100, 200))
    world.reserve("later", steps(1))
    code, output = run("verify", "--database", url, "--key", key, "--anchor", anchor)
    assert (code, "1 anchor(s) checked" in output) == (0, True)
    anchor.write_text(anchor.read_text().replace('"entries":6', '"entries":60'))
    code, output = run("verify", "--database", url, "--anchor", anchor)
    assert (code, "the anchor knows 60 entries" in output) == (1, True)


def test_no_anchor_is_written_of_a_ledger_that_is_not_in_order(url: str, tmp_path: Path) -> None:
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE ledger_accounts SET epsilon = 80"))
    anchor = tmp_path / "anchor.json"
    assert run("verify", "--database", url, "--write-anchor", anchor)[0] == 1
    assert not anchor.exists()


def test_what_is_missing_is_said(url: str, tmp_path: Path) -> None:
    for command, remedy in (("verify", "taciturn login"), ("show", "taciturn budget")):
        with pytest.raises(SpecError, match=f"TACITURN_DATABASE_URL.*{remedy}"):
            run(command)
    with pytest.raises(SigningKeyError, match="cannot be read"):
        run("verify", "--database", url, "--key", tmp_path / "no.key")
    other = tmp_path / "other.db"
    with pytest.raises(DatabaseError, match="no such file"):
        run("verify", "--database", f"sqlite:///{other}")
    assert not other.exists()
    other.touch()
    with pytest.raises(DatabaseError, match="revision none"):
        run("verify", "--database", f"sqlite:///{other}")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SpecError, match="no anchors"):
        run("verify", "--database", url, "--anchor", tmp_path / "bad.json")


def test_a_key_that_is_none_is_not_quoted(url: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    path.write_text("not-hexadecimal-secret")
    with pytest.raises(SigningKeyError) as caught:
        run("show", "--database", url, "--key", path)
    assert "not-hexadecimal" not in str(caught.value)


def test_without_the_extra_the_remedy_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is said to be missing where no database is named that it were needed for."""
    monkeypatch.setitem(sys.modules, "taciturn.server.database", None)
    for command in ("show", "verify"):
        with pytest.raises(SpecError, match="no database is named"):
            run(command)
    for command in ("show", "verify"):
        with pytest.raises(MissingDependencyError, match=r"taciturn\[server\]"):
            run(command, "--database", url)


def test_runs_without_a_budget_show_their_epsilon(tmp_path: Path) -> None:
    """Of a ledger that fits on this machine add up in."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    book = LedgerFile.open(url)
    for run_name in ("a", "b"):
        found = book.charge(run_name, "/data/notes.csv [id]", steps(20), 1e-5)
        book.settle(run_name)
    shown = f"/data/notes.csv [id]: epsilon={found.epsilon:.4g}, delta=1e-05 spent by 2 run(s)"
    for names in ((), ("/data/notes.csv [id]",)):
        code, output = run("show", *names, "--database", url)
        assert (code, shown in " ".join(output.split())) == (0, True)
    assert "committed" in output
    code, output = run("verify", "--database", url, "--key", tmp_path / "ledger.key")
    assert (code, "IN ORDER" in output) == (0, True)
