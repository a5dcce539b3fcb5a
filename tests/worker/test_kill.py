"""kill -9 at random moments, then another worker: planned steps, charged before they run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support import forkserver
from taciturn.engine.training.checkpoint import StepJournal
from taciturn.reports.privacy import PrivacyReport
from taciturn.wire.worker import Charge
from taciturn.worker.jobs import fit
from worker.jobs import facts, fit_job, notes, request, source, write
from worker.worker_process import main

STEPS, BLOCK = 12, 3


def work(folder: str) -> None:
    fit.BLOCK_STEPS = BLOCK
    # The journal is private and goes with the rows; the test keeps a copy.
    real = StepJournal.write

    def kept(self: StepJournal, entry: Any) -> None:
        real(self, entry)
        charged = (Path(folder) / "charges.jsonl").read_text() if _charges(folder) else ""
        line = {**entry, "charged": sum(json.loads(c)["steps"] for c in charged.splitlines())}
        with (Path(folder) / "journal.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    StepJournal.write = kept  # type: ignore[method-assign]
    main(Path(folder))


def _charges(folder: str) -> bool:
    return (Path(folder) / "charges.jsonl").exists()


def start(folder: Path) -> Any:
    process = forkserver.context().Process(target=work, args=(str(folder),))
    process.start()
    return process


def entries(folder: Path) -> list[dict[str, Any]]:
    return StepJournal(folder / "journal.jsonl").entries()


def kill_once(folder: Path, chance: random.Random) -> bool:
    process = start(folder)
    wanted, delay = len(entries(folder)) + chance.randrange(1, 6), chance.uniform(0, 0.05)
    while process.is_alive() and len(entries(folder)) < wanted:
        time.sleep(0.002)
    time.sleep(delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def check(folder: Path, kills: int) -> None:
    end = json.loads((folder / "end.json").read_text())
    assert end["succeeded"], end
    seen = entries(folder)
    starts = [entry for entry in seen if "start" in entry]
    streams = [entry[key] for entry in starts for key in ("sampling_stream", "noise_stream")]
    assert len(set(streams)) == len(streams), "a stream was used twice"
    ran = [entry for entry in seen if "step" in entry]
    assert {entry["step"] for entry in ran} == set(range(1, STEPS + 1))
    # However often steps were done again, no more have run than were charged, at any moment.
    for done, entry in enumerate(ran, 1):
        assert done <= entry["charged"], "a step ran before it was charged"
    charges = [
        Charge.model_validate_json(line)
        for line in (folder / "charges.jsonl").read_text().splitlines()
    ]
    assert sum(charge.steps for charge in charges) <= STEPS + BLOCK * kills
    report = PrivacyReport.model_validate_json(
        (folder / "files" / "privacy_report.json").read_text()
    )
    plan = json.loads((folder / "job.json").read_text())["plan"]
    assert report.epsilon == plan["privacy"]["epsilon"]
    assert report.steps == STEPS
    assert b"has a cough" not in (folder / "practitioner").read_bytes()


def killed_jobs(
    model: Path,
    folder: Path,
    chance: random.Random,
    jobs: int,
    kills: int,
    *,
    disk_goes: bool = False,
) -> int:
    """How many workers were killed; with each of them its disk, if a store has copies."""
    known, total = facts(str(model)), 0
    rows = source(write(notes(), folder / "notes.jsonl"))
    job = fit_job(request(str(model), steps=STEPS), known, rows)
    for number in range(jobs):
        home = folder / f"job-{number}"
        home.mkdir()
        (home / "job.json").write_text(job.model_dump_json())
        if disk_goes:
            (home / "store").mkdir()
        done = 0
        while done < kills and kill_once(home, chance):
            done += 1
            if disk_goes:
                shutil.rmtree(home / "root")
        if not (home / "end.json").exists():
            process = start(home)
            process.join()
            assert process.exitcode == 0
        check(home, done)
        assert not disk_goes or not any((home / "store").iterdir())
        total += done
    return total


def test_killed_workers_are_taken_over(tiny_llama: Path, tmp_path: Path) -> None:
    assert killed_jobs(tiny_llama, tmp_path, random.Random(7), jobs=1, kills=3) >= 2


def test_workers_killed_with_their_disks_are_taken_over(tiny_llama: Path, tmp_path: Path) -> None:
    chance = random.Random(9)
    assert killed_jobs(tiny_llama, tmp_path, chance, jobs=1, kills=3, disk_goes=True) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_with_disks(tiny_llama: Path, tmp_path: Path) -> None:
    chance = random.Random(10)
    assert killed_jobs(tiny_llama, tmp_path, chance, jobs=45, kills=6, disk_goes=True) >= 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(tiny_llama: Path, tmp_path: Path) -> None:
    assert killed_jobs(tiny_llama, tmp_path, random.Random(8), jobs=45, kills=6) >= 200
