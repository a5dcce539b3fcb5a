"""Fit a model to what people preferred, privately, and measure it on pairs of other patients.

Everything is invented and in the package: python examples/preference_pairs.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import taciturn
from taciturn.embedded import held_out_pairs, preference_pairs

COLUMNS: dict[str, Any] = {
    "prompt_field": "prompt",
    "chosen_field": "chosen",
    "rejected_field": "rejected",
    "max_tokens": 64,
}


def main(output: Path, n_patients: int = 200, **settings: Any) -> float:
    """Return the share of held-out pairs that the fitted model ranks as people did."""
    model = taciturn.LLM("taciturn/tiny-medical")
    model.fit(
        preference_pairs(n_patients=n_patients),
        output=output,
        objective="dpo",
        beta=0.1,
        privacy_unit="patient_id",
        **{"target_epsilon": 8, "batch_size": 40, "steps": 12, **settings},
        **COLUMNS,
    )
    # Invented pairs are public; your own need show_private=True, and the figures stay with you.
    judged = model.evaluate(held_out_pairs(n_patients=100), **COLUMNS).preferences
    print(model.policy)
    print(f"{judged.accuracy:.1%} of {judged.pairs} held-out pairs are ranked as people did")
    print(f"chosen answers: {judged.base.nats_per_token:.3f} nats a token before, ", end="")
    print(f"{judged.fitted.nats_per_token:.3f} after")
    return judged.accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "preferences"))
