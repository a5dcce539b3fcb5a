"""Text from a fitted model: all at once, or piece by piece as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from taciturn.engine.generation.sample import Completion, sample, stream
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteSample
from taciturn.wire.results import SampleLine
from taciturn.worker.context import JobContext
from taciturn.worker.models import FittedModel


def run(context: JobContext, request: RemoteSample) -> FittedModel:
    """Write the text; gives back the model, for another job of the same."""
    model = context.fitted()
    context.stage(Stage.GENERATING)
    rows = (
        _streamed(context, model, request)
        if request.stream
        else _completions(context, model, request)
    )
    path = context.workspace.make_folder("results") / "samples.jsonl"
    _write(rows, model, request, path)
    context.egress.file(path)
    return model


def _completions(
    context: JobContext, model: FittedModel, request: RemoteSample
) -> list[Completion]:
    """Prompt after prompt, so that a job can be cancelled between two of them."""
    base, rows = model.base, []
    for index, prompt in enumerate(request.prompts):
        context.heartbeat.check()
        spec = request.sample_spec()
        if spec.seed is not None:
            spec = spec.model_copy(update={"seed": (spec.seed + index) % 2**63})
        rows += sample(model.fitted, base.tokenizer, [prompt], spec, base.context_length)
        context.egress.count(index + 1, len(request.prompts))
    return rows


def _streamed(context: JobContext, model: FittedModel, request: RemoteSample) -> list[Completion]:
    prompt, spec, base = request.prompts[0], request.sample_spec(), model.base
    pieces = stream(model.fitted, base.tokenizer, prompt, spec, base.context_length)
    text = ""
    while True:
        context.heartbeat.check()
        try:
            piece = next(pieces)
        except StopIteration as end:
            tokens = int(end.value)
            break
        if piece:
            text += piece
            context.egress.text(piece)
    context.egress.text("", _reason(tokens, request))
    return [Completion(prompt, text, tokens)]


def _reason(tokens: int, request: RemoteSample) -> Literal["stop", "length"]:
    return "length" if tokens >= request.max_new_tokens else "stop"


def _write(rows: list[Completion], model: FittedModel, request: RemoteSample, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            prompt_tokens = model.base.tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
            line = SampleLine(
                prompt=row.prompt,
                text=row.text,
                prompt_tokens=len(prompt_tokens),
                tokens=row.tokens,
                finish_reason=_reason(row.tokens, request),
            )
            file.write(line.model_dump_json() + "\n")
