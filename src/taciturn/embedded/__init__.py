"""Content of the package for a trial without a network: a tiny base model and patient notes.

Importing this loads neither torch nor pandas.
"""

from __future__ import annotations

from pathlib import Path

from taciturn.embedded.notes import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PATIENT_ID,
    SECRET_PROMPT,
    SECRET_SENTENCE,
    SECRET_TEMPLATE,
    held_out_notes,
    patient_notes,
)
from taciturn.embedded.pairs import held_out_pairs, preference_pairs

TINY_MEDICAL = "taciturn/tiny-medical"

__all__ = [
    "SECRET",
    "SECRET_ALTERNATIVES",
    "SECRET_PATIENT_ID",
    "SECRET_PROMPT",
    "SECRET_SENTENCE",
    "SECRET_TEMPLATE",
    "TINY_MEDICAL",
    "held_out_notes",
    "held_out_pairs",
    "model_path",
    "patient_notes",
    "preference_pairs",
]


def model_path() -> Path:
    """The folder of the embedded base model `taciturn/tiny-medical`: weights, tokenizer, card."""
    return Path(__file__).parent / "tiny_medical"
