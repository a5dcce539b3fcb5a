"""Wording of a visit: sentences of the vocabulary, filled with the patient's facts.

Months and weekdays are spelled here, not by `calendar`, whose names follow the user's locale.
"""

from __future__ import annotations

from datetime import timedelta
from random import Random

from taciturn.embedded.patients import Patient, Visit
from taciturn.embedded.vocabulary import Laboratory, vocabulary

Words = dict[str, str | int]

# Enough notes to make the secret's sentence an ordinary one. More of them drown the link from a
# name to a disease: at 0.06, four epochs without privacy had not learned it yet.
_DIAGNOSIS_OPENS = 0.015
_CLINICAL_ORDER = ("complaint", "history", "examination", "laboratory", "treatment", "plan")
_KEEPS_ORDER = 0.6
LONGEST_CHARACTERS = 150

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_SPANS = (("days", 2, 12), ("weeks", 2, 10), ("months", 2, 9))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WHEN = (
    "at night", "in the morning", "after meals", "on exertion", "lying down", "in cold weather",
    "after work", "since the holiday", "on most days", "when stressed", "by evening",
)  # fmt: skip
_TRENDS = ("better", "worse", "much worse", "slightly better", "no different")
_RESULTS = ("normal", "unchanged", "inconclusive", "abnormal", "improved")


# The same in a whole sentence, and as it is jotted down.
_ANSWERS = (
    ("{he} reports {symptom} for {span}.", "c/o {symptom} x {span}."),
    ("{he} has {symptom} and {symptom2}.", "S: {symptom}, {symptom2}."),
    ("Main complaint is {symptom}, {trend} {when}.", "{symptom}, {trend} {when}."),
    ("On examination {finding}.", "Exam: {finding}."),
    ("{title} {last} has a history of {past}.", "hx: {past}."),
    ("We discussed {advice} and {test}.", "P: {advice}; {test}."),
    ("The plan is {advice}, and {he} comes back in {next_month}.", "{advice}; RV {next_month}."),
)


def note_text(
    rng: Random,
    patient: Patient,
    visit: Visit,
    longest: int = LONGEST_CHARACTERS,
    *,
    names_diagnosis: bool,
) -> str:
    """An opening sentence, then one to three others, in clinical order more often than not.

    A further sentence that would make the note longer than `longest` characters is left out. With
    `names_diagnosis` it opens with "NAME suffers from a SEVERITY form of DISEASE"; otherwise
    it does so by chance.
    """
    sentences = vocabulary().sentences
    opens = names_diagnosis or rng.random() < _DIAGNOSIS_OPENS
    kinds = rng.sample(_CLINICAL_ORDER, rng.choice((1, 2, 2, 3)))
    if rng.random() < _KEEPS_ORDER:
        kinds.sort(key=_CLINICAL_ORDER.index)
    words = _words(rng, patient, visit)
    text = _sentence(rng.choice(sentences["diagnosis" if opens else "opening"]), words)
    for kind in kinds:
        longer = f"{text} {_sentence(rng.choice(sentences[kind]), words)}"
        text = longer if len(longer) <= longest else text
    return text


def opening_and_answers(rng: Random, patient: Patient, visit: Visit) -> tuple[str, str, str]:
    """An opening sentence, and how it goes on in a whole sentence and in shorthand."""
    words = _words(rng, patient, visit)
    opening = _sentence(rng.choice(vocabulary().sentences["opening"]), words)
    sentence, shorthand = rng.choice(_ANSWERS)
    return (
        opening,
        f" {_sentence(sentence.lstrip(), words)}",
        f" {shorthand.lstrip().format_map(words)}",
    )


def _sentence(template: str, words: Words) -> str:
    filled = template.format_map(words)
    return filled[0].upper() + filled[1:]


def _words(rng: Random, patient: Patient, visit: Visit) -> Words:
    return (
        _person(rng, patient, visit)
        | _disease(rng, patient)
        | _drugs(rng, patient, visit)
        | _measurements(rng, patient)
        | _times(rng, visit)
    )


