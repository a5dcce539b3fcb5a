"""Launchers of workers: one starts a worker for a job's attempt, at most one, and can stop it.

A handle follows from job and attempt alone, so that the gateway can write it down before a worker
is started, and finds that worker again after a crash at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from taciturn.planning.memory import memory_need
from taciturn.planning.plan import TrainingPlan
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.machines import MachinePlan
from taciturn.wire.worker import BaseModelFacts

Sizing: TypeAlias = Callable[[RemoteFit, TrainingPlan, BaseModelFacts], MachinePlan]
"""Function that says which machine a fit would get."""


class LaunchError(Exception):
    """No worker could be started. The message is for the gateway's log."""


class LaterError(LaunchError):
    """Not now: what was asked for may go through when it is asked for again.

    Attributes:
        code, text: reason, as the job's events state it.
    """

    code = "provisioning.later"
    text = "an earlier worker of this job is still being removed"


class OutageError(LaterError):
    """Nothing can be started, stopped or looked at: the system that would do so does not answer."""

    code = "provisioning.outage"
    text = "the cluster that runs the workers does not answer"


class WorkerState(StrEnum):
    """State of a worker, as its launcher knows it. `GIVEN_UP`: it has ended because its machines
    did not come in time, and another one would wait as long."""

    ABSENT = "absent"
    RUNNING = "running"
    ENDED = "ended"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Order:
    """A worker that is wanted.

    Attributes:
        environment: what the worker is told: where the gateway is, its job, and its token.
    """

    job_id: str
    attempt: int
    environment: Mapping[str, str] = field(repr=False)

    @property
    def handle(self) -> str:
        """The name of the worker."""
        return handle_of(self.job_id, self.attempt)


class Launcher(Protocol):
    """Starts workers. Every method may be repeated, and called by a gateway that has restarted;
    each may raise OutageError, which says nothing of any worker.

    All attempts of a job share a private workspace, so that a later one can go on from the
    checkpoint of an earlier one; of two attempts only one lives at a time.
    """

    def launch(self, order: Order) -> str:
        """Start a worker; returns its handle. If this job's attempt has one already, even one that
        has ended, no other is started. Raises LaunchError."""
        ...

    def status(self, handle: str) -> WorkerState:
        """State of a worker; `absent` if it was never started, or nothing is left of it."""
        ...

    def waiting(self, handle: str) -> bool:
        """True if the worker is on its way, and only its machine is not there yet."""
        ...

    def stop(self, handle: str, grace_s: float) -> None:
        """Ask the worker to end, and end it after `grace_s`; does not wait. Never raises for one
        that is gone."""
        ...

    def alive(self) -> tuple[str, ...]:
        """All workers that live, also those that an earlier gateway started."""
        ...

    def leftover_jobs(self) -> tuple[str, ...]:
        """Jobs of which something is left here, such as workspaces and logs."""
        ...

    def forget(self, job_id: str) -> None:
        """Remove what a job's workers left behind: private workspaces above all. Does nothing
        while one of them lives."""
        ...


def handle_of(job_id: str, attempt: int) -> str:
    """The name of the worker of a job's attempt."""
    return f"{job_id}-{attempt}"


def parts_of(handle: str) -> tuple[str, int]:
    """Job and attempt of a handle; raises LaunchError if it is none."""
    job_id, _, attempt = handle.rpartition("-")
    if not job_id.replace("_", "").isalnum() or not attempt.isdecimal():
        raise LaunchError(f"{handle!r} is no handle")
    return job_id, int(attempt)


def own_machine(request: RemoteFit, plan: TrainingPlan, base: BaseModelFacts) -> MachinePlan:
    """Plan of a fit that runs beside the gateway, with the memory that it needs without a GPU."""
    need = memory_need(base.parameters, base.vocabulary, plan, request.fit_spec(), on_gpu=False)
    return MachinePlan(text="the gateway's own machine", memory_bytes=need.on(1))
