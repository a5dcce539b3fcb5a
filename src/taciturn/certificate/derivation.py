"""A statement that files were made of a certified model: merged, or in another format.

An exported model is not the file that was certified, so its certificate does not cover it. The
statement of derivation beside it does: it names the digests of the exported files, of the
certificate, and of the certified files, and the export. Signed, it is a DSSE envelope like a
certificate; unsigned, it is the bare statement, and says what was exported but not who says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from taciturn.certificate.canonical import canonical_json, parse_canonical
from taciturn.certificate.clock import now, parse_time
from taciturn.certificate.envelope import LIMIT_BYTES, Envelope
from taciturn.certificate.files import check_files
from taciturn.certificate.keys import TrustedKey, TrustStore
from taciturn.certificate.sign import seal_payload
from taciturn.certificate.signers import Signer
from taciturn.certificate.statement import (
    STATEMENT_TYPE,
    Digest,
    File,
    Software,
    StatementValue,
    Text,
    error_place,
)
from taciturn.certificate.verify import (
    Folders,
    Verified,
    check_issued,
    check_signature,
    read_certificate,
    verify_file,
)
from taciturn.errors import CertificateError
from taciturn.reports.privacy import CERTIFICATE, DERIVATION, REPORT

DerivationType = Literal["https://taciturn.example/attestation/derivation/v1"]
DERIVATION_TYPE: DerivationType = "https://taciturn.example/attestation/derivation/v1"
"""Names the predicate of a derivation; as that of a certificate, it is nobody's address."""

Form = Literal["merged", "gguf", "ollama"]
Weights = Literal["f32", "f16", "q8_0"]


class Comparison(StatementValue):
    """Distance between the logits of the exported model and of the fitted one.

    Attributes:
        deviation: root of the mean square of the differences, over that of the logits.
        bound: largest deviation that is released.
    """

    deviation: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    bound: Annotated[float, Field(gt=0, lt=1)]


class Derivation(StatementValue):
    """Origin of the subjects.

    Attributes:
        certificate: digest of the certificate's file; None where the model has no certificate.
        source: files that the certificate covers, of which the export was made.
        form: of the export.
        weights: numbers that its weights are kept in.
        comparison: made before it was released.
    """

    certificate: Digest | None
    source: tuple[File, ...]
    form: Form
    weights: Weights
    comparison: Comparison
    software: Software
    issued_at: Text

    @field_validator("issued_at")
    @classmethod
    def _moment(cls, text: str) -> str:
        parse_time(text)
        return text


class DerivationStatement(StatementValue):
    """The whole payload: an in-toto statement about the exported files."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[File, ...], Field(min_length=1)]
    predicate_type: Annotated[DerivationType, Field(alias="predicateType")]
    predicate: Derivation

    @classmethod
    def of(cls, subject: tuple[File, ...], predicate: Derivation) -> DerivationStatement:
        """Return a statement about these files."""
        return cls.model_validate(
            {
                "_type": STATEMENT_TYPE,
                "subject": subject,
                "predicateType": DERIVATION_TYPE,
                "predicate": predicate,
            }
        )

    def to_bytes(self) -> bytes:
        """Return the payload: canonical JSON."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, payload: bytes) -> DerivationStatement:
        """Read what `to_bytes` wrote; raises CertificateError for anything else."""
        parse_canonical(payload, _WHAT)
        try:
            statement = cls.model_validate_json(payload)
        except ValidationError as error:
            raise CertificateError(f"{_WHAT}'s {error_place(error)}") from None
        if statement.to_bytes() != payload:
            raise CertificateError(f"{_WHAT} is not in canonical form")
        return statement


@dataclass(frozen=True, slots=True)
class Derived:
    """An exported model that was checked.

    Attributes:
        verified: the certificate of the model that it was made of.
        statement: what was exported.
        key: who signed the statement; None where nobody did.
    """

    verified: Verified
    statement: DerivationStatement
    key: TrustedKey | None


_WHAT = "the statement of derivation"


def derivation_bytes(statement: DerivationStatement, signer: Signer | None) -> bytes:
    """Return the file: signed in its envelope, or the bare statement."""
    if signer is not None:
        return seal_payload(statement.to_bytes(), signer)
    return statement.to_bytes() + b"\n"


def certificate_digest(data: bytes) -> str:
    """Return the digest under which exported forms name a certificate."""
    return hashlib.sha256(data).hexdigest()


def verify_derived(
    folder: Path,
    trust: TrustStore,
    *,
    moment: datetime | None = None,
    base_model: Path | None = None,
    private: Path | None = None,
) -> Derived:
    """Check an exported model in `folder`: its certificate, its statement, and its files.

    Args:
        moment: as of when; by default now.
        base_model: folder of the base, to check its files, too.
        private: the owner's private folder, to check the data's commitment.

    Raises:
        CertificateError: it is refused; the message says why.
    """
    moment = moment or now()
    statement, key = read_derivation(folder, trust, moment)
    origin = statement.predicate
    if origin.certificate is None:
        raise CertificateError(
            f"{folder} was made of a model that has no certificate, so nothing is promised that "
            "could be checked; certify the model and export it again"
        )
    path = folder / CERTIFICATE
    if certificate_digest(read_certificate(path)) != origin.certificate.sha256:
        raise CertificateError(
            f"{path} is not the certificate of the model that was exported (its "
            "SHA-256 differs): it was changed or swapped"
        )
    verified = verify_file(path, trust, Folders(None, base_model, private), moment=moment)
    if verified.statement.subject != origin.source:
        raise CertificateError(f"{_WHAT} names other files than the certificate covers")
    if _report_of(statement.subject) != _report_of(origin.source):
        raise CertificateError(f"the {REPORT} of the export is not that of the certified model")
    check_files(folder, statement.subject, "the exported model")
    return Derived(verified, statement, key)


def read_derivation(
    folder: Path, trust: TrustStore, moment: datetime
) -> tuple[DerivationStatement, TrustedKey | None]:
    """Return the statement in `folder` and the trusted key that signed it, if one did."""
    data = read_certificate(folder / DERIVATION)
    if len(data) > LIMIT_BYTES:
        raise CertificateError(f"{_WHAT} has {len(data)} bytes; at most {LIMIT_BYTES} are read")
    if b'"payloadType"' not in data:
        return DerivationStatement.from_bytes(data.removesuffix(b"\n")), None
    key, payload = check_signature(data, trust)
    key.check_period(moment, "the time of this check")
    statement = DerivationStatement.from_bytes(payload)
    check_issued(key, parse_time(statement.predicate.issued_at), moment)
    return statement, key


def unverified_derivation(folder: Path) -> DerivationStatement:
    """Return what the statement in `folder` says; nothing is checked."""
    data = read_certificate(folder / DERIVATION)
    signed = b'"payloadType"' in data
    payload = Envelope.from_bytes(data).payload if signed else data.removesuffix(b"\n")
    return DerivationStatement.from_bytes(payload)


def _report_of(files: tuple[File, ...]) -> File | None:
    return next((file for file in files if file.name == REPORT), None)