def _person(rng: Random, patient: Patient, visit: Visit) -> Words:
    female = patient.sex == "F"
    past, past2 = rng.sample(patient.history, 2)
    return {
        "name": f"{patient.given_name} {patient.family}",
        "last": patient.family,
        "title": "Ms" if female else "Mr",
        "sex": patient.sex,
        "man": "woman" if female else "man",
        "he": "she" if female else "he",
        "him": "her" if female else "him",
        "his": "her" if female else "his",
        "age": visit.day.year - patient.birth_year,
        "job": patient.occupation,
        "past": past,
        "past2": past2,
    }


def _disease(rng: Random, patient: Patient) -> Words:
    condition = patient.condition
    symptom, symptom2, reason = rng.sample(condition.symptoms, 3)
    finding, finding2 = rng.sample(condition.findings, 2)
    article = "an" if patient.severity[0] in "aeiou" else "a"
    return {
        "disease": condition.name,
        "a_severity": f"{article} {patient.severity}",
        "since": f"{_MONTHS[patient.diagnosed.month - 1]} {patient.diagnosed.year}",
        "since_year": patient.diagnosed.year,
        "symptom": symptom,
        "symptom2": symptom2,
        "reason": reason,
        "finding": finding,
        "finding2": finding2,
        "clinic": rng.choice(condition.specialty.clinics),
        "test": rng.choice(condition.specialty.tests),
        "advice": rng.choice(condition.specialty.advice),
        "result": rng.choice(_RESULTS),
    }


def _drugs(rng: Random, patient: Patient, visit: Visit) -> Words:
    drug, other = patient.drugs
    dose = f"{drug.doses[min(visit.dose, len(drug.doses) - 1)]} {drug.unit}"
    return {
        "drug": f"{drug.name} {dose} {drug.frequency}",
        "drug_name": drug.name,
        "dose": dose,
        "frequency": drug.frequency,
        "other_drug": other.name,
        "times": rng.choice(_NUMBERS[2:6]),
    }


def _measurements(rng: Random, patient: Patient) -> Words:
    lab, lab2 = rng.sample(patient.condition.laboratory, 2)
    vital, vital2 = rng.sample(_vitals(rng, patient), 2)
    return {
        "lab": lab.name,
        "value": _value(rng, lab, patient.level),
        "before": _value(rng, lab, patient.level).partition(" ")[0],
        "lab2": lab2.name,
        "value2": _value(rng, lab2, patient.level),
        "vital": vital,
        "vital2": vital2,
    }


def _value(rng: Random, lab: Laboratory, level: float) -> str:
    """A value near the patient's own level, never below the foot of the range."""
    place = max(0.0, min(1.2, rng.gauss(level, 0.15)))
    number = lab.low + (lab.high - lab.low) * place
    return f"{number:.{lab.decimals}f} {lab.unit}".rstrip()


def _vitals(rng: Random, patient: Patient) -> list[str]:
    systolic = rng.randint(98, 172)
    return [
        f"BP {systolic}/{systolic // 2 + rng.randint(2, 18)}",
        f"HR {rng.randint(54, 118)}",
        f"temp {rng.uniform(36.1, 38.6):.1f} C",
        f"SpO2 {rng.randint(89, 99)}%",
        f"weight {patient.weight_kg + rng.gauss(0, 1.5):.1f} kg",
        f"RR {rng.randint(11, 26)}",
    ]


def _times(rng: Random, visit: Visit) -> Words:
    unit, least, most = rng.choice(_SPANS)
    number = rng.randint(least, most)
    spelled = number < len(_NUMBERS) and rng.random() < 0.5
    past = visit.day - timedelta(days=rng.randint(31, 150))
    future = visit.day + timedelta(days=rng.randint(31, 150))
    return {
        "span": f"{_NUMBERS[number] if spelled else number} {unit}",
        "days": rng.randint(3, 21),
        "weekday": rng.choice(_WEEKDAYS),
        "past_month": _MONTHS[past.month - 1],
        "next_month": _MONTHS[future.month - 1],
        "when": rng.choice(_WHEN),
        "trend": rng.choice(_TRENDS),
    }
