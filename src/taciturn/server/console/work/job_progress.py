"""Progress of a job as its page shows it: its stages with their times, its steps, its epsilon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from taciturn.server.console.rendering import duration, rounded_up, share
from taciturn.wire.events import (
    CountEvent,
    JobEvent,
    NodeEvent,
    NumberedEvent,
    ProgressEvent,
    StageEvent,
    StateEvent,
)
from taciturn.wire.jobs import JobKind, JobState, JobView
from taciturn.wire.machines import MachineUse

POINTS = 500
"""Of the curve of a page; a longer one is thinned."""

STATES = {
    JobState.VALIDATING: "Being checked",
    JobState.AWAITING_APPROVAL: "Waits for two people to approve it",
    JobState.QUEUED: "Waits for a worker",
    JobState.PROVISIONING: "A worker is being started",
    JobState.RUNNING: "A worker has taken it",
    JobState.SUCCEEDED: "Done",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}
_STAGES = {
    "loading": "Loads the base model",
    "reading": "Reads the rows",
    "training": "Trains",
    "resumed": "Goes on where an earlier worker was stopped",
    "generating": "Writes text",
    "scoring": "Scores",
    "releasing": "Releases the result",
}
_TITLES = {
    "checking": "Checked",
    "approval": "Waiting for approval",
    "queue": "Queued",
    "machine": "Machine being made",
    "pulling": "Worker's image being pulled",
    "starting": "Worker starting",
    "loading": "Loading the base model",
    "reading": "Reading rows",
    "training": "Training",
    "resumed": "Resuming",
    "generating": "Writing text",
    "scoring": "Scoring",
    "releasing": "Releasing",
    "leaving": "Machine being removed",
}
_PHASES = {
    JobState.VALIDATING: "checking",
    JobState.AWAITING_APPROVAL: "approval",
    JobState.QUEUED: "queue",
    JobState.PROVISIONING: "machine",
    JobState.RUNNING: "starting",
}
_NODE_PHASES = {
    "queued": "machine",
    "provisioning": "machine",
    "pulling": "pulling",
    "starting": "starting",
    "interrupted": "machine",
}
_USUAL = {
    JobKind.FIT: ("queue", "machine", "loading", "reading", "training", "releasing"),
    JobKind.EVALUATE: ("queue", "machine", "loading", "scoring", "releasing"),
    JobKind.AUDIT: ("queue", "machine", "loading", "scoring", "releasing"),
    JobKind.SYNTHESIZE: ("queue", "machine", "loading", "generating", "releasing"),
    JobKind.SAMPLE: ("queue", "machine", "loading", "generating"),
    JobKind.PROBE: ("queue", "machine", "reading"),
}
_PADDED = "Ends at a time fixed beforehand, so that how long it takes tells nothing about the rows."
_BLOCK = 10  # steps that a worker charges at once, before the first of them runs


@dataclass(slots=True)
class Stage:
    """A stage of a job, and when it was.

    Attributes:
        end: None while it goes on.
        left, width: of its bar, in thousandths of all the time so far.
    """

    phase: str
    begin: datetime
    end: datetime | None = None
    note: str | None = None
    left: float = 0.0
    width: float = 0.0

    @property
    def title(self) -> str:
        """Name of the stage."""
        return _TITLES[self.phase]

    @property
    def seconds(self) -> float | None:
        """Its duration; None while it goes on."""
        return None if self.end is None else (self.end - self.begin).total_seconds()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of what a job has said."""

    text: str
    at: datetime


