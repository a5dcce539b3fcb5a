"""`taciturn sample`: continuations, streamed to the screen or written as JSONL."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import Any

from rich.console import Console

from taciturn.cli.gateway import say
from taciturn.cli.options import open_model, spec_command
from taciturn.data.filesystem import appearing_at_once, check_output_file
from taciturn.spec import SampleJobSpec, SampleSpec, parse


@spec_command(SampleJobSpec)
def sample(fields: dict[str, Any]) -> None:
    """Continue prompts with a fitted or a base model; streams to the screen."""
    job = parse(SampleJobSpec, fields)
    spec, model = job.part(SampleSpec), open_model(job)
    if job.output is not None:
        output = Path(job.output).expanduser()
        check_output_file(output, replace=True)
        frame = model.sample(job.prompt, **job.arguments(SampleSpec))
        with appearing_at_once(output) as partial:
            frame.to_json(partial, orient="records", lines=True, force_ascii=False)
        say(f"{len(frame)} completions: {job.output}")
        return
    console = Console(highlight=False)
    for number, (prompt, index) in enumerate(product(job.prompt, range(spec.n))):
        seed = None if spec.seed is None else (spec.seed + index) % 2**63
        pieces = model.stream(prompt, spec.model_copy(update={"seed": seed}))
        first = next(pieces, "")  # the model is there, and so is an error, before anything is said
        if number == 0:
            say(f"policy: {model.policy}", style="dim")
        console.print(prompt, style="bold", end="", markup=False, soft_wrap=True)
        for piece in chain([first], pieces):
            console.print(piece, end="", markup=False, soft_wrap=True)
        console.print()
