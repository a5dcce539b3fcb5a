"""What every kind of job is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from taciturn.runner.client import GatewayClient
from taciturn.runner.door import Door
from taciturn.runner.models import FittedModel, open_model
from taciturn.runner.pace import Pace
from taciturn.runner.peers import Peers
from taciturn.runner.pulse import Pulse
from taciturn.runner.vault import JobVault
from taciturn.runner.workspace import Workspace
from taciturn.wire.events import Stage
from taciturn.wire.worker import Assignment


@dataclass(frozen=True, slots=True, repr=False)
class Task:
    """One job, and the way out.

    Attributes:
        root: of all jobs' folders.
        model: one that an earlier job of this process has opened.
        vault: where sealed copies of checkpoints are; None where nobody has named a store.
        peers: the worker's other processes.
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

    def stage(self, stage: Stage) -> None:
        """Say that something begins, unless the work must stop."""
        self.pulse.check()
        judges_rows = stage is Stage.SCORING and self.assignment.release is not None
        padded = stage is Stage.READING or judges_rows
        self.door.stage(stage, (self.pace.bucket_s or None) if padded else None)

    def rows_are_read(self) -> None:
        """A stage that reads rows is over: wait for the next public boundary."""
        self.pace.end(self.pulse.check)

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
