"""Several ranks for tests: threads for what one step does, processes for whole jobs.

Both talk through gloo, as real jobs on CPUs do.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from support import forkserver
from taciturn.engine.privacy.ranks import ALONE, Ranks

T = TypeVar("T")
_PATIENCE = timedelta(seconds=60)


def in_threads(size: int, function: Callable[[Ranks], T]) -> list[T]:
    """Run `function` on each of `size` ranks; raises the error of the first that failed."""
    if size == 1:
        return [function(ALONE)]
    store, results, failures = dist.HashStore(), dict[int, T](), dict[int, BaseException]()

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroup(store, rank, size)
            gloo = dist.ProcessGroupGloo(store, rank, size, _PATIENCE)
            kind = dist.ProcessGroup.BackendType.GLOO
            group._register_backend(torch.device("cpu"), kind, gloo)
            results[rank] = function(Ranks(rank, size, group, group))
        except BaseException as error:
            failures[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failures:
        time.sleep(0.001)
    if failures:
        raise failures[min(failures)]
    return [results[rank] for rank in range(size)]


@dataclass(frozen=True)
class Ended:
    """End of one process: its exit code, and its function's result or error."""

    code: int | None
    result: Any
    error: str


def in_processes(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    meanwhile: Callable[[list[Any]], None] | None = None,
    timeout_s: float = 600,
) -> list[Ended]:
    """Run `function` in `size` processes as torchrun would start them; never waits for ever.

    Args:
        meanwhile: gets the processes while they run.
    """
    context = forkserver.context()
    port = _free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_child, args=(rank, size, port, pipes[rank][1], function, arguments))
        for rank in range(size)
    ]
    for process, (_, writer) in zip(processes, pipes, strict=True):
        process.start()
        writer.close()  # now only the child holds it, and its death is seen
    if meanwhile is not None:
        meanwhile(processes)
    end = time.monotonic() + timeout_s
    ends = []
    for process, (reader, _) in zip(processes, pipes, strict=True):
        result, error = None, ""
        if reader.poll(max(0.1, end - time.monotonic())):
            try:
                result, error = reader.recv()
            except EOFError:
                error = "died"
        process.join(max(0.1, end - time.monotonic()))
        ends.append(Ended(process.exitcode, result, error))
        process.kill()
    return ends


def results(ends: list[Ended]) -> list[Any]:
    """Return every process's result; fails if there is none."""
    for end in ends:
        assert not end.error, end.error
        assert end.code == 0
    return [end.result for end in ends]


def _child(
    rank: int, size: int, port: int, pipe: Any, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        pipe.send((function(*arguments), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        pipe.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
