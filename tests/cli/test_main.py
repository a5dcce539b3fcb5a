"""The command line: flags are the spec's fields, errors one line, Ctrl-C leaves a checkpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from taciturn.spec import JobSpec


def taciturn(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taciturn.cli.main", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2] / "src")
    return {**os.environ, "PYTHONPATH": source, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    lines = [{"id": f"{i // 2}_{i}", "text": f"Note {i}: the patient coughs."} for i in range(40)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_every_field_is_a_flag() -> None:
    for command in ("fit", "plan"):
        text = taciturn(command, "--help").stdout
        flags = set(re.findall(r"--[a-z][a-z0-9-]*", text))
        for name in JobSpec.model_fields:
            assert "--" + name.replace("_", "-") in flags, (command, name)


def test_fit_then_sample_then_evaluate(tiny_llama: Path, notes: Path, tmp_path: Path) -> None:
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
    done = taciturn("fit", "-f", "job.yaml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "DP (epsilon=" in done.stdout
    assert "number of units (public): 20" in done.stdout
    assert not (tmp_path / "from-yaml").exists()
    report = json.loads((tmp_path / "out" / "privacy_report.json").read_text())
    assert report["steps"] == 2
    sampled = taciturn(
        "sample", "out", "-p", "The patient", "--max-new-tokens", "4", "--seed", "1", cwd=tmp_path
    )
    assert sampled.returncode == 0, sampled.stderr
    assert "policy: DP (epsilon=" in sampled.stdout
    assert "The patient" in sampled.stdout
    scored = taciturn("evaluate", "out", str(notes), "--text-field", "text", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "perplexity" in scored.stdout


def test_private_curves_only_when_asked(tiny_llama: Path, notes: Path, tmp_path: Path) -> None:
    common = ["fit", "--model", str(tiny_llama), "--data", str(notes), "--text-field", "text"]
    common += ["--target-epsilon", "5", "--steps", "2", "--batch-size", "8"]
    quiet = taciturn(*common, "--output", str(tmp_path / "quiet"))
    assert quiet.returncode == 0, quiet.stderr
    assert "loss" not in quiet.stdout
    shown = taciturn(*common, "--output", str(tmp_path / "shown"), "--show-private")
    assert "private: step 2, loss" in shown.stdout


def test_plan_prints_everything_before_anything_runs(tiny_llama: Path, tmp_path: Path) -> None:
    done = taciturn(
        "plan", "--model", str(tiny_llama), "--n-units", "1000", "--target-epsilon", "3",
        "--epochs", "3", "--batch-size", "100", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("noise multiplier", "steps", "sampling probability", "epsilon", "estimated time"):
        assert word in done.stdout
    assert "nearby choices" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_everything_in_place() -> None:
    done = taciturn("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("torch", "device", "memory", "entropy", "everything is in place"):
        assert word in done.stdout


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
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = taciturn(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_misspelled_field_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: x\ndata: y\ntarget_epsilonn: 3\n")
    done = taciturn("fit", "-f", "job.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean 'target_epsilon'" in done.stderr


@pytest.mark.timeout(900)
def test_ctrl_c_leaves_a_resumable_checkpoint(
    tiny_llama: Path, notes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["fit", "--model", str(tiny_llama), "--data", str(notes), "--text-field", "text"]
    arguments += ["--target-epsilon", "5", "--steps", "150", "--batch-size", "8"]
    arguments += ["--checkpoint-every", "1000", "--output", str(output)]
    command = [sys.executable, "-m", "taciturn.cli.main", *arguments]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = output / "private" / "journal.jsonl"
    deadline = time.monotonic() + 240
    while not (journal.exists() and len(journal.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run again with --resume" in errors
    assert not (output / "privacy_report.json").exists()
    done = taciturn(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "privacy_report.json").read_text())["steps"] == 150
