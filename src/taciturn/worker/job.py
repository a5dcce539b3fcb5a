"""One worker's life: take the job, do it, say how it ended; then another sample, or the end."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.errors import FencedError, LostProcessError, ProcessError, TaciturnError
from taciturn.wire.events import FailureCode
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import (
    RemoteAudit,
    RemoteEvaluate,
    RemoteFit,
    RemoteProbe,
    RemoteSample,
    RemoteSynthesize,
)
from taciturn.wire.worker import Assignment, NextJob
from taciturn.worker.checkpoint_store import JobVault, Vault
from taciturn.worker.cleanup import remove_leftovers
from taciturn.worker.client import GatewayClient, RefusedError, UnreachableError
from taciturn.worker.context import Task
from taciturn.worker.egress import Door
from taciturn.worker.failures import failure_code
from taciturn.worker.heartbeat import CancelledError, Pulse, give_up_nothing
from taciturn.worker.jobs import audit, evaluate, fit, probe, sample, synthesize
from taciturn.worker.models import FittedModel
from taciturn.worker.processes import Peers
from taciturn.worker.timing_padding import Pace
from taciturn.worker.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs jobs in workspaces below `root`.

    Attributes:
        when_fenced: called at once, by another thread, when the lease is lost.
        prints_to: makes a job's printed output go to a file from now on.
        vault: for sealed copies of checkpoints.
        peers: the other processes of this worker.
        own: where workers keep what is theirs, besides `root`: no source may be there.
    """

    root: Path
    when_fenced: Callable[[], None] = give_up_nothing
    prints_to: Callable[[Path], None] = lambda path: None
    vault: Vault | None = None
    peers: Peers = field(default_factory=Peers)
    own: tuple[str, ...] = ()

    def run(self, client: GatewayClient) -> WorkerExit:
        """Do the client's job, and more samples of its model while the gateway has any."""
        model: FittedModel | None = None
        while True:
            try:
                assignment = client.take(_name())
                model = self._job(client, assignment, model)
                if model is None:
                    return WorkerExit.REPORTED
            except FencedError:
                return WorkerExit.FENCED
            except _UnsaidError as error:
                return error.code
            except (UnreachableError, RefusedError):
                return WorkerExit.UNREACHABLE
            except (KeyboardInterrupt, LostProcessError):
                return WorkerExit.INTERRUPTED
            found = _another(client)
            if found.job is None or found.token is None:
                return WorkerExit.REPORTED
            client = client.of_job(found.job, found.token)

    def _job(
        self, client: GatewayClient, assignment: Assignment, model: FittedModel | None
    ) -> FittedModel | None:
        """One job, from assignment to outcome; the model, if it may be sampled from again."""
        door = Door(client, assignment.request.kind)
        kept: FittedModel | None = None
        pace = Pace(assignment.bucket_s)
        with Pulse(client, door, assignment.lease_s, self.when_fenced) as pulse:
            try:
                workspace = Workspace.of(self.root, assignment.job)
                door.printed, door.forbidden = workspace.printed, (str(workspace.folder),)
                self.prints_to(workspace.printed)
                if vault := self._vault(assignment):
                    remove_leftovers(vault.vault, client)
                kept = do(self._task(assignment, client, door, pulse, pace, workspace, model))
                door.succeeded()
            # Nothing is wrong with the job: the next worker goes on with it.
            except (FencedError, UnreachableError, KeyboardInterrupt, LostProcessError):
                raise
            except CancelledError:
                door.cancelled()
            except BaseException as error:
                # When a row has broken something is not to be seen either.
                with suppress(CancelledError):
                    pace.end(pulse.check)
                _say_failed(door, error)
        # The outcome is known; what cannot be removed is the owner's to remove.
        with suppress(OSError, TaciturnError):
            Workspace.of(self.root, assignment.job).forget_rows()
        with suppress(TaciturnError):
            if vault := self._vault(assignment):
                vault.remove()
        return kept

    def _task(
        self,
        assignment: Assignment,
        client: GatewayClient,
        door: Door,
        pulse: Pulse,
        pace: Pace,
        workspace: Workspace,
        model: FittedModel | None,
    ) -> Task:
        vault = self._vault(assignment)
        return Task(
            assignment,
            client,
            door,
            pulse,
            pace,
            workspace,
            self.root,
            model,
            vault,
            self.peers,
            self.own,
        )

    def _vault(self, assignment: Assignment) -> JobVault | None:
        """Of the kinds of jobs that have something in it."""
        if self.vault is None or not isinstance(assignment.request, RemoteFit | RemoteAudit):
            return None
        return self.vault.of(assignment.job, assignment.lease)


class _UnsaidError(Exception):
    """The job has failed, and the gateway does not take the word of it."""

    def __init__(self, code: WorkerExit) -> None:
        super().__init__(code.name)
        self.code = code


def _say_failed(door: Door, error: BaseException) -> None:
    """Report a failure; where that fails, too, the launcher is told by the exit code whether
    another try could end otherwise. Raises FencedError, or _UnsaidError."""
    try:
        door.failed(error)
    except (UnreachableError, RefusedError):
        raise _UnsaidError(_FINAL.get(failure_code(error), WorkerExit.UNREACHABLE)) from None


_ALONE_S = 10.0  # for rank 0 to say how it ends, where it has heard of the failure
_FINAL = {
    FailureCode.GUARANTEE_REFUSED: WorkerExit.GUARANTEE_REFUSED,
    FailureCode.BAD_CONFIGURATION: WorkerExit.BAD_CONFIGURATION,
}


def accompany(peers: Peers, root: Path, prints_to: Callable[[Path], None]) -> WorkerExit:
    """The life of a worker's other processes: take part in a fit, and end as rank 0 does.

    One that fails alone ends soon, so that rank 0, which may be waiting for it, notices.
    """
    assignment = peers.wait_for_call()
    within_s = None
    if assignment is not None:
        try:
            workspace = Workspace.of(root, assignment.job)
            prints_to(workspace.printed_by(peers.rank))
            fit.take_part(assignment, workspace.output)
        except (ProcessError, KeyboardInterrupt):
            pass  # rank 0 knows, or is what was lost
        except Exception:
            traceback.print_exc()
            within_s = _ALONE_S
    code = peers.wait_for_end(within_s)
    peers.end(code)
    return code


def do(task: Task) -> FittedModel | None:
    """What the job asks for."""
    request = task.assignment.request
    if not isinstance(request, RemoteFit):
        task.peers.dismiss()
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
