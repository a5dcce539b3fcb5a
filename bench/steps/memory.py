"""Peak memory of a variant, in a process of its own: what it adds to a loaded model.

The base is the resident memory once model, adapter and batches are there; optimiser states, copies
of weights, gradients and activations all count. On Linux the kernel's high-water mark is reset at
the base (/proc/self/clear_refs); elsewhere the process's own peak is read (ru_maxrss). Each process
first makes steps on a tiny model, so that libraries loaded at first use are not counted.

malloc is left as it comes, unlike where time is measured: a heap that is never trimmed peaks up to
a tenth higher or lower from one process to the next, which says nothing about a variant.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, TypeVar

import torch

from steps import registry
from steps.measure import failure_of
from steps.model import ModelShape, build
from steps.variants import Task
from steps.workload import Workload

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TINY = ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=1, heads=2, context=64)
_TIMEOUT_S = 1200
_EXIT_S = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak resident memory above the base, and the base; or how it failed."""

    added_bytes: int = 0
    base_bytes: int = 0
    failure: str | None = None


def context() -> ForkServerContext:
    """Processes forked from one that has imported the libraries and never ran them."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "peft", "transformers.trainer", "opacus", "duckdb"])
    return server


def peak(name: str, task: Task, threads: int) -> Peak:
    """Run a variant on every batch of the task in a new process; see Peak."""
    try:
        return answer(_child, (name, task, threads), Peak)
    except ChildError as error:
        return Peak(failure=str(error))


class ChildError(RuntimeError):
    """A measuring process gave no answer."""


def answer(work: Callable[..., None], arguments: tuple[Any, ...], kind: type[T]) -> T:
    """What `work(connection, *arguments)` sends from a new process; raises ChildError."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=work, args=(send, *arguments))
    process.start()
    send.close()
    try:
        if not receive.poll(_TIMEOUT_S):
            raise ChildError(f"no answer within {_TIMEOUT_S} s")
        found = receive.recv()
        if not isinstance(found, kind):
            raise ChildError(f"answered with a {type(found).__name__}")
        return found
    except EOFError as error:
        process.join()
        raise ChildError(f"the process died with exit code {process.exitcode}") from error
    finally:
        # Not killed at once: the number of a process that has ended may belong to another one.
        process.join(_EXIT_S)
        if process.is_alive():
            process.kill()
            process.join()


def typical_peak(name: str, task: Task, threads: int, processes: int) -> Peak:
    """The median of several processes, or the first that fails."""
    found = [peak(name, task, threads) for _ in range(processes)]
    failed = [each for each in found if each.failure is not None]
    return failed[0] if failed else sorted(found, key=lambda each: each.added_bytes)[processes // 2]


def how() -> str:
    """Which of the two ways this system allows."""
    if _can_reset():
        return "VmHWM, reset through /proc/self/clear_refs"
    return "ru_maxrss"


def _child(send: Connection, name: str, task: Task, threads: int) -> None:
    try:
        send.send(_measured(name, task, threads))
    except Exception as error:
        send.send(Peak(failure=failure_of(error)))
    finally:
        send.close()


def _measured(name: str, task: Task, threads: int) -> Peak:
    torch.set_num_threads(threads)
    _run(name, _tiny(task))
    model = build(task.method, task.shape)
    for batch in task.workload.batches:
        _ = batch.input_ids_BT, batch.next_ids_BT, batch.weights_BT
    gc.collect()
    base = _resident_bytes()
    _reset()
    variant = registry.builder(name)(model, task)
    for batch in task.workload.batches:
        variant.run([batch], nullcontext())
    return Peak(max(0, _peak_bytes() - base), base)


def _tiny(task: Task) -> Task:
    lengths = [[8] * task.unit_size] * 2
    return replace(task, shape=_TINY, workload=Workload.random(lengths, _TINY.vocabulary))


def _run(name: str, task: Task) -> None:
    variant = registry.make(name, task)
    for batch in task.workload.batches:
        variant.run([batch], nullcontext())


def _can_reset() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _reset() -> None:
    if not _can_reset():
        gc.collect()


def _resident_bytes() -> int:
    return _status_bytes("VmRSS") if _can_reset() else _peak_bytes()


def _peak_bytes() -> int:
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    peak_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_size if sys.platform == "darwin" else peak_size * 1024


def _status_bytes(key: str) -> int:
    lines = _STATUS.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024
