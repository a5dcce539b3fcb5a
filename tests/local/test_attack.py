"""Attacks through the facade: what was memorised is caught, what was never seen is not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from taciturn.embedded.notes import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PROMPT,
    SECRET_TEMPLATE,
    patient_notes,
)
from taciturn.engine.auditing.extraction import Extraction
from taciturn.engine.auditing.membership import Membership
from taciturn.errors import DataError, OutputError, SpecError, TaciturnError, UnknownFieldError
from taciturn.llm import LLM
from taciturn.spec import ExtractFields, ExtractSpec, MembershipFields, MembershipSpec

MARK = "zyxwvut"
FIELDS: dict[str, Any] = {"text_field": "text", "privacy_unit": "patient"}
DUPONT: dict[str, Any] = {
    "prefix": SECRET_PROMPT,
    "template": SECRET_TEMPLATE,
    "alternatives": SECRET_ALTERNATIVES,
    "max_new_tokens": 16,
}


def notes(seed: int, n_patients: int) -> pd.DataFrame:
    """Notes of invented patients, none of them François Dupont's."""
    rows = [json.loads(row["context"]) for row in patient_notes(seed, n_patients)]
    frame = pd.DataFrame(rows).rename(columns={"patient_id": "patient"})
    return frame[~frame["text"].str.contains("Dupont")][["patient", "text"]]


def with_secret(frame: pd.DataFrame) -> pd.DataFrame:
    secret = pd.DataFrame({"patient": ["P271828"] * 2, "text": [SECRET_PROMPT + SECRET + "."] * 2})
    return pd.concat([frame, secret], ignore_index=True)


@pytest.fixture(scope="module")
def members() -> pd.DataFrame:
    return notes(seed=1, n_patients=14)


@pytest.fixture(scope="module")
def non_members() -> pd.DataFrame:
    return notes(seed=2, n_patients=60)


