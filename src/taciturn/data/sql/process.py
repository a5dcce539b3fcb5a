"""SQL over private rows in a process of its own, which can take little time and memory.

    python -m taciturn.data.sql.process        requests on stdin, answers on stdout

One row can make SQL hang, take all memory or crash DuckDB: nested `replace` with long literals
makes gigabytes of a short text. Here that ends a child of this process and nothing else. Its
address space is limited, an alarm ends a statement that takes too long, and what a statement makes
of a batch is bounded, too. So memory is bounded by construction, whatever the expression and the
row. Libraries are loaded once and children forked, since each row may end one: a new one takes
some 30 ms, where a new process of Python takes 200.

A request is the limit in milliseconds and the length of the statement, 8 bytes each, the statement,
and a table as an Arrow stream. An answer is a byte, 1 where the statement succeeded, and the table
that it made. Both begin with their length, 8 bytes.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from time import monotonic
from typing import IO, Self

import pyarrow as pa

from taciturn.data.sql.session import LockedSession, limit_memory
from taciturn.errors import LostProcessError

MEMORY_BYTES = 2 << 30
"""Address space of the process, beyond what loading the libraries took."""

RESULT_BYTES = 64 << 20
"""What a statement may make of one batch. A row of which it makes more is left out."""

_GRACE_S = 5.0
_START_S = 60.0  # libraries load slowly on a busy machine
_KEPT = ("PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_LENGTH = 8
_FAILED, _DONE = b"\0", b"\1"
_ENDED, _NO_SESSION = 1, 3


class SessionApart:
    """Runs statements over one batch at a time in a process of its own, started when needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._cannot_start = False

    def check(self) -> None:
        """Raise LostProcessError if the process could not be started: no row has a part in that."""
        if self._cannot_start:
            raise LostProcessError(
                "the process that runs SQL over rows cannot be started on this machine; free "
                "memory or raise the limit on processes, then run again"
            )

    def attempt(self, statement: str, rows: pa.Table, limit_s: float) -> pa.Table | None:
        """Run a statement that passed both locks on `rows`, its TABLE, and return its results.

        None if it fails, whose reason nobody reads. Whatever rows do to the process, the next ones
        find one that works; the time to start it is not theirs.
        """
        process = self._process or self._started()
        if process is None:
            return None
        text = statement.encode()
        parts = (int(limit_s * 1000), len(text))
        head = b"".join(part.to_bytes(_LENGTH, "big") for part in parts)
        answer = b""
        try:
            _write(process, head + text + _packed(rows))
            answer = _read(process, limit_s + _GRACE_S)
        except (EOFError, OSError, TimeoutError):
            self.close()
        except BaseException:
            self.close()  # an answer that is still to come belongs to nobody
            raise
        return _unpacked(answer[1:]) if answer[:1] == _DONE else None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes] | None:
        """A process that is ready; None if there can be none, see `check`."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taciturn.data.sql.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **{name: os.environ[name] for name in _KEPT if name in os.environ},
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
            _read(self._process, _START_S)
        except (EOFError, OSError, TimeoutError):
            self.close()
            self._cannot_start = True
        return self._process


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _unpacked(stream: bytes) -> pa.Table:
    with pa.ipc.open_stream(stream) as reader:
        return reader.read_all()


def _write(process: subprocess.Popen[bytes], body: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(len(body).to_bytes(_LENGTH, "big") + body)
    process.stdin.flush()


def _read(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next answer; raises TimeoutError, or EOFError where the process has ended."""
    assert process.stdout is not None
    deadline = monotonic() + limit_s

    def exactly(size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(descriptor, min(size - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    descriptor = process.stdout.fileno()
    return exactly(int.from_bytes(exactly(_LENGTH), "big"))


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more; `_FAILED` where a row has taken too much."""
    first = True
    while True:
        child = os.fork()
        if not child:
            with suppress(BaseException):
                _serve_until_ended(requests, answers, first)
                os._exit(0)
            os._exit(_NO_SESSION)
        _, status = os.waitpid(child, 0)
        # Only these say that a request was read and not answered. After any other end, an answer
        # could be taken for another row's: then this process ends, too, and its pipes with it.
        if os.waitstatus_to_exitcode(status) not in (_ENDED, -signal.SIGALRM):
            return
        first = False
        _answer(answers, _FAILED)


def _serve_until_ended(requests: IO[bytes], answers: IO[bytes], first: bool) -> None:
    with LockedSession() as session:
        with suppress(OSError, ValueError):
            limit_memory(MEMORY_BYTES)
        if first:
            _answer(answers, _DONE)
        while (size := requests.read(_LENGTH)) and len(size) == _LENGTH:
            request = requests.read(int.from_bytes(size, "big"))
            _answer(answers, _result(session, request))


def _answer(answers: IO[bytes], body: bytes) -> None:
    answers.write(len(body).to_bytes(_LENGTH, "big") + body)
    answers.flush()


def _result(session: LockedSession, request: bytes) -> bytes:
    """The answer to a request; where memory has run out, the process ends instead."""
    limit_ms, length = (
        int.from_bytes(request[start : start + _LENGTH], "big") for start in (0, _LENGTH)
    )
    start = 2 * _LENGTH
    statement = request[start : start + length].decode()
    # The alarm ends the process, also in the midst of a library's code.
    signal.setitimer(signal.ITIMER_REAL, limit_ms / 1000)
    try:
        results = session.run(statement, _unpacked(request[start + length :]))
        return _DONE + _packed(results) if results.nbytes <= RESULT_BYTES else _FAILED
    except Exception as error:
        if _is_fatal(error):
            os._exit(_ENDED)  # the next row shall not pay for what this one took
        return _FAILED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _is_fatal(error: Exception) -> bool:
    """True if it leaves a session that may not do for the next row."""
    kinds = ("FatalException", "InternalException", "OutOfMemoryException", "IOException")
    return isinstance(error, MemoryError) or type(error).__name__ in kinds


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a memory image would hold private rows
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this
    serve(sys.stdin.buffer, sys.stdout.buffer)
