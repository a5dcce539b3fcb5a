"""Items of a run, one after another: each is tried, timed, written down and printed at once.

Nobody can look at the machine and there may be no second run. So an item that fails, is too slow
or runs out of memory says so in one line, and the next one starts.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

PASS, FAIL, SKIP, SHOWN = "pass", "FAIL", "skip", "shown"
_TRACE_LINES = 15
# Of a figure, on the screen: all items together have some thousand characters.
_WIDTH = 190
# Beyond the budget, for what cannot be interrupted.
_GRACE_S = 75


class SkippedError(Exception):
    """An item does not apply here; the message says why."""


class SlowError(BaseException):
    """An item took far longer than was estimated; nothing but the run itself catches it."""


@dataclass
class Outcome:
    """Result of an item.

    Attributes:
        passed: None where there is nothing to pass, only figures.
        figure: for the line of the table.
        details: all figures, for the JSON.
    """

    passed: bool | None
    figure: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """Something to be tried.

    Attributes:
        name: for `--only`, `--skip` and the table.
        seconds: how long it takes on the GPU, about.
        work: does it.
        speed: whether it measures time or memory, and so comes after all checks.
    """

    name: str
    seconds: float
    work: Callable[[], Outcome]
    speed: bool = False


@dataclass
class Line:
    """One item as it is written down."""

    name: str
    verdict: str
    figure: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)


class Run:
    """All items within a budget of time; the file is complete after each of them."""

    def __init__(self, file: Path, minutes: float, machine: dict[str, Any]) -> None:
        self.file, self.machine = file, machine
        self.lines: list[Line] = []
        self.summary: dict[str, Any] = {}
        self._start, self._budget = time.monotonic(), 60 * minutes

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float:
        """Of the budget."""
        return self._budget - self.seconds

    def guard(self, last_words: Callable[[], None]) -> None:
        """End the process some time after the budget, whatever it waits for then."""

        def stop() -> None:
            self.lines.append(Line("budget", FAIL, "stopped from outside: an item hung", 0.0))
            with contextlib.suppress(BaseException):
                self.write()
                last_words()
            os._exit(1)

        timer = threading.Timer(max(1.0, self._budget + _GRACE_S), stop)
        timer.daemon = True
        timer.start()

    def try_item(self, item: Item) -> Line:
        """Run one item, or say why not."""
        start = time.monotonic()
        if self.seconds_left < item.seconds:
            line = Line(
                item.name,
                SKIP,
                f"needs some {item.seconds:.0f} s, {max(0.0, self.seconds_left):.0f} s are left",
                0.0,
            )
        else:
            line = self._tried(item)
        line.seconds = time.monotonic() - start
        self.lines.append(line)
        self.write()
        print(
            f"{self.seconds:5.0f} s {line.verdict:5} {line.name}: {line.figure[:_WIDTH]}",
            flush=True,
        )
        return line

    def _tried(self, item: Item) -> Line:
        try:
            with _limited(max(20.0, min(4 * item.seconds + 20, self.seconds_left + 20))):
                outcome = item.work()
            verdict = SHOWN if outcome.passed is None else (PASS if outcome.passed else FAIL)
            return Line(item.name, verdict, outcome.figure, 0.0, outcome.details)
        except SkippedError as reason:
            return Line(item.name, SKIP, str(reason), 0.0)
        except (Exception, SlowError) as error:
            return Line(item.name, FAIL, said(error), 0.0, trace=trace_of(error))
        finally:
            free()

    def write(self) -> None:
        """Replace the file by all that is known so far."""
        content = {
            "machine": self.machine,
            "seconds": round(self.seconds, 1),
            "summary": self.summary,
            "items": [asdict(line) for line in self.lines],
        }
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        part.replace(self.file)


def cases(works: dict[str, Callable[[], Outcome]]) -> Outcome:
    """Several outcomes as one; each is tried whatever becomes of the others."""
    failed: list[str] = []
    others: list[str] = []
    details: dict[str, Any] = {}
    verdicts: list[bool] = []
    for name, work in works.items():
        try:
            outcome = work()
        except SkippedError as reason:
            others.append(f"{name} skipped ({reason})")
            continue
        except Exception as error:
            outcome = Outcome(False, said(error), {"trace": trace_of(error)})
        free()
        details[name] = {"passed": outcome.passed, "figure": outcome.figure, **outcome.details}
        if outcome.passed is not None:
            verdicts.append(outcome.passed)
        told = f"{name} {outcome.figure}".strip()
        # What failed is said first: a line has its length.
        (failed if outcome.passed is False else others).append(told)
    if not details:
        raise SkippedError("; ".join(others) or "nothing to do")
    told = "; ".join([*(f"FAIL {each}" for each in failed), *others])
    return Outcome(all(verdicts) if verdicts else None, told, details)


def said(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": ")


def trace_of(error: BaseException) -> list[str]:
    """The last lines of an exception's traceback."""
    return "".join(traceback.format_exception(error)).splitlines()[-_TRACE_LINES:]


def free() -> None:
    """Give back what a failed item left behind."""
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise SlowError in the block after so long; at the next line of Python."""

    def stop(*_: Any) -> None:
        raise SlowError(f"stopped after {seconds:.0f} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # as a test's, which has one of its own


def chosen(items: Sequence[Item], only: Sequence[str], skip: Sequence[str]) -> list[Item]:
    """Items whose names hold one of `only` (all, if there is none) and none of `skip`."""
    return [
        item
        for item in items
        if (not only or any(part in item.name for part in only))
        and not any(part in item.name for part in skip)
    ]
