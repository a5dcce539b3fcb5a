"""What a job is, as plain values: one model for SDK arguments, CLI flags, YAML and REST.

Every field here is public information. Private values (rows, losses, counts) never enter a spec,
but for what a job file must say of a secret (ExtractJobSpec). Fields with repr=False are never
shown, nor quoted in an error.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from taciturn.errors import PrivacyParameterError, SpecError, UnknownFieldError

Method = Literal["auto", "lora", "full"]
Unlimited = Literal["unlimited"]
CanaryKind = Literal["random", "new-token", "secret"]

GATEWAY = "gateway:"
"""What a dataset's or model's text begins with where it is behind a gateway: gateway:phee."""

ONE_RECORD = "one record"
"""What is protected where no privacy_unit is named, as reports say it."""

_PRIVACY_FIELDS = frozenset({"target_epsilon", "delta", "l2_clip_norm", "batch_size"})


# Names that the system gave: their bytes need be no text.
_PATHS = frozenset(
    (
        "model",
        "base",
        "data",
        "output",
        "signing_key",
        "members",
        "non_members",
        "synthetic",
        "test",
        "public_data",
    )
)


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, defer_build=True)

    @model_validator(mode="after")
    def _utf8(self) -> Self:
        """Reports and digests are written from these texts."""
        for name in type(self).model_fields.keys() - _PATHS:
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    check_text(name, text)
        return self


S = TypeVar("S", bound=_Spec)

Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Far below, logits divided by it overflow; nothing is lost, since 0 is greedy.
Temperature = Annotated[
    float,
    Field(ge=0, le=100, allow_inf_nan=False),
    AfterValidator(lambda value: _zero_or_more(value, 1e-4)),
]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NewTokens = Annotated[int, Field(ge=1, le=1_000_000)]
AtOnce = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)]

BaseAt = Annotated[
    str | None, Field(description="Where the base of a fitted model is, if that has moved.")
]


class DataSpec(_Spec):
    """How rows become records, and records become privacy units."""

    text_field: Annotated[str | None, Field(description="Column that holds the text.")] = None
    question_field: Annotated[
        str | None, Field(description="Column with the question; needs answer_field.")
    ] = None
    answer_field: Annotated[
        str | None, Field(description="Column with the answer; the loss is on the answer only.")
    ] = None
    messages_field: Annotated[
        str | None,
        Field(description="Column of chat messages [{role, content}]; loss on assistant turns."),
    ] = None
    select: Annotated[
        str | None,
        Field(description="Row-wise SQL (DuckDB) that prepares the columns, applied first."),
    ] = None
    privacy_unit: Annotated[
        str | None,
        Field(description="Column or row-wise SQL expression that names the protected unit."),
    ] = None
    max_records_per_unit: Annotated[
        int, Field(ge=1, le=10_000, description="Records one unit may contribute, at most.")
    ] = 8
    max_tokens: Annotated[
        int | None,
        Field(ge=2, le=10_000_000, description="Tokens kept of a record; the rest is cut off."),
    ] = None

    @field_validator("privacy_unit")
    @classmethod
    def _not_the_name_of_none(cls, unit: str | None) -> str | None:
        """A report could not tell such a column from no unit at all."""
        if unit == ONE_RECORD:
            raise ValueError(
                "is what reports say where no unit is named; leave it out for that, and put a "
                "column of this name in double quotes"
            )
        return unit


class PrivacySpec(_Spec):
    """What is promised. `target_epsilon="unlimited"` promises nothing, and says so."""

    target_epsilon: Annotated[
        float | Unlimited | None,
        Field(description='Privacy budget epsilon, or "unlimited" for no privacy at all.'),
    ] = None
    delta: Annotated[
        float | None,
        Field(description="Chance left out of the promise; default 10^-k at most 1/(10 n)."),
    ] = None
    l2_clip_norm: Annotated[
        float | None,
        Field(
            ge=1e-6, le=1e6, allow_inf_nan=False, description="Bound C on one unit's gradient norm."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=10**12, description="Expected number of units per step (public)."),
    ] = None

    @field_validator("target_epsilon", mode="before")
    @classmethod
    def _number_or_unlimited(cls, value: Any) -> Any:
        """Says both, and takes no YAML `yes` for 1."""
        if value is None or value == "unlimited" or _is_number(value):
            return value
        raise ValueError(
            'must be a number in [0.01, 1000], for example 3, or "unlimited" for no privacy at all'
        )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        epsilon = self.target_epsilon
        if isinstance(epsilon, float) and not 0.01 <= epsilon <= 1000:
            raise ValueError(
                f"target_epsilon={epsilon:g} must lie in [0.01, 1000]; "
                'choose for example 3, or "unlimited" for no privacy at all'
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta:g} must lie in (0, 1); leave it out for a default")
        return self


class TrainingSpec(_Spec):
    """What is trained, and for how long. None means: `method="auto"` decides."""

    method: Annotated[Method, Field(description="auto, lora or full.")] = "auto"
    r: Annotated[int | None, Field(ge=1, le=16_384, description="LoRA rank.")] = None
    alpha: Annotated[
        float | None,
        Field(ge=1e-6, le=1e6, allow_inf_nan=False, description="LoRA scale alpha."),
    ] = None
    target_modules: Annotated[
        tuple[str, ...] | None, Field(description="Modules that get a LoRA adapter.")
    ] = None
    epochs: Annotated[
        float | None,
        Field(gt=0, le=1e6, allow_inf_nan=False, description="Expected passes over the units."),
    ] = None
    steps: Annotated[
        int | None, Field(ge=1, le=10**8, description="Optimiser steps; instead of epochs.")
    ] = None
    max_minutes: Annotated[
        float | None,
        Field(
            ge=0.01,
            le=1e5,
            allow_inf_nan=False,
            description="Time limit of the steps, at 64 tokens a unit; decides batch and steps.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(ge=1e-12, le=1e3, allow_inf_nan=False, description="Peak learning rate."),
    ] = None
    seed: Annotated[
        Seed, Field(description="Seeds initial adapter weights; never noise or sampling.")
    ] = 0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs:g} and steps={self.steps} both set the length; give one"
            )
        if self.epochs is not None and self.max_minutes is not None:
            raise ValueError(
                f"epochs={self.epochs:g} sets how many units are seen, and "
                f"max_minutes={self.max_minutes:g} limits that; give one"
            )
        if self.method == "full" and (self.r or self.alpha or self.target_modules):
            raise ValueError('r, alpha and target_modules need method="lora"')
        return self


class PerformanceSpec(_Spec):
    """How fast and in how much memory. None of it changes what is computed or promised."""

    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        Field(description="Arithmetic; default: bfloat16 on GPU, float32 on CPU."),
    ] = None
    quantization: Annotated[
        Literal["int8", "nf4"] | None,
        Field(description="Load the frozen base in int8 or 4 bits (bitsandbytes or torchao)."),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Field(description="Recompute activations in the backward pass to save memory.")
    ] = False
    microbatch_tokens: Annotated[
        int,
        Field(ge=1, le=2**31, description="Tokens of one physical microbatch, padding included."),
    ] = 2048
    per_unit_gradients: Annotated[
        Literal["auto", "instantiate", "factors"],
        Field(description="How matrices' per-unit gradients are kept; all are exact."),
    ] = "auto"
    packed_rows: Annotated[
        bool,
        Field(description="Refused if true: records that share rows round by their neighbours."),
    ] = False
    sharding: Annotated[
        Literal["none", "full"],
        Field(
            description="full: with several processes (torchrun), each holds a part of the weights."
        ),
    ] = "none"
    compile: Annotated[
        bool,
        Field(description="torch.compile what nothing is trained in: a minute, then faster steps."),
    ] = False
    threads: Annotated[int | None, Field(ge=1, le=1024, description="CPU threads.")] = None
    checkpoint_every: Annotated[
        int, Field(ge=1, le=10**8, description="Steps between two resumable checkpoints.")
    ] = 10


class CanarySpec(_Spec):
    """What an audit of the model will need: canaries among the training data."""

    canaries: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Invented units for an audit; each is in by a fair coin. 0: none.",
        ),
    ] = 0
    canary_kind: Annotated[
        CanaryKind, Field(description="What canaries say: random, new-token or secret.")
    ] = "new-token"

    @model_validator(mode="after")
    def _kind_of_some(self) -> Self:
        if not self.canaries and self.canary_kind != "new-token":
            raise ValueError(
                f"canary_kind={self.canary_kind!r} without canaries; give, for example, "
                "canaries=500"
            )
        return self


class PublicSpec(_Spec):
    """Text that its owner declares public, to learn from before any private row: it costs nothing.

    It is public if anybody may read all of it, and would have been there without the private rows:
    text that says what they say, or was chosen by them, is not.
    """

    public_data: Annotated[
        Any,
        Field(
            repr=False,
            description="Text that you declare public; fitted first, without a guarantee for it.",
        ),
    ] = None
    public_text_field: Annotated[
        str | None,
        Field(description="Its column of text; default: as in the data, or the one it has."),
    ] = None

    @model_validator(mode="after")
    def _field_of_something(self) -> Self:
        if self.public_text_field is not None and self.public_data is None:
            raise ValueError(
                f"public_text_field={self.public_text_field!r} is a column of public_data; give "
                "that, or leave the column out"
            )
        return self


class FitSpec(DataSpec, PrivacySpec, TrainingSpec, PerformanceSpec, CanarySpec, PublicSpec):
    """The arguments of `LLM.fit`, flat; its six parts are the base classes above."""

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.question_field is None) != (self.answer_field is None):
            raise ValueError(
                f"question_field={self.question_field!r} and answer_field={self.answer_field!r} "
                "go together; give both"
            )
        kinds = [self.text_field, self.question_field, self.messages_field]
        if sum(kind is not None for kind in kinds) > 1:
            raise ValueError(
                "text_field, question_field/answer_field and messages_field exclude each other; "
                "give one of them"
            )
        if None not in (self.max_minutes, self.batch_size, self.steps):
            raise ValueError(
                f"batch_size={self.batch_size} and steps={self.steps} together say how long it "
                f"takes, and max_minutes={self.max_minutes:g} limits that; leave one of them out"
            )
        if self.packed_rows:
            raise ValueError(
                "packed_rows=True: a record that shares a row with others is rounded by them, so "
                "that they would show in its gradient; leave it out, rows are padded"
            )
        if self.compile and self.sharding == "full":
            raise ValueError(
                "compile=True and sharding='full' exclude each other: FSDP puts weights together "
                "between the parts that would be compiled; leave one out"
            )
        return self

    @property
    def private(self) -> bool:
        """True unless the caller asked for no guarantee."""
        return self.target_epsilon != "unlimited"


class FitFields(TypedDict, total=False):
    """The fields of FitSpec as keyword arguments, for editors and mypy."""

    text_field: str | None
    question_field: str | None
    answer_field: str | None
    messages_field: str | None
    select: str | None
    privacy_unit: str | None
    max_records_per_unit: int
    max_tokens: int | None
    target_epsilon: float | Unlimited | None
    delta: float | None
    l2_clip_norm: float | None
    batch_size: int | None
    method: Method
    r: int | None
    alpha: float | None
    target_modules: tuple[str, ...] | list[str] | None
    epochs: float | None
    steps: int | None
    max_minutes: float | None
    learning_rate: float | None
    seed: int
    device: str | None
    dtype: Literal["float32", "bfloat16"] | None
    quantization: Literal["int8", "nf4"] | None
    gradient_checkpointing: bool
    microbatch_tokens: int
    per_unit_gradients: Literal["auto", "instantiate", "factors"]
    packed_rows: bool
    sharding: Literal["none", "full"]
    compile: bool
    threads: int | None
    checkpoint_every: int
    canaries: int
    canary_kind: CanaryKind
    public_data: object
    public_text_field: str | None


class AssessmentSpec(DataSpec):
    """On what a model is judged, and what that may cost.

    Without target_epsilon the data are declared public (or, with show_private, the owner looks at
    private rows); with it they are private, and figures about them are released with noise.
    """

    target_epsilon: Annotated[
        float | None,
        Field(description="Private data: epsilon of this release; added to the model's."),
    ] = None
    delta: Annotated[
        float | None, Field(description="Goes with target_epsilon; default: the model's.")
    ] = None
    show_private: Annotated[
        bool, Field(description="Private data: exact figures, for the owner's eyes only.")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _no_unlimited(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("target_epsilon") == "unlimited":
            raise ValueError(
                'target_epsilon="unlimited" releases nothing; show_private=True shows the owner '
                "exact figures, which must not be passed on"
            )
        return fields

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        epsilon = self.target_epsilon
        if epsilon is None:
            if self.delta is not None:
                raise ValueError(f"delta={self.delta:g} goes with target_epsilon; give that too")
            return self
        if self.show_private:
            raise ValueError(
                f"show_private=True and target_epsilon={epsilon:g} exclude each other; give one"
            )
        if not 0.01 <= epsilon <= 1000:
            raise ValueError(
                f"target_epsilon={epsilon:g} must lie in [0.01, 1000]; choose for example 0.5"
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta:g} must lie in (0, 1); leave it out for a default")
        return self


class EvaluateSpec(AssessmentSpec):
    """The arguments of `LLM.evaluate`."""

    loss_bound: Annotated[
        float | None,
        Field(
            ge=1e-3,
            le=100,
            description="Nats per token that count at most; default ln(vocabulary).",
        ),
    ] = None
    samples: Annotated[
        int, Field(ge=0, le=100_000, description="Samples to compare with the data; 0: none.")
    ] = 0
    max_new_tokens: Annotated[NewTokens, Field(description="Tokens of a sample at most.")] = 64
    seed: Annotated[Seed | None, Field(description="Makes samples repeatable.")] = None

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if 0 < self.samples < 20:
            raise ValueError(f"samples={self.samples} is too few for a comparison; take 20 or more")
        return self


class EvaluateFields(TypedDict, total=False):
    """The fields of EvaluateSpec as keyword arguments, for editors and mypy."""

    text_field: str | None
    question_field: str | None
    answer_field: str | None
    messages_field: str | None
    select: str | None
    privacy_unit: str | None
    max_records_per_unit: int
    max_tokens: int | None
    target_epsilon: float | None
    delta: float | None
    show_private: bool
    loss_bound: float | None
    samples: int
    max_new_tokens: int
    seed: int | None


class DownstreamSpec(AssessmentSpec):
    """The arguments of `LLM.downstream`."""

    label_field: Annotated[str, Field(description="Column of labels, in both data sets.")] = "label"


class DownstreamFields(TypedDict, total=False):
    """The fields of DownstreamSpec as keyword arguments, for editors and mypy."""

    text_field: str | None
    question_field: str | None
    answer_field: str | None
    messages_field: str | None
    select: str | None
    privacy_unit: str | None
    max_records_per_unit: int
    max_tokens: int | None
    target_epsilon: float | None
    delta: float | None
    show_private: bool
    label_field: str


Alternatives = dict[str, tuple[str, ...] | str] | tuple[str, ...] | str


class ExtractSpec(_Spec):
    """The arguments of `LLM.extract`, besides the secret and what precedes it."""

    template: Annotated[
        str | None,
        Field(description="How secrets of this kind are written, with {fields}.", repr=False),
    ] = None
    alternatives: Annotated[
        Alternatives,
        Field(
            description="What the secret could have been: for each {field} values, or the name of "
            "an embedded list or of a text file; without template one list of whole secrets.",
            repr=False,
        ),
    ] = ()
    max_alternatives: Annotated[
        int,
        Field(ge=100, le=1_000_000, description="Up to so many are scored; of more, a sample."),
    ] = 10_000
    samples: Annotated[
        int, Field(ge=0, le=100_000, description="Continuations to sample; 0: none.")
    ] = 100
    temperature: Annotated[Temperature, Field(gt=0, description="Of sampled continuations.")] = 1.0
    top_p: Annotated[TopP, Field(description="Nucleus mass.")] = 1.0
    max_new_tokens: Annotated[NewTokens, Field(description="Tokens of a continuation at most.")] = (
        64
    )
    seed: Annotated[Seed | None, Field(description="Makes samples repeatable.")] = None
    batch_size: Annotated[AtOnce, Field(description="Continuations written at once.")] = 16
    confidence: Annotated[Share, Field(description="Of every interval.")] = 0.95


class ExtractFields(TypedDict, total=False):
    """The fields of ExtractSpec as keyword arguments, for editors and mypy."""

    template: str | None
    alternatives: Mapping[str, Sequence[str] | str] | Sequence[str] | str
    max_alternatives: int
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int | None
    batch_size: int
    confidence: float


class MembershipSpec(DataSpec):
    """The arguments of `LLM.membership`; the data part says how both groups are read."""

    show_private: Annotated[
        bool, Field(description="Must be set: the figures are for the owner's eyes only.")
    ] = False
    min_k: Annotated[TopP, Field(description="Share of tokens of Min-K%++.")] = 0.2
    seed: Annotated[
        Seed, Field(description="That of the fit: which records a unit with too many keeps.")
    ] = 0
    confidence: Annotated[Share, Field(description="Of every interval.")] = 0.95


class MembershipFields(TypedDict, total=False):
    """The fields of MembershipSpec as keyword arguments, for editors and mypy."""

    text_field: str | None
    question_field: str | None
    answer_field: str | None
    messages_field: str | None
    select: str | None
    privacy_unit: str | None
    max_records_per_unit: int
    max_tokens: int | None
    show_private: bool
    min_k: float
    seed: int
    confidence: float


class LedgerSpec(_Spec):
    """Where runs on the same data add up, on this machine."""

    ledger: Annotated[
        str | None,
        Field(description="Adds this run up with others on the same data: sqlite:///FILE."),
    ] = None
    ledger_namespace: Annotated[
        str | None,
        Field(description="What the data are called there; default: where they are."),
    ] = None

    @model_validator(mode="after")
    def _name_of_something(self) -> Self:
        if self.ledger_namespace is not None and self.ledger is None:
            raise ValueError(
                f"ledger_namespace={self.ledger_namespace!r} names data in a ledger; give ledger, "
                "for example sqlite:///ledger.db"
            )
        return self


class AuditSpec(_Spec):
    """The arguments of `LLM.audit`."""

    confidence: Annotated[
        Share, Field(description="With which the lower bound on epsilon holds.")
    ] = 0.95


class SampleSpec(_Spec):
    """The arguments of `LLM.sample`."""

    temperature: Annotated[Temperature, Field(description="0 is greedy decoding.")] = 1.0
    top_p: Annotated[TopP, Field(description="Nucleus mass.")] = 1.0
    max_new_tokens: Annotated[NewTokens, Field(description="Tokens to write at most.")] = 100
    n: Annotated[int, Field(ge=1, le=100_000, description="Completions per prompt.")] = 1
    seed: Annotated[Seed | None, Field(description="Makes sampling repeatable.")] = None
    batch_size: Annotated[AtOnce, Field(description="Prompts generated at once.")] = 16


class SampleJobSpec(SampleSpec):
    """What `taciturn sample` does: the YAML file, the CLI's flags."""

    model: Annotated[str, Field(description="Output folder of a fit, a base model, or gateway:ID.")]
    base: BaseAt = None
    prompt: Annotated[
        tuple[str, ...], Field(min_length=1, description="Text to continue; may be repeated.")
    ]
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    output: Annotated[str | None, Field(description="Write JSONL here, not to the screen.")] = None

    def sample_spec(self) -> SampleSpec:
        """The part that `LLM.sample` takes."""
        return SampleSpec(**{name: getattr(self, name) for name in SampleSpec.model_fields})


