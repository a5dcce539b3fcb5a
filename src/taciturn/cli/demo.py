"""`taciturn demo`: the story on the screen, and its page."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import Answer, say
from taciturn.cli.options import spec_command
from taciturn.data.filesystem import appearing_at_once, check_output_file
from taciturn.spec import DemoSpec, parse

if TYPE_CHECKING:
    from taciturn.cli.progress import FitScreen
    from taciturn.demo.result import DemoResult, ModelOutcome
    from taciturn.local.fit import Observer


_KEYS = "page, verdict, base, non_private, private, report and the story's other figures"


@spec_command(DemoSpec, keys=_KEYS)
def demo(fields: dict[str, Any], answer: Answer) -> None:
    """Tell the story in a few minutes: with and without privacy, side by side."""
    spec = parse(DemoSpec, fields)
    if spec.notes is not None:
        _write_notes(Path(spec.notes).expanduser(), spec.seed, answer)
        return
    output = Path(spec.output).expanduser()
    check_output_file(output, replace=True)
    from taciturn.cli.progress import FitScreen
    from taciturn.demo.page import render_page
    from taciturn.demo.run import Narrator, tell

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
        for screen in screens:
            screen.__exit__()
    with appearing_at_once(output) as partial:
        partial.write_text(render_page(result), encoding="utf-8", errors="replace")
    answer({"page": output.resolve(), "verdict": result.verdict, **asdict(result)})
    _show(console, result)
    say(f"\n{result.verdict}", style="bold")
    say(result.remark)
    say(f"took {time.monotonic() - start:.0f} s; the whole story, with charts:")
    say(str(output.resolve()))


def _write_notes(path: Path, seed: int, answer: Answer) -> None:
    """Write invented notes that need no preparing: columns patient_id and text."""
    from taciturn.embedded.notes import patient_notes

    check_output_file(path)
    contexts = [json.loads(row["context"]) for row in patient_notes(seed)]
    rows = [{"patient_id": context["patient_id"], "text": context["text"]} for context in contexts]
    with appearing_at_once(path) as partial, partial.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    patients = len({row["patient_id"] for row in rows})
    answer({"notes": path, "records": len(rows), "patients": patients})
    say(f"{path}: {len(rows):,} notes of {patients:,} invented patients")


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
    table.add_row(*(f"tells the secret {_telling(result, outcome)}" for outcome in outcomes))
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


def _telling(result: DemoResult, outcome: ModelOutcome) -> str:
    return f"{result.times_told(outcome)} times of {result.times_asked(outcome)}"


def _chance(outcome: ModelOutcome) -> str:
    return f"10^{outcome.secret_log_probability / 2.302585:.1f}"
