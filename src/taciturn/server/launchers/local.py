"""Workers as processes of this machine, each in a session and a private folder of its own.

A worker outlives the gateway that started it. What a gateway needs to find it again lies in the
attempt's folder: `claimed`, made before anything is started, so that no attempt is started twice;
and `born`, which the worker's own process writes before it becomes the worker.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.server.launchers.base import (
    LaterError,
    LaunchError,
    Order,
    WorkerState,
    handle_of,
    parts_of,
)

PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH",
    "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "SSL_CERT_FILE",
)  # fmt: skip
"""The only variables of the gateway that every worker gets: none that could hold its secrets."""

_PASSES = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)

WORKER = (sys.executable, "-m", "taciturn.worker")
WORKSPACE = "TACITURN_WORKSPACE"

_BIRTH_S = 5.0  # between the claim and the process' own note
# The process notes who it is, and only then becomes the worker: there is no moment at which a
# worker runs that nobody could find.
_NOTE_AND_BECOME = """
if read -r self < /proc/$$/stat; then :; else self="$$ () $(ps -o stat=,lstart= -p $$)"; fi
printf '%s' "$self" > born.new && mv born.new born && exec "$@"
"""


class FullError(LaterError):
    """No process, memory, file or space is left for another worker; others will end."""

    code = "provisioning.full"
    text = "the gateway's machine has no room for another process at the moment"


@dataclass(frozen=True, slots=True)
class _Process:
    """A process as nobody else can be: its id, and when it began."""

    pid: int
    began: str

    @classmethod
    def of(cls, line: str) -> _Process:
        """The process that a line of /proc/PID/stat, or one like it, is about."""
        pid, _, rest = line.partition(" ")
        fields = rest.rpartition(")")[2].split()
        return cls(int(pid), fields[19] if len(fields) > 19 else " ".join(fields[1:]))

    @property
    def alive(self) -> bool:
        """True if it runs: the same process, and not a zombie."""
        line = _stat(self.pid)
        return line is not None and not _is_zombie(line) and _Process.of(line) == self


@dataclass
class LocalLauncher:
    """Starts workers in `folder`.

    Args:
        folder: for their workspaces; only this user can look into it.
        passed_on: names of further variables that workers get.
        command: what a worker is.
        clock: seconds, for graces; tests set it.
    """

    folder: Path
    passed_on: Sequence[str] = ()
    command: Sequence[str] = WORKER
    clock: Callable[[], float] = time.monotonic
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _doomed: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def launch(self, order: Order) -> str:
        """Start a worker, unless this attempt has one; see the port."""
        desk, workspace = self._desk(order.handle), self._workspace(order.job_id)
        with self._lock:
            try:
                for folder in (desk.parent, desk, workspace):
                    folder.mkdir(mode=0o700, exist_ok=True)
                first = _claim(desk / "claimed")
            except OSError as error:
                raise _refusal(error, str(desk)) from None
            if not first:
                return order.handle
            self._start(desk, self._environment(order.environment, workspace))
        return order.handle

    def status(self, handle: str) -> WorkerState:
        """State of a worker."""
        self._reap()
        desk = self._desk(handle)
        claimed_at = _modified(desk / "claimed")
        if claimed_at is None:
            return WorkerState.ABSENT
        process = _noted(desk)
        if process is None:
            newborn = time.time() - claimed_at < _BIRTH_S
            return WorkerState.RUNNING if newborn else WorkerState.ENDED
        return WorkerState.RUNNING if process.alive else WorkerState.ENDED

    def waiting(self, handle: str) -> bool:
        """Never: the machine is this one."""
        return False

    def stop(self, handle: str, grace_s: float) -> None:
        """Ask the worker's whole session to end; later calls of any method end what stays."""
        with self._lock:
            first = handle not in self._doomed
            at = self.clock() + grace_s
            self._doomed[handle] = min(at, self._doomed.get(handle, at))
        if first and grace_s > 0:
            self._signal(handle, signal.SIGTERM)
        self._finish_doomed()

    def alive(self) -> tuple[str, ...]:
        """All workers that live, whoever started them."""
        self._finish_doomed()
        handles = [handle for job_id in self.leftover_jobs() for handle in self._handles(job_id)]
        return tuple(name for name in handles if self.status(name) is WorkerState.RUNNING)

    def leftover_jobs(self) -> tuple[str, ...]:
        """Jobs that have a folder here."""
        return tuple(sorted(path.name for path in self.folder.iterdir() if path.is_dir()))

    def forget(self, job_id: str) -> None:
        """Remove the folder of a job without a living worker."""
        handles = self._handles(job_id)
        if not any(self.status(handle) is WorkerState.RUNNING for handle in handles):
            shutil.rmtree(self.folder / job_id, ignore_errors=True)
            with self._lock:
                for handle in handles:
                    self._doomed.pop(handle, None)

    def _desk(self, handle: str) -> Path:
        """Folder of a worker's marks and log; its workspace is the job's."""
        job_id, attempt = parts_of(handle)
        return self.folder / job_id / str(attempt)

    def _workspace(self, job_id: str) -> Path:
        return self.folder / job_id / "workspace"

    def _handles(self, job_id: str) -> list[str]:
        folder = self.folder / job_id
        names = sorted(path.name for path in folder.glob("*") if path.name.isdecimal())
        return [handle_of(job_id, int(name)) for name in names]

    def _environment(self, variables: Mapping[str, str], workspace: Path) -> dict[str, str]:
        names = (*PASSED_ON, *self.passed_on)
        passed = {name: os.environ[name] for name in names if name in os.environ}
        return {**passed, **variables, WORKSPACE: str(workspace)}

    def _start(self, desk: Path, environment: Mapping[str, str]) -> None:
        log = os.open(desk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _NOTE_AND_BECOME, "worker", *self.command],
                cwd=desk,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            (desk / "claimed").unlink(missing_ok=True)
            raise _refusal(error, "no worker") from None
        finally:
            os.close(log)
        self._children[child.pid] = child

    def _signal(self, handle: str, number: signal.Signals) -> None:
        process = _noted(self._desk(handle))
        if process is not None and process.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _finish_doomed(self) -> None:
        now = self.clock()
        with self._lock:
            overdue = [handle for handle, at in self._doomed.items() if at <= now]
        for handle in overdue:
            self._signal(handle, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        """Children that have ended leave no zombies."""
        with self._lock:
            ended_pids = [pid for pid, child in self._children.items() if child.poll() is not None]
            for pid in ended_pids:
                del self._children[pid]


def _refusal(error: OSError, what: str) -> LaunchError:
    kind = FullError if error.errno in _PASSES else LaunchError
    return kind(f"{what}: {error.strerror}")


def _claim(path: Path) -> bool:
    """Make this mark; True if it was not there before."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def _noted(desk: Path) -> _Process | None:
    """The process that noted itself here."""
    try:
        return _Process.of((desk / "born").read_text(encoding="utf-8"))
    except OSError:
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _stat(pid: int) -> str | None:
    """Status of a process from the system, in the form of Linux's /proc; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    process = subprocess.run(command, capture_output=True, check=False)
    line = process.stdout.decode("utf-8", "replace").strip()
    return f"{pid} () {line}" if line else None


def _is_zombie(line: str) -> bool:
    return line.rpartition(")")[2].split()[0][0] in "ZX"