class EvaluateJobSpec(EvaluateSpec, LedgerSpec):
    """What `taciturn evaluate` does."""

    model: Annotated[str, Field(description="Output folder of a fit, or a base model.")]
    base: BaseAt = None
    data: Annotated[str, Field(description="File to judge it on; public unless said otherwise.")]
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    signing_key: Annotated[
        str | None, Field(description="Signs the certificate anew, where one is there.")
    ] = None

    def evaluate_spec(self) -> EvaluateSpec:
        """The part that `LLM.evaluate` takes."""
        return EvaluateSpec(**{name: getattr(self, name) for name in EvaluateSpec.model_fields})


class AuditJobSpec(AuditSpec):
    """What `taciturn audit` does."""

    model: Annotated[str, Field(description="Output folder of a fit with canaries.")]
    base: BaseAt = None
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    signing_key: Annotated[
        str | None, Field(description="Signs the certificate anew, where one is there.")
    ] = None

    def audit_spec(self) -> AuditSpec:
        """The part that `LLM.audit` takes."""
        return AuditSpec(**{name: getattr(self, name) for name in AuditSpec.model_fields})


class DownstreamJobSpec(DownstreamSpec, LedgerSpec):
    """What `taciturn downstream` does."""

    model: Annotated[str, Field(description="The model that wrote the synthetic text.")]
    base: BaseAt = None
    synthetic: Annotated[str, Field(description="Labelled text to train a classifier on.")]
    test: Annotated[str, Field(description="Real labelled text to test it on.")]
    signing_key: Annotated[
        str | None, Field(description="Signs the certificate anew, where one is there.")
    ] = None

    def downstream_spec(self) -> DownstreamSpec:
        """The part that `LLM.downstream` takes."""
        return DownstreamSpec(**{name: getattr(self, name) for name in DownstreamSpec.model_fields})


