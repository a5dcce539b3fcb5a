"""`taciturn plan`: noise, steps, epsilon, time and nearby choices, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import Answer, connected, figures, is_remote, named_dataset, required, say
from taciturn.cli.options import HeldOut, check_gateway, spec_command
from taciturn.errors import SpecError
from taciturn.spec import FitSpec, Flag, JobSpec, RunSpec, Spec, check_local, parse

if TYPE_CHECKING:
    from taciturn.engine.training.memory import MemoryEstimate
    from taciturn.local.estimate import Cost, Estimate
    from taciturn.planning.plan import Alternative, TrainingPlan

_GRAPHS = (
    "kernels: each microbatch's are started together (CUDA graphs), if public rows give the same "
    "bits; else one by one, and the fit says so (--no-cuda-graphs)"
)


class _Options(Spec):
    held_out: HeldOut = None
    n_units: Annotated[int | None, Field(description="Number of units, instead of --data.")] = None
    verbose: Annotated[
        bool | None,
        Flag(("--verbose",)),
        Field(description="Also show how per-unit gradients are kept."),
    ] = None


_KEYS = "model, plan, cost, other_times, alternatives; of a gateway's data its plan"


@spec_command(JobSpec, _Options, keys=_KEYS)
def plan(fields: dict[str, Any], answer: Answer) -> None:
    """Show what fit would do and cost, and nearby choices, before anything runs."""
    if is_remote(fields.get("data")):
        for name in ("verbose", "output", "purpose"):
            fields.pop(name, None)
        check_local(fields, "n_units", *RunSpec.model_fields)
        with connected() as client:
            model = required(fields, "model")
            quote = named_dataset(client, fields, "train").plan(model, **fields)
            answer(quote.view)
            say(repr(quote))
        return
    check_gateway(fields, "held_out")
    n_units, verbose = fields.pop("n_units", None), fields.pop("verbose", False)
    if n_units is None and "data" not in fields:
        raise SpecError("plan needs --data, or --n-units: how many privacy units there are")
    job = parse(JobSpec, {"data": "(not read)", **fields})
    _plan(job, answer, n_units=n_units, verbose=verbose)


def _plan(job: JobSpec, answer: Answer, *, n_units: int | None, verbose: bool) -> None:
    """Print the plan, for the job's data or for `n_units`; touches no weight, spends nothing."""
    from taciturn.llm import LLM
    from taciturn.planning.plan import alternatives

    spec = job.part(FitSpec)
    estimate = LLM(job.model, base=job.base).estimate(
        None if n_units is not None else job.data, n_units=n_units, **job.arguments(FitSpec)
    )
    nearby = [] if estimate.plan.privacy is None else alternatives(spec, estimate.plan)
    answer({"model": job.model, **asdict(estimate), "alternatives": nearby})
    console = Console()
    console.print(_settings(job.model, estimate.plan, estimate.cost))
    _warn_of_memory(estimate.cost, console)
    if verbose and estimate.plan.privacy is not None:
        console.print(_forms(estimate.cost))
        if estimate.cost.graphs:
            console.print(_GRAPHS, soft_wrap=True)
    for reason in estimate.plan.reasons:
        console.print(f"method: {reason}", markup=False)
    if estimate.plan.privacy is not None:
        _say_worth(estimate.plan, console)
        console.print(_times(estimate))
        console.print(_nearby(nearby))
        console.print(
            "remaining noise is noise multiplier / (batch x sqrt(steps)), the noise on the mean of "
            "all steps: the smaller, the better it learns. Time grows with the epochs. Where more "
            "time leaves no less noise, it is not taken."
        )


def _settings(name: str, plan: TrainingPlan, cost: Cost) -> Table:
    from taciturn.sdk.progress import duration

    table = Table(title=f"plan for {name}", show_header=False, title_justify="left")
    for fact in plan.facts().items():
        table.add_row(*fact)
    table.add_row("estimated time", duration(cost.seconds))
    table.add_row("estimated peak memory", _memory(cost.memory))
    return table


def _say_worth(plan: TrainingPlan, console: Console) -> None:
    if plan.worth is not None:
        console.print(f"worth: {plan.worth.text}", style="bold", markup=False, soft_wrap=True)
        console.print(f"  {plan.worth.basis}", style="dim", markup=False, soft_wrap=True)


def _times(estimate: Estimate) -> Table:
    from taciturn.sdk.progress import duration

    per_unit = estimate.cost.seconds / estimate.plan.units_seen
    columns = ("limit", "takes", "batch", "steps", "remaining noise", "expected worth")
    rows = [
        (
            "this plan" if choice.times == 1 else f"{choice.times:g} x the time",
            duration(per_unit * choice.units),
            str(choice.batch_size),
            str(choice.steps),
            f"{choice.remaining_noise:.3g}",
            "not known" if choice.share is None else f"about {choice.share:.0%}",
        )
        for choice in estimate.other_times
    ]
    return figures("more or less time (--max-minutes)", columns, rows)


def _warn_of_memory(cost: Cost, console: Console) -> None:
    # The weights are there already: what is free has to hold the rest.
    more, free = cost.memory.total - cost.memory.weights, cost.available_bytes
    if free is not None and more > free:
        console.print(
            f"[bold]does not fit[/]: {_gigabytes(more)} more are needed, {_gigabytes(free)} are "
            "free; lower --microbatch-tokens, set --gradient-checkpointing, or train with "
            "--method lora"
        )


def _forms(cost: Cost) -> Table:
    rows = [(" x ".join(map(str, c.shape)), str(c.count), c.form) for c in cost.forms]
    columns = ("trained parameter", "how many", "kept as")
    return figures("per-unit gradients (--per-unit-gradients)", columns, rows)


def _memory(memory: MemoryEstimate) -> str:
    parts = (memory.weights, memory.state, memory.microbatch)
    weights, state, microbatch = map(_gigabytes, parts)
    return (
        f"{_gigabytes(memory.total)} (weights {weights}, optimiser and sums {state}, largest "
        f"microbatch {microbatch}), libraries not included"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def _nearby(alternatives: Sequence[Alternative]) -> Table:
    columns = ("epsilon", "epochs", "batch", "steps", "noise multiplier", "remaining noise")
    rows = [
        (
            f"{choice.epsilon:g}",
            f"{choice.epochs:.3g}",
            str(choice.batch_size),
            str(choice.steps),
            f"{choice.noise_multiplier:.4g}",
            f"{choice.remaining_noise:.3g}",
        )
        for choice in alternatives
    ]
    return figures("nearby choices", columns, rows)
