"""`taciturn evaluate`: what a model is worth, here or behind a gateway."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import (
    Answer,
    connected,
    figures,
    is_remote,
    named_dataset,
    required,
    say,
    show_rows,
)
from taciturn.cli.options import HeldOut, Purpose, check_gateway, open_model, spec_command
from taciturn.errors import SpecError
from taciturn.spec import (
    GATEWAY,
    EvaluateJobSpec,
    EvaluateSpec,
    Flag,
    RunSpec,
    Spec,
    check_local,
    parse,
)

if TYPE_CHECKING:
    from taciturn.engine.evaluation.preferences import Preferences
    from taciturn.engine.evaluation.quality import Quality, TextStatistics
    from taciturn.engine.evaluation.release import ReleasedPreferences
    from taciturn.llm import LLM
    from taciturn.local.evaluate import Evaluation


class _Options(Spec):
    held_out: HeldOut = None
    purpose: Purpose = None
    plan: Annotated[
        bool | None,
        Flag(("--plan",)),
        Field(
            description="Say how exact the figures would be for --target-epsilon; spend nothing."
        ),
    ] = None
    n_units: Annotated[
        int | None, Field(description="Number of privacy units that would be judged, with --plan.")
    ] = None


_KEYS = (
    "policy, basis, base, fitted, gain, quality, preferences, epsilon, delta; with --plan epsilon, "
    "delta, n_units, gain_std, accuracy_gain_std, preferred_std"
)


@spec_command(EvaluateJobSpec, _Options, keys=_KEYS)
def evaluate(fields: dict[str, Any], answer: Answer) -> None:
    """Print perplexity, token accuracy and samples of base and fitted model, beside a text."""
    if is_remote(fields.get("model")):
        _evaluate_remotely(fields, answer)
        return
    check_gateway(fields, "held_out", "purpose")
    plan, n_units = fields.pop("plan", False), fields.pop("n_units", None)
    if plan:
        job = parse(EvaluateJobSpec, {"data": "(not read)", **fields})
        cost = open_model(job).plan_evaluation(n_units=n_units, **job.arguments(EvaluateSpec))
        answer(cost)
        say(str(cost))
        return
    if n_units is not None:
        raise SpecError("n_units goes with --plan; leave it out, the data's units are counted")
    _evaluate(parse(EvaluateJobSpec, fields), answer)


def _evaluate(job: EvaluateJobSpec, answer: Answer) -> None:
    """Print nats per token, perplexity and token accuracy, and what they cost."""
    from taciturn.local.evaluate import Evaluation

    model = open_model(job)
    result = model.evaluate(job.data, **job.arguments(EvaluateSpec, RunSpec))
    assert isinstance(result, Evaluation)  # of a model that is here
    answer({"policy": model.policy, **asdict(result)})
    console = Console(highlight=False)
    scores = {"base": result.base}
    if result.fitted is not None:
        scores[f"fitted: {model.policy}"] = result.fitted
    rows = [
        (name, noisy[0], f"{score.perplexity:.2f}", noisy[1])
        for name, score in scores.items()
        for noisy in [_noisy(score)]
    ]
    if result.gain is not None:
        nats, accuracy = _noisy(result.gain)
        rows.append(("gained", nats, "", accuracy))
    columns = ("model", "nats per token", "perplexity", "token accuracy")
    console.print(figures(f"{job.data} ({result.basis})", columns, rows))
    if result.preferences is not None:
        say(
            f"preferred answers: {_ranked(result.preferences)} are ranked as they were chosen; the "
            "table is about the chosen answers"
        )
    if result.quality is not None:
        console.print(_quality_table(result.quality))
    _show_cost(model, result)


def _evaluate_remotely(fields: dict[str, Any], answer: Answer) -> None:
    """Judge a gateway's model on public texts, or paid for on a gateway's dataset."""
    from taciturn.sdk.dataset import RemoteDataset
    from taciturn.sdk.evaluation import COLUMNS

    check_local(fields, "device", "n_units", *RunSpec.model_fields)
    plan = fields.pop("plan", False)
    with connected() as client:
        model = client.model(required(fields, "model").removeprefix(GATEWAY))
        if is_remote(fields.get("data")):
            data: object = named_dataset(client, fields, "test")
        else:
            data = required(fields, "data")
        if plan:
            if not isinstance(data, RemoteDataset):
                raise SpecError("public text is judged exactly and for free; leave --plan out")
            cost = model.plan_evaluation(data, **fields)
            answer(cost)
            say(str(cost))
            return
        result = model.evaluate(data, **fields)
        answer(result)
        say(f"policy: {result.policy}", style="bold")
        show_rows(COLUMNS, result.rows())
        if result.epsilon is not None:
            say(f"the model's guarantee is now {model.privacy.policy}", style="bold")


def _noisy(score: Any) -> tuple[str, str]:
    """Return nats per token and token accuracy, with the noise in them, if there is any."""
    nats, accuracy = f"{score.nats_per_token:.4f}", f"{score.token_accuracy:.2%}"
    if hasattr(score, "nats_std"):
        nats = f"{nats} ± {score.nats_std:.4f}"
        accuracy = f"{accuracy} ± {score.accuracy_std:.2%}"
    return nats, accuracy


def _ranked(judged: Preferences | ReleasedPreferences) -> str:
    """Return the share of pairs in words: exact, or with the noise in it."""
    if hasattr(judged, "pairs"):
        return f"{judged.accuracy:.1%} of {judged.pairs:,} pairs"
    return f"{judged.accuracy:.1%} ± {judged.accuracy_std:.1%} of a unit's pairs"


def _quality_table(quality: Quality) -> Table:
    distinct = ("distinct-1", "distinct-2", "distinct-3")
    rows = [
        ("base", *_row(f"{quality.mauve_base:.3f}", quality.base_samples)),
        ("fitted", *_row(f"{quality.mauve:.3f}", quality.samples)),
    ]
    if quality.reference is not None:
        rows.append(("reference", *_row("", quality.reference)))
    title = f"samples against the data, {quality.n_clusters} clusters"
    return figures(title, ("text", "MAUVE-style", "words", *distinct, "empty"), rows)


def _row(score: str, texts: TextStatistics) -> list[str]:
    distinct = [f"{share:.2f}" for share in texts.distinct]
    return [score, f"{texts.mean_words:.1f}", *distinct, f"{texts.empty:.0%}"]


def _show_cost(model: LLM, result: Evaluation) -> None:
    if result.epsilon is not None:
        say(
            f"released with epsilon={result.epsilon:g}, delta={result.delta:.3g}; the model's "
            f"guarantee is now {model.policy}",
            style="bold",
        )
        show_ledger(model)
    elif result.basis != "public":
        say("exact figures of private rows: do not pass them on", style="bold yellow")


def show_ledger(model: LLM) -> None:
    """Print what a ledger added up to with this evaluation, if it was given one."""
    if model.privacy is not None and model.privacy.ledger is not None:
        say(f"all runs on these data and this unit together: {model.privacy.ledger}")
