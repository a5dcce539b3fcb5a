"""Requests of jobs: one declaration for each argument, so that all have its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from taciturn.spec import SampleSpec, SynthesisSpec
from taciturn.wire.jobs import RemoteAudit, RemoteSample, RemoteSynthesize
from taciturn.wire.openai import CompletionRequest

SAMPLE = {"model": "model_1", "prompts": ("a",)}
SYNTHESIS = {"model": "model_1", "n": 1}


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_new_tokens", "seed"])
@pytest.mark.parametrize("kind", [RemoteSample, RemoteSynthesize, SynthesisSpec])
def test_arguments_of_sampling_are_bounded_alike(kind: type[BaseModel], name: str) -> None:
    assert kind.model_fields[name].metadata == SampleSpec.model_fields[name].metadata


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (RemoteSample, {**SAMPLE, "n": 10**9}),
        (RemoteSample, {**SAMPLE, "temperature": 10**9}),
        (RemoteSample, {**SAMPLE, "max_new_tokens": 10**9}),
        (RemoteSample, {**SAMPLE, "prompts": ("x" * 100_001,)}),
        (RemoteSynthesize, {**SYNTHESIS, "n": 10**9}),
        (RemoteSynthesize, {**SYNTHESIS, "temperature": 10**9}),
        (RemoteSynthesize, {**SYNTHESIS, "max_new_tokens": 10**9}),
        (RemoteSynthesize, {**SYNTHESIS, "prompts": ("x" * 100_001,)}),
        (RemoteAudit, {"model": "model_1", "confidence": float("nan")}),
        (CompletionRequest, {"model": "model_1", "prompt": "a", "temperature": 1e-6}),
    ],
)
def test_what_no_worker_could_do_is_refused(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)
