"""One worker's life: take the job, do it, say how it ended; then another sample, or the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from taciturn.errors import FencedError, TaciturnError
from taciturn.runner import audit, evaluate, fit, probe, sample, synthesize
from taciturn.runner.client import GatewayClient, RefusedError, UnreachableError
from taciturn.runner.door import Door
from taciturn.runner.models import FittedModel
from taciturn.runner.pulse import CancelledError, Pulse, give_up_nothing
from taciturn.runner.task import Task
from taciturn.runner.workspace import Workspace
from taciturn.wire.jobs import (
    RemoteAudit,
    RemoteEvaluate,
    RemoteFit,
    RemoteProbe,
    RemoteSample,
    RemoteSynthesize,
)
from taciturn.wire.worker import Assignment, NextJob


class Ending(IntEnum):
    """How a worker ends, as its process's exit code."""

    REPORTED = 0
    FENCED = 3
    UNREACHABLE = 4
    INTERRUPTED = 75


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs jobs in workspaces below `root`.

    Attributes:
        when_fenced: called at once, by another thread, when the lease is lost.
        prints_to: makes a job's printed output go to a file from now on.
    """

    root: Path
    when_fenced: Callable[[], None] = give_up_nothing
    prints_to: Callable[[Path], None] = lambda path: None

    def run(self, client: GatewayClient) -> Ending:
        """Do the client's job, and more samples of its model while the gateway has any."""
        model: FittedModel | None = None
        while True:
            try:
                assignment = client.take(_name())
                model = self._job(client, assignment, model)
                if model is None:
                    return Ending.REPORTED
            except FencedError:
                return Ending.FENCED
            except (UnreachableError, RefusedError):
                return Ending.UNREACHABLE
            except KeyboardInterrupt:
                return Ending.INTERRUPTED
            found = _another(client)
            if found.job is None or found.token is None:
                return Ending.REPORTED
            client = client.of_job(found.job, found.token)

    def _job(
        self, client: GatewayClient, assignment: Assignment, model: FittedModel | None
    ) -> FittedModel | None:
        """One job, from assignment to outcome; the model, if it may be sampled from again."""
        door = Door(client, assignment.request.kind)
        kept: FittedModel | None = None
        with Pulse(client, door, assignment.lease_s, self.when_fenced) as pulse:
            try:
                workspace = Workspace.of(self.root, assignment.job)
                door.printed, door.forbidden = workspace.printed, (str(workspace.folder),)
                self.prints_to(workspace.printed)
                task = Task(assignment, client, door, pulse, workspace, self.root, model)
                kept = do(task)
                door.succeeded()
            except (FencedError, UnreachableError, KeyboardInterrupt):
                raise
            except CancelledError:
                door.cancelled()
            except BaseException as error:
                door.failed(error)
        # The outcome is known; what cannot be removed is the owner's to remove.
        with suppress(OSError, TaciturnError):
            Workspace.of(self.root, assignment.job).forget_rows()
        return kept


def do(task: Task) -> FittedModel | None:
    """What the job asks for."""
    request = task.assignment.request
    if isinstance(request, RemoteSample):
        return sample.run(task, request)
    if isinstance(request, RemoteFit):
        fit.run(task, request)
    elif isinstance(request, RemoteProbe):
        probe.run(task, request)
    elif isinstance(request, RemoteEvaluate):
        evaluate.run(task, request)
    elif isinstance(request, RemoteAudit):
        audit.run(task, request)
    elif isinstance(request, RemoteSynthesize):
        synthesize.run(task, request)
    return None


def _another(client: GatewayClient) -> NextJob:
    """Another sample of the same model; a gateway that does not answer has none."""
    try:
        return client.next()
    except TaciturnError:
        return NextJob()


def _name() -> str:
    """Names this worker in the ledger: machine and process."""
    machine = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())
    return f"{machine.strip('-.')[:40] or 'worker'}-{os.getpid()}"
