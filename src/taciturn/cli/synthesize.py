"""`taciturn synthesize`: a synthetic data set as Parquet."""

from __future__ import annotations

from typing import Any

from taciturn.cli.gateway import say
from taciturn.cli.options import open_model, spec_command
from taciturn.errors import SpecError
from taciturn.spec import SynthesisSpec, SynthesizeSpec, parse


@spec_command(SynthesizeSpec)
def synthesize(fields: dict[str, Any]) -> None:
    """Write a synthetic data set to Parquet, with the guarantee in its metadata."""
    job = parse(SynthesizeSpec, fields)
    model = open_model(job)
    frame = model.synthesize(
        job.n, output=job.output, prompts=_prompts(job.prompt), **job.arguments(SynthesisSpec)
    )
    say(f"policy: {model.policy}", style="bold")
    say(f"{len(frame)} records: {job.output}")


def _prompts(prompts: tuple[str, ...]) -> tuple[str, ...] | dict[str, str]:
    """LABEL=TEXT prompts as a mapping, if all are of that form; raises SpecError if some are."""
    pairs = [prompt.partition("=") for prompt in prompts]
    labelled = [bool(equals and label.strip()) for label, equals, _ in pairs]
    if not any(labelled):
        return prompts
    mapping = {label.strip(): text for label, _, text in pairs}
    if not all(labelled) or len(mapping) != len(prompts):
        raise SpecError("give every --prompt as LABEL=TEXT with a label of its own, or none")
    return mapping
