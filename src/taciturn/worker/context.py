"""Context of one job, the same for every kind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from taciturn.data.database import Table
from taciturn.data.location import Location
from taciturn.errors import SpecError
from taciturn.wire.events import Stage
from taciturn.wire.worker import Assignment, PlaceRef
from taciturn.worker.checkpoint_store import JobCheckpoints
from taciturn.worker.client import GatewayClient, RefusedError
from taciturn.worker.egress import Egress
from taciturn.worker.failures import SourceRefusedError
from taciturn.worker.heartbeat import Heartbeat
from taciturn.worker.processes import WorkerProcesses
from taciturn.worker.sources import Source, open_source
from taciturn.worker.timing_padding import TimingPadding
from taciturn.worker.workspace import Workspace

if TYPE_CHECKING:
    from taciturn.worker.models import FittedModel


@dataclass(frozen=True, slots=True, repr=False)
class JobContext:
    """One job, and the ways out of it.

    Attributes:
        root: of all jobs' folders.
        model: one that an earlier job of this process has opened.
        checkpoints: sealed copies of checkpoints in the store; None without a store.
        processes: the worker's other processes.
        own: where workers keep what is theirs, besides `root`.
        public_marks: of what was learned from as public, which must not be the private rows.
    """

    assignment: Assignment
    client: GatewayClient
    egress: Egress
    heartbeat: Heartbeat
    padding: TimingPadding
    workspace: Workspace
    root: Path
    model: FittedModel | None = None
    checkpoints: JobCheckpoints | None = None
    processes: WorkerProcesses = field(default_factory=WorkerProcesses)
    own: tuple[str, ...] = ()
    public_marks: set[str] = field(default_factory=set)

    def stage(self, stage: Stage) -> None:
        """Say that something begins, unless the work must stop."""
        self.heartbeat.check()
        judges_rows = stage is Stage.SCORING and self.assignment.release is not None
        padded = stage is Stage.READING or judges_rows
        self.egress.stage(stage, (self.padding.bucket_s or None) if padded else None)

    def rows_are_read(self) -> None:
        """A stage that reads rows is over: wait for the next public boundary."""
        self.padding.end(self.heartbeat.check)

    def open_rows(self) -> Location | Table:
        """Return the place of the job's rows, once it lies where their owner may have them read and
        under no other budget. Raises DataError; SourceRefusedError where that is not so."""
        reference = self.assignment.source
        if reference is None:
            raise SpecError("the job has data, and its assignment has no source")
        source = self._open(reference)
        try:
            for marks in source.marks():
                if not self.public_marks.isdisjoint((*marks.places, *marks.contents)):
                    raise _learned_from_private_rows()
                self.client.source(marks)
        except RefusedError as error:
            if error.code != "source_taken":
                raise
            raise SourceRefusedError(
                "the same data are registered at this gateway under another budget, which protects "
                "the same people; ask its administrator"
            ) from None
        return source.rows

    def open_public_text(self) -> Location | Table:
        """Return the place of the text that the job learns from as public, once it is known to be
        nobody's private rows. Raises as `open_rows`."""
        reference = self.assignment.public_source
        if reference is None:
            raise SpecError("the job has public data, and its assignment does not say where")
        source = self._open(reference)
        self.public_marks.clear()
        try:
            for marks in source.marks():
                self.public_marks.update((*marks.places, *marks.contents))
                self.client.source(marks.model_copy(update={"public": True}))
        except RefusedError as error:
            if error.code != "source_taken":
                raise
            raise _learned_from_private_rows() from None
        return source.rows

    def _open(self, reference: PlaceRef) -> Source:
        own = (os.path.abspath(self.root) + "/", *self.own)
        return open_source(reference, own, self.heartbeat.check)

    def fitted(self) -> FittedModel:
        """The fitted model that the job needs."""
        if self.model is not None and self.model.id == self.assignment.model:
            return self.model
        from taciturn.worker.models import open_model

        self.stage(Stage.LOADING)
        return open_model(self.client, self.assignment, self.workspace.make_folder("model"))

    def charge(self, first_step: int, steps: int) -> None:
        """Returns once the steps may run."""
        self.heartbeat.check()
        self.client.charge(first_step, steps)


def _learned_from_private_rows() -> SourceRefusedError:
    return SourceRefusedError(
        "what the job names as public data are private rows of this gateway, from which it would "
        "learn without any privacy; ask whoever declared them public to remove them"
    )
