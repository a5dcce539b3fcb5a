"""A worker of several processes: one speaks, all fit, and how rank 0 ends is how all end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.program import run_python
from support.ranks import Ended, in_processes
from taciturn.reports.privacy import PrivacyReport
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import RemoteProbe
from taciturn.wire.worker import Assignment, BaseModelFacts
from worker.bridge import handler
from worker.crew import LIMIT_S, charges, job, once_charged, outcome, within, work
from worker.fake_gateway import TOKEN, FakeGateway
from worker.jobs import assignment, fit_job, request, source

STEPS = 12
# To start, to find each other, and to end: processes of torch on a machine with other work.
SLACK_S = 60


def fit_of(base: BaseModelFacts, rows: Path, **fields: Any) -> Assignment:
    return fit_job(request(base.name, **{"steps": STEPS, **fields}), base, source(rows))


def codes(ended: list[Ended]) -> list[int | None]:
    """How each process said that it ended; what its exit code was, if it could say nothing."""
    return [each.result if each.code == 0 else each.code for each in ended]


def run(folder: Path, size: int, accident: str = "", **more: Any) -> list[int | None]:
    return codes(in_processes(size, work, str(folder), accident, **more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors"
    path = folder / "files" / name
    return load_file(path if path.exists() else folder / "files" / "model.safetensors")


@pytest.mark.parametrize(
    "kind",
    [
        {"method": "lora", "learning_rate": 1e-2},
        {"method": "lora", "learning_rate": 1e-2, "sharding": "full"},
        {"method": "full", "r": None, "learning_rate": 1e-3, "sharding": "full"},
    ],
    ids=["whole", "sharded", "all sharded"],
)
def test_two_processes_fit_what_one_does(
    kind: dict[str, Any], base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    """Without noise, which is never the same twice. One process takes sharding as a wish."""
    asked = fit_of(base, rows, target_epsilon="unlimited", **kind)
    one, two = job(tmp_path / "one", asked), job(tmp_path / "two", asked)
    assert run(one, 1) == [WorkerExit.REPORTED]
    assert run(two, 2) == [WorkerExit.REPORTED] * 2
    for folder in (one, two):
        assert outcome(folder)["succeeded"], (folder / "incidents").read_text()
        assert charges(folder) == [(0, 10), (10, 2)]
        assert len(list(folder.glob("lease-*"))) == 1
    mine, theirs = weights(one), weights(two)
    assert mine.keys() == theirs.keys()
    changed = 0.0
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
        changed += float(value.abs().sum())
    assert changed > 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_private_fit_of_two_is_charged_once_and_costs_the_same(
    method: str, base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    fields = {"method": "full", "r": None} if method == "full" else {}
    asked = fit_of(base, rows, canaries=8, sharding="full", **fields)
    folder = job(tmp_path / "job", asked)
    assert run(folder, 2) == [WorkerExit.REPORTED] * 2
    assert outcome(folder)["succeeded"], (folder / "incidents").read_text()
    assert charges(folder) == [(0, 10), (10, 2)]
    report = PrivacyReport.model_validate_json(
        (folder / "files" / "privacy_report.json").read_bytes()
    )
    assert asked.plan is not None
    assert asked.plan.privacy is not None
    assert report.epsilon == asked.plan.privacy.epsilon
    said = (folder / "practitioner").read_bytes()
    assert said.count(b"/lease") == 1
    assert b"has a cough" not in said
    left = sorted(p.name for p in (folder / "root").rglob("*") if p.is_file())
    assert left == ["canaries.json"]


def test_rows_that_take_long_to_read_are_waited_for(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    """Longer than the limit: whoever waits, and whoever reads, gives signs of life."""
    folder = job(tmp_path / "job", fit_of(base, rows))
    assert run(folder, 2, "slow") == [WorkerExit.REPORTED] * 2
    assert outcome(folder)["succeeded"]


def signalled(folder: Path, rank: int, number: signal.Signals) -> Callable[[list[Any]], None]:
    wait = once_charged(folder)

    def strike(processes: list[Any]) -> None:
        wait(processes)
        os.kill(processes[rank].pid, number)
        processes[1 - rank].join(LIMIT_S + SLACK_S)
        processes[rank].kill()

    return strike


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_nobody_waits_for_one_that_is_gone(
    rank: int, number: signal.Signals, base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    """The other one ends as one does that may be tried again, and the next worker goes on."""
    folder = job(tmp_path / "job", fit_of(base, rows, steps=400))
    strike = signalled(folder, rank, number)
    with within(LIMIT_S + SLACK_S):
        ended = run(folder, 2, meanwhile=strike)
    assert ended[1 - rank] == WorkerExit.INTERRUPTED
    assert not (folder / "outcomes.json").exists() or rank == 1
    if rank == 1 and (folder / "outcomes.json").exists():
        assert json.loads((folder / "outcomes.json").read_text()) == []


def test_a_machine_that_stood_still_goes_on(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    """All processes at once, as when a virtual machine moves: of that silence nothing counts."""
    folder = job(tmp_path / "job", fit_of(base, rows, steps=30))
    wait = once_charged(folder)

    def stand_still(processes: list[Any]) -> None:
        wait(processes)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                os.kill(process.pid, number)
            if number is signal.SIGSTOP:
                time.sleep(2 * LIMIT_S)

    assert run(folder, 2, meanwhile=stand_still) == [WorkerExit.REPORTED] * 2
    assert outcome(folder)["succeeded"], (folder / "incidents").read_text()


def test_a_worker_takes_over_from_two_of_which_one_was_killed(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    folder = job(tmp_path / "job", fit_of(base, rows, steps=60))
    run(folder, 2, meanwhile=signalled(folder, 1, signal.SIGKILL))
    done = len(charges(folder))
    assert done < 6
    assert run(folder, 1) == [WorkerExit.REPORTED]
    assert outcome(folder)["succeeded"], (folder / "incidents").read_text()
    assert len(charges(folder)) in (6, 7)


@pytest.mark.parametrize("accident", ["fenced", "cancelled"])
def test_orders_end_all(accident: str, base: BaseModelFacts, rows: Path, tmp_path: Path) -> None:
    asked = fit_of(base, rows, steps=400).model_copy(update={"lease_s": 0.5})
    folder = job(tmp_path / "job", asked)
    with within(LIMIT_S + SLACK_S):
        ended = run(folder, 2, accident)
    if accident == "cancelled":
        assert ended == [WorkerExit.REPORTED] * 2
        assert outcome(folder) == {"succeeded": False, "code": None, "incident": None}
    else:
        assert ended[0] == WorkerExit.FENCED
        assert ended[1] in (WorkerExit.FENCED, WorkerExit.INTERRUPTED)
    assert len(charges(folder)) < 40


def test_what_fails_in_one_is_reported_once(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    folder = job(tmp_path / "job", fit_of(base, rows, batch_size=24, microbatch_tokens=32))
    with within(LIMIT_S + SLACK_S):
        assert run(folder, 2, "memory") == [WorkerExit.REPORTED] * 2
    assert not outcome(folder)["succeeded"]
    assert "process 1 of 2 failed: MemoryError" in (folder / "incidents").read_text()
    assert b"cough" not in (folder / "practitioner").read_bytes()


def test_one_that_goes_without_a_word_is_no_failure_of_the_job(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    folder = job(tmp_path / "job", fit_of(base, rows, batch_size=24, microbatch_tokens=32))
    with within(LIMIT_S + SLACK_S):
        assert run(folder, 2, "gone") == [WorkerExit.INTERRUPTED, 1]
    assert json.loads((folder / "outcomes.json").read_text()) == []


def test_other_kinds_of_jobs_are_rank_0s_alone(rows: Path, tmp_path: Path) -> None:
    asked = assignment(RemoteProbe(dataset="notes"), source=source(rows))
    folder = job(tmp_path / "job", asked)
    assert run(folder, 2) == [WorkerExit.REPORTED] * 2
    assert outcome(folder)["succeeded"]


@pytest.mark.slow
def test_torchrun(base: BaseModelFacts, rows: Path, tmp_path: Path, root: Path) -> None:
    """The command of a pod with several GPUs, against a gateway that serves."""
    gateway = FakeGateway(fit_of(base, rows, sharding="full"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(gateway))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = {
        "TACITURN_GATEWAY_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "TACITURN_JOB": gateway.assignment.job,
        "TACITURN_JOB_TOKEN": TOKEN,
        "TACITURN_WORKSPACE": str(tmp_path / "workspace"),
        "TACITURN_PEER_LIMIT_S": "60",
        "PYTHONPATH": str(root / "src"),
        "OMP_NUM_THREADS": "1",
    }
    words = ["--nnodes=1", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    program = ("-m", "taciturn.worker.torchrun", *words, "-m", "taciturn.worker")
    done = run_python(*program, **told)
    server.shutdown()
    server.server_close()
    assert done.returncode == WorkerExit.REPORTED, done.stderr
    assert gateway.outcome.succeeded, gateway.incidents
    assert gateway.lease == 1
    assert gateway.charged_steps == STEPS
    assert "has a cough" not in done.stdout + done.stderr
