"""An export is verified by its certificate and its statement; whatever was changed is refused."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taciturn.certificate.derivation import (
    Comparison,
    Derivation,
    DerivationStatement,
    certificate_digest,
    derivation_bytes,
    unverified_derivation,
    verify_derived,
)
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.files import digests, model_files
from taciturn.certificate.keys import TrustStore
from taciturn.certificate.sign import issue
from taciturn.certificate.signers import KeySigner
from taciturn.certificate.statement import Digest, Software, Statement
from taciturn.errors import CertificateError

SIGNED = [True, False]


def write_statement(export: Path, certificate: bytes, signer: KeySigner | None) -> None:
    source = Statement.from_bytes(Envelope.from_bytes(certificate).payload).subject
    derivation = Derivation(
        certificate=Digest(sha256=certificate_digest(certificate)),
        source=source,
        form="gguf",
        weights="q8_0",
        comparison=Comparison(deviation=0.01, bound=0.1),
        software=Software(engine="taciturn 0", libraries={}),
        issued_at="2026-06-01T12:00:00Z",
    )
    statement = DerivationStatement.of(digests(model_files(export)), derivation)
    (export / "derivation.json").write_bytes(derivation_bytes(statement, signer))


@pytest.fixture(params=SIGNED, ids=["signed", "unsigned"])
def export(
    request: pytest.FixtureRequest, folder: Path, certificate: bytes, signer: KeySigner
) -> Path:
    """A GGUF file that was made of the certified folder."""
    output = folder.parent / "export"
    output.mkdir()
    (output / "model-q8_0.gguf").write_bytes(b"GGUF")
    shutil.copy(folder / "privacy_report.json", output)
    (output / "certificate.json").write_bytes(certificate)
    write_statement(output, certificate, signer if request.param else None)
    return output


def test_holds(export: Path, trust: TrustStore, moment: datetime, signer: KeySigner) -> None:
    derived = verify_derived(export, trust, moment=moment)
    signed = b"payloadType" in (export / "derivation.json").read_bytes()
    assert (derived.key is not None) == signed
    assert derived.verified.recomputed_epsilon > 0
    assert derived.statement == unverified_derivation(export)
    (export / "notes.txt").write_text("of a person")  # read by no loader
    verify_derived(export, trust, moment=moment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: (e / "model-q8_0.gguf").write_bytes(b"GGUf"), "model-q8_0.gguf is not the file"),
        (lambda e: (e / "model-q8_0.gguf").unlink(), "is not in"),
        (lambda e: (e / "Modelfile").write_text("FROM x"), "does not cover"),
        (lambda e: (e / "certificate.json").write_bytes(b"{}"), "not the certificate of the model"),
        (lambda e: (e / "certificate.json").unlink(), "cannot be read"),
        (lambda e: (e / "derivation.json").write_bytes(b"{}"), "statement of derivation"),
        (lambda e: (e / "derivation.json").write_bytes(b"x" * 5_000_000), "at most"),
    ],
)
def test_changed_it_is_refused(
    change: Any, message: str, export: Path, trust: TrustStore, moment: datetime
) -> None:
    change(export)
    with pytest.raises(CertificateError, match=message):
        verify_derived(export, trust, moment=moment)


def test_other_report_is_refused(
    export: Path, certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    """Even where the statement says it: the report is the certified one."""
    path = export / "privacy_report.json"
    path.write_text(path.read_text().replace('"n_units":200', '"n_units":300'))
    write_statement(export, certificate, None)
    with pytest.raises(CertificateError, match="not that of the certified model"):
        verify_derived(export, trust, moment=moment)


def test_stranger_and_wrong_time_are_refused(
    export: Path, certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    stranger = KeySigner(Ed25519PrivateKey.generate())
    with pytest.raises(CertificateError, match="valid from"):
        verify_derived(export, trust, moment=moment + timedelta(days=90))
    write_statement(export, certificate, stranger)
    with pytest.raises(CertificateError, match="not among the 1 trusted"):
        verify_derived(export, trust, moment=moment)


def test_certificate_is_no_statement_of_derivation(
    export: Path, certificate: bytes, trust: TrustStore, moment: datetime
) -> None:
    (export / "derivation.json").write_bytes(certificate)
    with pytest.raises(CertificateError, match="statement of derivation"):
        verify_derived(export, trust, moment=moment)


def test_statement_is_written_in_one_way(export: Path, trust: TrustStore, moment: datetime) -> None:
    statement = unverified_derivation(export)
    loose = json.dumps(json.loads(statement.to_bytes()), indent=1).encode()
    (export / "derivation.json").write_bytes(loose)
    with pytest.raises(CertificateError, match="canonical"):
        verify_derived(export, trust, moment=moment)


def test_certified_itself_it_needs_no_statement(export: Path, signer: KeySigner) -> None:
    issue(export, signer)
    assert not (export / "derivation.json").exists()
