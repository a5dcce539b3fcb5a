"""The fields of specs as keyword arguments, for editors and mypy.

A test holds them equal to the specs, which say what the fields mean and allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from taciturn.spec.data import ChatFormat
from taciturn.spec.privacy import CanaryKind, Unlimited
from taciturn.spec.training import Method, Objective


class RunFields(TypedDict, total=False):
    """RunSpec."""

    signing_key: str | None
    ledger: str | None
    ledger_namespace: str | None
    report_to: str | Sequence[str]


class DataFields(TypedDict, total=False):
    """DataSpec."""

    text_field: str | None
    question_field: str | None
    answer_field: str | None
    messages_field: str | None
    format: ChatFormat
    prompt_field: str | None
    chosen_field: str | None
    rejected_field: str | None
    select: str | None
    privacy_unit: str | None
    max_records_per_unit: int
    max_tokens: int | None


class FitFields(DataFields, total=False):
    """FitSpec."""

    target_epsilon: float | Unlimited | None
    delta: float | None
    l2_clip_norm: float | None
    batch_size: int | None
    objective: Objective
    beta: float
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
    gradient_checkpointing: bool | None
    microbatch_tokens: int | None
    per_unit_gradients: Literal["auto", "instantiate", "factors"]
    packed_rows: bool
    sharding: Literal["none", "full"]
    compile: bool
    cuda_graphs: bool | None
    threads: int | None
    checkpoint_every: int
    canaries: int
    canary_kind: CanaryKind
    public_data: object
    public_text_field: str | None


class AssessmentFields(DataFields, total=False):
    """AssessmentSpec."""

    target_epsilon: float | None
    delta: float | None
    show_private: bool


class EvaluateFields(AssessmentFields, total=False):
    """EvaluateSpec."""

    loss_bound: float | None
    samples: int
    max_new_tokens: int
    seed: int | None


class DownstreamFields(AssessmentFields, total=False):
    """DownstreamSpec."""

    label_field: str


class SamplingFields(TypedDict, total=False):
    """Sampling."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int | None


class SynthesisFields(SamplingFields, total=False):
    """SynthesisSpec."""

    batch_size: int


class SampleFields(SynthesisFields, total=False):
    """SampleSpec."""

    n: int


class ExtractFields(SynthesisFields, total=False):
    """ExtractSpec."""

    template: str | None
    alternatives: Mapping[str, Sequence[str] | str] | Sequence[str] | str
    max_alternatives: int
    samples: int
    confidence: float


class MembershipFields(DataFields, total=False):
    """MembershipSpec."""

    show_private: bool
    min_k: float
    seed: int
    confidence: float


class FitRunFields(FitFields, RunFields, total=False):
    """FitSpec and RunSpec."""


class EvaluateRunFields(EvaluateFields, RunFields, total=False):
    """EvaluateSpec and RunSpec."""


class DownstreamRunFields(DownstreamFields, RunFields, total=False):
    """DownstreamSpec and RunSpec."""