class ExtractJobSpec(ExtractSpec):
    """What `taciturn extract` does. Secret, prefix and telltale are the asker's own knowledge."""

    model: Annotated[str, Field(description="Output folder of a fit, or a base model.")]
    base: BaseAt = None
    secret: Annotated[
        str, Field(description="What the model should not tell; better in a file.", repr=False)
    ]
    prefix: Annotated[
        str, Field(description="What the model is asked to go on from.", repr=False)
    ] = ""
    telltale: Annotated[
        str | None,
        Field(description="Words that give it away; default: the secret itself.", repr=False),
    ] = None
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    output: Annotated[str | None, Field(description="JSON file for the result.")] = None

    def extract_spec(self) -> ExtractSpec:
        """The part that `LLM.extract` takes."""
        return ExtractSpec(**{name: getattr(self, name) for name in ExtractSpec.model_fields})


class MembershipJobSpec(MembershipSpec):
    """What `taciturn membership` does."""

    model: Annotated[str, Field(description="Output folder of a fit, or a base model.")]
    base: BaseAt = None
    members: Annotated[str, Field(description="Units that were in the training data.")]
    non_members: Annotated[str, Field(description="Units like them that were not.")]
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None
    output: Annotated[
        str | None, Field(description="Name of a JSON file for the model's private folder.")
    ] = None

    def membership_spec(self) -> MembershipSpec:
        """The part that `LLM.membership` takes; what was not given stays so."""
        given = self.model_fields_set & MembershipSpec.model_fields.keys()
        return MembershipSpec(**{name: getattr(self, name) for name in given})


