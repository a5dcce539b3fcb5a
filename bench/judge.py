"""Does the demo's judge tell notes from what nearly is one? Prints Markdown.

    python bench/judge.py      2 minutes on an idle core

First its errors on texts that it hasn't seen, for notes of several lengths. Then what it says of
taciturn/tiny-medical after ever more steps of an ordinary fit, which writes ever better notes, by
temperature; with the first samples, to be judged by the reader.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import pandas as pd

from evidence.figures import Table, add_out, keep
from taciturn.demo.judge import Judge, openings
from taciturn.demo.run import DATA, ORDINARY_PROMPTS, TEMPERATURE, sample_texts
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import NoteLimits, held_out_notes, patient_notes
from taciturn.llm import LLM

TEMPERATURES = (0.1, 0.3, TEMPERATURE, 0.7, 1.0)
LIMITS = {
    "as they come": NoteLimits(),
    "two a patient": NoteLimits(notes=2),
    "one, 110 characters": NoteLimits(notes=1, characters=110),
}


def errors(base: LLM) -> list[list[str]]:
    """What judges of several kinds of notes take for notes, as a table."""
    kinds = ("unseen notes", "words shuffled", "half written twice", "base model's text")
    table = Table("notes", *kinds)
    for name, limits in LIMITS.items():
        rates = asdict(Judge(sample_texts(base, openings(64, limits), 0), limits).rates)
        table.add(name, *("{} of {}".format(*rate) for rate in rates.values()))
    return table.rows


def spectrum(base: LLM, steps: list[int], each: int) -> list[list[str]]:
    """What it takes for notes of a model's samples, by how long the model was fitted; a table."""
    judge = Judge(sample_texts(base, openings(64), 0))
    notes, held_out = pd.DataFrame(patient_notes(5, 600)), pd.DataFrame(held_out_notes(5, 40))
    shown = []
    table = Table("steps", "nats per token", *(f"{each:g}" for each in TEMPERATURES))
    for n_steps in steps:
        model = LLM(TINY_MEDICAL).fit(
            notes,
            **DATA,
            target_epsilon="unlimited",
            method="full",
            steps=n_steps,
            batch_size=16,
            learning_rate=1e-3,
            seed=1,
        )
        found = model.evaluate(held_out, select=DATA["select"], text_field="text").fitted
        assert found is not None
        cells = []
        for temperature in TEMPERATURES:
            texts = sample_texts(model, ORDINARY_PROMPTS * each, 1, temperature)
            taken = [judge.reads_as_note(*text) for text in texts]
            cells.append(f"{sum(taken) / len(taken):.0%}")
            if temperature == TEMPERATURE:
                shown += [(n_steps, *pair) for pair in list(zip(texts, taken, strict=True))[:5]]
        table.add(str(n_steps), f"{found.nats_per_token:.2f}", *cells)
    print("\n| steps | sample | a note? |\n|---|---|---|")
    for n_steps, (prompt, text), taken in shown:
        print(f"| {n_steps} | {json.dumps(prompt + text, ensure_ascii=False)} | {taken} |")
    return table.rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 15, 40])
    parser.add_argument("--each", type=int, default=8, help="samples of each of 5 prompts")
    add_out(parser)
    arguments = parser.parse_args()
    base = LLM(TINY_MEDICAL)
    figures = {"errors": errors(base), "samples": spectrum(base, arguments.steps, arguments.each)}
    keep(arguments.out, figures)


if __name__ == "__main__":
    main()
