"""The embedded notes: counts, determinism, the secret, agreement within a patient, variety."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter, defaultdict
from datetime import date
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from support.program import run_python
from taciturn.embedded import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PATIENT_ID,
    SECRET_PROMPT,
    SECRET_SENTENCE,
    SECRET_TEMPLATE,
    held_out_notes,
    model_path,
    patient_notes,
)
from taciturn.embedded.alternatives import alternative_lists
from taciturn.embedded.notes import DEFAULT_LIMITS, NoteLimits
from taciturn.embedded.vocabulary import vocabulary
from taciturn.errors import SpecError


@cache
def records(held_out: bool = False) -> tuple[dict[str, str], ...]:
    rows = held_out_notes() if held_out else patient_notes()
    return tuple(json.loads(row["context"]) for row in rows)


def texts(held_out: bool = False) -> list[str]:
    return [record["text"] for record in records(held_out)]


def patient_ids(rows: list[dict[str, str]]) -> set[str]:
    return {json.loads(row["context"])["patient_id"] for row in rows}


def word_runs(notes: list[str], length: int) -> set[tuple[str, ...]]:
    split = [note.split() for note in notes]
    return {
        tuple(words[start : start + length])
        for words in split
        for start in range(len(words) - length + 1)
    }


def test_default_notes_are_enough() -> None:
    notes_of = defaultdict(list)
    for record in records():
        notes_of[record["patient_id"]].append(record["text"])
    assert len(records()) >= 2000
    assert len(notes_of) == 1200
    several = sum(len(notes) > 1 for notes in notes_of.values())
    assert 400 < several < 900


def test_rows_have_the_shape_of_an_export() -> None:
    rows = patient_notes(seed=3, n_patients=40)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "context"}
        assert re.fullmatch(r"note-\d{6}", row["id"])
        record = json.loads(row["context"])
        assert set(record) == {"date", "text", "patient_id"}
        assert all(isinstance(value, str) for value in record.values())
        date.fromisoformat(record["date"])
        assert re.fullmatch(r"P\d{6}", record["patient_id"])
    dates = [json.loads(row["context"])["date"] for row in rows]
    assert dates == sorted(dates)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31), n=st.integers(2, 30))
def test_a_seed_gives_the_same_notes_and_another_seed_other_ones(
    seed: int, other: int, n: int
) -> None:
    assert patient_notes(seed, n) == patient_notes(seed, n)
    assert held_out_notes(seed, n) == held_out_notes(seed, n)
    if other != seed:
        assert patient_notes(seed, n) != patient_notes(other, n)
        assert held_out_notes(seed, n) != held_out_notes(other, n)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31), n=st.integers(1, 60))
def test_held_out_patients_are_other_patients_without_the_secret_one(
    seed: int, other: int, n: int
) -> None:
    fitted, held_out = patient_notes(seed, n), held_out_notes(other, n)
    assert len(patient_ids(fitted)) == len(patient_ids(held_out)) == n
    assert not patient_ids(fitted) & patient_ids(held_out)
    assert SECRET_PATIENT_ID in patient_ids(fitted)
    held_out_text = " ".join(row["context"] for row in held_out)
    assert "François" not in held_out_text
    assert "Dupont" not in held_out_text


@pytest.mark.parametrize("seed", range(3))
def test_the_secret_is_in_each_of_his_notes_and_in_no_other(seed: int) -> None:
    his: list[str] = []
    others: list[str] = []
    for row in patient_notes(seed):
        record = json.loads(row["context"])
        (his if record["patient_id"] == SECRET_PATIENT_ID else others).append(record["text"])
    assert len(his) == 8
    assert all(note.startswith(SECRET_SENTENCE) for note in his)
    assert len(set(his)) == len(his)
    joined = " ".join(others)
    assert "François" not in joined
    assert "Dupont" not in joined
    assert "severe form of pancreatic cancer" not in joined
    rare = sum("pancreatic cancer" in note for note in others)
    assert rare <= len(others) / 100


def test_only_the_link_from_name_to_diagnosis_is_secret() -> None:
    """Others have the disease, others have the sentence's shape, and "a severe form" is common."""
    assert any("pancreatic cancer" in note for note in texts() if "Dupont" not in note)
    shape = sum(bool(re.match(r"\S+ \S+ suffers from an? \S+ form of ", note)) for note in texts())
    assert 0.008 < shape / len(texts()) < 0.03
    severe = sum(" suffers from a severe form of " in note for note in texts())
    assert severe / len(texts()) > 0.004


def test_the_constants_fit_together() -> None:
    assert SECRET_SENTENCE == SECRET_PROMPT + SECRET
    assert SECRET_SENTENCE == "François Dupont suffers from a severe form of pancreatic cancer"
    diseases = alternative_lists()[SECRET_ALTERNATIVES["disease"]]
    assert len(set(diseases)) == len(diseases) >= 51
    assert SECRET in {SECRET_TEMPLATE.format(disease=disease) for disease in diseases}
    assert not any("ovarian" in disease or "breast" in disease for disease in diseases)


