"""A worker of several processes, as torchrun would start them, whose gateway is a folder. Rank 0
alone has it; what it sends is there as files once it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taciturn.data.tokens import tokenize
from taciturn.engine.training import step as step_module
from taciturn.wire.worker import Assignment
from taciturn.worker.job import Runner, accompany
from taciturn.worker.processes import WorkerProcesses
from worker.worker_process import serve

LIMIT_S = 4.0


def work(folder: str, accident: str = "") -> int:
    """One process of the worker; returns how it ended.

    Args:
        accident: the name of a function below, called first.
    """
    home = Path(folder)
    processes = WorkerProcesses.of_torchrun(LIMIT_S, os._exit)
    if accident:
        ACCIDENTS[accident](processes.rank)
    if not processes.first:
        return int(accompany(processes, home / "root", lambda path: None))
    gateway = serve(home)
    log = home / "journal.jsonl"

    def noting(method: str, what: str) -> None:
        with log.open("a") as file:
            file.write(json.dumps({"what": what, "charged": gateway.charged_steps}) + "\n")
        if accident == "fenced" and what == "charges" and gateway.charges:
            gateway.lease += 1
        if accident == "cancelled" and gateway.charges:
            gateway.cancel = True

    gateway.before = noting
    code = Runner(home / "root", when_fenced=lambda: os._exit(3), processes=processes).run(
        gateway.client()
    )
    (home / "files").mkdir(exist_ok=True)
    for name, content in gateway.files.items():
        (home / "files" / name).write_bytes(content)
    (home / "incidents").write_text("\n".join(gateway.incidents))
    (home / "practitioner").write_bytes(b"\n".join(gateway.practitioner))
    outcomes = [outcome.model_dump(mode="json") for _, outcome in gateway.outcomes]
    (home / "outcomes.json").write_text(json.dumps(outcomes))
    processes.end(code)
    return int(code)


def job(folder: Path, assignment: Assignment) -> Path:
    """A folder for a job's gateway."""
    folder.mkdir()
    (folder / "job.json").write_text(assignment.model_dump_json())
    return folder


def charges(folder: Path) -> list[tuple[int, int]]:
    """Blocks that were charged, in order."""
    path = folder / "charges.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(c["first_step"], c["steps"]) for c in map(json.loads, lines)]


def outcome(folder: Path) -> dict[str, Any]:
    """Return the job's outcome."""
    (found,) = json.loads((folder / "outcomes.json").read_text())
    return dict(found)


def once_charged(folder: Path) -> Callable[[list[Any]], None]:
    """Waits until a block has been charged, and a moment longer: its steps run."""

    def wait(processes: list[Any]) -> None:
        while processes[0].is_alive() and not charges(folder):
            time.sleep(0.01)
        time.sleep(0.3)

    return wait


def _fails(rank: int, fail: Callable[[], None]) -> None:
    """Let rank 1 fail in its third sum."""
    real, calls = step_module.sum_parts, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) > 2:
            fail()
        return real(*arguments)

    step_module.sum_parts = failing


def _short_of_memory(rank: int) -> None:
    def fail() -> None:
        raise MemoryError("could not allocate for a patient with a cough")

    _fails(rank, fail)


def _broken_alone(rank: int) -> None:
    """A failure that is not shared: in a message between processes."""
    _fails(rank, lambda: os._exit(1))


def _slow_reader(rank: int) -> None:
    from taciturn.local import fit

    real = tokenize.prepare

    def slow(*arguments: Any) -> Any:
        time.sleep(2.5 * LIMIT_S)
        return real(*arguments)

    fit.prepare = slow  # type: ignore[attr-defined]


ACCIDENTS: dict[str, Callable[[int], None]] = {
    "memory": _short_of_memory,
    "gone": _broken_alone,
    "slow": _slow_reader,
    "fenced": lambda rank: None,
    "cancelled": lambda rank: None,
}


@contextlib.contextmanager
def within(limit_s: float) -> Any:
    """The block takes no longer."""
    start = time.monotonic()
    yield
    took_s = time.monotonic() - start
    assert took_s < limit_s, f"it took {took_s:.0f} s"
