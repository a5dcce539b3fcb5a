"""Check a certificate: offline, without torch, with Google's accountant.

The order is from what an attacker controls to what a signature vouches for: envelope, key,
signature, key's period, statement, epsilon, files. The first failure is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from taciturn.certificate.clock import now, parse_time, time_text
from taciturn.certificate.commitment import open_commitment
from taciturn.certificate.envelope import Envelope, pae
from taciturn.certificate.files import check_files
from taciturn.certificate.keys import TrustedKey, TrustStore
from taciturn.certificate.recompute import check_epsilon
from taciturn.certificate.statement import Statement
from taciturn.errors import CertificateError

CLOCK_SKEW = timedelta(minutes=5)
"""How far in the future a certificate may have been issued, by clocks that differ."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A certificate that holds: what it says, who says it, and epsilon as recomputed."""

    statement: Statement
    key: TrustedKey
    recomputed_epsilon: float


@dataclass(frozen=True, slots=True)
class Folders:
    """Places of the files that a certificate speaks about; None: not checked.

    Attributes:
        model: the adapter or model, with its privacy report.
        base_model: the model that was fine-tuned.
        private: the owner's private folder, which opens the commitment to the data.
    """

    model: Path | None = None
    base_model: Path | None = None
    private: Path | None = None


def verify_file(
    path: Path, trust: TrustStore, folders: Folders, *, moment: datetime | None = None
) -> Verified:
    """Check the certificate at `path`, and the files in `folders`.

    Args:
        moment: as of when; by default now.

    Raises:
        CertificateError: it is refused; the message says why.
    """
    verified = verify(read_certificate(path), trust, moment=moment or now())
    statement = verified.statement
    if folders.model is not None:
        check_files(folders.model, statement.subject, "the model")
    if folders.base_model is not None:
        files = statement.predicate.base_model.files
        check_files(folders.base_model, files, "the base model")
    if folders.private is not None:
        check_commitment(statement, folders.private)
    return verified


def verify(data: bytes, trust: TrustStore, *, moment: datetime) -> Verified:
    """Check everything about a certificate but the files; raises CertificateError."""
    key, payload = check_signature(data, trust)
    key.check_period(moment, "the time of this check")
    statement = Statement.from_bytes(payload)
    check_issued(key, parse_time(statement.predicate.issued_at), moment)
    return Verified(statement, key, check_guarantee(statement))


def check_guarantee(statement: Statement) -> float:
    """Epsilon as recomputed; raises CertificateError unless the steps are of one unit and cost no
    more than is stated, and no audit found more."""
    guarantee = statement.predicate.guarantee
    if any(step.privacy_unit != guarantee.privacy_unit for step in guarantee.steps):
        raise CertificateError("the steps have different privacy units; they cannot be composed")
    if any(step.max_records_per_unit > guarantee.max_records_per_unit for step in guarantee.steps):
        raise CertificateError("a step's contribution bound exceeds the certificate's")
    guarantee.check_audit(statement.predicate.audit)
    return check_epsilon(guarantee.dp_event, guarantee.epsilon, guarantee.delta)


def check_issued(key: TrustedKey, issued: datetime, moment: datetime) -> None:
    """Raises CertificateError unless the key was valid when it signed, before `moment`."""
    key.check_period(issued, "when the certificate was issued")
    if issued > moment + CLOCK_SKEW:
        raise CertificateError(
            f"the certificate says it was issued at {time_text(issued)}, after the time of this "
            f"check, {time_text(moment)}; is the clock right?"
        )


def check_signature(data: bytes, trust: TrustStore) -> tuple[TrustedKey, bytes]:
    """The trusted key that signed `data`, and the payload it vouches for."""
    envelope = Envelope.from_bytes(data)
    key = trust.find(envelope.keyid)
    key.check_signature(envelope.signature, pae(envelope.payload))
    return key, envelope.payload


def check_commitment(statement: Statement, private: Path) -> None:
    """Raises CertificateError unless the data in `private` are those of one of the steps."""
    steps = statement.predicate.guarantee.steps
    if open_commitment(private) not in {step.dataset_commitment for step in steps}:
        raise CertificateError(
            f"the data of {private} are not those that the certificate names; give the private "
            "folder of that fit"
        )


def read_certificate(path: Path) -> bytes:
    """The bytes of a certificate file; raises CertificateError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"certificate {path} cannot be read: {error.strerror}") from None
