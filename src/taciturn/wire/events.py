"""Events of a job while it runs: the allow-list. There is no other kind.

Every field is public, data-independent, or paid for by the budget. The worker builds events only
from these types, and the gateway refuses what does not validate as one of them. None has room for
free text: words come from the fixed lists below.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from taciturn.planning.plan import TrainingPlan
from taciturn.wire.jobs import JobState
from taciturn.wire.machines import MachineUse
from taciturn.wire.values import LATER, Moment, WireValue

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Stage(StrEnum):
    """Stage of a worker's job; which stages there are does not depend on rows."""

    LOADING = "loading"
    READING = "reading"
    TRAINING = "training"
    RESUMED = "resumed"
    GENERATING = "generating"
    SCORING = "scoring"
    RELEASING = "releasing"


class FailureCode(StrEnum):
    """Cause of a failed job, as far as its requester may know."""

    BAD_CONFIGURATION = "bad_configuration"
    MODEL_REFUSED = "model_refused"
    DATA_UNREADABLE = "data_unreadable"
    DATA_REFUSED = "data_refused"
    SOURCE_REFUSED = "source_refused"
    GUARANTEE_REFUSED = "guarantee_refused"
    BUDGET_EXCEEDED = "budget_exceeded"
    FENCED = "fenced"
    RESOURCES = "resources"
    TIME = "time"
    STORAGE = "storage"
    INTERNAL = "internal"
    LOST = "lost"
    REJECTED = "rejected"
    EXPIRED = "expired"
    LAUNCH = "launch"
    OUTAGE = "outage"


FAILURES: dict[FailureCode, str] = {
    FailureCode.BAD_CONFIGURATION: "the request cannot be run as it is; correct it and try again",
    FailureCode.MODEL_REFUSED: "the model cannot be loaded, or cannot be fitted with a guarantee",
    FailureCode.DATA_UNREADABLE: "the worker cannot reach or read the data; ask the data's owner",
    FailureCode.DATA_REFUSED: "the data cannot be prepared this way; ask the data's owner",
    FailureCode.SOURCE_REFUSED: "the data are where their owner may read none, or are registered "
    "under another budget, too, or what was named as public data is somebody's private data; their "
    "owner asks an administrator",
    FailureCode.GUARANTEE_REFUSED: "going on would have broken the guarantee; nothing was released",
    FailureCode.BUDGET_EXCEEDED: "the budget has no room for what is left to do: steps that a lost "
    "worker had been charged for would run, and be charged, again. What was charged stays spent, "
    "what never ran is free again; ask for less, or the data's owner for a larger budget",
    FailureCode.FENCED: "another worker has taken the job over",
    FailureCode.RESOURCES: "memory ran out; ask for smaller microbatches",
    FailureCode.TIME: "the job has taken all the time that it may take; one that was still reading "
    "rows has spent what it held; make select simpler, or ask for more time",
    FailureCode.STORAGE: "disk or object store is full or cannot be written",
    FailureCode.INTERNAL: "the worker failed; the owner finds why under the incident",
    FailureCode.LOST: "its workers vanished one after the other without a word, as they do when "
    "memory runs out or a machine goes away. What was charged stays spent, what never ran is free "
    "again. Ask whoever runs the gateway, whose log says when each was lost; then try again, with "
    "smaller microbatches if it may be memory",
    FailureCode.REJECTED: "an approver rejected it",
    FailureCode.EXPIRED: "nobody approved it, or no worker came, in time; nothing was spent, and "
    "what was held is free again. Ask again",
    FailureCode.LAUNCH: "no worker could be started",
    FailureCode.OUTAGE: "the cluster of the workers did not answer, or had no room, for too long",
}
"""What people read; fixed, so that it can quote nothing."""


class StateEvent(WireValue):
    """The job has come into a state. From the gateway alone."""

    type: Literal["state"] = "state"
    state: JobState
    code: FailureCode | None = None
    incident: str | None = None


class StageEvent(WireValue):
    """The worker has begun something."""

    type: Literal["stage"] = "stage"
    stage: Stage
    padded_s: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="The stage ends so many seconds after it began, or twice, four times ... "
            "as many: how long rows take tells nothing.",
        ),
    ] = None


class PlanEvent(WireValue):
    """The plan that runs: made of public facts alone."""

    type: Literal["plan"] = "plan"
    plan: TrainingPlan


class ProgressEvent(WireValue):
    """Steps done, and the epsilon that is spent: of all steps that are charged, a block of them
    before the first of it runs. Delivered at the ticks of a public clock, not as steps end:
    how long a step takes depends on how many units it drew."""

    type: Literal["progress"] = "progress"
    step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class CountEvent(WireValue):
    """Texts or canaries done, of a number that was asked for: never a number of rows."""

    type: Literal["count"] = "count"
    done: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=1)]


class NodeEvent(WireValue):
    """News of the machine a job runs on. From the gateway's launcher alone."""

    type: Literal["node"] = "node"
    code: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=60)]
    text: Annotated[str, Field(max_length=300)]
    use: Annotated[
        MachineUse | None, Field(description="How long a machine was used, once that is known.")
    ] = None


WorkerEvent = Annotated[
    StageEvent | PlanEvent | ProgressEvent | CountEvent, Field(discriminator="type")
]
JobEvent = Annotated[
    StateEvent | StageEvent | PlanEvent | ProgressEvent | CountEvent | NodeEvent,
    Field(discriminator="type"),
]

WORKER_EVENT: TypeAdapter[WorkerEvent] = TypeAdapter(WorkerEvent, config=LATER)
JOB_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent, config=LATER)


class NumberedEvent(WireValue):
    """An event in its job's stream; `at` is rounded up to the gateway's tick."""

    sequence: int
    at: Moment
    event: JobEvent


class EventPage(WireValue):
    """Events in order. `after` of the next page is the last one's `sequence`."""

    items: tuple[NumberedEvent, ...]
