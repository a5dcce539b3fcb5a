"""`taciturn downstream`: what synthetic text is worth to a classifier."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from taciturn.cli.evaluate import show_ledger
from taciturn.cli.gateway import Answer, say
from taciturn.cli.options import open_model, spec_command
from taciturn.spec import DownstreamJobSpec, DownstreamSpec, RunSpec, parse


@spec_command(
    DownstreamJobSpec,
    keys="policy, accuracy, majority_accuracy, macro_f1, accuracy_std, n_train",
)
def downstream(fields: dict[str, Any], answer: Answer) -> None:
    """Train a classifier on synthetic text, test it on real text."""
    job = parse(DownstreamJobSpec, fields)
    model = open_model(job)
    result = model.downstream(job.synthetic, job.test, **job.arguments(DownstreamSpec, RunSpec))
    answer({"policy": model.policy, **asdict(result)})
    noise = f" ± {result.accuracy_std:.2%}" if result.accuracy_std else ""
    say(f"trained on {result.n_train} synthetic records, tested on {job.test}:")
    say(f"  accuracy {result.accuracy:.2%}{noise}")
    say(f"  always the commonest label {result.majority_accuracy:.2%}{noise}")
    if result.macro_f1 is not None:
        say(f"  macro F1 {result.macro_f1:.3f}")
    if job.target_epsilon is not None:
        say(f"the model's guarantee is now {model.policy}")
        show_ledger(model)
