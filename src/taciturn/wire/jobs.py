"""Jobs: requests to a worker, and their states."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from taciturn.planning.plan import TimeChoice
from taciturn.planning.worth import Worth
from taciturn.spec import GATEWAY, AuditSpec, EvaluateSpec, FitSpec, NewTokens, SampleSpec, Sampling
from taciturn.wire.machines import MachinePlan, MachineWish
from taciturn.wire.public_datasets import PublicDatasetView
from taciturn.wire.values import Line, Moment, Name, PolicyLine, WireValue


class JobKind(StrEnum):
    """Kind of a job."""

    PROBE = "probe"
    FIT = "fit"
    SAMPLE = "sample"
    EVALUATE = "evaluate"
    AUDIT = "audit"
    SYNTHESIZE = "synthesize"

    @property
    def reads_rows(self) -> bool:
        """Return whether private rows are read, so that its duration depends on them."""
        return self in (JobKind.PROBE, JobKind.FIT, JobKind.EVALUATE)


class JobState(StrEnum):
    """State of a job."""

    VALIDATING = "validating"
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Return whether nothing more happens."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Part(WireValue):
    """One side of a split by unit: `test` holds about `test_share` of the units, `train` the rest.

    Which unit is where is decided by a keyed hash whose key only workers have, so that the same
    share always gives the same split.
    """

    side: Literal["train", "test"]
    test_share: Annotated[float, Field(gt=0, lt=1)]


class DataRef(WireValue):
    """Rows of a dataset: which, and how they are prepared. The unit is the dataset's own."""

    dataset: Name
    select: Annotated[str | None, Field(max_length=10_000)] = None
    part: Part | None = None


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_REMOTE = ("privacy_unit", "select", "device", "threads", "checkpoint_every")


Text = Annotated[str, Field(max_length=100_000)]
Prompts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
FittedModel = Annotated[str, Field(description="Id of a fitted model.")]
Purpose = Annotated[
    Line | None, Field(description="What it is for: one line for whoever has to approve it.")
]


class RemoteFit(FitSpec):
    """A fit where the data is: FitSpec, but unit, selection and machine are the gateway's."""

    kind: Literal[JobKind.FIT] = JobKind.FIT
    model: Annotated[str, Field(min_length=1, max_length=300, description="Base model.")]
    data: DataRef
    public_data: Annotated[
        Name | None,
        Field(
            description="Public data set of the gateway: fitted first, outside of the guarantee."
        ),
    ] = None
    name: Annotated[Line | None, Field(description="A name for the model.")] = None
    purpose: Purpose = None
    machine: Annotated[
        MachineWish | None, Field(description="Default: what the memory estimate needs.")
    ] = None

    @field_validator("public_data", mode="before")
    @classmethod
    def _registered(cls, value: Any) -> Any:
        """Take a name, with or without what says that it is a gateway's."""
        if isinstance(value, str):
            name = value.removeprefix(GATEWAY)
            if _NAME.fullmatch(name):
                return name
        elif value is None:
            return None
        raise ValueError(
            "a gateway's job reads registered data and nothing else; name a public data set that "
            "is registered there (`taciturn public-data list` shows them), or leave it out"
        )

    @model_validator(mode="after")
    def _only_remote(self) -> Self:
        defaults = FitSpec()
        for field in _NOT_REMOTE:
            if getattr(self, field) != getattr(defaults, field):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} is not yours to choose in a gateway's job; "
                    "leave it out"
                )
        return self

    def fit_spec(self) -> FitSpec:
        """The part that the engine takes, without unit and selection."""
        return self.part(FitSpec)


MOST_SCORED = 128
"""Texts whose tokens one job scores at most, so that its result stays of a size to be read."""


class RemoteSample(SampleSpec):
    """Text from a fitted model, or from its base; with `logprobs`, how likely its tokens are."""

    kind: Literal[JobKind.SAMPLE] = JobKind.SAMPLE
    model: FittedModel
    prompts: Prompts
    stream: Annotated[bool, Field(description="Report text as it is written; one prompt, n=1.")] = (
        False
    )
    base: Annotated[
        bool, Field(description="Have the model's base write instead, as it was before the fit.")
    ] = False
    logprobs: Annotated[
        int | None,
        Field(ge=0, le=20, description="Score each token, and name so many likelier ones."),
    ] = None
    echo: Annotated[bool, Field(description="Score the prompts' tokens, too.")] = False
    writes: Annotated[bool, Field(description="False: score the prompts, write nothing.")] = True

    @model_validator(mode="after")
    def _scores(self) -> Self:
        if self.logprobs is None:
            if self.echo or not self.writes:
                raise ValueError("echo=True and writes=False score prompts; give logprobs, too")
            return self
        if not (self.writes or self.echo):
            raise ValueError("writes=False scores nothing without echo=True; give both")
        if self.stream:
            raise ValueError("logprobs come with whole texts; leave stream out")
        texts = len(self.prompts) * self.n
        if texts > MOST_SCORED:
            raise ValueError(
                f"logprobs of {texts} texts are more than the {MOST_SCORED} of one job; ask for "
                "fewer prompts or a smaller n"
            )
        return self

    def sample_spec(self) -> SampleSpec:
        """The part that the engine takes."""
        return self.part(SampleSpec)


