"""Progress of a job, from its events, on a terminal, in a notebook, or in a plain log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TextIO

from taciturn.notebook.cards import bar, card, muted
from taciturn.wire.events import (
    FAILURES,
    CountEvent,
    FailureCode,
    NodeEvent,
    NumberedEvent,
    PlanEvent,
    ProgressEvent,
    StageEvent,
    StateEvent,
)
from taciturn.wire.jobs import JobState

WORDS = {
    JobState.VALIDATING: "being checked",
    JobState.AWAITING_APPROVAL: "waiting for two people to approve it",
    JobState.QUEUED: "queued",
    JobState.PROVISIONING: "getting a machine",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress as a job's events have said so far.

    Attributes:
        completed, total: steps of a fit; texts or canaries of another job.
        epsilon: spent, of all steps that are charged; None without a guarantee, or before the
            first block of steps.
        target: held for the whole fit, what is spent included.
        padded_s: the stage ends so long after it began, or twice, four times ... as long.
        first, last: when the first and the latest step were reported, and at which step.
    """

    job: str
    kind: str
    private: bool = True
    state: JobState = JobState.QUEUED
    stage: str | None = None
    completed: int = 0
    total: int | None = None
    epsilon: float | None = None
    target: float | None = None
    first: tuple[datetime, int] | None = None
    last: tuple[datetime, int] | None = None
    failure: str | None = None
    node: str | None = None
    padded_s: float | None = None

    def after(self, event: NumberedEvent) -> Progress:
        """The progress once this event is known too."""
        news = event.event
        match news:
            case StateEvent():
                code = news.code
                words = FAILURES[code] if code is not None else None
                return replace(self, state=news.state, failure=words)
            case StageEvent():
                return replace(self, stage=news.stage.value, padded_s=news.padded_s)
            case PlanEvent():
                target = news.plan.privacy.epsilon if news.plan.privacy is not None else None
                private = news.plan.privacy is not None
                return replace(self, total=news.plan.steps, target=target, private=private)
            case ProgressEvent():
                report = (event.at, news.step)
                return replace(
                    self,
                    completed=news.step,
                    total=news.steps,
                    epsilon=news.epsilon,
                    first=self.first or report,
                    last=report,
                )
            case CountEvent():
                report = (event.at, news.done)
                first = self.first or report
                return replace(self, completed=news.done, total=news.of, first=first, last=report)
            case NodeEvent():
                return replace(self, node=news.text)

    @property
    def share(self) -> float:
        """Share that is done, in [0, 1]."""
        if self.state is JobState.SUCCEEDED:
            return 1.0
        return self.completed / self.total if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the pace of the steps so far; None before there are two reports."""
        if self.first is None or self.last is None or self.total is None or self.state.over:
            return None
        seconds = (self.last[0] - self.first[0]).total_seconds()
        steps = self.last[1] - self.first[1]
        return seconds / steps * (self.total - self.last[1]) if steps > 0 else None

    @property
    def words(self) -> str:
        """State, steps, epsilon, time left: one line."""
        parts = [self._doing if self._working else WORDS[self.state]]
        if self.failure is not None:
            parts.append(self.failure)
        if self.node is not None and self.state is JobState.PROVISIONING:
            parts.append(self.node)
        if self.total is not None and self.completed:
            parts.append(f"{self.completed} of {self.total}")
        if self.kind == "fit" and self.total is not None:
            parts.append(self._spent)
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(part for part in parts if part)

    @property
    def _working(self) -> bool:
        return self.state is JobState.RUNNING and self.stage is not None

    @property
    def _doing(self) -> str:
        if self.padded_s is None:
            return self.stage or ""
        ends = ", ".join(duration(self.padded_s * times) for times in (1, 2, 4))
        return f"{self.stage} (padded to {ends} ..., so that its length tells nothing)"

    @property
    def _spent(self) -> str:
        if not self.private:
            return "no privacy"
        budget = "" if self.target is None or self.state.over else f" of {self.target:.3g} held"
        return f"epsilon {self.epsilon or 0.0:.2f} spent{budget}"


class Screen:
    """Display of how far a job is; this one shows nothing."""

    def show(self, progress: Progress) -> None:
        """Show this now."""

    def close(self) -> None:
        """Leave what was shown standing: nothing more comes."""


@contextmanager
def screen(progress: bool | None) -> Iterator[Screen]:
    """The screen that fits where we are: `progress` None chooses, False shows nothing."""
    display = _fitting_screen(progress)
    try:
        yield display
    finally:
        display.close()


def _fitting_screen(progress: bool | None) -> Screen:
    if progress is False:
        return Screen()
    if in_notebook():
        return NotebookScreen()
    if sys.stderr.isatty():
        return TerminalScreen()
    return LogScreen(sys.stderr) if progress else Screen()


def in_notebook() -> bool:
    """Return whether cells show what is displayed."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and hasattr(shell, "kernel")


class TerminalScreen(Screen):
    """A bar that moves."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        if self._task is None:
            self._bars.start()
            self._task = self._bars.add_task(progress.kind, total=None, words="")
        total = progress.total
        completed = total if progress.state is JobState.SUCCEEDED else progress.completed
        self._bars.update(
            self._task, total=total, completed=completed, words=progress.words, refresh=True
        )

    def close(self) -> None:
        """Leave the last line standing."""
        if self._task is not None:
            self._bars.stop()


class NotebookScreen(Screen):
    """A card in the cell's output that is written anew; it is kept with the notebook."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from IPython import display

        self._html: Any = display.HTML
        self._display: Any = display.display
        self._handle: Any = None
        self._clock, self._start = clock, clock()

    def show(self, progress: Progress) -> None:
        """Write it anew."""
        html = self._html(progress_card(progress, self._clock() - self._start))
        if self._handle is None:
            self._handle = self._display(html, display_id=True)
        else:
            self._handle.update(html)


class LogScreen(Screen):
    """A line for each thing that is new; for logs and pipes."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, ""

    def show(self, progress: Progress) -> None:
        """Write a line, unless it is the last one again."""
        line = f"{progress.kind} {progress.job}: {progress.words}"
        if line != self._last:
            print(line, file=self._file, flush=True)
        self._last = line


def progress_card(progress: Progress, elapsed_s: float | None = None) -> str:
    """The progress as a fragment of HTML."""
    open_ = not progress.private or progress.state in (JobState.FAILED, JobState.CANCELLED)
    time_ = "" if elapsed_s is None else f", {duration(elapsed_s)}"
    return card(
        f"{progress.kind} {progress.job}",
        None,
        bar(progress.share, open_=open_),
        muted(progress.words + time_),
    )


def duration(seconds: float) -> str:
    """Write seconds as, for example, "40 s" or "3 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def failure_words(code: str, text: str) -> str:
    """Return what a failure means, for codes that this version knows."""
    return FAILURES.get(FailureCode(code), text) if code in set(FailureCode) else text
