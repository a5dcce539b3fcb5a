"""`taciturn evaluate`, `synthesize` and `downstream`: what a model is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from taciturn.errors import SpecError
from taciturn.llm import LLM
from taciturn.spec import DownstreamJobSpec, EvaluateJobSpec, SynthesizeSpec

if TYPE_CHECKING:
    from taciturn.engine.evaluation.quality import Quality, TextStatistics
    from taciturn.local.evaluate import Evaluation


def run_evaluation_plan(job: EvaluateJobSpec, n_units: int | None) -> None:
    """Print how exact an evaluation would be; reads and spends nothing."""
    model = LLM(job.model, base=job.base, device=job.device)
    plan = model.plan_evaluation(n_units=n_units, **job.evaluate_spec().model_dump())
    Console(highlight=False).print(str(plan), markup=False, soft_wrap=True)


def run_evaluate(job: EvaluateJobSpec) -> None:
    """Print nats per token, perplexity and token accuracy, and what they cost."""
    from taciturn.engine.evaluation.release import ReleasedScore
    from taciturn.local.evaluate import Evaluation

    model = LLM(job.model, base=job.base, device=job.device)
    spec = job.evaluate_spec()
    result = model.evaluate(
        job.data,
        signing_key=job.signing_key,
        ledger=job.ledger,
        ledger_namespace=job.ledger_namespace,
        **spec.model_dump(),
    )
    assert isinstance(result, Evaluation)  # of a model that is here
    console = Console(highlight=False)
    table = Table(title=f"{job.data} ({result.basis})", title_justify="left")
    for column in ("model", "nats per token", "perplexity", "token accuracy"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rows = [("base", result.base)]
    if result.fitted is not None:
        rows.append((f"fitted: {model.policy}", result.fitted))
    for label, score in rows:
        nats, accuracy = f"{score.nats_per_token:.4f}", f"{score.token_accuracy:.2%}"
        if isinstance(score, ReleasedScore):
            nats, accuracy = (
                f"{nats} ± {score.nats_std:.4f}",
                f"{accuracy} ± {score.accuracy_std:.2%}",
            )
        table.add_row(label, nats, f"{score.perplexity:.2f}", accuracy)
    if result.gain is not None:
        gain = result.gain
        table.add_row(
            "gained",
            f"{gain.nats_per_token:.4f} ± {gain.nats_std:.4f}",
            "",
            f"{gain.token_accuracy:.2%} ± {gain.accuracy_std:.2%}",
        )
    console.print(table)
    if result.quality is not None:
        _show_quality(console, result.quality)
    _show_cost(console, model, result)


def run_synthesize(job: SynthesizeSpec) -> None:
    """Write a synthetic data set."""
    model = LLM(job.model, base=job.base, device=job.device)
    frame = model.synthesize(
        job.n,
        output=job.output,
        prompts=_prompts(job.prompt),
        temperature=job.temperature,
        top_p=job.top_p,
        max_new_tokens=job.max_new_tokens,
        seed=job.seed,
        batch_size=job.batch_size,
    )
    console = Console(highlight=False)
    console.print(f"policy: {model.policy}", style="bold", markup=False)
    console.print(f"{len(frame)} records: {job.output}", markup=False, soft_wrap=True)


def run_downstream(job: DownstreamJobSpec) -> None:
    """Train on synthetic text, test on real text, print both accuracies."""
    model = LLM(job.model, base=job.base)
    spec = job.downstream_spec()
    result = model.downstream(
        job.synthetic,
        job.test,
        signing_key=job.signing_key,
        ledger=job.ledger,
        ledger_namespace=job.ledger_namespace,
        **spec.model_dump(),
    )
    console = Console(highlight=False)
    noise = f" ± {result.accuracy_std:.2%}" if result.accuracy_std else ""
    console.print(f"trained on {result.n_train} synthetic records, tested on {job.test}:")
    console.print(f"  accuracy {result.accuracy:.2%}{noise}")
    console.print(f"  always the commonest label {result.majority_accuracy:.2%}{noise}")
    if result.macro_f1 is not None:
        console.print(f"  macro F1 {result.macro_f1:.3f}")
    if spec.target_epsilon is not None:
        console.print(f"the model's guarantee is now {model.policy}", markup=False)
        _show_ledger(console, model)


def _prompts(given: tuple[str, ...]) -> tuple[str, ...] | dict[str, str]:
    """LABEL=TEXT prompts as a mapping, if all are of that form; raises SpecError if some are."""
    pairs = [prompt.partition("=") for prompt in given]
    labelled = [bool(equals and label.strip()) for label, equals, _ in pairs]
    if not any(labelled):
        return given
    mapping = {label.strip(): text for label, _, text in pairs}
    if not all(labelled) or len(mapping) != len(given):
        raise SpecError("give every --prompt as LABEL=TEXT with a label of its own, or none")
    return mapping


def _show_quality(console: Console, quality: Quality) -> None:
    table = Table(
        title=f"samples against the data, {quality.n_clusters} clusters", title_justify="left"
    )
    for column in (
        "text",
        "MAUVE-style",
        "words",
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "empty",
    ):
        table.add_column(column, justify="left" if column == "text" else "right")
    table.add_row("base", *_row(f"{quality.mauve_base:.3f}", quality.base_samples))
    table.add_row("fitted", *_row(f"{quality.mauve:.3f}", quality.samples))
    if quality.reference is not None:
        table.add_row("reference", *_row("", quality.reference))
    console.print(table)


def _row(score: str, texts: TextStatistics) -> list[str]:
    distinct = [f"{share:.2f}" for share in texts.distinct]
    return [score, f"{texts.mean_words:.1f}", *distinct, f"{texts.empty:.0%}"]


def _show_cost(console: Console, model: LLM, result: Evaluation) -> None:
    if result.epsilon is not None:
        console.print(
            f"released with epsilon={result.epsilon:g}, delta={result.delta:.3g}; the model's "
            f"guarantee is now {model.policy}",
            style="bold",
            markup=False,
        )
        _show_ledger(console, model)
    elif result.basis != "public":
        console.print(
            "exact figures of private rows: do not pass them on", style="bold yellow", markup=False
        )


def _show_ledger(console: Console, model: LLM) -> None:
    """What a ledger added up to with this evaluation, if it was given one."""
    if model.privacy is not None and model.privacy.ledger is not None:
        console.print(
            f"all runs on these data and this unit together: {model.privacy.ledger}",
            markup=False,
            soft_wrap=True,
        )
