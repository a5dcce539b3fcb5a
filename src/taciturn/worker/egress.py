"""The only way out of a worker: what has no method here does not leave."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.planning.plan import TrainingPlan
from taciturn.wire.events import (
    WORKER_EVENT,
    CountEvent,
    PlanEvent,
    ProgressEvent,
    Stage,
    StageEvent,
    WorkerEvent,
)
from taciturn.wire.jobs import JobKind
from taciturn.wire.worker import EventBatch, Incident, Outcome, TextChunk
from taciturn.worker import allowlist
from taciturn.worker.client import GatewayClient
from taciturn.worker.failures import failure_code, full_log

_BATCH = 500


@dataclass(slots=True, repr=False)
class Egress:
    """Lets out what the allow-list names, by type; of an error, the code of its class.

    Events wait until `flush`, which a public clock calls and not the work: when one is sent says
    nothing about how long a step took.

    Attributes:
        kind: of the job: which files it may release.
        forbidden: texts that no file may hold.
        printed: what the worker printed, for incidents.
    """

    client: GatewayClient
    kind: JobKind
    forbidden: tuple[str, ...] = ()
    printed: Path | None = None
    _waiting: list[WorkerEvent] = field(default_factory=list)
    _n_sent: int = 0
    _n_tried: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stage(self, stage: Stage, padded_s: float | None = None) -> None:
        """Report that a stage has begun."""
        self._say(StageEvent(stage=stage, padded_s=padded_s))

    def plan(self, plan: TrainingPlan) -> None:
        """The plan that runs: the gateway's own."""
        self._say(PlanEvent(plan=plan))

    def progress(self, step: int, steps: int, epsilon: float | None) -> None:
        """Steps done, and the epsilon that is spent. Of several between two ticks of the clock
        the last one leaves. One whose sending has failed may have arrived, and keeps its number."""
        self._say(ProgressEvent(step=step, steps=steps, epsilon=epsilon))

    def count(self, texts: int, of: int) -> None:
        """Texts done, of a number that was asked for."""
        self._say(CountEvent(done=texts, of=of))

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            while self._waiting:
                part = tuple(self._waiting[:_BATCH])
                self._n_tried = len(part)
                self.client.events(EventBatch(first=self._n_sent, events=part))
                self._n_sent += len(part)
                del self._waiting[: len(part)]
                self._n_tried = 0

    def file(self, path: Path) -> None:
        """Release a file, if name and content are on the list; raises NotReleasableError."""
        allowlist.check(self.kind, path, self.forbidden)
        self.client.file(path.name, path)

    def text(self, text: str, finish_reason: str | None = None) -> None:
        """A piece of a streamed sample; the last one says why it ends."""
        last = finish_reason is not None
        self.client.text(TextChunk(text=text, last=last, finish_reason=finish_reason))

    def succeeded(self) -> None:
        """The job is done."""
        self.flush()
        self.client.outcome(Outcome(succeeded=True))

    def failed(self, error: BaseException) -> None:
        """The job has failed: its class's code for everybody, all the rest for the data's owner."""
        incident = self.client.incident(Incident(log=full_log(error, self.printed)))
        self.flush()
        code = failure_code(error)
        self.client.outcome(Outcome(succeeded=False, code=code, incident=incident.incident))

    def cancelled(self) -> None:
        """The job was stopped as ordered; nothing was released."""
        self.client.outcome(Outcome(succeeded=False))

    def _say(self, event: WorkerEvent) -> None:
        checked = WORKER_EVENT.validate_python(event.model_dump())
        with self._lock:
            untried = self._waiting[self._n_tried :]
            newer = isinstance(event, ProgressEvent) and untried
            if newer and isinstance(untried[-1], ProgressEvent):
                self._waiting.pop()
            self._waiting.append(checked)