class RemoteEvaluate(EvaluateSpec):
    """A fitted model judged on a part of a dataset (paid for), or on public texts (free)."""

    kind: Literal[JobKind.EVALUATE] = JobKind.EVALUATE
    model: FittedModel
    data: DataRef | None = None
    public_texts: Annotated[tuple[Text, ...], Field(max_length=10_000)] = ()
    purpose: Purpose = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (not self.public_texts):
            raise ValueError("give either data (private, with target_epsilon) or public_texts")
        if self.show_private:
            raise ValueError("show_private=True shows rows' figures; a gateway never does")
        if self.pairs and self.data is None:
            raise ValueError(
                "public pairs of answers are judged where a model is: download it with "
                "model.save(folder); of a dataset, data and target_epsilon judge them here"
            )
        if self.data is not None and self.target_epsilon is None:
            raise ValueError("data is private: give target_epsilon, for example 0.5")
        return self

    def evaluate_spec(self) -> EvaluateSpec:
        """The part that the engine takes."""
        return self.part(EvaluateSpec)


class RemoteAudit(AuditSpec):
    """A fitted model attacked through its canaries; costs nothing, for canaries are invented."""

    kind: Literal[JobKind.AUDIT] = JobKind.AUDIT
    model: Annotated[str, Field(description="Id of a fitted model that has canaries.")]


class RemoteSynthesize(Sampling):
    """Records written by a fitted model: post-processing, so free."""

    kind: Literal[JobKind.SYNTHESIZE] = JobKind.SYNTHESIZE
    model: FittedModel
    n: Annotated[int, Field(ge=1, le=1_000_000)]
    prompts: Prompts = ("",)
    max_new_tokens: NewTokens = 128


class RemoteProbe(WireValue):
    """A look at a dataset's schema by a worker: can it be read, and is every unit named?"""

    kind: Literal[JobKind.PROBE] = JobKind.PROBE
    dataset: Name


JobRequest = Annotated[
    RemoteFit | RemoteSample | RemoteEvaluate | RemoteAudit | RemoteSynthesize,
    Field(discriminator="kind"),
]
AnyRequest = Annotated[
    RemoteFit | RemoteSample | RemoteEvaluate | RemoteAudit | RemoteSynthesize | RemoteProbe,
    Field(discriminator="kind"),
]


class Failure(WireValue):
    """Cause of a failure, from a fixed list; the owner finds the log under `incident`."""

    code: str
    text: str
    incident: str | None = None


class JobCost(WireValue):
    """Cost of a job in shares of budgets, as if it were the only one: beside jobs that are unlike
    it, a job takes more. While it runs, all of its plan is held or spent; its
    progress says what is spent so far. Once it is over, what was not spent is free again."""

    epsilon: Annotated[
        float | None, Field(description="That is spent for good; null while the job runs.")
    ]
    delta: float
    share_of_budget: Annotated[float, Field(description="Of the namespace's, spent and held.")]
    share_of_grant: Annotated[
        float | None, Field(description="Of the grant that it is paid from, spent and held.")
    ]


class JobView(WireValue):
    """A job as its requester sees it."""

    id: str
    kind: JobKind
    state: JobState
    requester: str
    namespace: Name | None
    dataset: Name | None
    public_data: Annotated[
        Name | None, Field(description="Public data set that a fit learns from first.")
    ] = None
    model: Annotated[str | None, Field(description="The fitted model: asked for, or made.")]
    request: dict[str, Any]
    plan: dict[str, Any] | None = None
    policy: PolicyLine
    failure: Failure | None = None
    approval: str | None = None
    cost: Annotated[
        JobCost | None, Field(description="Of one job that was asked for; null in lists.")
    ] = None
    created_at: Moment
    started_at: Annotated[
        Moment | None, Field(description="When its first worker was started.")
    ] = None
    updated_at: Moment


