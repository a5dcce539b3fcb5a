"""What a one-run, black-box audit proves about fits without privacy and with epsilon 8 and 3.

Fits taciturn/tiny-medical to invented notes of 200 patients and 1,000 canaries of one kind; the
privacy unit is the patient. Private fits have the shipped defaults. Prints the lower bound on
epsilon at confidence 0.95 and the guesses behind it, as a Markdown table.

    python bench/audit.py                                     all of it (half an hour on 2 cores)
    python bench/audit.py --epsilon 8 --kind random           one fit; adds up in bench/results/
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from evidence.figures import Table, add_out, keep
from taciturn.embedded import TINY_MEDICAL, patient_notes
from taciturn.engine.auditing.bounds import Guesses, epsilon_lower_bound, guess_numbers
from taciturn.llm import LLM
from taciturn.spec import CanaryKind

RESULTS = Path(__file__).parent / "results" / "audit_part.jsonl"
EPSILONS = ("unlimited", "8", "3")
PREPARATION = (
    "id, json_extract_string(context, '$.patient_id') AS patient_id, "
    "json_extract_string(context, '$.text') AS text"
)
_FIGURES = ("right guesses", "AUC", "epsilon at least", "if the trade-off is Gaussian")
# As a careless fine-tuning does: enough to memorise.
ORDINARY: dict[str, Any] = {
    "target_epsilon": "unlimited",
    "method": "full",
    "epochs": 5,
    "batch_size": 16,
    "learning_rate": 2e-3,
}


def measure(kind: CanaryKind, epsilon: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fit once and audit."""
    private = epsilon != "unlimited"
    settings = {"target_epsilon": float(epsilon)} if private else ORDINARY
    start = time.monotonic()
    model = LLM(TINY_MEDICAL).fit(
        pd.DataFrame(patient_notes(n_patients=options.patients)),
        select=PREPARATION,
        text_field="text",
        privacy_unit="patient_id",
        canaries=options.canaries,
        canary_kind=kind,
        threads=options.threads,
        **settings,
    )
    fitted = time.monotonic()
    found = model.audit()
    return {
        "kind": kind,
        "epsilon": epsilon,
        "patients": options.patients,
        "seconds": fitted - start,
        "audit_seconds": time.monotonic() - fitted,
        **found.model_dump(exclude={"histogram", "verdict", "canary_commitment"}, mode="json"),
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Print all results as a table."""
    found = Table("fit", "canaries", *_FIGURES)
    for row in sorted(rows, key=lambda row: (EPSILONS.index(row["epsilon"]), row["kind"])):
        label = "no privacy" if row["epsilon"] == "unlimited" else f"epsilon = {row['epsilon']}"
        found.add(
            label,
            row["kind"],
            f"{row['correct']} of {row['guesses']}",
            f"{row['auc']:.3f}",
            f"{row['epsilon_lower_bound']:.2f}",
            f"{row['gaussian_epsilon_lower_bound']:.2f}",
        )
    return found.rows


def most(row: dict[str, Any]) -> dict[str, float]:
    """What the same audit would prove if all of so many guesses were right, by their number."""
    numbers = guess_numbers(row["canaries"])
    share = 1 - (1 - row["confidence"]) / len(numbers)
    return {
        str(number): epsilon_lower_bound(
            [Guesses(row["canaries"], number, number)], row["delta"], share
        )
        for number in numbers
    }


def main() -> None:
    """Run what is asked for, add it to the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epsilon", nargs="*", default=EPSILONS, choices=EPSILONS)
    parser.add_argument("--kind", nargs="*", default=get_args(CanaryKind))
    parser.add_argument("--canaries", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for epsilon in options.epsilon:
        for kind in options.kind:
            found = measure(kind, epsilon, options)
            print(f"{kind}: fit {found['seconds']:.0f} s, audit {found['audit_seconds']:.0f} s")
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    about = {name: rows[0][name] for name in ("canaries", "confidence")}
    keep(options.out, {**about, "most": most(rows[0]), "fits": table(rows)})


if __name__ == "__main__":
    main()
