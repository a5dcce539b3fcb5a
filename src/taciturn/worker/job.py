"""Life of one worker: take the job, do it, report its outcome; then another sample, or the end."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taciturn.collector import nothing_collected
from taciturn.errors import FencedError, LostProcessError, ProcessError, TaciturnError
from taciturn.wire.events import FailureCode
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import JobKind, RemoteAudit, RemoteFit
from taciturn.wire.worker import Assignment, NextJob
from taciturn.worker.checkpoint_store import CheckpointStore, JobCheckpoints
from taciturn.worker.cleanup import remove_leftovers
from taciturn.worker.client import GatewayClient, RefusedError, UnreachableError
from taciturn.worker.context import JobContext
from taciturn.worker.egress import Egress
from taciturn.worker.failures import failure_code
from taciturn.worker.heartbeat import CancelledError, Heartbeat, give_up_nothing
from taciturn.worker.processes import WorkerProcesses
from taciturn.worker.timing_padding import TimingPadding
from taciturn.worker.workspace import Workspace

if TYPE_CHECKING:
    from taciturn.worker.models import FittedModel


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs jobs in workspaces below `root`.

    Attributes:
        when_fenced: called at once, by another thread, when the lease is lost.
        prints_to: makes a job's printed output go to a file from now on.
        store: for sealed copies of checkpoints.
        processes: the other processes of this worker.
        own: where workers keep what is theirs, besides `root`: no source may be there.
        when_loaded: called once the modules of a kind of job are loaded.
    """

    root: Path
    when_fenced: Callable[[], None] = give_up_nothing
    prints_to: Callable[[Path], None] = lambda path: None
    store: CheckpointStore | None = None
    processes: WorkerProcesses = field(default_factory=WorkerProcesses)
    own: tuple[str, ...] = ()
    when_loaded: Callable[[], object] = give_up_nothing

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
            except _UnreportedError as error:
                return error.code
            except (UnreachableError, RefusedError):
                return WorkerExit.UNREACHABLE
            except (KeyboardInterrupt, LostProcessError):
                return WorkerExit.INTERRUPTED
            next_job = _another(client)
            if next_job.job is None or next_job.token is None:
                return WorkerExit.REPORTED
            client = client.of_job(next_job.job, next_job.token)

    def _job(
        self, client: GatewayClient, assignment: Assignment, model: FittedModel | None
    ) -> FittedModel | None:
        """Do one job, from assignment to outcome; return its model if it may be sampled from
        again."""
        egress = Egress(client, assignment.request.kind)
        reusable: FittedModel | None = None
        padding = TimingPadding(assignment.bucket_s)
        with Heartbeat(
            client, egress, assignment.lease_s, assignment.bucket_s, self.when_fenced
        ) as heartbeat:
            try:
                workspace = Workspace.of(self.root, assignment.job)
                egress.printed, egress.forbidden = workspace.printed, (str(workspace.folder),)
                self.prints_to(workspace.printed)
                checkpoints = self._checkpoints(assignment)
                if checkpoints is not None:
                    remove_leftovers(checkpoints.store, client)
                _module(assignment.request.kind, self.when_loaded)
                reusable = do(
                    JobContext(
                        assignment,
                        client,
                        egress,
                        heartbeat,
                        padding,
                        workspace,
                        self.root,
                        model,
                        checkpoints,
                        self.processes,
                        self.own,
                    )
                )
                egress.succeeded()
            # Nothing is wrong with the job: the next worker goes on with it.
            except (FencedError, UnreachableError, KeyboardInterrupt, LostProcessError):
                raise
            except CancelledError:
                egress.cancelled()
            except BaseException as error:
                # When a row has broken something is not to be seen either.
                with suppress(CancelledError):
                    padding.end(heartbeat.check)
                _report_failure(egress, error)
        # The outcome is known; what cannot be removed is the owner's to remove.
        with suppress(OSError, TaciturnError):
            Workspace.of(self.root, assignment.job).forget_rows()
        with suppress(TaciturnError):
            if checkpoints := self._checkpoints(assignment):
                checkpoints.remove()
        return reusable

    def _checkpoints(self, assignment: Assignment) -> JobCheckpoints | None:
        """Return the job's checkpoints in the store; None for kinds of jobs that write none."""
        if self.store is None or not isinstance(assignment.request, RemoteFit | RemoteAudit):
            return None
        return self.store.of(assignment.job, assignment.lease)


class _UnreportedError(Exception):
    """The job has failed, and the gateway could not be told."""

    def __init__(self, code: WorkerExit) -> None:
        super().__init__(code.name)
        self.code = code


def _report_failure(egress: Egress, error: BaseException) -> None:
    """Report a failure; where that fails, too, the exit code tells the launcher whether another try
    could end otherwise. Raises FencedError, or _UnreportedError."""
    try:
        egress.failed(error)
    except (UnreachableError, RefusedError):
        raise _UnreportedError(_FINAL.get(failure_code(error), WorkerExit.UNREACHABLE)) from None


_ALONE_S = 10.0  # for rank 0 to say how it ends, where it has heard of the failure
_FINAL = {
    FailureCode.GUARANTEE_REFUSED: WorkerExit.GUARANTEE_REFUSED,
    FailureCode.BAD_CONFIGURATION: WorkerExit.BAD_CONFIGURATION,
}


def accompany(
    processes: WorkerProcesses,
    root: Path,
    prints_to: Callable[[Path], None],
    when_loaded: Callable[[], object] = give_up_nothing,
) -> WorkerExit:
    """Take part in a fit as one of a worker's other processes, and end as rank 0 does.

    One that fails alone ends soon, so that rank 0, which may be waiting for it, notices.
    """
    assignment = processes.wait_for_call()
    within_s = None
    if assignment is not None:
        try:
            workspace = Workspace.of(root, assignment.job)
            prints_to(workspace.printed_by(processes.rank))
            _module(JobKind.FIT, when_loaded).take_part(assignment, workspace.output)
        except (ProcessError, KeyboardInterrupt):
            pass  # rank 0 knows, or is what was lost
        except Exception:
            traceback.print_exc()
            within_s = _ALONE_S
    code = processes.wait_for_end(within_s)
    processes.end(code)
    return code


def do(context: JobContext) -> FittedModel | None:
    """Do the job; return its model if it may be sampled from again."""
    request = context.assignment.request
    if not isinstance(request, RemoteFit):
        context.processes.dismiss()
    run: Callable[[JobContext, Any], FittedModel | None] = _module(request.kind).run
    return run(context, request)


def _module(kind: JobKind, when_loaded: Callable[[], object] = give_up_nothing) -> Any:
    """The module of a kind of job, loaded when such a job comes: a probe needs no torch, which
    takes seconds."""
    name = f"taciturn.worker.jobs.{kind}"
    if name not in sys.modules:
        with nothing_collected():
            import_module(name)
        when_loaded()
    return sys.modules[name]


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
