"""Results of jobs: each says what it is in one line, its policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from taciturn.reports.figures import ReleasedEvaluation
from taciturn.reports.privacy import Audit
from taciturn.wire.datasets import ColumnView
from taciturn.wire.jobs import JobKind, ModelView
from taciturn.wire.values import LATER, Moment, PolicyLine, WireValue

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


LogProbability = Annotated[float, Field(allow_inf_nan=False, ge=-9999, le=1e-3)]
TokenText = Annotated[str, Field(max_length=10_000)]


class TokenScore(WireValue):
    """A token of a sample, and how likely the model held it there.

    Attributes:
        text: all of them, joined, are the text; a special token has its name, which is not in it.
        special: it is not in the text.
        log_probability: natural logarithm, in float32; null for the first token of all.
        likeliest: tokens that the model held for the likeliest there.
    """

    text: TokenText
    special: bool = False
    log_probability: LogProbability | None
    likeliest: Annotated[tuple[tuple[TokenText, LogProbability], ...], Field(max_length=20)] = ()


class SampleLine(WireValue):
    """One line of `samples.jsonl`: a continuation, in the order of prompts, then of `n`.

    Attributes:
        prompt_tokens, tokens: as the model counts them; of the text asked for, not of any row.
        scores: of the tokens of `text`, where they were asked for.
        prompt_scores: of the prompt's tokens, where they were asked for.
        finish_reason: the model ended by itself, or `max_new_tokens` were written.
    """

    prompt: Annotated[str, Field(max_length=100_000)]
    text: Annotated[str, Field(max_length=1_000_000)]
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=0)] = 0
    finish_reason: Literal["stop", "length"] = "stop"
    scores: Annotated[tuple[TokenScore, ...], Field(max_length=100_000)] | None = None
    prompt_scores: Annotated[tuple[TokenScore, ...], Field(max_length=100_000)] | None = None


class FileView(WireValue):
    """A released file."""

    name: str
    size_bytes: int
    sha256: Sha256
    created_at: Moment


class _Result(WireValue):
    job: str
    policy: PolicyLine
    files: tuple[FileView, ...]


class ProbeResult(_Result):
    """Schema of a dataset."""

    kind: Literal[JobKind.PROBE] = JobKind.PROBE
    columns: tuple[ColumnView, ...]


class FitResult(_Result):
    """A fitted model."""

    kind: Literal[JobKind.FIT] = JobKind.FIT
    model: ModelView


class SampleResult(_Result):
    """Text that a fitted model wrote."""

    kind: Literal[JobKind.SAMPLE] = JobKind.SAMPLE
    samples: tuple[SampleLine, ...]


class EvaluateResult(_Result):
    """Figures of public texts, or paid for."""

    kind: Literal[JobKind.EVALUATE] = JobKind.EVALUATE
    evaluation: ReleasedEvaluation


class AuditResult(_Result):
    """Result of an audit."""

    kind: Literal[JobKind.AUDIT] = JobKind.AUDIT
    audit: Audit


class SynthesizeResult(_Result):
    """Records that a fitted model wrote, as a file of Parquet to be downloaded."""

    kind: Literal[JobKind.SYNTHESIZE] = JobKind.SYNTHESIZE


JobResult = Annotated[
    ProbeResult | FitResult | SampleResult | EvaluateResult | AuditResult | SynthesizeResult,
    Field(discriminator="kind"),
]
JOB_RESULT: TypeAdapter[JobResult] = TypeAdapter(JobResult, config=LATER)
