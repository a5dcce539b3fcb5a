"""Many processes quickly: forked from one that has imported everything and opened nothing."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 7200
_PR_SET_PDEATHSIG = 1


def spawn(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its id. It ends with 0, or 1 and a traceback, and
    with this process: one that is left over would go on in a database that others use by then, and
    hold open what this one prints to."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _end_with(parent)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's is closed or flushed twice


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, in whatever way; Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before it was asked
        os._exit(1)


def kill(pid: int) -> None:
    """`kill -9`, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def wait_for(pids: list[int]) -> list[int]:
    """The exit codes of processes that end by themselves."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def launched(module: str, settings: dict[str, Any], *, package: str = "ledgers") -> dict[str, Any]:
    """What `PACKAGE.MODULE` finds with these settings, in a fresh process of its own.

    Forking is for processes with one thread; who calls this may have many.
    """
    path = os.pathsep.join(
        [
            *(str(_ROOT / folder) for folder in ("bench", "src", "tests")),
            *filter(None, [os.environ.get("PYTHONPATH")]),
        ]
    )
    done = subprocess.run(
        [sys.executable, "-m", f"{package}.{module}"],
        input=json.dumps(settings).encode(),  # not on the command line, which everybody can read
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=_LIMIT_S,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answer(run: Callable[..., dict[str, Any]]) -> None:
    """The main of such a module: settings from stdin, what was found to stdout."""
    print(json.dumps(run(**json.load(sys.stdin))))
