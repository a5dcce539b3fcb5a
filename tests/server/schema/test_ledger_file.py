"""One file in which runs add up: charged before they begin, whatever ends them."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.errors import BudgetExceededError, DatabaseError, LedgerTamperedError, SigningKeyError
from taciturn.server.ledger import SealKey, verify
from taciturn.server.schema.ledger_file import LedgerFile, namespace_of

STEPS = dpsgd_event(sampling_probability=0.1, noise_multiplier=1.0, steps=50)
TWICE = dpsgd_event(sampling_probability=0.1, noise_multiplier=1.0, steps=100)


def opened(folder: Path) -> LedgerFile:
    return LedgerFile.open(f"sqlite:///{folder}/ledger.db")


def test_runs_add_up_and_the_file_is_verified(tmp_path: Path) -> None:
    book = opened(tmp_path)
    assert book.charge("a", "notes [id]", STEPS, 1e-5).epsilon == epsilon(STEPS, 1e-5)
    book.settle("a")
    found = opened(tmp_path).charge("b", "notes [id]", STEPS, 1e-5)
    assert (found.epsilon, found.jobs) == (epsilon(TWICE, 1e-5), 2)
    assert book.charge("c", "notes [one record]", STEPS, 1e-5).jobs == 1
    assert verify(book.engine, key=book.key, anchors=[]).ok


def test_a_run_is_charged_once_however_often_it_is_resumed(tmp_path: Path) -> None:
    book = opened(tmp_path)
    first = book.charge("a", "notes", STEPS, 1e-5)
    assert opened(tmp_path).charge("a", "notes", STEPS, 1e-5) == first
    book.settle("a")
    assert opened(tmp_path).charge("a", "notes", STEPS, 1e-5) == first
    book.settle("a")


def test_a_run_that_was_not_settled_stays_spent(tmp_path: Path) -> None:
    spent = opened(tmp_path).charge("a", "notes", STEPS, 1e-5)
    assert opened(tmp_path).total("notes") == spent
    opened(tmp_path).settle("never charged")


def test_the_smallest_delta_holds_for_all(tmp_path: Path) -> None:
    book = opened(tmp_path)
    book.charge("a", "notes", STEPS, 1e-5)
    assert book.charge("b", "notes", STEPS, 1e-7).epsilon == epsilon(TWICE, 1e-7)
    assert book.charge("c", "notes", STEPS, 1e-4).delta == 1e-7


def test_what_has_no_guarantee_is_counted_apart(tmp_path: Path) -> None:
    book = opened(tmp_path)
    assert book.record_exception("a", "notes", 1e-5).exceptions == 1
    found = book.charge("b", "notes", STEPS, 1e-5)
    assert (found.epsilon, found.exceptions) == (epsilon(STEPS, 1e-5), 1)
    assert book.record_exception("a", "notes", 1e-5).exceptions == 1


def test_a_budget_that_an_owner_has_set_holds(tmp_path: Path) -> None:
    book = opened(tmp_path)
    book._ledger.open_account("op", "notes", epsilon=0.5, delta=1e-6)
    with pytest.raises(BudgetExceededError):
        book.charge("a", "notes", STEPS, 1e-9)
    assert book.total("notes").jobs == 0
    assert book.total("notes").delta == 1e-6


def test_the_key_is_beside_the_file_and_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = opened(tmp_path)
    path = tmp_path / "ledger.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert book.key == SealKey.from_text(path.read_text())
    book.charge("a", "notes", STEPS, 1e-5)
    monkeypatch.setenv("TACITURN_LEDGER_KEY", SealKey.generate().to_text())
    with pytest.raises(LedgerTamperedError):
        opened(tmp_path).charge("b", "notes", STEPS, 1e-5)


def test_what_is_no_ledger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TACITURN_LEDGER_KEY", raising=False)
    for url in ("ledger.db", "sqlite://", "mysql://host/x"):
        with pytest.raises(DatabaseError):
            LedgerFile.open(url)
    with pytest.raises(DatabaseError, match="name a file in a folder that is there"):
        LedgerFile.open(f"sqlite:///{tmp_path}/nowhere/ledger.db")
    with pytest.raises(SigningKeyError, match="TACITURN_LEDGER_KEY"):
        LedgerFile.open("postgresql+psycopg://localhost/x")
    (tmp_path / "ledger.key").write_text("no key")
    with pytest.raises(SigningKeyError):
        opened(tmp_path)


def test_runs_that_begin_at_once_are_all_counted(tmp_path: Path) -> None:
    """Of a file that none of them has found there."""

    def run(number: int) -> None:
        book = opened(tmp_path)
        book.charge(f"run-{number}", "notes", STEPS, 1e-5)
        book.settle(f"run-{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(12)))
    assert opened(tmp_path).total("notes").jobs == 12
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".db", ".key")) == [
        "ledger.db",
        "ledger.key",
    ]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_names_of_namespaces(tmp_path: Path) -> None:
    assert namespace_of("/data/notes.csv", "id") == "/data/notes.csv [id]"
    long = namespace_of("/data/notes.csv", "coalesce(id,\n\t'x')" + " || 'y'" * 100)
    other = namespace_of("/data/notes.csv", "coalesce(id,\n\t'x')" + " || 'y'" * 99 + " || 'z'")
    assert len(long) <= 200
    assert long != other
    book = opened(tmp_path)
    assert book.charge("a", long, STEPS, 1e-5).jobs == 1
