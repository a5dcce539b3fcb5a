"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from steps.goals import goals
from steps.measure import Spread
from steps.registry import GHOST, HOOKS, LABELS, PLAIN, PRIVATE
from steps.results import EpochRow, Results, Row
from steps.settings import MEMORY_STEPS, Settings

_NOTES = """\
All variants train the same model from the same weights (a random Llama of hidden {hidden}, {layers}
layers, vocabulary {vocabulary:,}) on the same batches, in turn, round after round, in one process.
Ratios are medians over the rounds of the ratio to the plain loop's step in the same round, with
quartiles. {others} Plain loop, HF Trainer and Opacus use torch's fused AdamW; ours its own
training state. The Trainer is measured inside `Trainer.train`, with its defaults (gradient clipping
on) and without logging, evaluation or checkpoints. Steps with DP clip, add noise and update;
sampling is replaced by the batch at hand. Operations: FlopCounterMode, attention included. Peak
memory: what {steps} steps and everything they need (optimiser states, copies of weights, gradients,
activations) add to a loaded model, each variant in a process of its own, by {memory}.
For ours with DP it is the median of {processes}.

Opacus is used as it documents it, with the batch at hand (`poisson_sampling=False`) and torch's
ordinary generator for the noise, which is not secure. To run it the model was put in training mode,
its embedding untied from its head and, for ghost, the loss made with the criterion of
`make_private`, which needs the logits' shape. LlamaRMSNorm goes through functorch there. Its unit
is one row of the batch: units of several sequences cannot be said.
"""


