"""`taciturn audit`: the verdict on the screen, and an exit code for a broken guarantee."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from taciturn.cli import ExitCode
from taciturn.cli.main import app
from taciturn.errors import SpecError, UnknownFieldError
from taciturn.llm import LLM
from taciturn.local import model
from taciturn.reports.privacy import Audit, PrivacyReport
from taciturn.reports.verdict import BROKEN, verdict


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))


@pytest.fixture(scope="module")
def original(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command line, whose flags follow from the spec."""
    folder = tmp_path_factory.mktemp("cli")
    frame = pd.DataFrame({"text": [f"Patient {n} has a cough." for n in range(20)]})
    frame.to_csv(folder / "notes.csv", index=False)
    settings = ["--target-epsilon", "8", "--steps", "1", "--output", str(folder / "out")]
    canaries = ["--canaries", "20", "--canary-kind", "secret"]
    data = ["--model", str(tiny_llama), "--data", str(folder / "notes.csv")]
    done = run("fit", *data, *settings, *canaries)
    assert done.exit_code == 0, done.exception
    return folder / "out"


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TACITURN_SIGNING_KEY", raising=False)
    return Path(shutil.copytree(original, tmp_path / "out"))


def test_it_says_what_it_wrote(folder: Path) -> None:
    done = run("audit", str(folder))
    assert done.exit_code == 0, done.exception
    assert "20 canaries (secret)" in done.output
    found = Audit.model_validate_json((folder / "audit.json").read_text())
    assert found.verdict in done.output
    assert all(f" {each.guesses} " in done.output for each in found.rounds)


def test_fields_come_from_a_file_and_flags_win(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "audit.yaml"
    file.write_text(yaml.safe_dump({"model": str(folder), "confidence": 0.8}))
    assert run("audit", "-f", str(file)).exit_code == 0
    assert json.loads((folder / "audit.json").read_text())["confidence"] == 0.8
    assert run("audit", "-f", str(file), "--confidence", "0.9").exit_code == 0
    assert json.loads((folder / "audit.json").read_text())["confidence"] == 0.9
    file.write_text(yaml.safe_dump({"model": str(folder), "canaries": 5}))
    assert isinstance(run("audit", "-f", str(file)).exception, UnknownFieldError)


def test_a_broken_guarantee_has_an_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = model.auditing.audit

    def more(subject: object, report: PrivacyReport, *rest: object) -> Audit:
        found = honest(subject, report, *rest)  # type: ignore[arg-type]
        found = found.model_copy(update={"epsilon_lower_bound": 9.0})
        return found.model_copy(update={"verdict": verdict(found, report)})

    monkeypatch.setattr(model.auditing, "audit", more)
    done = run("audit", str(folder))
    assert done.exit_code == ExitCode.VERDICT
    assert BROKEN in done.output


def test_bad_input(folder: Path, tiny_llama: Path) -> None:
    done = run("audit", str(tiny_llama))
    assert isinstance(done.exception, SpecError)
    done = run("audit", str(folder), "--confidence", "1.5")
    assert isinstance(done.exception, SpecError)
    assert "confidence=1.5" in str(done.exception)
    assert not (folder / "audit.json").exists()
    assert LLM(str(folder)).privacy is not None
