"""`taciturn doctor --audit`: the engine's promise beside what an attack on it proves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mutants.broken_mechanisms import HalfNoise
from support import released_files
from taciturn.cli.doctor import run_doctor
from taciturn.engine.auditing import engine_audit
from taciturn.engine.auditing.gradient_canaries import Engine
from taciturn.engine.training import memory
from taciturn.reports.privacy import PrivacyReport

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """The folder of a model, as far as the doctor looks at it."""
    run = {"noise_multiplier": 2.0, "sampling_probability": 0.25, "steps": 3, "dp_event": None}
    report = released_files.report(epsilon=1.9, n_units=400, expected_batch_size=100, **run)
    (tmp_path / "privacy_report.json").write_text(report.model_dump_json())
    return tmp_path


def test_engine_at_the_settings_of_a_model(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(model=fitted)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("q=0.25, noise 2", "steps 3", "at delta 1e-06", "10,000 canaries, proves"):
        assert all(word in printed for word in text.split())


def test_a_broken_engine_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_audit, "Engine", partial(Engine, mechanism=HalfNoise))
    assert not run_doctor(audit=True)
    assert "PROBLEM" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_folder_without_a_report(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "privacy_report.json").write_text(content)
    assert not run_doctor(model=tmp_path)
    assert "PROBLEM" in capsys.readouterr().out


def test_a_model_without_privacy(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fitted / "privacy_report.json"
    report = PrivacyReport.model_validate_json(path.read_text())
    none = {"guarantee": "none", "noise_multiplier": None, "epsilon": None, "delta": None}
    path.write_text(report.model_copy(update=none).model_dump_json())
    assert not run_doctor(model=fitted)
    assert "promises nothing" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(("free", "verdict"), [(3 << 30, "ok"), (1 << 29, "PROBLEM"), (None, "ok")])
def test_memory_is_what_a_program_could_have(
    free: int | None,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    assert run_doctor() == (verdict == "ok")
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "free memory" in each)
    assert verdict in line
