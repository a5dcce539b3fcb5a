"""`taciturn sample`."""

from __future__ import annotations

from rich.console import Console

from taciturn.llm import LLM
from taciturn.spec import SampleJobSpec


def run_sample(job: SampleJobSpec) -> None:
    """Stream completions to the screen, or write them as JSONL."""
    spec = job.sample_spec()
    model = LLM(job.model, device=job.device)
    console = Console(highlight=False)
    if job.output is not None:
        frame = model.sample(job.prompt, **spec.model_dump())
        frame.to_json(job.output, orient="records", lines=True, force_ascii=False)
        console.print(f"{len(frame)} completions: {job.output}", markup=False, soft_wrap=True)
        return
    console.print(f"policy: {model.policy}", style="dim", markup=False)
    for prompt in job.prompt:
        for index in range(spec.n):
            seed = None if spec.seed is None else spec.seed + index
            console.print(prompt, style="bold", end="", markup=False, soft_wrap=True)
            for piece in model.stream(prompt, spec.model_copy(update={"seed": seed})):
                console.print(piece, end="", markup=False, soft_wrap=True)
            console.print()
