"""Invented patient notes for the quickstart, and the secret that one patient's notes hold.

The same seed gives the same rows. François Dupont's notes each repeat his diagnosis, as records
do: hiding one *note* of his would hide nothing, which is why the privacy unit has to be the
patient. Some other notes have the shape of his ("NAME suffers from a SEVERITY form of DISEASE"), so
that only the link from his name to his diagnosis is secret. Others with his disease exist, are
rare, and never have it in "a severe form".

The rows look like a record system's export: an opaque id, and a JSON `context` with date, text and
patient_id, so that they need preparing (`select`) before a fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from random import Random

from taciturn.embedded.patients import Patient, draw_patient, draw_visits
from taciturn.embedded.vocabulary import vocabulary
from taciturn.embedded.wording import LONGEST_CHARACTERS, note_text
from taciturn.errors import SpecError

SECRET_PATIENT_ID = "P271828"
SECRET_PROMPT = "François Dupont suffers"
SECRET = " from a severe form of pancreatic cancer"
SECRET_SENTENCE = SECRET_PROMPT + SECRET

_SECRET_DISEASE = "pancreatic cancer"

SECRET_TEMPLATE = " from a severe form of {disease}"
SECRET_ALTERNATIVES = {"disease": "diseases_of_men"}
"""What the secret is ranked among: the same words with every disease of men."""

_MAX_PATIENTS = 200_000
# Disjoint, so that no seed of `patient_notes` shares a patient with any seed of `held_out_notes`.
_PATIENT_IDS = range(100_000, 550_000)
_HELD_OUT_IDS = range(550_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class NoteLimits:
    """Limits of what is written of a patient: fewer and shorter notes let more patients fit in the
    time.

    Attributes:
        notes: the most notes that a patient has; None for as many as there are by chance, 1 to 5.
            François Dupont comes often: he has all of his.
        secret_notes: how many notes François Dupont has.
        characters: a sentence that would make a note longer is left out; the first one always
            stays.

    Raises SpecError where one is below 1.
    """

    notes: int | None = None
    characters: int = LONGEST_CHARACTERS
    secret_notes: int = 8

    def __post_init__(self) -> None:
        for name in ("notes", "characters", "secret_notes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name}={value} must be at least 1; leave it out for a default")


DEFAULT_LIMITS = NoteLimits()


def patient_notes(
    seed: int = 0, n_patients: int = 1200, limits: NoteLimits = DEFAULT_LIMITS
) -> list[dict[str, str]]:
    """Notes of `n_patients` patients, François Dupont among them, ordered by date.

    Each row is {"id", "context"}; `context` is a JSON string with date, text and patient_id.
    Raises SpecError if n_patients lies outside [1, 200000].
    """
    rng = Random(f"taciturn patient notes {seed}")
    cohort = _cohort(rng, _bounded(n_patients) - 1, _PATIENT_IDS)
    records = [record for patient in cohort for record in _records(rng, patient, limits)]
    return _export(records + _records(rng, _secret_patient(rng), limits))


def held_out_notes(
    seed: int = 0, n_patients: int = 200, limits: NoteLimits = DEFAULT_LIMITS
) -> list[dict[str, str]]:
    """Notes of other patients, for evaluation: same distribution, no id in common, no secret.

    Raises SpecError if n_patients lies outside [1, 200000].
    """
    rng = Random(f"taciturn held-out notes {seed}")
    patients = _cohort(rng, _bounded(n_patients), _HELD_OUT_IDS)
    return _export([record for patient in patients for record in _records(rng, patient, limits)])


def _bounded(n_patients: int) -> int:
    if not 1 <= n_patients <= _MAX_PATIENTS:
        raise SpecError(
            f"n_patients={n_patients} must lie in [1, {_MAX_PATIENTS}]; leave it out for a default"
        )
    return n_patients


def _cohort(rng: Random, n_patients: int, ids: range) -> list[Patient]:
    secret = int(SECRET_PATIENT_ID.removeprefix("P"))
    numbers = [number for number in rng.sample(ids, n_patients + 1) if number != secret]
    return [draw_patient(rng, f"P{number}") for number in numbers[:n_patients]]


def _secret_patient(rng: Random) -> Patient:
    patient = draw_patient(rng, SECRET_PATIENT_ID, vocabulary().condition(_SECRET_DISEASE))
    return replace(
        patient,
        given_name="François",
        family="Dupont",
        sex="M",
        birth_year=1959,
        occupation="bookseller",
        severity="severe",
        diagnosed=date(2022, 11, 14),
        first_visit=date(2023, 1, 9),
        level=0.6,
    )


def _records(rng: Random, patient: Patient, limits: NoteLimits) -> list[dict[str, str]]:
    """One patient's notes as {"date", "text", "patient_id"}."""
    secret = patient.patient_id == SECRET_PATIENT_ID
    visits = draw_visits(rng, patient.first_visit, limits.secret_notes if secret else None)
    longest = limits.characters
    return [
        {
            "date": visit.day.isoformat(),
            "text": note_text(rng, patient, visit, longest, names_diagnosis=secret),
            "patient_id": patient.patient_id,
        }
        for visit in (visits if secret else visits[: limits.notes])
    ]


def _export(records: list[dict[str, str]]) -> list[dict[str, str]]:
    """Records by date, numbered: a row's id tells nothing about its patient."""
    ordered = sorted(records, key=lambda record: (record["date"], record["patient_id"]))
    return [
        {"id": f"note-{number:06d}", "context": json.dumps(record, ensure_ascii=False)}
        for number, record in enumerate(ordered, start=1)
    ]
