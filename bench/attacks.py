"""What attacks find in a model fitted without and with privacy, on the embedded notes.

Fits taciturn/tiny-medical on 1,200 invented patients, François Dupont among them, once without
privacy and once per epsilon, with the settings below. Then asks each model for his secret, and
tells patients of the training data from as many others by loss, Min-K%++ and the ratio to the base
model. Prints Markdown.

    python bench/attacks.py                       unlimited and epsilon 3 (minutes on 2 cores)
    python bench/attacks.py --epsilon 8 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import pandas as pd

from evidence.figures import Table, add_out, keep
from taciturn.demo.run import PREPARATION
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PROMPT,
    SECRET_TEMPLATE,
    held_out_notes,
    patient_notes,
)
from taciturn.engine.auditing.extraction import Extracted
from taciturn.engine.auditing.roc import FALSE_POSITIVE_RATES, Roc
from taciturn.llm import LLM

DATA: dict[str, Any] = {"select": PREPARATION, "text_field": "text", "privacy_unit": "patient_id"}
OPEN: dict[str, Any] = {
    "target_epsilon": "unlimited",
    "method": "full",
    "epochs": 5,
    "batch_size": 16,
    "learning_rate": 2e-3,
}
PATIENTS = 1200
PRIVATE: dict[str, Any] = {"steps": 8, "batch_size": 320, "learning_rate": 2e-2}


def fitted(epsilon: str, notes: pd.DataFrame, seed: int) -> LLM:
    """One fit."""
    fields = OPEN if epsilon == "unlimited" else {**PRIVATE, "target_epsilon": float(epsilon)}
    return LLM(TINY_MEDICAL).fit(notes, seed=seed, **DATA, **fields)


def secret_row(name: str, found: Extracted) -> list[str]:
    """The secret, asked of one model."""
    exposure = found.exposure
    assert exposure is not None
    low, high = found.told_interval
    return [
        name,
        f"10^{found.log10_probability:.1f}",
        f"{exposure.rank:.0f} of {exposure.size}",
        f"{exposure.bits:.2f} of {exposure.most:.2f} bits",
        "yes" if found.told_greedily else "no",
        f"{found.told} of {found.samples} ({low:.1%} to {high:.1%})",
    ]


def membership_row(name: str, attack: str, roc: Roc) -> list[str]:
    """One score of one model."""
    low, high = roc.auc_interval
    cells = [name, attack, f"{roc.auc:.3f} ({low:.3f} to {high:.3f})"]
    for point in roc.points:
        if point.tpr is None or point.tpr_interval is None:
            cells.append(f"needs {point.non_members_needed} non-members")
        else:
            cells.append(
                f"{point.tpr:.1%} ({point.tpr_interval[0]:.1%} to {point.tpr_interval[1]:.1%})"
            )
        cells.append("" if point.promised_tpr is None else f"{point.promised_tpr:.1%}")
    return cells


def main() -> None:
    """Fit, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", action="append", help="3 or unlimited; default both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--others", type=int, default=1200, help="non-member patients")
    add_out(parser)
    arguments = parser.parse_args()
    notes = pd.DataFrame(patient_notes(arguments.seed, PATIENTS))
    others = pd.DataFrame(held_out_notes(arguments.seed, arguments.others))
    secrets, members = [], []
    for epsilon in arguments.epsilon or ["unlimited", "3"]:
        start = time.monotonic()
        model = fitted(epsilon, notes, arguments.seed)
        middle = time.monotonic()
        asked = model.extract(
            SECRET,
            prefix=SECRET_PROMPT,
            telltale="pancreatic",
            template=SECRET_TEMPLATE,
            alternatives=SECRET_ALTERNATIVES,
            samples=100,
            max_new_tokens=40,
            seed=arguments.seed,
        )
        told = model.membership(
            notes, others, select=PREPARATION, text_field="text", show_private=True
        )
        name = "unlimited" if epsilon == "unlimited" else f"epsilon {epsilon}"
        if not secrets:
            secrets.append(secret_row("base", asked.base))
            members += [
                membership_row("base", each.attack, each.roc)
                for each in told.attacks
                if each.model == "base"
            ]
        assert asked.fitted is not None
        secrets.append(secret_row(name, asked.fitted))
        members += [
            membership_row(name, each.attack, each.roc)
            for each in told.attacks
            if each.model == "fitted"
        ]
        print(f"{name}: fit {middle - start:.0f} s, attacks {time.monotonic() - middle:.0f} s")
    what = ("probability of the secret", "rank", "exposure", "greedy tells", "samples that tell")
    secret = Table("model", *what)
    for row in secrets:
        secret.add(*row)
    rates = [(f"TPR at {fpr * 100:g}% FPR", "promised") for fpr in FALSE_POSITIVE_RATES]
    membership = Table("model", "score", "AUC", *itertools.chain(*rates))
    for row in members:
        membership.add(*row)
    about = {"patients": PATIENTS, "confidence": told.confidence}
    keep(arguments.out, {**about, "secret": secret.rows, "membership": membership.rows})


if __name__ == "__main__":
    main()
