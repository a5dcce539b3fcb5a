"""What every kind of job is given."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.data.database import Table
from taciturn.data.location import Location
from taciturn.errors import SpecError
from taciturn.wire.events import Stage
from taciturn.wire.worker import Assignment
from taciturn.worker.checkpoint_store import JobVault
from taciturn.worker.client import GatewayClient, RefusedError
from taciturn.worker.egress import Door
from taciturn.worker.failures import SourceRefusedError
from taciturn.worker.heartbeat import Pulse
from taciturn.worker.models import FittedModel, open_model
from taciturn.worker.processes import Peers
from taciturn.worker.sources import open_source
from taciturn.worker.timing_padding import Pace
from taciturn.worker.workspace import Workspace


@dataclass(frozen=True, slots=True, repr=False)
class Task:
    """One job, and the way out.

    Attributes:
        root: of all jobs' folders.
        model: one that an earlier job of this process has opened.
        vault: where sealed copies of checkpoints are; None where nobody has named a store.
        peers: the worker's other processes.
        own: where workers keep what is theirs, besides `root`.
    """

    assignment: Assignment
    client: GatewayClient
    door: Door
    pulse: Pulse
    pace: Pace
    workspace: Workspace
    root: Path
    model: FittedModel | None = None
    vault: JobVault | None = None
    peers: Peers = field(default_factory=Peers)
    own: tuple[str, ...] = ()

    def stage(self, stage: Stage) -> None:
        """Say that something begins, unless the work must stop."""
        self.pulse.check()
        judges_rows = stage is Stage.SCORING and self.assignment.release is not None
        padded = stage is Stage.READING or judges_rows
        self.door.stage(stage, (self.pace.bucket_s or None) if padded else None)

    def rows_are_read(self) -> None:
        """A stage that reads rows is over: wait for the next public boundary."""
        self.pace.end(self.pulse.check)

    def opened(self) -> Location | Table:
        """The job's rows, to be read: where their owner may have them read, and under no other
        budget. Raises DataError; SourceRefusedError where that is not so."""
        asked = self.assignment.source
        if asked is None:
            raise SpecError("the job has data, and its assignment has no source")
        own = (os.path.abspath(self.root) + "/", *self.own)
        source = open_source(asked, own, self.pulse.check)
        try:
            for marks in source.marks():
                self.client.source(marks)
        except RefusedError as error:
            if error.code != "source_taken":
                raise
            raise SourceRefusedError(
                "the same data are registered at this gateway under another budget, which protects "
                "the same people; ask its administrator"
            ) from None
        return source.rows

    def fitted(self) -> FittedModel:
        """The fitted model that the job needs."""
        if self.model is not None and self.model.id == self.assignment.model:
            return self.model
        self.stage(Stage.LOADING)
        return open_model(self.client, self.assignment, self.workspace.made("model"))

    def charge(self, first_step: int, steps: int) -> None:
        """Returns once the steps may run."""
        self.pulse.check()
        self.client.charge(first_step, steps)
