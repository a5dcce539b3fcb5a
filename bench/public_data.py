"""What public text buys: private fits with it and without, on real pharmacovigilance sentences.

PHEE (Sun et al., EMNLP 2022, MIT licence) is not part of this repository: give the folder that
holds its train.jsonl and dev.jsonl, and a file of public text, of another kind or of the same.
These are complete private fits of `method="auto"`; the privacy unit is the report (PMID).

    python bench/public_data.py PHEE --public cases.jsonl --public-text-field text --model MODEL

For each epsilon it fits

- `none`: without public text;
- `default rate`: with it, at the learning rate that a fit without it has;
- `public`: with it, and the learning rate that is found on it.

`alone` is what public text does without any private row. Prints nats per token on --split as fits
end and as a table, and adds them to bench/results/public_data.jsonl. --ordinary NATS, of the best
fit without privacy, adds the share of its gain that is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan

RESULTS = Path(__file__).parent / "results" / "public_data.jsonl"
UNIT = "split_part(id,'_',1)"
VARIANTS = ("none", "default rate", "public")


def settings(given: argparse.Namespace, epsilon: float, variant: str) -> dict[str, Any]:
    """As `LLM.fit` is asked."""
    asked: dict[str, Any] = {
        "text_field": "context",
        "privacy_unit": UNIT,
        "target_epsilon": epsilon,
        "threads": given.threads,
        "seed": given.seed,
    }
    if given.steps is not None:
        asked["steps"] = given.steps
    if variant != "none":
        asked |= {
            "public_data": str(given.public),
            "public_text_field": given.public_text_field,
        }
    return asked


def measure(given: argparse.Namespace, epsilon: float, variant: str) -> dict[str, Any]:
    """Fit once, and judge on the split."""
    train = str(given.folder / "train.jsonl")
    asked = settings(given, epsilon, variant)
    model = LLM(given.model, dtype=given.dtype)
    if variant == "default rate":
        asked["learning_rate"] = model.plan(train, **settings(given, epsilon, "none")).learning_rate
    if variant == "alone":
        asked |= {"steps": 1, "learning_rate": 1e-12}  # the private part moves nothing
    plans: list[TrainingPlan] = []
    start = time.monotonic()
    model.fit(train, observer=Observer(on_plan=plans.append), **asked)
    seconds = time.monotonic() - start
    scores = model.evaluate(str(given.folder / f"{given.split}.jsonl"), text_field="context")
    assert scores.fitted is not None
    assert model.privacy is not None
    texts = model.privacy.public_data
    return {
        "model": Path(given.model).name,
        "public": None if variant == "none" else given.public.name,
        "public_records": sum(text.records for text in texts),
        "public_sha256": [text.sha256 for text in texts],
        "split": given.split,
        "seed": given.seed,
        "epsilon": epsilon,
        "variant": variant,
        "steps": plans[0].steps,
        "batch": plans[0].batch_size,
        "learning_rate": plans[0].learning_rate,
        "base": scores.base.nats_per_token,
        "fitted": scores.fitted.nats_per_token,
        "seconds": round(seconds),
    }


def table(rows: list[dict[str, Any]], ordinary: float | None) -> str:
    """All results as Markdown, in the order in which they came."""
    lines = [
        "| epsilon | public text | nats/token | gain | share of the non-private gain | rate | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = row["base"] - row["fitted"]
        share = "?" if ordinary is None else f"{gain / (row['base'] - ordinary):.0%}"
        epsilon = "0 (no private row)" if row["variant"] == "alone" else f"{row['epsilon']:g}"
        lines.append(
            f"| {epsilon} | {row['variant']} | {row['fitted']:.3f} | {gain:.3f} | {share} | "
            f"{row['learning_rate']:.2g} | {row['seconds']} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with train.jsonl and dev.jsonl")
    parser.add_argument("--public", type=Path, help="file of public text")
    parser.add_argument("--public-text-field", help="its column of text")
    parser.add_argument("--model", default="taciturn/tiny-medical")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 3.0, 1.0])
    parser.add_argument("--variant", nargs="+", choices=("alone", *VARIANTS))
    parser.add_argument("--steps", type=int, help="default: as many as a fit takes")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--ordinary", type=float, help="nats of the best fit without privacy")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, and print it."""
    given = arguments()
    if given.folder is None or not (given.folder / "train.jsonl").is_file():
        print("skipped: give the folder that holds PHEE's train.jsonl and dev.jsonl")
        return
    if given.public is None or not given.public.is_file():
        print("skipped: give a file of public text with --public")
        return
    RESULTS.parent.mkdir(exist_ok=True)
    asked = given.variant or ("alone", *VARIANTS)
    runs = [(given.epsilon[0], "alone")] if "alone" in asked else []
    runs += [(epsilon, each) for epsilon in given.epsilon for each in VARIANTS if each in asked]
    rows = []
    for epsilon, variant in runs:
        rows.append(measure(given, epsilon, variant))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    print(f"base: {rows[0]['base']:.3f} nats per token on {given.split}.jsonl")
    print(table(rows, given.ordinary))


if __name__ == "__main__":
    main()