def markdown(results: Results, settings: Settings, figure: str) -> str:
    """The whole report."""
    parts = [
        "# What a private training step costs",
        _head(results, settings),
        _NOTES.format(
            hidden=settings.shape.hidden,
            layers=settings.shape.layers,
            vocabulary=settings.shape.vocabulary,
            memory=results.machine.get("peak memory by", "?"),
            steps=MEMORY_STEPS,
            processes=settings.memory_processes,
            others=_others(results),
        ),
        "## Goals\n\n" + goals_table(results),
    ]
    if results.steps:
        parts += [f"![time and memory against the plain loop]({figure})"]
        parts += [_steps("## Steps, every sequence its own unit", results, several=False)]
        parts += [_steps("## Steps, units of several sequences", results, several=True)]
    if results.epochs:
        parts += [_epochs(results)]
    if results.growth or results.rows:
        parts += [_growth(results)]
    if results.probes:
        parts += ["## Opacus and tied weights\n\n" + _probes(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _others(results: Results) -> str:
    if results.machine.get("time") == "processor time":
        return "Time is processor time of one thread, because other work ran on the machine."
    return (
        "What other processes disturb is done again; at worst, in what counts they took "
        f"{results.others():.0%} of one core."
    )


_QUOTED = {"with DP": (PRIVATE,), "Opacus' fastest mode": (HOOKS, GHOST)}
_QUOTED_TOKENS = (64, 256, 1024, 4096)


def quoted(results: Results) -> dict[str, Any]:
    """Return the figures that documents quote: time, by method, and memory with LoRA."""
    head = ["", *(f"T={tokens}" for tokens in _QUOTED_TOKENS)]
    rows = [[*head, "real lengths, an epoch / the HF Trainer's"]]
    for method, name in (("lora", "LoRA"), ("full", "full")):
        rows += [
            [f"{name}, {label}", *_quoted_times(results, method, variants)]
            for label, variants in _QUOTED.items()
        ]
    steps = [row for row in results.steps if row.unit_size == 1 and row.method == "lora"]
    plain = {row.cell: row.peak_bytes for row in steps if row.variant == PLAIN}
    memory = [
        row.peak_bytes / below
        for row in steps
        if row.variant == PRIVATE and row.peak_bytes and (below := plain.get(row.cell))
    ]
    bounds = {"least": min(memory), "most": max(memory)} if memory else {}
    return {"times": rows, "lora_memory": bounds}


def _quoted_times(results: Results, method: str, variants: tuple[str, ...]) -> list[str]:
    """Return times of the fastest variant: beside the plain loop, and beside the Trainer."""
    cells: list[list[Spread | None]] = [
        [
            row.ratio
            for row in results.steps
            if (row.unit_size, row.method, row.tokens) == (1, method, tokens)
            and row.variant in variants
        ]
        for tokens in _QUOTED_TOKENS
    ]
    epochs = [results.epoch(method, variant) for variant in variants]
    cells.append([row.trainer_ratio for row in epochs if row is not None])
    fastest = [min((ratio.median for ratio in cell if ratio), default=None) for cell in cells]
    return ["" if value is None else f"{value:.2f}x" for value in fastest]


def goals_table(results: Results) -> str:
    """Goal, measured value, yes or no."""
    said = {True: "yes", False: "**no**", None: "not measured"}
    rows = [(goal.what, goal.goal, goal.measured, said[goal.met]) for goal in goals(results)]
    return table(("what", "goal", "measured", "met"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def _head(results: Results, settings: Settings) -> str:
    rounds = (
        f"{settings.rounds}, or {settings.long_rounds} where a batch has more than 2,048 tokens; "
        "a step before them, whose operations are counted, warms up"
    )
    lines = {
        **results.machine,
        "rounds": rounds,
        "epochs of real lengths": f"{settings.epoch_rounds}, {settings.epoch_records} records "
        f"each, batches of {settings.epoch_sequences}",
    }
    if settings.only:
        lines["only"] = ", ".join(settings.only)
    return "\n".join(f"- {key}: {value}" for key, value in lines.items())


def _steps(title: str, results: Results, *, several: bool) -> str:
    rows = [row for row in results.steps if (row.unit_size > 1) == several]
    if not rows:
        return ""
    head = [
        "cell",
        "variant",
        "ms/step",
        "time / plain",
        "operations",
        "peak MiB",
        "memory / plain",
    ]
    if several:
        head += ["time / record level"]
    return f"{title}\n\n" + table(head, [_step(row, results, several) for row in rows])


def _step(row: Row, results: Results, several: bool) -> list[str]:
    cell = f"{row.method}, T={row.tokens}, {row.sequences} sequences"
    if several:
        cell += f", units of {row.unit_size}"
    if row.seconds is None:
        return [cell, LABELS[row.variant], f"fails: {row.failure}", *[""] * (5 if several else 4)]
    plain = results.row(row.cell, PLAIN)
    peak = f"{row.peak_bytes / 2**20:,.0f}" if row.peak_bytes is not None else str(row.failure)
    found = [
        cell,
        LABELS[row.variant],
        f"{row.seconds.median * 1000:,.1f}",
        _spread(row.ratio),
        _quotient(row.flops, plain.flops if plain else None),
        peak,
        _quotient(row.peak_bytes, plain.peak_bytes if plain else None),
    ]
    return [*found, _spread(row.records_ratio)] if several else found


def _epochs(results: Results) -> str:
    head = ("method", "variant", "s/epoch", "tokens/s", "time / plain", "time / HF Trainer")
    return "## Real lengths (PHEE), padding not counted as tokens\n\n" + table(
        head, [_epoch(row) for row in results.epochs]
    )


def _epoch(row: EpochRow) -> list[str]:
    if row.seconds is None:
        return [row.method, LABELS[row.variant], f"fails: {row.failure}", "", "", ""]
    return [
        row.method,
        LABELS[row.variant],
        f"{row.seconds.median:.2f}",
        f"{row.tokens_per_second:,.0f}",
        _spread(row.ratio),
        _spread(row.trainer_ratio),
    ]


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _growth(results: Results) -> str:
    rows = [
        (method, f"{tokens:,}", f"{seconds * 1000:,.1f}", f"{tokens / seconds:,.0f}")
        for method, fit in results.growth.items()
        for tokens, seconds in zip(fit.tokens, fit.seconds, strict=True)
    ]
    time = table(("method", "tokens in the batch", "ms/step with DP", "tokens/s"), rows)
    memory = table(
        ("training rows", "peak MiB of the process", "at the end, without pages of mapped files"),
        [
            (f"{row.rows:,}", f"{row.peak_bytes / 2**20:,.0f}", _mib(row.own_bytes))
            for row in results.rows
        ],
    )
    return "## Growth\n\n" + "\n\n".join([time] * bool(rows) + [memory] * bool(results.rows))


def _probes(results: Results) -> str:
    return table(("mode", "full fine-tuning with tied embedding"), list(results.probes.items()))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.3f} ({spread.low:.3f}–{spread.high:.3f})"


def _quotient(value: int | None, base: int | None) -> str:
    return f"{value / base:.3f}" if value is not None and base else ""
