"""A released folder without a model in it, and a key: certificates need no torch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.released_files import private_report
from taciturn.certificate.keys import TrustedKey, TrustStore
from taciturn.certificate.sign import seal, statement_for
from taciturn.certificate.signers import KeySigner
from taciturn.reports.privacy import PrivacyReport

ISSUED = datetime(2026, 6, 1, 12, tzinfo=UTC)


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
