"""The embedded vocabulary: complete, parsable, without the names of the secret patient."""

from __future__ import annotations

import string

import pytest

from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.embedded.vocabulary import Drug, Laboratory, vocabulary


def test_entries_are_parsed() -> None:
    assert Laboratory.parse("CA 19-9 90-4200 U/mL") == Laboratory("CA 19-9", 90, 4200, "U/mL", 0)
    assert Laboratory.parse("INR 1.1-3.6") == Laboratory("INR", 1.1, 3.6, "", 1)
    drug = Drug.parse("bisoprolol 2.5/5/10 mg, twice daily")
    assert drug == Drug("bisoprolol", ("2.5", "5", "10"), "mg", "twice daily")


def test_a_malformed_entry_is_named() -> None:
    with pytest.raises(ValueError, match="'no numbers here'"):
        Laboratory.parse("no numbers here")


def test_every_condition_has_what_a_note_draws_from() -> None:
    for condition in vocabulary().conditions:
        assert len(set(condition.symptoms)) >= 3, condition.name
        assert len(set(condition.findings)) >= 2, condition.name
        assert len(condition.laboratory) >= 2, condition.name
        assert len(condition.drugs) >= 2, condition.name
        assert 18 <= condition.ages[0] < condition.ages[1], condition.name
        assert condition.share > 0
        assert all(lab.low < lab.high for lab in condition.laboratory), condition.name
        for drug in condition.drugs:
            doses = [float(dose) for dose in drug.doses]
            assert doses == sorted(doses), drug.name
    names = [condition.name for condition in vocabulary().conditions]
    assert len(set(names)) == len(names) >= 60


def test_nobody_else_is_called_like_the_secret_patient() -> None:
    people = vocabulary().people
    assert "Dupont" not in people.family
    assert not [
        name for names in people.given_names.values() for name in names if name == "François"
    ]
    assert min(len(names) for names in people.given_names.values()) >= 80
    assert len(people.family) >= 150


def test_no_other_patient_can_have_a_severe_form_of_the_secret_disease() -> None:
    assert "severe" not in vocabulary().condition("pancreatic cancer").severities
    with pytest.raises(KeyError, match="unheard of"):
        vocabulary().condition("unheard of")


def test_sentences_are_templates_of_words() -> None:
    for kind, templates in vocabulary().sentences.items():
        assert len(set(templates)) == len(templates) >= 6, kind
        for template in templates:
            fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
            assert fields, template


def test_the_embedded_model_is_a_folder_that_transformers_can_load() -> None:
    assert TINY_MEDICAL == "taciturn/tiny-medical"
    present = {path.name for path in model_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= present
