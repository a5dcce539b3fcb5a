"""Several processes that serve one gateway, started again where one of them dies.

Python computes on one core in each process, so a gateway that shall use more needs more of them.
The supervisor itself serves nothing: it reserves the address, forks, waits, and passes a stop on.
Each process has a socket of its own on the same address (SO_REUSEPORT), so that the kernel deals
connections out evenly; the supervisor keeps them all, so that connections to a process that has
died wait for the next one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.errors import SpecError
from taciturn.server.metrics import forget_process
from taciturn.server.siblings import Siblings

_BACKLOG = 2048
_STEADY_S = 30.0  # whoever has lived as long did not fail at its start
_FAILURES = 3
_PAUSE_S = 0.5
_BIND_S = 5.0
_log = logging.getLogger("taciturn.supervisor")

Serve = Callable[[Siblings, list[socket.socket]], None]


def supervise(host: str, port: int, count: int, serve: Serve) -> int:
    """Have `count` processes serve until SIGTERM or SIGINT; the exit code.

    Called before this process has threads or connections: it is forked.

    Args:
        serve: serves on the sockets until told to stop; called once in each process.

    Raises:
        SpecError: the address is taken.
    """
    sockets = _bind(host, port, count)
    with tempfile.TemporaryDirectory(prefix="taciturn-") as folder:
        return _Supervisor(sockets, Path(folder), serve).run()


@dataclass(slots=True)
class _Supervisor:
    sockets: list[socket.socket]
    folder: Path
    serve: Serve
    _running: dict[int, tuple[int, float]] = field(default_factory=dict)  # pid: number, since
    _stopping: bool = False
    _failures: int = 0

    def run(self) -> int:
        gc.collect()
        gc.freeze()  # shared with those that are forked, as long as nobody touches it
        lives, mine = os.pipe()  # nobody writes: it ends when this process does
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._stop)
        for number in range(len(self.sockets)):
            self._fork(number, lives, mine)
        while self._running:
            pid, status = os.waitpid(-1, 0)
            if pid not in self._running:
                continue  # the first process of a container inherits whoever loses its parent
            number, since_s = self._running.pop(pid)
            forget_process(pid)
            if self._stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            _log.error("a process of the gateway has ended", extra={"number": number, "exit": code})
            # One that was killed can be started again; one that has given up will do so again.
            steady = code < 0 or time.monotonic() - since_s > _STEADY_S
            self._failures = 0 if steady else self._failures + 1
            if self._failures >= _FAILURES:
                _log.error("the gateway cannot serve; see what its processes have said")
                self._end()
            else:
                time.sleep(_PAUSE_S)
                self._fork(number, lives, mine)
        return 1 if self._failures >= _FAILURES else 0

    def _fork(self, number: int, lives: int, mine: int) -> None:
        if self._stopping:
            return
        pid = os.fork()
        if pid == 0:
            os.close(mine)
            os._exit(self._child(number, lives))
        self._running[pid] = (number, time.monotonic())
        if self._stopping:  # it came between
            self._end()

    def _child(self, number: int, lives: int) -> int:
        """Serve, as this number; the exit code. In a group of its own: a terminal's Ctrl-C is for
        the supervisor."""
        os.setpgrp()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        threading.Thread(target=_end_with, args=(lives,), daemon=True).start()
        for other, found in enumerate(self.sockets):
            if other != number:
                found.close()
        siblings = Siblings(number, len(self.sockets), self.folder)
        own = [self.sockets[number]]
        if siblings.door is not None and siblings.first:
            siblings.door.unlink(missing_ok=True)
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.bind(str(siblings.door))
            own.append(door)
        try:
            self.serve(siblings, own)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        except BaseException:
            _log.exception("a process of the gateway failed", extra={"number": number})
            return 1
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
        return 0

    def _stop(self, said: int, *_: object) -> None:
        """Somebody who presses Ctrl-C again does not want to wait."""
        self._end(signal.SIGINT if self._stopping and said == signal.SIGINT else signal.SIGTERM)

    def _end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Let nobody new in, and have all processes finish what they do."""
        self._stopping = True
        for each in self.sockets:
            each.close()
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)


def _end_with(lives: int) -> None:
    """Die with the supervisor, if that is killed: whatever is left of a gateway would keep the
    address, and the duty to dispatch, from the next one."""
    os.read(lives, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _bind(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets on one address, of which nobody else listens on any."""
    deadline = time.monotonic() + _BIND_S  # those of one before us may still be ending
    while True:
        try:
            return list(_bound(host, port, count))
        except OSError as error:
            if time.monotonic() > deadline:
                raise SpecError(
                    f"{host}:{port} cannot be listened on ({error.strerror}); end what listens "
                    "there, or set another TACITURN_PORT"
                ) from None
            time.sleep(0.1)


def _bound(host: str, port: int, count: int) -> Iterator[socket.socket]:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # Not shared, it fails where anybody of the same user listens already, sharing or not.
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        address = alone.getsockname()  # port 0 is any: the same for all
    for _ in range(count):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
        found.listen(_BACKLOG)
        yield found
