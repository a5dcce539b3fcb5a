"""Runs on one machine that add up in a ledger file: fits, evaluations, crashes and failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from taciturn.errors import (
    CheckpointError,
    DataError,
    MissingDependencyError,
    SpecError,
    UnknownEntryError,
)
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.reports.privacy import LedgerTotal, read_report
from taciturn.reports.spending import epsilon_of_steps
from taciturn.server.schema.ledger_file import LedgerFile

QUICK: dict[str, Any] = {
    "text_field": "text",
    "privacy_unit": "id",
    "target_epsilon": 4,
    "delta": 1e-4,
    "batch_size": 6,
    "steps": 2,
    "method": "lora",
    "r": 2,
    "max_tokens": 24,
}
JUDGED: dict[str, Any] = {"text_field": "text", "privacy_unit": "id", "max_tokens": 24}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.csv"
    text = [f"patient {i} had a cough" for i in range(24)]
    frame = pd.DataFrame({"text": text, "id": [f"p{i // 2}" for i in range(24)]})
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def fit(model: Path, data: object, ledger: str | None, **fields: Any) -> LLM:
    return LLM(str(model)).fit(data, ledger=ledger, **{**QUICK, **fields})


def total(model: LLM) -> LedgerTotal:
    assert model.privacy is not None
    assert model.privacy.ledger is not None
    return model.privacy.ledger


def booked(ledger: str, namespace: str) -> tuple[int, int]:
    found = LedgerFile.open(ledger).total(namespace)
    return found.jobs, found.exceptions


def test_fits_and_evaluations_of_several_models_add_up(
    tiny_llama: Path, notes: Path, ledger: str, tmp_path: Path
) -> None:
    first = fit(tiny_llama, str(notes), ledger, output=tmp_path / "first")
    assert first.privacy is not None
    assert total(first).epsilon == pytest.approx(first.privacy.epsilon)
    first.evaluate(str(notes), ledger=ledger, target_epsilon=1, delta=1e-4, **JUDGED)
    second = fit(tiny_llama, str(notes), ledger, output=tmp_path / "second")
    assert second.privacy is not None
    spent = [*first.privacy.private_steps, *second.privacy.private_steps]
    assert [step.purpose for step in spent] == ["fit", "evaluate", "fit"]
    assert total(second).runs == 3
    assert total(second).epsilon == pytest.approx(epsilon_of_steps(spent, 1e-4))
    assert second.privacy.epsilon is not None
    assert total(second).epsilon > second.privacy.epsilon
    # and the folder says so, for people too
    kept = read_report(tmp_path / "second" / "privacy_report.json")
    assert kept.ledger == total(second)
    assert kept.scope is not None
    assert "thrown away" in kept.scope
    for name in ("README.md", "report.html"):
        assert str(total(second)) in (tmp_path / "second" / name).read_text()


def test_without_a_ledger_the_report_says_what_it_does_not_know(
    tiny_llama: Path, notes: Path, ledger: str
) -> None:
    model = fit(tiny_llama, str(notes), None)
    assert model.privacy is not None
    assert model.privacy.ledger is None
    assert model.privacy.scope is not None
    model.evaluate(str(notes), ledger=ledger, target_epsilon=1, delta=1e-4, **JUDGED)
    assert total(model).runs == 1
    model.evaluate(str(notes), target_epsilon=1, delta=1e-4, **JUDGED)
    assert model.privacy.ledger is None  # a sum that lacks this one would say too little


def test_a_run_that_crashes_is_spent_and_charged_once(
    tiny_llama: Path, notes: Path, ledger: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def crash(_: object) -> None:
        assert booked(ledger, f"{notes} [id]") == (1, 0)  # before the first step is over
        raise RuntimeError

    observer = Observer(on_progress=crash)
    settings: dict[str, Any] = {"output": output, "checkpoint_every": 1, "steps": 3}
    with pytest.raises(RuntimeError):
        fit(tiny_llama, str(notes), ledger, observer=observer, **settings)
    assert booked(ledger, f"{notes} [id]") == (1, 0)


def test_a_resumed_run_is_charged_once(
    tiny_llama: Path, notes: Path, ledger: str, tmp_path: Path
) -> None:
    def crash(progress: Any) -> None:
        if progress.step == 2:
            raise RuntimeError

    settings: dict[str, Any] = {"output": tmp_path / "out", "checkpoint_every": 1, "steps": 3}
    with pytest.raises(RuntimeError):
        fit(tiny_llama, str(notes), ledger, observer=Observer(on_progress=crash), **settings)
    model = fit(tiny_llama, str(notes), ledger, resume=True, **settings)
    assert total(model).runs == 1
    assert booked(ledger, f"{notes} [id]") == (1, 0)


def test_a_resumed_run_that_is_refused_costs_nothing(
    tiny_llama: Path, notes: Path, ledger: str, tmp_path: Path
) -> None:
    """Nor does it keep the right one from being resumed."""

    def crash(progress: Any) -> None:
        if progress.step == 2:
            raise RuntimeError

    settings: dict[str, Any] = {"output": tmp_path / "out", "checkpoint_every": 1, "steps": 3}
    with pytest.raises(RuntimeError):
        fit(tiny_llama, str(notes), None, observer=Observer(on_progress=crash), **settings)
    with pytest.raises(CheckpointError):
        fit(tiny_llama, str(notes), ledger, resume=True, **{**settings, "target_epsilon": 3})
    with pytest.raises(UnknownEntryError):
        booked(ledger, f"{notes} [id]")
    model = fit(tiny_llama, str(notes), ledger, resume=True, **settings)
    assert model.privacy is not None
    assert total(model).epsilon == pytest.approx(model.privacy.epsilon)


def test_what_fails_before_a_step_costs_nothing(
    tiny_llama: Path, notes: Path, ledger: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        fit(tiny_llama, str(notes), ledger, text_field="nothing")
    with pytest.raises(DataError):
        fit(tiny_llama, str(tmp_path / "nowhere.csv"), ledger)
    fit(tiny_llama, str(notes), ledger)
    assert booked(ledger, f"{notes} [id]") == (1, 0)


def test_what_has_no_guarantee_is_written_down(tiny_llama: Path, notes: Path, ledger: str) -> None:
    model = fit(tiny_llama, str(notes), ledger, target_epsilon="unlimited", delta=None)
    assert total(model).without_guarantee == 1
    model.evaluate(str(notes), ledger=ledger, show_private=True, **JUDGED)
    model.evaluate(str(notes), ledger=ledger, text_field="text")  # declared public
    assert booked(ledger, f"{notes} [id]") == (0, 2)


def test_units_do_not_add_up_to_each_other(tiny_llama: Path, notes: Path, ledger: str) -> None:
    for unit in ("id", None):
        assert total(fit(tiny_llama, str(notes), ledger, privacy_unit=unit, delta=1e-3)).runs == 1


def test_rows_in_memory_have_to_be_named(tiny_llama: Path, notes: Path, ledger: str) -> None:
    rows = pd.read_csv(notes)
    with pytest.raises(SpecError, match="give ledger_namespace"):
        fit(tiny_llama, rows, ledger)
    for runs in (1, 2):
        assert total(fit(tiny_llama, rows, ledger, ledger_namespace="notes")).runs == runs
    with pytest.raises(SpecError, match="give ledger, for example"):
        fit(tiny_llama, rows, None, ledger_namespace="notes")


def test_a_ledger_needs_the_server_package(
    tiny_llama: Path, notes: Path, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "taciturn.server.schema.ledger_file", raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingDependencyError, match=r"install taciturn\[server\]"):
        fit(tiny_llama, str(notes), ledger)
