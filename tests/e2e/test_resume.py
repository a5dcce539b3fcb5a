"""kill -9 at a random moment, then --resume: same epsilon, planned steps, no stream used twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from support import forkserver
from taciturn.engine.model import subspace
from taciturn.engine.training.checkpoint import StepJournal
from taciturn.llm import LLM
from taciturn.reports.privacy import PrivacyReport

STEPS = 8
SETTINGS: dict[str, Any] = {
    "text_field": "text",
    "target_epsilon": 4,
    "batch_size": 10,
    "steps": STEPS,
    "checkpoint_every": 2,
    "threads": 1,
}


def rows() -> pd.DataFrame:
    return pd.DataFrame({"text": [f"Note {i}: the patient has a cough." for i in range(40)]})


def fit(model: str, output: str, resume: bool) -> None:
    # What a random model writes by itself says nothing: a little of it is as good as seconds of it.
    subspace._SEQUENCES, subspace._TOKENS = subspace._BATCH, 4
    LLM(model).fit(rows(), output=output, resume=resume, **SETTINGS)


def start(model: Path, output: Path, resume: bool) -> Any:
    process = forkserver.context().Process(target=fit, args=(str(model), str(output), resume))
    process.start()
    return process


def has_checkpoint(output: Path) -> bool:
    return any((output / "private" / "checkpoints").glob("step-*"))


def kill_once(model: Path, output: Path, moment: random.Random) -> bool:
    """Start or resume, and kill at a random step or soon after; True if it died before the end."""
    process = start(model, output, resume=has_checkpoint(output))
    last, delay = moment.randrange(STEPS - 1), moment.uniform(0, 0.05)
    while process.is_alive() and steps_done(output) < last:
        time.sleep(0.001)
    time.sleep(delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def steps_done(output: Path) -> int:
    """Steps in the journal; -1 before it says that training has begun."""
    journal = output / "private" / "journal.jsonl"
    return journal.read_text().count("\n") - 1 if journal.exists() else -1


def finish(model: Path, output: Path) -> PrivacyReport:
    if not (output / "privacy_report.json").exists():
        if not has_checkpoint(output) and output.exists():
            # Killed before the first checkpoint: nothing to resume, so start over elsewhere.
            output.rename(output.with_name(output.name + "-abandoned"))
        process = start(model, output, resume=output.exists())
        process.join()
        assert process.exitcode == 0
    return PrivacyReport.model_validate_json((output / "privacy_report.json").read_text())


def without_salt(report: PrivacyReport) -> dict[str, Any]:
    """All that is reported but the commitments to the data, whose salt is new in every folder."""
    fields = report.model_dump()
    for step in fields["private_steps"]:
        assert step.pop("dataset_commitment")
    return fields


def check_journal(output: Path) -> list[str]:
    """All planned steps are in the final weights, in order; returns the stream names."""
    entries = StepJournal(output / "private" / "journal.jsonl").entries()
    streams, last = [], 0
    for entry in entries:
        if "start" in entry:
            assert entry["start"] <= last
            last = entry["start"]
            streams += [entry["sampling_stream"], entry["noise_stream"]]
        else:
            assert entry["step"] == last + 1
            last = entry["step"]
    assert last == STEPS
    return streams


def run_killed(model: Path, folder: Path, kills: int, seed: int) -> int:
    """Runs killed once each, until `kills` died before their end; returns how many were started."""
    moment = random.Random(seed)
    whole = folder / "whole"
    start(model, whole, resume=False).join()
    expected = without_salt(finish(model, whole))
    streams, killed, runs = check_journal(whole), 0, 0
    while killed < kills:
        assert runs < 2 * kills, "most runs end before they are killed; kill sooner"
        output = folder / f"run-{runs}"
        runs += 1
        killed += kill_once(model, output, moment)
        assert without_salt(finish(model, output)) == expected
        streams += check_journal(output)
    assert len(streams) == len(set(streams))
    return runs


@pytest.mark.timeout(1800)
def test_three_kills(tiny_llama: Path, tmp_path: Path) -> None:
    run_killed(tiny_llama, tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills(tiny_llama: Path, tmp_path: Path) -> None:
    runs = run_killed(tiny_llama, tmp_path, kills=30, seed=1)
    print(f"30 of {runs} runs killed before their end; every report equal, no stream used twice")
