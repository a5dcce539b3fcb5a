"""`taciturn demo`: tells the story on the screen and writes its page."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from taciturn.cli.progress import FitScreen
from taciturn.data.filesystem import appearing_at_once
from taciturn.demo.page import render_page
from taciturn.demo.result import DemoResult, ModelOutcome
from taciturn.demo.run import Narrator, tell
from taciturn.local.fit import Observer
from taciturn.spec import DemoSpec


def run_demo(spec: DemoSpec) -> None:
    """Run the story, show it, write the page, print its path."""
    output = Path(spec.output).expanduser()
    console = Console(highlight=False)
    start = time.monotonic()
    screens: list[FitScreen] = []

    def observer(label: str) -> Observer:
        screens.append(FitScreen(console, label))
        screens[-1].__enter__()
        return screens[-1].observer()

    def stage(sentence: str) -> None:
        for screen in screens:
            screen.__exit__()
        screens.clear()
        console.print(f"\n{sentence}", style="bold", markup=False)

    try:
        narrator = Narrator(stage, observer)
        result = tell(spec.seed, spec.epsilon, narrator, spec.model, minutes=spec.minutes)
    finally:
        stage_over = screens[:]
        for screen in stage_over:
            screen.__exit__()
    with appearing_at_once(output) as partial:
        partial.write_text(render_page(result), encoding="utf-8", errors="replace")
    _show(console, result)
    console.print(f"\n{result.verdict}", style="bold", markup=False)
    console.print(result.remark, markup=False)
    console.print(f"took {time.monotonic() - start:.0f} s; the whole story, with charts:")
    console.print(str(output.resolve()), markup=False, soft_wrap=True)


def _show(console: Console, result: DemoResult) -> None:
    table = Table(title=f'\nasked "{result.secret.prompt}", the models go on', title_justify="left")
    for column in (
        "base",
        "without privacy",
        f"with privacy (epsilon {result.report.epsilon:.3g})",
    ):
        table.add_column(column, ratio=1)
    outcomes = (result.base, result.non_private, result.private)
    table.add_row(*(_first(outcome, result.secret.prompt) for outcome in outcomes))
    table.add_section()
    table.add_row(*(f"tells the secret {_told(result, outcome)}" for outcome in outcomes))
    table.add_row(*(f"probability {_chance(outcome)}" for outcome in outcomes))
    table.add_row(
        *(
            f"its rank {outcome.secret_rank} of {result.n_candidates} diseases"
            for outcome in outcomes
        )
    )
    table.add_section()
    prompt = next(s.prompt for s in result.private.samples if s.reads_as_note is not None)
    table.add_row(*(f"{prompt} {_first(outcome, prompt)}" for outcome in outcomes))
    table.add_row(
        *(f"{outcome.notes} of {outcome.judged} samples read as notes" for outcome in outcomes)
    )
    table.add_row(*(f"repeats itself: {outcome.repetition:.0%}" for outcome in outcomes))
    table.add_section()
    table.add_row(*(f"held-out perplexity {outcome.perplexity:.1f}" for outcome in outcomes))
    table.add_row(
        *(f"{result.share_in_words(outcome)} of the ordinary fit's gain" for outcome in outcomes)
    )
    console.print(table)


def _first(outcome: ModelOutcome, prompt: str) -> str:
    text = next(s.continuation for s in outcome.samples if s.prompt == prompt)
    return "..." + " ".join(text.split())[:120]


def _told(result: DemoResult, outcome: ModelOutcome) -> str:
    return f"{result.times_told(outcome)} times of {result.times_asked(outcome)}"


def _chance(outcome: ModelOutcome) -> str:
    return f"10^{outcome.secret_log_probability / 2.302585:.1f}"