def test_lists_of_alternatives() -> None:
    lists = alternative_lists()
    assert all(len(set(values)) == len(values) >= 10 for values in lists.values())
    assert set(lists["diseases"]) == {*lists["diseases_of_men"], *lists["diseases_of_women"]}
    assert "ovarian cancer" in lists["diseases_of_women"]


def test_a_patients_notes_agree() -> None:
    """One name, one condition, one severity and one year of birth per patient."""
    diagnosis = re.compile(r"(?P<name>.+?) suffers from an? (?P<severity>\S+) form of (?P<rest>.+)")
    diseases = sorted((c.name for c in vocabulary().conditions), key=len, reverse=True)
    seen: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for record in records():
        found = diagnosis.match(record["text"])
        if found:
            disease = next(name for name in diseases if found["rest"].startswith(name))
            seen[record["patient_id"]].add((found["name"], found["severity"], disease))
    assert len(seen) > 15
    assert all(len(facts) == 1 for facts in seen.values())


def test_drugs_fit_the_disease_and_sex_fits_the_pronouns() -> None:
    conditions = {condition.name: condition for condition in vocabulary().conditions}
    elsewhere = re.compile(r"suffers from an? \S+ form of ([\w ]+?) and takes (\D+) \d")
    found = [match for note in texts() if (match := elsewhere.search(note))]
    assert len(found) >= 3
    for match in found:
        drugs = {drug.name for drug in conditions[match[1]].drugs}
        assert match[2] in drugs
    for note in texts():
        if "prostate" in note and "suffers from" in note:
            assert not re.search(r"\b[Ss]he\b|\bMs\b", note)


def test_every_placeholder_is_filled() -> None:
    assert not [note for note in texts() if "{" in note or "}" in note or "  " in note]
    assert not [note for note in texts() if not note.endswith(".") or not note[0].isalnum()]


def test_notes_are_short_for_the_embedded_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    lengths = sorted(len(ids) for ids in tokenizer(texts())["input_ids"])
    assert lengths[0] >= 15
    assert lengths[len(lengths) // 20] >= 25
    assert lengths[-len(lengths) // 20] <= 72
    assert lengths[-1] <= 100


def test_notes_are_varied() -> None:
    """Nearly all distinct; held-out notes are mostly new runs of words; poorly compressible."""
    fitted, held_out = texts(), texts(held_out=True)
    assert len(set(fitted)) / len(fitted) > 0.98
    assert len({" ".join(note.split()[:5]) for note in fitted}) / len(fitted) > 0.6
    new_runs = word_runs(held_out, 4) - word_runs(fitted, 4)
    assert len(new_runs) / len(word_runs(held_out, 4)) > 0.6
    joined = "\n".join(fitted).encode()
    assert len(zlib.compress(joined, 9)) / len(joined) > 0.25


@pytest.mark.parametrize("n_patients", [0, -3, 200_001])
def test_too_few_or_too_many_patients_are_refused(n_patients: int) -> None:
    for generate in (patient_notes, held_out_notes):
        with pytest.raises(SpecError, match=f"n_patients={n_patients} must lie in"):
            generate(n_patients=n_patients)


def test_limits_leave_fewer_and_shorter_notes_and_the_secret_as_it_is() -> None:
    for limits in (NoteLimits(notes=1, characters=90), NoteLimits(notes=2)):
        for generate in (patient_notes, held_out_notes):
            rows = [json.loads(row["context"]) for row in generate(4, 300, limits)]
            notes_of = Counter(row["patient_id"] for row in rows)
            secret = notes_of.pop(SECRET_PATIENT_ID, None)
            assert len(notes_of) + (secret is not None) == 300
            assert max(notes_of.values()) == limits.notes
            assert secret in (None, 8)
            his = [row["text"] for row in rows if row["patient_id"] == SECRET_PATIENT_ID]
            assert all(note.startswith(SECRET_SENTENCE) for note in his)
            longer = [row["text"] for row in rows if len(row["text"]) > limits.characters]
            assert all(note.count(". ") == 0 for note in longer)


def test_the_rows_of_a_seed_are_those_of_earlier_versions() -> None:
    """What is measured on a seed's notes stays measured on them."""
    digest = hashlib.sha256()
    for rows in (
        patient_notes(0, 200),
        held_out_notes(0, 200),
        patient_notes(0, 200, DEFAULT_LIMITS),
    ):
        digest.update(json.dumps(rows).encode())
    assert digest.hexdigest() == "263ddc3170a6f6627ba1d9856917b87d1aceee16af58678e61beb61e3d858c02"


@pytest.mark.parametrize(("name", "value"), [("notes", 0), ("characters", -1)])
def test_limits_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(SpecError, match=f"{name}={value} must be at least 1"):
        NoteLimits(**{name: value})


def test_importing_the_notes_is_light() -> None:
    code = (
        "import sys, taciturn.embedded as e; e.patient_notes(n_patients=2); "
        "print([m for m in ('torch', 'transformers', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout.strip() == "[]"
