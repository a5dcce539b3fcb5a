"""A released folder without a model in it, and a key: certificates need no torch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.certificate.keys import TrustedKey, TrustStore
from taciturn.certificate.sign import seal, statement_for
from taciturn.certificate.signers import KeySigner
from taciturn.reports.privacy import PrivacyReport, PrivateStep

ISSUED = datetime(2026, 6, 1, 12, tzinfo=UTC)
EVENT = dpsgd_event(sampling_probability=0.05, noise_multiplier=1.1, steps=20)


def private_report() -> PrivacyReport:
    """What a small private fit reports."""
    step = PrivateStep(
        purpose="fit",
        dp_event=event_to_dict(EVENT),
        privacy_unit="patient",
        max_records_per_unit=8,
        n_units=200,
        dataset_commitment="ab" * 32,
    )
    return PrivacyReport(
        guarantee="differential privacy",
        epsilon=epsilon(EVENT, 1e-4),
        delta=1e-4,
        privacy_unit="patient",
        max_records_per_unit=8,
        n_units=200,
        mechanism="DP-SGD",
        steps=20,
        expected_batch_size=10,
        dp_event=event_to_dict(EVENT),
        private_steps=(step,),
        accountant="test",
        base_model="some/base",
        base_model_sha256={"model.safetensors": "cd" * 32},
        libraries={"torch": "2"},
        trainable_parameters=3,
        taciturn_version="0.1.0",
    )


@pytest.fixture
def report() -> PrivacyReport:
    return private_report()


@pytest.fixture
def folder(tmp_path: Path, report: PrivacyReport) -> Path:
    """An output folder: adapter, tokenizer, report and card."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "adapter_model.safetensors").write_bytes(b"weights")
    (output / "adapter_config.json").write_text("{}")
    (output / "tokenizer.json").write_text("{}")
    (output / "README.md").write_text("a card")
    (output / "privacy_report.json").write_text(report.model_dump_json())
    return output


@pytest.fixture(scope="session")
def signer() -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture(scope="session")
def trust(signer: KeySigner) -> TrustStore:
    period = ISSUED - timedelta(days=30), ISSUED + timedelta(days=30)
    return TrustStore((TrustedKey(signer.public_key, "a hospital", *period),))


@pytest.fixture
def moment() -> datetime:
    """When the certificate of these tests was issued."""
    return ISSUED


@pytest.fixture
def certificate(folder: Path, signer: KeySigner) -> bytes:
    return seal(statement_for(folder, audit=None, moment=ISSUED), signer)
