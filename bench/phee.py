"""How much of the non-private gain private fits keep, on real pharmacovigilance sentences.

PHEE (Sun et al., EMNLP 2022, MIT licence) is not part of this repository: give the folder that
holds its train.jsonl, dev.jsonl and test.jsonl. The privacy unit is the report (PMID). One invented
report that tells a secret is among them, unless `--without-secret`. Every figure is of a complete
run; private ones are `LLM.fit` with the shipped defaults, or what `--set` says.

    python bench/phee.py FOLDER --model MODEL --stage base       under each start token, on dev
    python bench/phee.py FOLDER --model MODEL --stage ordinary   the best fit without privacy
    python bench/phee.py FOLDER --model MODEL --stage private --epsilon 8
    python bench/phee.py FOLDER --model MODEL --stage story      the secret, and samples
    python bench/phee.py FOLDER --model MODEL --final            test.jsonl, once all is chosen
    python bench/phee.py FOLDER --model MODEL                    the first four, one after the other
    python bench/phee.py --table --out bench/results/phee.json   what documents quote, of --final

A finished stage is kept in bench/results/phee.jsonl and not measured again; a killed one goes on
with `--resume`. Choices are made on dev.jsonl: the ordinary fit's method, rate, number of epochs
and when it stops; of several private fits with one epsilon, the best. test.jsonl is read by
`--final` alone. Hours on two cores for a model of 135M parameters, a quarter of one for the
embedded one; fewer hours with `--dev 240`, and with `--first full:1e-4:1 lora16:1e-3:1`, by which
rates are found in runs of one epoch. On a GPU several processes run side by side, each with results
and a folder of its own and `--no-search`; their files, put together, are what one process leaves.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence.bench import Bench, on_phee, phee_parser
from evidence.figures import Table, add_out, keep
from evidence.ordinary import Setting
from evidence.records import Records, Row, digest
from evidence.stories import opened, samples_table, secret_table, told
from evidence.tables import ORDINARY, final, on_dev, quoted, table
from taciturn.embedded import TINY_MEDICAL

STAGES = ("base", "ordinary", "private", "story")
FIRST = (Setting("full", 1e-4), Setting("lora", 1e-3, rank=16))
"""Where the search for the best ordinary fit begins; it goes on until neither rate is better."""


def chosen(bench: Bench, epsilons: list[float]) -> dict[str, Row | None]:
    """Label -> row of what stands in the tables, as chosen on dev; None is the base."""
    seed = bench.given.seed
    ordinary = bench.best("ordinary", seed=seed)
    private = {
        f"epsilon = {epsilon:g}": bench.best("private", seed=seed, epsilon=epsilon)
        for epsilon in epsilons
    }
    found = {ORDINARY: ordinary, **private}
    return {"base": None, **{label: row for label, row in found.items() if row is not None}}


def story(bench: Bench, epsilons: list[float]) -> str:
    """What each chosen model says; the ordinary one also as it is at the end of its run."""
    rows = {}
    for label, row in chosen(bench, epsilons).items():
        for which in ("best", "last") if label == ORDINARY else ("best",):
            name = f"{label}, at the end of its run" if which == "last" else label
            rows[name] = _said(bench, row, which)
    said = list(rows.values())
    return secret_table(list(rows), said) + "\n\n" + samples_table(list(rows), said)


def _said(bench: Bench, row: Row | None, which: str) -> Row:
    seed = bench.given.seed
    of = "base" if row is None else digest(row["key"])
    key = {**bench.subject, "stage": "story", "of": of, "weights": which, "seed": seed}

    def measure() -> Row:
        base, model = bench.opened(row, which)
        return {"secret": told(base, model, seed), "samples": opened(base, model, seed)}

    return bench.records.measured(key, measure)


def start_table(row: Row) -> str:
    """What the base makes of dev under each token that a text could begin with."""
    lines = [
        "| a text begins with | nats per token | inner tokens |",
        "|---|---|---|",
    ]
    for name, found in row["starts"].items():
        label = "nothing" if found["token"] is None else f"`{found['token']}` ({name})"
        ours = " (as fitted)" if found["token"] == row["start"] else ""
        lines.append(f"| {label}{ours} | {found['nats']:.3f} | {found['inner']:.3f} |")
    return "\n".join(lines)


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _setting(text: str) -> Setting:
    """full:1e-4, lora16:1e-3, or with a number of epochs lora16:1e-3:1."""
    method, rate, *epochs = text.split(":")
    rank = int(method.removeprefix("lora")) if method.startswith("lora") else None
    chosen = Setting("full" if rank is None else "lora", float(rate), rank=rank)
    return replace(chosen, epochs=int(epochs[0])) if epochs else chosen


def _parsed() -> argparse.Namespace:
    parser = phee_parser(__doc__)
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 3.0, 1.0])
    parser.add_argument("--set", type=_field, nargs="+", default=[], help="steps=40, of the fit")
    parser.add_argument(
        "--first", type=_setting, nargs="+", default=FIRST, help="full:1e-4 lora16:1e-3:1"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="measure the settings of --first and no others"
    )
    add_out(parser)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, then print all there is."""
    given = _parsed()
    if given.table and given.folder is None:
        name = given.model if given.model == TINY_MEDICAL else Path(given.model).name
        figures = quoted(Records(given.results), name)
        for name in ("worth", "peers"):
            head, *rows = figures[name]
            shown = Table(*head)
            for row in rows:
                shown.add(*row)
        keep(given.out, figures)
        return
    bench = on_phee(given)
    if bench is None:
        return
    units = f"{bench.corpus.name}: {bench.corpus.n_units} units"
    print(f"{bench.subject['model']['name']}, {units}\n", flush=True)
    if given.final:
        wanted = [ORDINARY, *(f"epsilon = {each:g}" for each in given.epsilon)]
        models = chosen(bench, given.epsilon)
        print("On test.jsonl:\n\n" + table(bench, models, final(bench, models, wanted)))
        return
    stages = () if given.table else given.stage
    if "base" in stages:
        bench.base()
    if "ordinary" in stages:
        if given.no_search:
            for setting in given.first:
                bench.ordinary(setting)
        else:
            bench.search(given.first)
    if "private" in stages:
        for epsilon in given.epsilon:
            bench.private(epsilon, dict(given.set))
    print(start_table(bench.base()))
    print("\nOn dev.jsonl, by which choices were made:\n")
    models = chosen(bench, given.epsilon)
    print(table(bench, models, on_dev(bench, models)))
    if "story" in stages:
        print("\n" + story(bench, given.epsilon))


if __name__ == "__main__":
    main()
