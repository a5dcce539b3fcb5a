"""Patients of the notes: a patient is drawn once, so that all of a patient's notes agree."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

from taciturn.embedded.vocabulary import Condition, Drug, vocabulary

_OPENING_DAY = date(2021, 1, 4)
_LAST_FIRST_VISIT_DAYS = 1200
_ACUTE_DAYS = (2, 20)
_VISIT_SHARES = {1: 50, 2: 30, 3: 13, 4: 5, 5: 2}
_RETIREMENT_AGE = 66


@dataclass(frozen=True)
class Patient:
    """An invented person with one condition."""

    patient_id: str
    given_name: str
    family: str
    sex: str
    birth_year: int
    occupation: str
    history: tuple[str, str]
    condition: Condition
    severity: str
    diagnosed: date
    first_visit: date
    drugs: tuple[Drug, Drug]
    level: float
    """Where laboratory values lie in their range, in [0, 1]."""
    weight_kg: float


@dataclass(frozen=True)
class Visit:
    """One contact; `dose` indexes a drug's doses (its last one where it has fewer)."""

    day: date
    dose: int


def draw_patient(rng: Random, patient_id: str, condition: Condition | None = None) -> Patient:
    """A patient with `condition`, or with one drawn by its share."""
    words = vocabulary()
    first_visit = _OPENING_DAY + timedelta(days=rng.randrange(_LAST_FIRST_VISIT_DAYS))
    if condition is None:
        shares = [candidate.share for candidate in words.conditions]
        (condition,) = rng.choices(words.conditions, shares)
    sex = rng.choice(condition.sexes)
    age = rng.randint(*condition.ages)
    one_list, other_list = rng.sample(words.people.history, 2)
    drug, other_drug = rng.sample(condition.drugs, 2)
    return Patient(
        patient_id=patient_id,
        given_name=rng.choice(words.people.given_names[sex]),
        family=rng.choice(words.people.family),
        sex=sex,
        birth_year=first_visit.year - age,
        occupation=_occupation(rng, age),
        history=(rng.choice(one_list), rng.choice(other_list)),
        condition=condition,
        severity=rng.choice(condition.severities),
        diagnosed=first_visit - timedelta(days=rng.randint(*_days_ill(condition, age))),
        first_visit=first_visit,
        drugs=(drug, other_drug),
        level=rng.random(),
        weight_kg=rng.uniform(50, 104),
    )


def draw_visits(rng: Random, first: date, count: int | None = None) -> list[Visit]:
    """`count` visits from day `first` on, or as many as a patient has by chance (1 to 5).

    Who comes more than 8 times comes at shorter intervals.
    """
    if count is None:
        (count,) = rng.choices(list(_VISIT_SHARES), list(_VISIT_SHARES.values()))
    day, dose = first, rng.randrange(2)
    visits = []
    for _ in range(count):
        visits.append(Visit(day, dose))
        day += timedelta(days=max(1, rng.randint(7, 160) * 8 // max(8, count)))
        dose += rng.random() < 0.3
    return visits


def _days_ill(condition: Condition, age: int) -> tuple[int, int]:
    """Least and most days between the diagnosis and the first visit here."""
    return _ACUTE_DAYS if condition.acute else (30, 365 * min(12, age - 16))


def _occupation(rng: Random, age: int) -> str:
    """A retired person's for the old, a working person's for the others."""
    retired = age >= _RETIREMENT_AGE
    fitting = [
        work
        for work in vocabulary().people.occupations
        if work.startswith("retired") == retired and (work != "student" or age < 30)
    ]
    return rng.choice(fitting)
