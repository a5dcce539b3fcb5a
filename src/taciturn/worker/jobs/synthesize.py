"""Records written by a fitted model, as one Parquet file that carries its guarantee with it."""

from __future__ import annotations

from taciturn.engine.generation.sample import Completion, sample
from taciturn.engine.generation.synthetic import write_parquet
from taciturn.local.evaluate import in_turn
from taciturn.spec import SampleSpec
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteSynthesize
from taciturn.worker.context import JobContext
from taciturn.worker.models import FittedModel

BATCH = 64
"""Records between two signs of progress; with a seed, each batch has its own."""


def run(context: JobContext, request: RemoteSynthesize) -> None:
    """Write the records."""
    model = context.fitted()
    context.stage(Stage.GENERATING)
    rows = _records(context, model, request)
    promise = {
        "policy": model.policy,
        "privacy_report": model.report.model_dump(mode="json"),
        "certificate": model.certificate,
    }
    columns = {
        "text": [row.prompt + row.text for row in rows],
        "prompt": [row.prompt for row in rows],
        "policy": [model.policy] * len(rows),
    }
    path = context.workspace.make_folder("results") / "synthetic.parquet"
    write_parquet(columns, promise, path)
    context.stage(Stage.RELEASING)
    context.egress.file(path)


def _records(
    context: JobContext, model: FittedModel, request: RemoteSynthesize
) -> list[Completion]:
    prompts = [request.prompts[turn] for turn in in_turn(request.prompts, request.n)]
    rows: list[Completion] = []
    for number, start in enumerate(range(0, len(prompts), BATCH)):
        context.heartbeat.check()
        spec = SampleSpec(
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=request.max_new_tokens,
            seed=None if request.seed is None else (request.seed + number) % 2**63,
            batch_size=BATCH,
        )
        part = prompts[start : start + BATCH]
        base = model.base
        rows += sample(model.fitted, base.tokenizer, part, spec, base.context_length)
        context.egress.count(len(rows), request.n)
    return rows
