"""How much of the non-private gain a private fit keeps, on real pharmacovigilance sentences.

PHEE (Sun et al., EMNLP 2022, MIT licence) is not part of this repository: give the folder that
holds its train.jsonl and test.jsonl. Fits taciturn/tiny-medical with the shipped defaults of
`method="auto"`; the privacy unit is the report (PMID). Prints held-out nats per token and the share
of the non-private gain kept, as a Markdown table.

    python bench/phee.py FOLDER                  all of it (an hour on 2 cores)
    python bench/phee.py FOLDER --epsilon 8      one fit; results add up in bench/results/
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from taciturn.llm import LLM

RESULTS = Path(__file__).parent / "results" / "phee.jsonl"
UNIT = "split_part(id,'_',1)"
# The best ordinary run found on dev.jsonl: full fine-tuning, stopped before it overfits.
ORDINARY: dict[str, Any] = {
    "target_epsilon": "unlimited",
    "method": "full",
    "learning_rate": 5e-4,
    "batch_size": 11,
    "epochs": 3,
}


def measure(folder: Path, split: str, epsilon: str, threads: int, seed: int) -> dict[str, Any]:
    """Fit once and score on the held-out split."""
    private = epsilon != "unlimited"
    settings = {"target_epsilon": float(epsilon)} if private else ORDINARY
    model = LLM("taciturn/tiny-medical")
    start = time.monotonic()
    model.fit(
        str(folder / "train.jsonl"),
        text_field="context",
        privacy_unit=UNIT,
        threads=threads,
        seed=seed,
        **settings,  # type: ignore[arg-type]
    )
    seconds = time.monotonic() - start
    scores = model.evaluate(str(folder / f"{split}.jsonl"), text_field="context")
    assert scores.fitted is not None
    assert model.privacy is not None
    return {
        "epsilon": epsilon,
        "split": split,
        "delta": model.privacy.delta,
        "steps": model.privacy.steps,
        "batch": model.privacy.expected_batch_size,
        "noise_multiplier": model.privacy.noise_multiplier,
        "trained": model.privacy.trainable_parameters,
        "n_units": model.privacy.n_units,
        "base": scores.base.nats_per_token,
        "fitted": scores.fitted.nats_per_token,
        "seconds": seconds,
    }


def table(results: list[dict[str, Any]]) -> str:
    """All results of one split, means over repeated fits, as Markdown."""
    ordinary = [row["fitted"] for row in results if row["epsilon"] == "unlimited"]
    gain = results[0]["base"] - sum(ordinary) / len(ordinary) if ordinary else None
    lines = [
        "| fit | nats/token | share of the non-private gain | trained | steps x batch | minutes |",
        "|---|---|---|---|---|---|",
        f"| base | {results[0]['base']:.3f} | 0 | | | |",
    ]
    for epsilon in dict.fromkeys(row["epsilon"] for row in results):
        rows = [row for row in results if row["epsilon"] == epsilon]
        mean = sum(row["fitted"] for row in rows) / len(rows)
        share = f"{(rows[0]['base'] - mean) / gain:.0%}" if gain else "?"
        label = "no privacy" if epsilon == "unlimited" else f"epsilon = {epsilon}"
        minutes = sum(row["seconds"] for row in rows) / len(rows) / 60
        repeated = f" (mean of {len(rows)})" if len(rows) > 1 else ""
        lines.append(
            f"| {label}{repeated} | {mean:.3f} | {share} | {rows[0]['trained']} | "
            f"{rows[0]['steps']} x {rows[0]['batch']} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for, then print every result so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with train.jsonl and test.jsonl")
    parser.add_argument("--epsilon", action="append", help="8, 3, 1 or unlimited; default all")
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder is None or not (arguments.folder / "train.jsonl").is_file():
        print("skipped: give the folder that holds PHEE's train.jsonl and test.jsonl")
        return
    RESULTS.parent.mkdir(exist_ok=True)
    for epsilon in arguments.epsilon or ["unlimited", "8", "3", "1"]:
        row = measure(arguments.folder, arguments.split, epsilon, arguments.threads, arguments.seed)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print(table([row for row in rows if row["split"] == arguments.split]))


if __name__ == "__main__":
    main()
