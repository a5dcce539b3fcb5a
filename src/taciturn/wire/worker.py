"""The protocol between a gateway and the one worker that holds a job's lease.

    POST /v1/worker/jobs/{id}/lease        -> Assignment      (takes the job, fences another)
    POST /v1/worker/jobs/{id}/heartbeat    -> Orders           (every few seconds)
    POST /v1/worker/jobs/{id}/source       SourceMarks -> 204  (before rows are read)
    POST /v1/worker/jobs/{id}/charges      Charge -> 204       (before a block of steps runs)
    POST /v1/worker/jobs/{id}/events       EventBatch -> 204
    PUT  /v1/worker/jobs/{id}/files/{name} bytes -> 204        (names of `artifacts.ALLOWED`)
    POST /v1/worker/jobs/{id}/incidents    Incident -> 201     (the full log: for the owner only)
    POST /v1/worker/jobs/{id}/over         JobsAsked -> JobsOver (whose checkpoints nobody needs)
    POST /v1/worker/jobs/{id}/outcome      Outcome -> 204      (the last message)
    POST /v1/worker/jobs/{id}/text         TextChunk -> 204    (a streamed sample)
    POST /v1/worker/jobs/{id}/next         -> NextJob          (another sample of the same model)
    GET  /v1/worker/models/{id}/files/{name}                   (a fitted model that the job needs)

All but the first carry the fencing token in the header `Taciturn-Lease`. The bearer token is the
job's own, and good for nothing else.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.planning.plan import TrainingPlan
from taciturn.wire.events import FailureCode, WorkerEvent
from taciturn.wire.jobs import AnyRequest
from taciturn.wire.values import Delta, Epsilon, Identifier, Moment, Name, WireValue

LEASE_HEADER = "Taciturn-Lease"
MOST_ASKED = 100
"""How many jobs may be asked about at once."""


class PlaceRef(WireValue):
    """Place that was registered; credentials are the worker's own.

    Attributes:
        prefixes: where the data of whoever registered it may be, once links are followed, too.
        networks: addresses that may be read from though they are not public.
        own: where gateway and workers keep what is theirs; nothing is read there.
        mark_key: hexadecimal; keys the digests of SourceMarks.
    """

    source: str
    prefixes: tuple[str, ...]
    networks: tuple[str, ...]
    own: tuple[str, ...]
    mark_key: Annotated[str, Field(repr=False)]


class SourceRef(PlaceRef):
    """Place of private rows, and their unit.

    Attributes:
        names: of the columns of CSV files that have no header line; empty: column_1, column_2, ...;
            None: they have one.
    """

    unit: str
    units: int
    names: tuple[str, ...] | None = None
    split_key: Annotated[
        str, Field(repr=False, description="Hexadecimal; keys the split by unit. A secret.")
    ]


class PublicSourceRef(PlaceRef):
    """Place of public text, and what reports say of it.

    Attributes:
        declaration: who says that it is public, and why, in words.
    """

    name: Name
    text_field: str | None = None
    declaration: str


Mark = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", examples=["0f" * 16])]


class SourceMarks(WireValue):
    """Identity of a source, as keyed digests that can be compared and tell nothing else.

    Attributes:
        first: the first message about it; further files follow in further messages.
        places: of where its files or tables are: paths and URLs that links lead to, inodes, OIDs.
        contents: of all that is in a file or a table.
        public: it is the job's public text, which must not be anybody's private rows.
    """

    first: bool
    public: bool = False
    places: Annotated[tuple[Mark, ...], Field(min_length=1, max_length=4000, repr=False)]
    contents: Annotated[tuple[Mark, ...], Field(max_length=4000, repr=False)] = ()


class JobsAsked(WireValue):
    """Jobs of which a worker has found checkpoints in their store: which of them are over?"""

    jobs: Annotated[tuple[Identifier, ...], Field(max_length=MOST_ASKED)]


class JobsOver(WireValue):
    """Jobs that are over, and will not run again. One that is not known here is not over."""

    jobs: tuple[Identifier, ...]


class BaseModelFacts(WireValue):
    """Base model that the plan was made for; the worker refuses to run if its own differs."""

    name: str
    parameters: int
    context_length: int
    vocabulary: int


class ReleasePlan(WireValue):
    """One release of figures about every unit of a part, with Gaussian noise.

    Attributes:
        n_units: the declared number of the part, public: what the noised sums are divided by.
        gain_std, accuracy_gain_std, preferred_std: how exact it will be, see
            planning.release.EvaluationPlan.
    """

    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    epsilon: Epsilon
    delta: Delta
    n_units: Annotated[int, Field(ge=1)]
    gain_std: float | None = None
    accuracy_gain_std: float | None = None
    preferred_std: float | None = None


class LeaseRequest(WireValue):
    """A worker presents itself."""

    worker: Name
    operation_id: Annotated[str, Field(min_length=8, max_length=100)]


class Assignment(WireValue):
    """All that a worker needs to know of its job.

    Attributes:
        plan: of a fit, made by the gateway from public facts: what was reserved is what runs.
            Its number of units includes the canaries, and its delta is the fit's, also where the
            request has none.
        release: of a private evaluation: what was reserved is what runs.
        bucket_s: a stage that reads rows ends so long after its beginning, or twice, four times ...
            as long.
        preparation_s: how long reading and preparing rows may take; public.
        charged_steps: steps that an earlier worker of the job had charged.
        files: names of the fitted model's files, where the job needs one.
    """

    job: str
    attempt: int
    lease: int
    lease_s: float
    bucket_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    preparation_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    request: AnyRequest
    source: SourceRef | None = None
    public_source: PublicSourceRef | None = None
    plan: TrainingPlan | None = None
    release: ReleasePlan | None = None
    base_model: BaseModelFacts | None = None
    model: str | None = None
    files: tuple[str, ...] = ()
    namespace: Name | None = None
    charged_steps: int = 0


class Orders(WireValue):
    """The gateway's answer to a sign of life."""

    cancel: bool = False


class Charge(WireValue):
    """Steps that are about to run. `operation_id` makes a repeated message one charge."""

    operation_id: Annotated[str, Field(min_length=8, max_length=100)]
    first_step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1, le=1_000_000)]


class EventBatch(WireValue):
    """Events in order; `first` is the number of the first one, so that repeats are known."""

    first: Annotated[int, Field(ge=0)]
    events: Annotated[tuple[WorkerEvent, ...], Field(max_length=1000)]


class Incident(WireValue):
    """The full log of a failure. It may quote rows: only the data's owner ever reads it."""

    log: Annotated[str, Field(max_length=2_000_000, repr=False)]


class IncidentId(WireValue):
    """Id under which the owner finds the log."""

    incident: str


class IncidentView(WireValue):
    """The full log of a failure, for the owner of the data."""

    id: str
    job: str
    namespace: Name
    log: Annotated[str, Field(repr=False)]
    created_at: Moment


class Outcome(WireValue):
    """End of a job."""

    succeeded: bool
    code: FailureCode | None = None
    incident: str | None = None


class TextChunk(WireValue):
    """A piece of a streamed sample. `offset` is the number of characters before it, so that a
    repeated message is known."""

    text: Annotated[str, Field(max_length=100_000)]
    offset: Annotated[int | None, Field(ge=0)] = None
    last: bool = False
    finish_reason: str | None = None


class NextJob(WireValue):
    """Another job for a worker that has a model in memory; null: none came, ask again or end."""

    job: str | None = None
    token: Annotated[str | None, Field(repr=False)] = None
