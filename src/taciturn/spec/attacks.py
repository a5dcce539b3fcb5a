"""Attacks on a model: extraction of a secret, membership inference, the audit by canaries."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.spec.base import AtOnce, Confidence, NewTokens, Seed, Spec, Temperature, TopP
from taciturn.spec.data import DataSpec
from taciturn.spec.sampling import Sampling

Alternatives = dict[str, tuple[str, ...] | str] | tuple[str, ...] | str


class ExtractSpec(Sampling):
    """The arguments of `LLM.extract`, besides the secret and what precedes it."""

    template: Annotated[
        str | None,
        Field(description="Template of secrets of this kind, with {fields}.", repr=False),
    ] = None
    alternatives: Annotated[
        Alternatives,
        Field(
            description="What the secret could have been. With a template, values of each {field}, "
            "as FIELD=LIST on the command line, where LIST is an embedded list or a text file; "
            "without, such a LIST or whole secrets. May be repeated.",
            repr=False,
        ),
    ] = ()
    max_alternatives: Annotated[
        int,
        Field(
            ge=100,
            le=1_000_000,
            description="Number of alternatives that are scored; of more, a sample is.",
        ),
    ] = 10_000
    samples: Annotated[
        int, Field(ge=0, le=100_000, description="Continuations to sample; 0: none.")
    ] = 100
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    max_new_tokens: NewTokens = 64
    batch_size: AtOnce = 16
    confidence: Confidence = 0.95


class MembershipSpec(DataSpec):
    """The arguments of `LLM.membership`; the data part says how both groups are read."""

    show_private: Annotated[
        bool, Field(description="Must be set: the figures are for the owner's eyes only.")
    ] = False
    min_k: Annotated[TopP, Field(description="Share of tokens of Min-K%++.")] = 0.2
    seed: Annotated[
        Seed,
        Field(
            description="Seed of the fit, which decides what records a unit with too many keeps."
        ),
    ] = 0
    confidence: Confidence = 0.95


class AuditSpec(Spec):
    """The arguments of `LLM.audit`."""

    confidence: Annotated[
        Confidence, Field(description="Confidence of the lower bound on epsilon.")
    ] = 0.95
