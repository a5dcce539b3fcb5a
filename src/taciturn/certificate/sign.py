"""Issue a certificate for a released folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from taciturn._version import __version__
from taciturn.certificate.clock import next_minute, time_text
from taciturn.certificate.envelope import Envelope, pae
from taciturn.certificate.files import digests, model_files
from taciturn.certificate.keys import TrustedKey, keyid
from taciturn.certificate.recompute import check_epsilon
from taciturn.certificate.signers import Signer
from taciturn.certificate.statement import (
    BaseModelFiles,
    CertifiedAudit,
    CertifiedStep,
    Digest,
    File,
    Guarantee,
    Predicate,
    Software,
    Statement,
    UnprotectedText,
)
from taciturn.errors import CertificateError, OutputError
from taciturn.reports.privacy import AUDIT, CERTIFICATE, DERIVATION, REPORT, Audit, PrivacyReport

IMAGE_VARIABLE = "TACITURN_IMAGE_DIGEST"
"""Environment variable with the container image's digest, `sha256:...`; set by the launcher."""

_LIBRARIES = (
    *("dp-accounting", "torch", "transformers", "peft", "safetensors", "tokenizers"),
    *("numpy", "scipy", "cryptography", "pyarrow", "duckdb"),
)


def issue(
    folder: Path,
    signer: Signer,
    *,
    audit: CertifiedAudit | None = None,
    moment: datetime | None = None,
) -> Statement:
    """Certify the model in `folder` and write its `certificate.json`, whole or not at all.

    Epsilon is recomputed before anything is signed: what `verify` would refuse is not issued.

    Args:
        audit: what an audit found; by default what the folder's `audit.json` says.

    Raises:
        CertificateError: no guarantee to certify, one that an audit refutes, or a report without
            what a certificate needs.
        SigningKeyError: the signer fails.
        OutputError: the file cannot be written.
    """
    statement = statement_for(folder, audit=audit, moment=moment or next_minute())
    guarantee = statement.predicate.guarantee
    check_epsilon(guarantee.dp_event, guarantee.epsilon, guarantee.delta)
    _write(folder / CERTIFICATE, seal(statement, signer))
    # An exported model that is certified itself needs no statement of what it was made of, and the
    # certificate which that one names is no longer here.
    (folder / DERIVATION).unlink(missing_ok=True)
    return statement


def seal(statement: Statement, signer: Signer) -> bytes:
    """The certificate's bytes: `statement`, signed, in its envelope. The signature is checked."""
    return seal_payload(statement.to_bytes(), signer)


def seal_payload(payload: bytes, signer: Signer) -> bytes:
    """Return the envelope of a signed payload; the signature is checked."""
    key = signer.public_key
    signature = signer.sign(pae(payload))
    TrustedKey(key, "the signer's own").check_signature(signature, pae(payload))
    return Envelope(payload, keyid(key), signature).to_bytes()


def statement_for(folder: Path, *, audit: CertifiedAudit | None, moment: datetime) -> Statement:
    """Statement about the model in `folder`; raises CertificateError if nothing can be said."""
    report = read_report(folder)
    audit_in_folder = released_audit(folder)
    own = None if audit_in_folder is None else _result(audit_in_folder)
    try:
        predicate = Predicate(
            guarantee=_guarantee(report),
            base_model=_base_model(report),
            software=_software(report, os.environ),
            audit=audit or own,
            public_data=tuple(UnprotectedText(**text.model_dump()) for text in report.public_data),
            issued_at=time_text(moment),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CertificateError(f"{folder / REPORT}: {where}: {first['msg']}") from None
    for candidate in (audit, own):
        predicate.guarantee.check_audit(candidate)
    return Statement.of(digests(model_files(folder)), predicate)


def read_report(folder: Path) -> PrivacyReport:
    """The privacy report in `folder`; raises CertificateError if there is none."""
    path = folder / REPORT
    try:
        return PrivacyReport.model_validate_json(path.read_bytes())
    except OSError:
        raise CertificateError(
            f"{folder} holds no {REPORT}; name the output folder of a fit"
        ) from None
    except ValidationError:
        raise CertificateError(
            f"{path} is damaged or truncated; nothing can be certified"
        ) from None


def released_audit(folder: Path) -> Audit | None:
    """The audit in a released folder; raises CertificateError if it is damaged."""
    path = folder / AUDIT
    if not path.is_file():
        return None
    try:
        return Audit.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise CertificateError(f"{path} is damaged or truncated; audit the model again") from None


def read_audit(path: Path) -> CertifiedAudit:
    """An audit's result, or an `audit.json`, from a JSON file; raises CertificateError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"audit result {path} cannot be read: {error.strerror}") from None
    with suppress(ValidationError):
        return _result(Audit.model_validate_json(content))
    try:
        return CertifiedAudit.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CertificateError(f"audit result {path}: {where}: {first['msg']}") from None


def check_promise(private: bool) -> None:
    """Raises CertificateError for a model without a guarantee."""
    if not private:
        raise CertificateError(
            'there is no certificate for target_epsilon="unlimited": nothing is promised. Fit with '
            "a budget, for example target_epsilon=3"
        )


def _result(audit: Audit) -> CertifiedAudit:
    return CertifiedAudit(
        epsilon_lower_bound=audit.epsilon_lower_bound,
        confidence=audit.confidence,
        threat_model=audit.threat_model,
        canaries=audit.canaries,
        method=audit.method,
    )


def _guarantee(report: PrivacyReport) -> Guarantee:
    check_promise(report.guarantee != "none")
    if not report.private_steps or any(s.dataset_commitment is None for s in report.private_steps):
        raise CertificateError(
            "the report names no dataset commitment: it is from an older version; fit again"
        )
    steps = tuple(CertifiedStep(**step.model_dump()) for step in report.private_steps)
    return Guarantee.model_validate(
        {
            "epsilon": report.epsilon,
            "delta": report.delta,
            "privacy_unit": report.privacy_unit,
            "neighbouring_relation": report.neighbouring_relation,
            "max_records_per_unit": max(step.max_records_per_unit for step in steps),
            "accountant": report.accountant,
            "steps": steps,
        }
    )


def _base_model(report: PrivacyReport) -> BaseModelFiles:
    if not report.base_model_sha256:
        raise CertificateError(
            f"the files of base model {report.base_model} were not found when it was fitted, so "
            "they cannot be certified; download it and give its folder as the model"
        )
    files = tuple(
        File(name=name, digest=Digest(sha256=digest))
        for name, digest in sorted(report.base_model_sha256.items())
    )
    return BaseModelFiles(name=report.base_model, files=files)


def _software(report: PrivacyReport, environment: Mapping[str, str]) -> Software:
    image = environment.get(IMAGE_VARIABLE) or None
    if image is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", image):
        raise CertificateError(
            f"{IMAGE_VARIABLE}={image[:80]!r} must be `sha256:` and 64 hexadecimal digits"
        )
    return Software(
        engine=f"taciturn {report.taciturn_version}",
        libraries=report.libraries or library_versions(),
        image_digest=image,
    )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that a fit rests on."""
    versions = {"python": platform.python_version(), "taciturn": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; nothing changed") from None
    finally:
        partial.unlink(missing_ok=True)
