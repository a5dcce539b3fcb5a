"""`taciturn sample`."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path

from rich.console import Console

from taciturn.data.filesystem import appearing_at_once, check_output_file
from taciturn.llm import LLM
from taciturn.spec import SampleJobSpec


def run_sample(job: SampleJobSpec) -> None:
    """Stream completions to the screen, or write them as JSONL."""
    spec = job.sample_spec()
    model = LLM(job.model, base=job.base, device=job.device)
    console = Console(highlight=False)
    if job.output is not None:
        output = Path(job.output).expanduser()
        check_output_file(output, replace=True)
        frame = model.sample(job.prompt, **spec.model_dump())
        with appearing_at_once(output) as partial:
            frame.to_json(partial, orient="records", lines=True, force_ascii=False)
        console.print(f"{len(frame)} completions: {job.output}", markup=False, soft_wrap=True)
        return
    for number, (prompt, index) in enumerate(product(job.prompt, range(spec.n))):
        seed = None if spec.seed is None else (spec.seed + index) % 2**63
        pieces = model.stream(prompt, spec.model_copy(update={"seed": seed}))
        first = next(pieces, "")  # the model is there, and so is an error, before anything is said
        if number == 0:
            console.print(f"policy: {model.policy}", style="dim", markup=False)
        console.print(prompt, style="bold", end="", markup=False, soft_wrap=True)
        for piece in chain([first], pieces):
            console.print(piece, end="", markup=False, soft_wrap=True)
        console.print()