class SynthesizeSpec(_Spec):
    """The arguments of `LLM.synthesize`, and what `taciturn synthesize` does."""

    model: Annotated[str, Field(description="Output folder of a fit.")]
    base: BaseAt = None
    n: Annotated[int, Field(ge=1, le=10_000_000, description="Records to write.")]
    output: Annotated[str, Field(description="Parquet file to write.")]
    prompt: Annotated[
        tuple[str, ...],
        Field(description="How records begin, in turn; LABEL=TEXT makes a column of labels."),
    ] = ("",)
    temperature: Annotated[Temperature, Field(description="0 is greedy decoding.")] = 1.0
    top_p: Annotated[TopP, Field(description="Nucleus mass.")] = 1.0
    max_new_tokens: Annotated[NewTokens, Field(description="Tokens to write at most.")] = 128
    seed: Annotated[Seed | None, Field(description="Makes sampling repeatable.")] = None
    batch_size: Annotated[AtOnce, Field(description="Records generated at once.")] = 16
    device: Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")] = None


class DemoSpec(_Spec):
    """What `taciturn demo` tells."""

    model: Annotated[
        str, Field(description="Base model: hub id, local path, GGUF path, or embedded name.")
    ] = "taciturn/tiny-medical"
    minutes: Annotated[
        float,
        Field(
            gt=0,
            le=10_000,
            allow_inf_nan=False,
            description="Time for each fit of another model than the embedded one; more buys "
            "more patients, of whom there are at least 300.",
        ),
    ] = 10.0
    output: Annotated[str, Field(description="Where the report goes.")] = "demo-report.html"
    seed: Annotated[Seed, Field(description="Seeds the invented notes and samples.")] = 0
    epsilon: Annotated[
        float,
        Field(ge=0.01, le=1000, allow_inf_nan=False, description="Budget of the private fit."),
    ] = 3.0