@dataclass(slots=True)
class JobProgress:
    """Progress of a job so far.

    Attributes:
        sequence: of the newest event.
        curve: steps that were done, and the epsilon that was spent by then.
        count: done and asked for, of jobs that count texts.
        over_at: when it was over.
        newest_at: when it last said how far it is; `began`: the step that it first said, and when.
        machines: it runs on machines that are made for it.
        uses: of machines that it had and that are done with.
    """

    view: JobView
    stages: list[Stage] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    uses: list[MachineUse] = field(default_factory=list)
    sequence: int = 0
    step: int = 0
    steps: int = 0
    epsilon: float | None = None
    count: tuple[int, int] | None = None
    state: JobState = JobState.VALIDATING
    over_at: datetime | None = None
    newest_at: datetime | None = None
    began: tuple[int, datetime] | None = None
    machines: bool = False

    @classmethod
    def of(cls, view: JobView, events: Iterable[NumberedEvent]) -> JobProgress:
        """Return the progress of a job that has said these events."""
        progress = cls(view)
        for numbered in events:
            progress.add(numbered)
        return progress

    @property
    def over(self) -> bool:
        """True if nothing more happens, but that machines go."""
        return self.view.state.over or self.state.over

    @property
    def headline(self) -> str:
        """The newest line of what it has said."""
        return self.lines[-1].text if self.lines else STATES[self.view.state]

    @property
    def planned_epsilon(self) -> float | None:
        """Epsilon that the whole job costs; None without a guarantee."""
        plan = self.view.plan or {}
        privacy = plan.get("privacy") or plan
        return privacy.get("epsilon") if isinstance(privacy, dict) else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the steps will take which are left, at the pace of those that were seen."""
        if self.over or self.began is None or self.newest_at is None:
            return None
        step, at = self.began
        seconds = (self.newest_at - at).total_seconds()
        if self.step <= step or seconds <= 0:
            return None
        return seconds * (self.steps - self.step) / (self.step - step)

    @property
    def spent_share(self) -> float | None:
        """Share of the budget that is spent for good, at most: blocks of steps are charged before
        they run. None where nothing is spent, or that is not known."""
        cost = self.view.cost
        if cost is None:
            return None
        if self.over:
            return cost.share_of_budget
        if not self.steps or self.epsilon is None:
            return 0.0
        charged = min(self.steps, (self.step // _BLOCK + 1) * _BLOCK)
        return cost.share_of_budget * charged / self.steps

    @property
    def cancelling(self) -> str:
        """Cost of cancelling the job, in words."""
        if self.view.cost is None:
            return "End this job? Nothing is released."
        if self.epsilon is None or self.spent_share is None:
            return (
                "End this job? As far as it has said, nothing is spent yet: what it holds, at "
                f"least {share(self.view.cost.share_of_budget)} of the budget, is free again. "
                "Nothing is released."
            )
        held_share = self.view.cost.share_of_budget - self.spent_share
        return (
            f"End this job? Epsilon {rounded_up(self.epsilon)} is spent and stays spent, about "
            f"{share(self.spent_share)} of the budget; about {share(held_share)} are held still "
            "and free again. Nothing is released: no model comes of it."
        )

    @property
    def upcoming(self) -> list[str]:
        """Names of the stages that are still to come."""
        if self.over:
            return []
        usual = _USUAL[self.view.kind]
        if self.machines:
            place = usual.index("machine") + 1
            usual = (*usual[:place], "pulling", *usual[place:], "leaving")
        past = {"training" if stage.phase == "resumed" else stage.phase for stage in self.stages}
        last = max((index for index, phase in enumerate(usual) if phase in past), default=-1)
        return [_TITLES[phase] for phase in usual[last + 1 :]]

    @property
    def chart(self) -> dict[str, Any] | None:
        """Curve of the epsilon that was spent, as charts take it; None where there is none."""
        if self.view.kind is not JobKind.FIT or self.planned_epsilon is None:
            return None
        if not self.curve and self.state is not JobState.RUNNING:
            return None
        return {
            "x": {
                "label": "Steps done",
                "time": False,
                "whole": True,
                "values": [step for step, _ in self.curve],
            },
            "y": {"label": "Epsilon spent", "max": self.planned_epsilon},
            "series": [
                {
                    "label": "Epsilon spent",
                    "values": [round(epsilon, 5) for _, epsilon in self.curve],
                    "kind": "step",
                }
            ],
        }

    @property
    def texts(self) -> dict[str, str]:
        """The figures that change while it runs, as people read them, by their names."""
        spent, cost = self.spent_share, self.view.cost
        return {
            "steps": f"{self.step:,}" if self.steps else "0",
            "of_steps": f"of {self.steps:,}"
            if self.steps
            else ("none ran" if self.over else "none yet"),
            "count": "" if self.count is None else f"{self.count[0]:,} of {self.count[1]:,}",
            "epsilon": rounded_up(self.epsilon or 0.0),
            "left": "not known yet" if self.left_s is None else f"about {duration(self.left_s)}",
            "spent": share(spent or 0.0),
            "held": "" if cost is None else share(cost.share_of_budget - (spent or 0.0)),
        }

    @property
    def widths(self) -> dict[str, float]:
        """Widths of the bars that grow while it runs, in thousandths, by their names."""
        done_of = self.count or (self.step, self.steps)
        cost = 0.0 if self.view.cost is None else self.view.cost.share_of_budget
        return {
            "done": round(1000 * done_of[0] / done_of[1], 1) if done_of[1] else 0.0,
            "spent": round(1000 * min(1.0, self.spent_share or 0.0), 1),
            "taken": round(1000 * min(1.0, cost), 1),
        }

    def figures(self) -> dict[str, Any]:
        """Return what a page is told at a tick, to change its figures."""
        return {
            "texts": self.texts,
            "widths": self.widths,
            "point": self.curve[-1] if self.curve else None,
            "cancel": self.cancelling,
        }

    def add(self, numbered: NumberedEvent) -> bool:
        """Take one event into account; returns True if it says more than how far the job is."""
        self.sequence, at, event = numbered.sequence, numbered.at, numbered.event
        match event:
            case ProgressEvent():
                self._step(event, at)
            case CountEvent():
                self.count = (event.done, event.of)
            case _:
                self._milestone(event, at)
        self._lay_out(at)
        return not isinstance(event, ProgressEvent | CountEvent)

    def _step(self, event: ProgressEvent, at: datetime) -> None:
        self.step, self.steps, self.newest_at = event.step, event.steps, at
        if self.began is None or event.step < self.began[0]:
            self.began = (event.step, at)
        if event.epsilon is not None:
            self.epsilon = event.epsilon
            if self.curve and event.step <= self.curve[-1][0]:
                # A worker that was lost: its last steps run again, and are paid for again.
                self.curve = [point for point in self.curve if point[0] < event.step]
            self.curve.append((event.step, event.epsilon))
        if len(self.curve) > 2 * POINTS:
            self.curve = self.curve[:-1:2] + self.curve[-1:]

    def _milestone(self, event: JobEvent, at: datetime) -> None:
        match event:
            case StateEvent():
                self.state = event.state
                self.lines.append(Line(STATES[event.state], at))
                if event.state.over:
                    self.over_at = at
                    self._end(at)
                    if event.state is not JobState.CANCELLED and self.machines:
                        self._begin("leaving", at)
                else:
                    self._begin(_PHASES[event.state], at)
            case StageEvent():
                self.lines.append(Line(_STAGES[event.stage], at))
                note = _PADDED if event.padded_s is not None else None
                self._begin(event.stage.value, at, note)
            case NodeEvent():
                self.lines.append(Line(event.text, at))
                self._node(event, at)

    def _node(self, event: NodeEvent, at: datetime) -> None:
        self.machines = True
        if event.use is not None:
            self.uses.append(event.use)
            if self.state.over:
                self._end(at)
            return
        phase = _NODE_PHASES.get(event.code.split(".")[0])
        if phase is not None and not self.state.over:
            self._begin(phase, at)

    def _begin(self, phase: str, at: datetime, note: str | None = None) -> None:
        if self.stages and self.stages[-1].end is None and self.stages[-1].phase == phase:
            return
        if self.stages and self.stages[-1].phase == "checking":
            at = self.stages.pop().begin  # no stage of its own: it takes a moment
        self._end(at)
        self.stages.append(Stage(phase, at, note=note))

    def _end(self, at: datetime) -> None:
        if self.stages and self.stages[-1].end is None:
            self.stages[-1].end = at

    def _lay_out(self, now: datetime) -> None:
        """Place the bars; one that goes on reaches to the end."""
        begin = self.stages[0].begin if self.stages else now
        total_s = max((now - begin).total_seconds(), 1.0)
        for stage in self.stages:
            stage.left = 990 * (stage.begin - begin).total_seconds() / total_s
            seconds = ((stage.end or now) - stage.begin).total_seconds()
            stage.width = max(10.0, 990 * seconds / total_s)
            stage.left = min(stage.left, 1000 - stage.width)
