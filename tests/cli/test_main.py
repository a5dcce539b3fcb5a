"""The command line: flags are the spec's fields, errors one line, Ctrl-C leaves a checkpoint."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from taciturn.cli import main as cli
from taciturn.spec import JobSpec

Taciturn = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    lines = [{"id": f"{i // 2}_{i}", "text": f"Note {i}: the patient coughs."} for i in range(40)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_every_field_is_a_flag(taciturn: Taciturn) -> None:
    for command in ("fit", "plan"):
        _, text, _ = taciturn(command, "--help")
        flags = set(re.findall(r"--[a-z][a-z0-9-]*", text))
        for name in JobSpec.model_fields:
            assert "--" + name.replace("_", "-") in flags, (command, name)


def test_fit_then_sample_then_evaluate(
    taciturn: Taciturn,
    tiny_llama: Path,
    notes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    job = {
        "model": str(tiny_llama),
        "data": str(notes),
        "text_field": "text",
        "privacy_unit": "split_part(id, '_', 1)",
        "target_epsilon": 5,
        "batch_size": 8,
        "steps": 2,
        "output": "from-yaml",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, out, err = taciturn("fit", "-f", "job.yaml", "--output", "out")
    assert code == 0, err
    assert "DP (epsilon=" in out
    assert "number of units (public): 20" in out
    assert not (tmp_path / "from-yaml").exists()
    report = json.loads((tmp_path / "out" / "privacy_report.json").read_text())
    assert report["steps"] == 2
    sample = ("sample", "out", "-p", "The patient", "--max-new-tokens", "4", "--seed", "1")
    code, out, err = taciturn(*sample)
    assert code == 0, err
    assert "policy: DP (epsilon=" in out
    assert "The patient" in out
    code, out, err = taciturn("evaluate", "out", str(notes), "--text-field", "text")
    assert code == 0, err
    assert "perplexity" in out


def test_private_curves_only_when_asked(
    taciturn: Taciturn, tiny_llama: Path, notes: Path, tmp_path: Path
) -> None:
    common = ["fit", "--model", str(tiny_llama), "--data", str(notes), "--text-field", "text"]
    common += ["--target-epsilon", "5", "--steps", "2", "--batch-size", "8"]
    code, out, err = taciturn(*common, "--output", str(tmp_path / "quiet"))
    assert code == 0, err
    assert "loss" not in out + err
    _, out, _ = taciturn(*common, "--output", str(tmp_path / "shown"), "--show-private")
    assert "private: step 2, loss" in out


def test_plan_prints_everything_before_anything_runs(
    taciturn: Taciturn, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = taciturn(
        "plan", "--model", str(tiny_llama), "--n-units", "1000", "--target-epsilon", "3",
        "--epochs", "3", "--batch-size", "100",
    )  # fmt: skip
    assert code == 0, err
    for word in ("noise multiplier", "steps", "sampling probability", "epsilon", "estimated time"):
        assert word in out
    assert "nearby choices" in out
    assert "worth: " in out
    assert "of what an ordinary fit would learn" in out
    assert "more or less time (--max-minutes)" in out
    assert list(tmp_path.iterdir()) == []


def test_plan_takes_a_time_limit(taciturn: Taciturn, tiny_llama: Path) -> None:
    asked = ["plan", "--model", str(tiny_llama), "--n-units", "5000", "--target-epsilon", "3"]
    code, out, err = taciturn(*asked, "--max-minutes", "0.1")
    assert code == 0, err
    assert "max_minutes=0.1: time for about" in out
    assert "public random tokens" in " ".join(out.split())
    code, _, err = taciturn(*asked, "--max-minutes", "1", "--batch-size", "8", "--steps", "9")
    assert code == 1
    assert "leave one of them out" in " ".join(err.split())


def test_doctor_finds_everything_in_place(taciturn: Taciturn) -> None:
    code, out, err = taciturn("doctor")
    assert code == 0, out + err
    for word in ("torch", "device", "memory", "entropy", "everything is in place"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model", "x", "--data", "y"], "target_epsilon is not set"),
        (["fit", "--model", "x", "--data", "y", "--target-epsilon", "0"], r"\[0.01, 1000\]"),
        (["fit", "--model", "x", "--target-epsilon", "3"], "data"),
        (["fit", "-f", "missing.yaml"], "cannot be read"),
        (["plan", "--model", "x", "--target-epsilon", "3"], "--n-units"),
        (["sample", "/no/such/model", "-p", "x"], "check the path"),
        (["demo", "-o", "/no/such/folder/x.html"], "is not there"),
    ],
)
def test_errors_are_one_line_with_the_remedy(
    taciturn: Taciturn,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = taciturn(*arguments)
    assert code == 1
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert "policy" not in out
    assert list(tmp_path.iterdir()) == []


def test_how_data_is_read_is_said_in_one_line(
    taciturn: Taciturn, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.csv").write_text("id;text\n1;He came in\n")
    job = {"model": str(tiny_llama), "data": str(tmp_path / "notes.csv"), "target_epsilon": 3}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "output": str(tmp_path / "out")}))
    _, out, err = taciturn("doctor", "-f", str(tmp_path / "job.yaml"))
    assert "columns and SQL fit" in out
    (note,) = [line for line in err.splitlines() if "semicolons" in line]
    assert note.startswith("note: ")
    assert "UserWarning" not in err


def test_warnings_of_libraries_say_where_they_are_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> None:
        warnings.warn("of a library", stacklevel=1)

    monkeypatch.setattr(cli, "app", warn)
    cli.main()
    assert f"{__file__}:" in capsys.readouterr().err


def test_misspelled_field_in_yaml(taciturn: Taciturn, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: x\ndata: y\ntarget_epsilonn: 3\n")
    code, _, err = taciturn("fit", "-f", str(tmp_path / "job.yaml"))
    assert code == 1
    assert "did you mean 'target_epsilon'" in err


def test_a_ledger_adds_up_and_says_so(
    taciturn: Taciturn, tiny_llama: Path, notes: Path, tmp_path: Path
) -> None:
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: {tiny_llama}\ndata: {notes}\ntext_field: text\ntarget_epsilon: 4\n"
        f"batch_size: 8\nsteps: 2\nmethod: lora\nledger: {ledger}\n"
    )
    for number in (1, 2):
        output = str(tmp_path / f"out-{number}")
        code, out, err = taciturn("fit", "-f", str(job), "--output", output)
        assert code == 0, err
        said = re.search(r"all runs on these data and this unit together: (.*)", out)
        assert said is not None
        assert f"runs={number}" in said[1]
    private = ["--text-field", "text", "--target-epsilon", "1"]
    arguments = [str(tmp_path / "out-1"), str(notes), *private, "--ledger", ledger]
    code, out, err = taciturn("evaluate", *arguments)
    assert code == 0, err
    assert "runs=3" in out
    code, _, err = taciturn("fit", "--data", "gateway:phee", "--ledger", ledger)
    assert code == 1
    assert "ledger is for data on this machine" in err


@pytest.mark.timeout(1800)
def test_ctrl_c_leaves_a_resumable_checkpoint(
    taciturn: Taciturn, tiny_llama: Path, notes: Path, tmp_path: Path
) -> None:
    """A process of its own, as a signal needs: also the one look at the program as one."""
    output = tmp_path / "out"
    arguments = ["fit", "--model", str(tiny_llama), "--data", str(notes), "--text-field", "text"]
    arguments += ["--target-epsilon", "5", "--steps", "150", "--batch-size", "8"]
    arguments += ["--checkpoint-every", "1000", "--output", str(output), "--method", "lora"]
    command = [sys.executable, "-m", "taciturn.cli.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = output / "private" / "journal.jsonl"
    deadline = time.monotonic() + 600
    while not (journal.exists() and len(journal.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    # That, and no library's warnings.
    said = r"stopped after step \d+ of 150; run again with --resume to go on\n"
    assert re.fullmatch(said, errors), errors
    assert not (output / "privacy_report.json").exists()
    code, _, errors = taciturn(*arguments, "--resume")
    assert code == 0, errors
    assert json.loads((output / "privacy_report.json").read_text())["steps"] == 150