class JobSpec(FitSpec, LedgerSpec):
    """One fit job: the YAML file, the CLI's flags, the worker's input."""

    model: Annotated[str, Field(description="Hub id, local path, GGUF path, or embedded name.")]
    base: BaseAt = None
    data: Annotated[
        str, Field(description="Path, glob or URL of JSON, CSV, Parquet or Arrow; or gateway:NAME.")
    ]
    public_data: Annotated[
        str | None,
        Field(description="Text that you declare public: path, glob or URL; fitted first."),
    ] = None
    output: Annotated[str, Field(description="Folder for the adapter and its reports.")] = (
        "taciturn-out"
    )
    signing_key: Annotated[
        str | None,
        Field(description="Signs the certificate: PEM file, env:NAME or command:PROGRAM."),
    ] = None

    def fit_spec(self) -> FitSpec:
        """The part that `LLM.fit` takes."""
        return FitSpec(**{name: getattr(self, name) for name in FitSpec.model_fields})


def parse(kind: type[S], arguments: dict[str, Any]) -> S:
    """Validate `arguments` into a spec; raises SpecError with value, bound and remedy."""
    unknown = [name for name in arguments if name not in kind.model_fields]
    if unknown:
        raise UnknownFieldError(_unknown_message(unknown[0], list(kind.model_fields)))
    try:
        return kind(**arguments)
    except ValidationError as error:
        raise _spec_error(kind, error) from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read the fields of a job from YAML; raises SpecError if it is not one mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"job file {path} cannot be read: {error.strerror}") from None
    except ValueError:  # of bytes, and of a path with a null in it
        raise SpecError(f"job file {path} is not UTF-8 text; -f takes YAML") from None
    try:
        fields = yaml.safe_load(text)
    except Exception as error:
        # Also a date of no calendar, or brackets a thousand deep. And not what the parser says: it
        # quotes the line, which may hold a secret.
        raise SpecError(f"job file {path} is not YAML{_place(error)}; mend it there") from None
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise SpecError(f"job file {path} must hold `field: value` lines")
    return fields


