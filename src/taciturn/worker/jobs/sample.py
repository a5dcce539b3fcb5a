"""Text from a fitted model or its base: all at once, scored, or piece by piece as it is written."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

from taciturn.engine.generation.sample import Completion, encoded, sample, stream
from taciturn.engine.generation.scoring import ScoredToken, score
from taciturn.errors import SpecError
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteSample
from taciturn.wire.results import SampleLine, TokenScore
from taciturn.worker.context import JobContext
from taciturn.worker.models import FittedModel


def run(context: JobContext, request: RemoteSample) -> FittedModel:
    """Write the text; gives back the model, for another job of the same."""
    model = context.fitted()
    context.stage(Stage.GENERATING)
    with model.unfitted() if request.base else nullcontext(model.fitted) as writer:
        lines = (
            _streamed(context, model, writer, request)
            if request.stream
            else _completions(context, model, writer, request)
        )
    path = context.workspace.make_folder("results") / "samples.jsonl"
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines), encoding="utf-8")
    context.egress.file(path)
    return model


def _completions(
    context: JobContext, model: FittedModel, writer: Any, request: RemoteSample
) -> list[SampleLine]:
    """Prompt after prompt, so that a job can be cancelled between two of them."""
    lines: list[SampleLine] = []
    for index, prompt in enumerate(request.prompts):
        context.heartbeat.check()
        for row in _texts(model, writer, prompt, index, request):
            line = _line(row, model, request)
            if request.logprobs is not None:
                line = line.model_copy(update=_scores(row, model, writer, request))
            lines.append(line)
        context.egress.count(index + 1, len(request.prompts))
    return lines


def _texts(
    model: FittedModel, writer: Any, prompt: str, index: int, request: RemoteSample
) -> list[Completion]:
    if not request.writes:
        return [Completion(prompt, "")] * request.n
    base, spec = model.base, request.sample_spec()
    if spec.seed is not None:
        spec = spec.model_copy(update={"seed": (spec.seed + index) % 2**63})
    return sample(writer, base.tokenizer, [prompt], spec, base.context_length)


def _streamed(
    context: JobContext, model: FittedModel, writer: Any, request: RemoteSample
) -> list[SampleLine]:
    prompt, spec, base = request.prompts[0], request.sample_spec(), model.base
    pieces = stream(writer, base.tokenizer, prompt, spec, base.context_length)
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
    return [_line(Completion(prompt, text, tokens), model, request)]


def _reason(tokens: int, request: RemoteSample) -> Literal["stop", "length"]:
    by_itself = request.writes and tokens < request.max_new_tokens
    return "stop" if by_itself else "length"


def _line(row: Completion, model: FittedModel, request: RemoteSample) -> SampleLine:
    prompt_tokens = model.base.tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
    return SampleLine(
        prompt=row.prompt,
        text=row.text,
        prompt_tokens=len(prompt_tokens),
        tokens=row.tokens,
        finish_reason=_reason(row.tokens, request),
    )


def _scores(
    row: Completion, model: FittedModel, writer: Any, request: RemoteSample
) -> dict[str, Any]:
    """Scores of one text, read by itself; raises SpecError for a prompt that is read in part."""
    assert request.logprobs is not None
    tokenizer, context_length = model.base.tokenizer, model.base.context_length
    room = request.max_new_tokens if request.writes else 0
    ((lead, own),) = encoded(writer, tokenizer, [row.prompt], room, context_length)
    n_tokens = len(tokenizer(row.prompt, add_special_tokens=False)["input_ids"])
    if request.echo and n_tokens > len(own):
        raise SpecError(
            f"a prompt of {n_tokens} tokens cannot be scored: with {room} more there is room for "
            f"{len(own)} in the model's context of {context_length}; shorten it"
        )
    prompt, continuation = score(writer, tokenizer, lead, own, row.ids, request.logprobs)
    return {
        "scores": _token_scores(continuation),
        "prompt_scores": _token_scores(prompt) if request.echo else None,
    }


def _token_scores(scored: list[ScoredToken]) -> tuple[TokenScore, ...]:
    return tuple(
        TokenScore(
            text=token.text,
            special=token.special,
            log_probability=token.log_probability,
            likeliest=token.likeliest,
        )
        for token in scored
    )