class OperatedJob(WireValue):
    """A job as whoever runs the gateway sees it: how long it has run, and nothing of its data."""

    id: str
    kind: JobKind
    state: JobState
    requester: str
    attempt: Annotated[int, Field(description="How many workers it has had.")]
    created_at: Moment
    started_at: Annotated[Moment | None, Field(description="When its first worker was started.")]
    updated_at: Moment


class Duration(WireValue):
    """Time of a fit's steps, and what it is derived from."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    basis: str


class PlanView(WireValue):
    """Plan and price of a fit, before anything is held."""

    plan: dict[str, Any]
    epsilon: float | None
    delta: float | None
    share_of_budget: Annotated[
        float | None, Field(description="Of the job by itself, as if it were the only one.")
    ]
    share_of_grant: float | None
    left_of_budget: Annotated[
        float | None,
        Field(description="Share that is neither spent nor held now; null without a cost."),
    ] = None
    left_of_grant: float | None = None
    left_of_budget_after: Annotated[
        float | None,
        Field(
            description="The same once this is held, below 0 without room. Shares of unlike jobs "
            "do not add up, so this can be less than left_of_budget - share_of_budget."
        ),
    ] = None
    left_of_grant_after: float | None = None
    admitted: bool
    fitting_epsilon: Annotated[
        float | None,
        Field(description="Where the budget has no room: the target_epsilon that would fit now."),
    ] = None
    needs_approval: Annotated[
        str | None, Field(description="Why two people would have to approve; null if not.")
    ]
    duration: Annotated[
        Duration | None, Field(description="Of a fit's steps, without waiting for a machine.")
    ] = None
    machine: Annotated[
        MachinePlan | None, Field(description="Machine, memory and cost of a fit.")
    ] = None
    worth: Annotated[
        Worth | None,
        Field(description="What a private fit is expected to keep of an ordinary fit's gain."),
    ] = None
    other_times: Annotated[
        tuple[TimeChoice, ...],
        Field(description="What half, twice and four times its time would buy, beside itself."),
    ] = ()
    public_data: Annotated[
        PublicDatasetView | None,
        Field(description="Public text that is learned first, which no guarantee covers."),
    ] = None
    policy: PolicyLine


class ModelView(WireValue):
    """A fitted model; its files are artifacts."""

    id: str
    name: str | None
    job: str
    owner: str
    base_model: str
    context_length: Annotated[
        int | None,
        Field(description="Tokens of prompt and answer together; null: the base was removed."),
    ] = None
    namespace: Name
    dataset: Annotated[
        Name | None, Field(description="What it was fitted on; null: not on record.")
    ] = None
    policy: PolicyLine
    report: dict[str, Any]
    files: tuple[str, ...]
    created_at: Moment


class DecisionView(WireValue):
    """Answer of an approver; `withdrawn` is a yes that was taken back."""

    approver: str
    decision: Literal["approved", "rejected", "withdrawn"]
    comment: str | None
    at: Moment


class ApprovalView(WireValue):
    """A request to two people for something that the rules alone refuse.

    Attributes:
        model: the base model of a fit; else the id of a fitted one.
        epsilon, delta: what the job itself would cost; null without a guarantee.
        steps: how often the mechanism would run.
        left, left_after: share of the namespace's budget that is neither spent nor held, now and
            once this was approved, below 0 where there is no room; null once it was rejected, ran
            out, or was used.
        epsilon_taken, epsilon_taken_after: epsilon that everything spent or held comes to together
            at the budget's delta, at most, now and with this; null in lists, too.
        budget_epsilon, budget_delta: budget that they are of.
        public_data: public text that a fit learns from first, which no guarantee covers.
    """

    id: str
    job: str
    namespace: Name
    requester: str
    reason: Literal["no_guarantee", "exceeds_grant"]
    request: dict[str, Any]
    state: Literal["open", "approved", "rejected", "expired", "used"]
    approved_by: tuple[str, ...]
    needed: int
    expires_at: Moment
    created_at: Moment
    kind: JobKind | None = None
    dataset: Name | None = None
    public_data: PublicDatasetView | None = None
    model: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    steps: int | None = None
    purpose: str | None = None
    decisions: tuple[DecisionView, ...] = ()
    left: float | None = None
    left_after: float | None = None
    epsilon_taken: float | None = None
    epsilon_taken_after: float | None = None
    budget_epsilon: float | None = None
    budget_delta: float | None = None


class Decision(WireValue):
    """An approver's answer."""

    decision: Literal["approve", "reject"]
    comment: Line | None = None


class Withdrawal(WireValue):
    """An approver takes their yes back."""

    comment: Line | None = None