def check_text(name: str, text: object) -> None:
    """Raise SpecError unless `text` is one, without bytes as from a terminal of another encoding.

    Paths may hold such: they are the system's, and are opened as they were given.
    """
    if not isinstance(text, str):
        raise SpecError(f"{name} is {type(text).__name__}; give a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SpecError(
            f"{name} is no UTF-8 text from character {error.start + 1} on; check the encoding of "
            "the terminal or file that it comes from"
        ) from None


def is_whole(value: object) -> bool:
    """Whether an argument is a whole number, as its type says; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _zero_or_more(value: float, least: float) -> float:
    if 0 < value < least:
        raise ValueError(f"must be 0, for greedy decoding, or at least {least:g}")
    return value


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool)


def _unknown_message(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}"
    return f"unknown field {name!r}; {remedy}"


def _place(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _shown(value: object) -> str:
    """A value as it was given, at most a line of it: what a file nests has no end."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"({type(value).__name__})"


def _spec_error(kind: type[_Spec], error: ValidationError) -> SpecError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return SpecError(f"{where} is missing; give it")
    field = kind.model_fields.get(str(first["loc"][0])) if where else None
    if field is not None and not field.repr:
        return SpecError(f"{first['loc'][0]}: {first['msg']}; write text in quotes")
    message = first["msg"].removeprefix("Value error, ")
    text = f"{where}={_shown(first['input'])}: {message}" if where else message
    private = any(field in text for field in _PRIVACY_FIELDS)
    return (PrivacyParameterError if private else SpecError)(text)
