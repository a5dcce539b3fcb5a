"""Sampling: how a model continues prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.spec.base import NUMBER, AtOnce, NewTokens, Seed, Spec, Temperature, TopP


class Sampling(Spec):
    """The arguments of everything that writes text."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    max_new_tokens: NewTokens = 100
    seed: Annotated[Seed | None, Field(description="Makes sampling repeatable.")] = None


class SampleSpec(Sampling):
    """The arguments of `LLM.sample`."""

    n: Annotated[int, NUMBER, Field(ge=1, le=100_000, description="Completions per prompt.")] = 1
    batch_size: AtOnce = 16


class SynthesisSpec(Sampling):
    """The arguments of `LLM.synthesize`, besides prompts and the number of records."""

    max_new_tokens: NewTokens = 128
    batch_size: AtOnce = 16
