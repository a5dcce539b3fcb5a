"""The statement is in-toto's, and only what it should be is read."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from taciturn.certificate.canonical import canonical_json
from taciturn.certificate.sign import statement_for
from taciturn.certificate.statement import CertifiedAudit, Statement
from taciturn.errors import CertificateError
from taciturn.reports.privacy import DECLARED_PUBLIC, REPORT, PrivacyReport, PublicData

AUDIT = CertifiedAudit(
    epsilon_lower_bound=0.7,
    confidence=0.95,
    threat_model="black box",
    canaries=1000,
    method="one run (Steinke et al. 2023)",
)


@pytest.fixture
def fields(folder: Path, moment: datetime) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(statement_for(folder, audit=AUDIT, moment=moment).to_bytes())
    return value


def test_it_is_an_in_toto_statement(fields: dict[str, Any]) -> None:
    assert set(fields) == {"_type", "subject", "predicateType", "predicate"}
    assert fields["_type"] == "https://in-toto.io/Statement/v1"
    for subject in fields["subject"]:
        assert set(subject) == {"name", "digest"}
        assert len(subject["digest"]["sha256"]) == 64


def test_it_says_what_it_should(fields: dict[str, Any]) -> None:
    predicate = fields["predicate"]
    assert {"epsilon", "delta", "privacy_unit", "neighbouring_relation", "steps"} <= set(
        predicate["guarantee"]
    )
    assert predicate["guarantee"]["max_records_per_unit"] == 8
    assert predicate["guarantee"]["steps"][0]["dataset_commitment"] == "ab" * 32
    assert predicate["base_model"]["files"][0]["digest"]["sha256"] == "cd" * 32
    assert predicate["software"]["engine"] == "taciturn 0.1.0"
    assert predicate["software"]["libraries"] == {"torch": "2"}
    assert predicate["audit"]["canaries"] == 1000
    assert predicate["issued_at"] == "2026-06-01T12:00:00Z"


def test_round_trip(fields: dict[str, Any]) -> None:
    payload = canonical_json(fields)
    assert Statement.from_bytes(payload).to_bytes() == payload


def _set(fields: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        fields = fields[int(name)] if isinstance(fields, list) else fields[name]
    fields[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("predicateType", "https://slsa.dev/provenance/v1"),
        ("subject", []),
        ("subject.0.name", "../adapter_model.safetensors"),
        ("subject.0.digest.sha256", "AB" * 32),
        ("subject.0.digest.sha256", "ab" * 32 + "\n"),
        ("subject.0.digest.sha512", "ab" * 64),
        ("predicate.guarantee.epsilon", -1.0),
        ("predicate.guarantee.epsilon", "3"),
        ("predicate.guarantee.epsilon", 3),
        ("predicate.guarantee.delta", 1.0),
        ("predicate.guarantee.steps", []),
        ("predicate.guarantee.steps.0.dp_event", {"type": "NonPrivate"}),
        ("predicate.guarantee.steps.0.dp_event.count", 0),
        ("predicate.guarantee.steps.0.n_units", True),
        ("predicate.guarantee.steps.0.dataset_commitment", ""),
        ("predicate.guarantee.neighbouring_relation", "replace one unit"),
        ("predicate.base_model.files", []),
        ("predicate.audit.confidence", 1.5),
        ("predicate.software.image_digest", "latest"),
        ("predicate.issued_at", "yesterday"),
        ("predicate.note", "trust me"),
    ],
)
def test_other_values_are_refused(fields: dict[str, Any], path: str, value: object) -> None:
    _set(fields, path, value)
    with pytest.raises(CertificateError):
        Statement.from_bytes(canonical_json(fields))


@pytest.mark.parametrize(
    "change", [{"confidence": 1.0}, {"canaries": 0}, {"threat_model": "grey"}, {"epsilon": 1.0}]
)
def test_audit_results_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CertifiedAudit.model_validate({**AUDIT.model_dump(), **change})


def test_public_text_is_named_and_its_absence_is_not(
    folder: Path, report: PrivacyReport, moment: datetime
) -> None:
    """Certificates from before there was any stay what they are."""
    path = folder / REPORT
    bare = json.loads(statement_for(folder, audit=None, moment=moment).to_bytes())
    assert "public_data" not in bare["predicate"]
    text = PublicData(records=40, sha256="ef" * 32)
    path.write_text(report.model_copy(update={"public_data": (text,)}).model_dump_json())
    payload = statement_for(folder, audit=None, moment=moment).to_bytes()
    (said,) = json.loads(payload)["predicate"]["public_data"]
    assert said == {"records": 40, "sha256": "ef" * 32, "declaration": DECLARED_PUBLIC}
    assert Statement.from_bytes(payload).predicate.public_data[0].records == 40
    named = text.model_copy(update={"name": "cases"})
    path.write_text(report.model_copy(update={"public_data": (named,)}).model_dump_json())
    payload = statement_for(folder, audit=None, moment=moment).to_bytes()
    assert json.loads(payload)["predicate"]["public_data"] == [{**said, "name": "cases"}]
    assert Statement.from_bytes(payload).predicate.public_data[0].name == "cases"
    bare["predicate"]["public_data"] = []
    with pytest.raises(CertificateError, match="canonical"):
        Statement.from_bytes(canonical_json(bare))