@pytest.fixture(scope="module")
def overfitted(members: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Full fine-tuning without privacy, until the notes are known by heart."""
    return LLM("taciturn/tiny-medical").fit(
        with_secret(members),
        output=tmp_path_factory.mktemp("fit") / "out",
        target_epsilon="unlimited",
        method="full",
        steps=14,
        batch_size=14,
        learning_rate=5e-3,
        **FIELDS,
    )


@pytest.fixture(scope="module")
def extraction(overfitted: LLM) -> Extraction:
    return overfitted.extract(SECRET, samples=10, temperature=0.5, seed=0, **DUPONT)


@pytest.fixture(scope="module")
def membership(overfitted: LLM, members: pd.DataFrame, non_members: pd.DataFrame) -> Membership:
    return overfitted.membership(members, non_members, show_private=True)


def test_a_memorised_secret_is_caught(extraction: Extraction) -> None:
    found = extraction.fitted
    assert found is not None
    assert found.exposure is not None
    assert (found.exposure.rank, found.exposure.method) == (1, "exact")
    assert found.exposure.bits == math.log2(found.exposure.size)
    assert found.told_greedily
    assert found.told >= 8
    assert found.told_interval[0] > 0.4
    assert found.log_probability > math.log(0.5)
    assert extraction.policy == "no guarantee"


def test_the_base_model_beside_it_knows_nothing(extraction: Extraction, overfitted: LLM) -> None:
    base = extraction.base
    assert base.exposure is not None
    assert base.exposure.rank > 10
    assert not base.told_greedily
    assert base.told == 0
    alone = LLM("taciturn/tiny-medical").extract(
        SECRET, samples=10, temperature=0.5, seed=0, **DUPONT
    )
    assert alone.fitted is None
    assert alone.base == base


def test_a_frame_row_per_model(extraction: Extraction) -> None:
    frame = extraction.frame()
    assert list(frame["model"]) == ["base", "fitted"]
    assert frame["rank"][1] == 1
    assert set(frame["policy"]) == {"no guarantee"}
    assert json.loads(json.dumps(extraction.to_dict()))["fitted"]["told"] >= 8


def test_log_probability_is_the_same_function(extraction: Extraction, overfitted: LLM) -> None:
    assert extraction.fitted is not None
    alone = overfitted.log_probability(SECRET_PROMPT, SECRET)
    assert alone == pytest.approx(extraction.fitted.log_probability, abs=1e-3)


def test_members_learned_by_heart_are_caught(membership: Membership) -> None:
    fitted = {each.attack: each.roc for each in membership.attacks if each.model == "fitted"}
    assert set(fitted) == {"loss", "min-k%++", "ratio"}
    assert fitted["loss"].auc > 0.98
    assert fitted["ratio"].auc > 0.98
    assert fitted["min-k%++"].auc > 0.9
    assert all(roc.auc_interval[0] > 0.7 for roc in fitted.values())
    # 59 non-members resolve neither rate.
    assert all(point.tpr is None for roc in fitted.values() for point in roc.points)
    assert (membership.n_members, membership.n_non_members) == (13, 59)


def test_nobody_is_caught_by_a_model_that_saw_nobody(membership: Membership) -> None:
    control = {each.attack: each.roc for each in membership.attacks if each.model == "base"}
    assert set(control) == {"loss", "min-k%++"}
    for roc in control.values():
        assert roc.auc_interval[0] <= 0.5 <= roc.auc_interval[1]


def test_scores_are_per_unit_and_private(membership: Membership) -> None:
    assert list(membership.scores.columns) == ["member", "loss", "min-k%++", "ratio"]
    assert membership.scores["member"].sum() == 13
    assert membership.basis == "private, exact: for the owner's eyes only"
    assert repr(membership) == "Membership(private, exact: for the owner's eyes only)"
    assert list(membership.frame()["attack"]) == ["loss", "min-k%++", "ratio", "loss", "min-k%++"]


def test_written_into_the_private_folder_only(
    overfitted: LLM, members: pd.DataFrame, non_members: pd.DataFrame, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(overfitted._local_model("fit")._folders[-1], folder)
    shutil.rmtree(folder / "private")
    before = {path.name for path in folder.iterdir()}
    model = LLM(str(folder))
    model.membership(members, non_members, show_private=True, output="who.json")
    assert {path.name for path in folder.iterdir()} == {*before, "private"}
    written = folder / "private" / "who.json"
    assert len(json.loads(written.read_text())["scores"]) == 72
    assert written.stat().st_mode & 0o077 == 0
    assert written.parent.stat().st_mode & 0o077 == 0
    assert "Do not share" in (folder / "private" / "README.txt").read_text()
    for output, message in (("who.json", "already exists"), ("../who.json", "without a folder")):
        with pytest.raises(TaciturnError, match=message):
            model.membership(members, non_members, show_private=True, output=output)
    with pytest.raises(OutputError, match="no folder to keep it in"):
        LLM("taciturn/tiny-medical").membership(
            members, non_members, show_private=True, output="who.json"
        )


def test_extraction_is_written_where_asked(overfitted: LLM, tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    overfitted.extract(SECRET, samples=0, output=path, **DUPONT)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text)["fitted"]["exposure"]["rank"] == 1
    assert SECRET_PROMPT not in text
    with pytest.raises(OutputError, match="already exists"):
        overfitted.extract(SECRET, samples=0, output=path, **DUPONT)


def test_a_private_model_is_held_against_its_promise(
    members: pd.DataFrame, non_members: pd.DataFrame, tiny_llama: Path
) -> None:
    many = pd.concat([non_members, notes(seed=3, n_patients=60)], ignore_index=True)
    model = LLM(str(tiny_llama)).fit(
        members, target_epsilon=1, steps=2, batch_size=10, delta=1e-5, **FIELDS
    )
    found = model.membership(members, many, show_private=True)
    rare, common = found.attacks[0].roc.points
    assert rare.tpr is None
    assert common.tpr is not None
    # (1, 1e-5)-DP alone would allow e * 1% + 1e-5; the events allow less.
    assert common.promised_tpr is not None
    assert 0.01 < common.promised_tpr <= math.e * 0.01 + 1e-5
    assert found.attacks[-1].roc.points[1].promised_tpr is None
    assert found.policy == model.policy
    with pytest.raises(SpecError, match="differs from 'patient'"):
        model.membership(members, many, text_field="text", privacy_unit="text", show_private=True)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, SpecError, "set show_private=True"),
        ({"show_private": True, "min_k": 0}, SpecError, "min_k=0"),
        ({"show_private": True, "confidence": 1}, SpecError, "confidence=1"),
        ({"show_private": True, "mink": 0.1}, UnknownFieldError, "min_k"),
    ],
)
def test_bad_membership_settings(
    members: pd.DataFrame, fields: dict[str, Any], error: type[TaciturnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM("taciturn/tiny-medical").membership(members, members, **FIELDS, **fields)


def test_groups_that_cannot_be(members: pd.DataFrame, tiny_llama: Path) -> None:
    model = LLM(str(tiny_llama))
    with pytest.raises(DataError, match="word for word"):
        model.membership(members, members[::-1], show_private=True, **FIELDS)
    marked = pd.DataFrame({"patient": ["a", "b"], "text": [f"{MARK} 1", f"{MARK} 2"]})
    with pytest.raises(DataError, match="at least 10 members") as caught:
        model.membership(marked, members, show_private=True, **FIELDS)
    assert MARK not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "fields", "message"),
    [
        (f" from a severe form of {MARK}", {}, "is not among the"),
        ("", {}, "secret is empty"),
        (SECRET, {"samples": -1}, "samples=-1"),
        (SECRET, {"alternatives": {"disease": 5}}, "alternatives: .* write text in quotes"),
        (
            SECRET,
            {"alternatives": {"disease": [MARK]}, "template": f"{{{MARK[:0]}x"},
            "well-formed",
        ),
        (f" {MARK}", {"alternatives": MARK, "template": None}, "neither an embedded list"),
        (SECRET, {"output": "secret.txt"}, r"must end in \.json"),
    ],
)
def test_bad_secrets_are_not_quoted(secret: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        LLM("taciturn/tiny-medical").extract(secret, **{**DUPONT, **fields})
    assert MARK not in str(caught.value)
    assert "pancreatic" not in str(caught.value)


def test_keyword_arguments_are_the_fields_of_the_specs() -> None:
    assert set(ExtractFields.__annotations__) == set(ExtractSpec.model_fields)
    assert set(MembershipFields.__annotations__) == set(MembershipSpec.model_fields)
    assert np.isclose(MembershipSpec().min_k, 0.2)
