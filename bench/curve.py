"""How much a private fit keeps by the number of units, at one epsilon.

Invented patients' notes, a patient as the unit; François Dupont, who has the secret, is among them.
For each number of patients: one private fit with the shipped defaults, or what `--set` says, and an
ordinary one of the same notes (bench/evidence/ordinary.py), stopped by notes of other patients.
Above `--ordinary-most` patients the ordinary fit is that of the largest number below, since hours
more would hardly make it better; the table says so. Figures are of complete runs, on notes of 200
other patients.

    python bench/curve.py --model MODEL --units 300 1000 3000 10000 --epsilon 3

What is finished is kept in bench/results/curve.jsonl; a killed run goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence.bench import RESULTS, Bench, Given
from evidence.corpus import notes
from evidence.ordinary import Setting
from evidence.records import Records, Row
from evidence.tables import ORDINARY, final, share


def table(lines: Sequence[tuple[Bench, Row, Bench, Row]]) -> str:
    """Of each number of patients: the private fit, and the ordinary one that it is held to."""
    cells = []
    for bench, private, of, ordinary in lines:
        ours = final(bench, {"base": None, "private": private}, ())
        theirs = final(of, {ORDINARY: ordinary}, ())[ORDINARY]
        kept = (
            share(ours["base"][kind], theirs[kind], ours["private"][kind])
            for kind in ("nats", "inner")
        )
        cells.append(
            [
                f"{bench.corpus.n_units:,}",
                f"{ours['base']['nats']:.3f}",
                f"{theirs['nats']:.3f} ({of.corpus.n_units:,})",
                f"{ours['private']['nats']:.3f}",
                *(f"{each:.0%}" for each in kept),
                f"{private['steps']} x {private['batch']}",
                f"{private['minutes']:.0f}",
            ]
        )
    head = [
        "patients",
        "base",
        "no privacy (of so many patients)",
        f"epsilon = {lines[0][1]['key']['epsilon']:g}",
        "share of the gain",
        "share, inner tokens",
        "steps x batch",
        "minutes",
    ]
    rows = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> None:
    """Measure each number of patients, then print all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Given.add_to(parser)
    parser.add_argument("--units", type=int, nargs="+", help="300 1000 3000 10000: hours")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--set", type=_field, nargs="+", default=[], help="steps=40, of the fit")
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="ordinary")
    parser.add_argument("--rate", type=float, default=3e-4, help="where its search begins")
    parser.add_argument("--ordinary-most", type=int, default=3000, metavar="PATIENTS")
    parser.add_argument("--results", type=Path, default=RESULTS / "curve.jsonl")
    parsed = parser.parse_args()
    if parsed.units is None:
        print("skipped: it takes hours; say for how many patients, --units 300 1000 3000 10000")
        return
    given, records = Given.of(parsed), Records(parsed.results)
    first = Setting(parsed.method, parsed.rate, rank=16 if parsed.method == "lora" else None)
    lines = []
    ordinary: tuple[Bench, Row] | None = None
    for units in sorted(parsed.units):
        bench = Bench(given, notes(units, given.seed), records)
        if ordinary is None or units <= parsed.ordinary_most:
            ordinary = bench, bench.search((first,), epochs=False)
        lines.append((bench, bench.private(parsed.epsilon, dict(parsed.set)), *ordinary))
        print(table(lines) + "\n", flush=True)


if __name__ == "__main__":
    main()
