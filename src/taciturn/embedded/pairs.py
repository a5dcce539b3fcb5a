"""Invented pairs of answers: the same finding of a visit in a whole sentence and in shorthand.

Readers of these notes, as invented as they, prefer the sentence. The same seed gives the same rows.
"""

from __future__ import annotations

from random import Random

from taciturn.embedded.patients import draw_patient, draw_visits
from taciturn.embedded.wording import opening_and_answers
from taciturn.errors import SpecError

_MOST_PATIENTS = 200_000
# Disjoint, so that no seed of the one shares a patient with any seed of the other.
_PATIENT_IDS, _HELD_OUT_IDS = range(100_000, 550_000), range(550_000, 1_000_000)


def preference_pairs(seed: int = 0, n_patients: int = 300) -> list[dict[str, str]]:
    """Pairs about `n_patients` patients, one or two each.

    Each row is {"prompt", "chosen", "rejected", "patient_id"}: how a note begins, and two ways to
    go on.
    Raises SpecError if n_patients lies outside [1, 200000].
    """
    return _pairs(Random(f"taciturn preference pairs {seed}"), n_patients, _PATIENT_IDS)


def held_out_pairs(seed: int = 0, n_patients: int = 200) -> list[dict[str, str]]:
    """Pairs about other patients, for evaluation. Raises SpecError as `preference_pairs` does."""
    return _pairs(Random(f"taciturn held-out pairs {seed}"), n_patients, _HELD_OUT_IDS)


def _pairs(rng: Random, n_patients: int, ids: range) -> list[dict[str, str]]:
    if not 1 <= n_patients <= _MOST_PATIENTS:
        raise SpecError(
            f"n_patients={n_patients} must lie in [1, {_MOST_PATIENTS}]; leave it out for a default"
        )
    rows = []
    for number in rng.sample(ids, n_patients):
        patient = draw_patient(rng, f"P{number}")
        for visit in draw_visits(rng, patient.first_visit)[:2]:
            prompt, sentence, shorthand = opening_and_answers(rng, patient, visit)
            row = {"prompt": prompt, "chosen": sentence, "rejected": shorthand}
            rows.append({**row, "patient_id": patient.patient_id})
    return rows
