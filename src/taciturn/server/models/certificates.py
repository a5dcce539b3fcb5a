"""Certificates of fitted models: read as they are, and checked step by step where the files lie.

A check here is a convenience: who doubts the gateway checks with `taciturn cert verify` elsewhere.
Google's accountant takes up to some seconds, so results are remembered, and one at a time is made.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from taciturn.certificate.clock import now, parse_time
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.files import is_covered
from taciturn.certificate.keys import TrustedKey, TrustStore, merged, read_trust
from taciturn.certificate.signers import find_signer
from taciturn.certificate.statement import Guarantee, Statement
from taciturn.certificate.verify import check_guarantee, check_issued, check_signature
from taciturn.errors import CertificateError, SigningKeyError
from taciturn.reports.privacy import CERTIFICATE
from taciturn.server.context import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.models.artifacts import Artifacts
from taciturn.server.models.models import Models
from taciturn.server.problems import ProblemError
from taciturn.wire.jobs import ModelView
from taciturn.wire.results import FileView

TRUST = "signing.trust.json"
"""Public part of the gateway's own signing key, in its data folder."""

_READ_BYTES = 2 * 2**30
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A certificate as it lies there; nothing about it was checked.

    Attributes:
        keyid: of the key that is named as its signer's.
        signer: its owner's name, where this gateway knows the key.
        sha256: of the certificate's file.
    """

    statement: Statement
    keyid: str
    signer: str | None
    sha256: str

    @property
    def issued(self) -> datetime:
        """The time at which it says that it was signed."""
        return parse_time(self.statement.predicate.issued_at)


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of a check: what was looked at, how it ended, in words.

    Attributes:
        outcome: `unknown` where this gateway cannot tell.
    """

    title: str
    outcome: Literal["passed", "failed", "unknown"]
    text: str


@dataclass(slots=True)
class Certificates:
    """Reads and checks certificates for whoever may have them."""

    gateway: Gateway
    models: Models
    artifacts: Artifacts
    _epsilons: dict[str, float | str] = field(default_factory=dict)
    _one: threading.Lock = field(default_factory=threading.Lock)
    _signer: TrustStore | None = None

    def read(self, caller: Principal, model_id: str) -> SignedStatement | None:
        """The certificate of a model that the caller may know of; None where there is none, or
        where it cannot be read."""
        data = self._data(self.models.get(caller, model_id))
        if data is None:
            return None
        try:
            envelope = Envelope.from_bytes(data)
            statement = Statement.from_bytes(envelope.payload)
        except CertificateError:
            return None
        names = {key.keyid: key.name for key in self._trust().keys}
        digest = hashlib.sha256(data).hexdigest()
        return SignedStatement(statement, envelope.keyid, names.get(envelope.keyid), digest)

    def check(self, caller: Principal, model_id: str) -> tuple[CheckStep, ...]:
        """Check signature, promise, files and epsilon; raises ProblemError `not_found`."""
        model = self.models.get(caller, model_id)
        data = self._data(model)
        if data is None:
            raise ProblemError("not_found", f"model {model_id!r} has no certificate to be checked")
        try:
            envelope = Envelope.from_bytes(data)
            statement = Statement.from_bytes(envelope.payload)
        except CertificateError as error:
            return (CheckStep("Certificate", "failed", f"It cannot be read: {error}"),)
        return (
            self._signature(data, envelope, statement),
            _step("Promise", lambda: _promise(statement.predicate.guarantee, model)),
            _step("Files", lambda: self._files(statement, model)),
            _step("Epsilon", lambda: self._epsilon(statement)),
        )

    def _data(self, model: ModelView) -> bytes | None:
        if CERTIFICATE not in model.files:
            return None
        with suppress(KeyError, OSError):
            return self.artifacts.read(model.job, CERTIFICATE)
        return None

    def _trust(self) -> TrustStore:
        """The gateway's own key, with its name, and the one that its workers are given."""
        try:
            own = read_trust(self.gateway.settings.data_dir / TRUST)
        except SigningKeyError:
            own = TrustStore(())
        if self._signer is None:
            # Once: a key can be a program that asks a vault.
            self._signer = TrustStore(_workers_key(self.gateway.settings.signing_key))
        return merged((own, self._signer))

    def _signature(self, data: bytes, envelope: Envelope, statement: Statement) -> CheckStep:
        trust, title = self._trust(), "Signature"
        if envelope.keyid not in {key.keyid for key in trust.keys}:
            text = (
                f"It is signed with key {envelope.keyid[:16]}, which this gateway does not know. "
                "Whoever has the public key checks it with the command below."
            )
            return CheckStep(title, "unknown", text)

        def checked() -> str:
            key, _ = check_signature(data, trust)
            moment = now()
            key.check_period(moment, "the time of this check")
            check_issued(key, parse_time(statement.predicate.issued_at), moment)
            return _signed(key)

        return _step(title, checked)

    def _files(self, statement: Statement, model: ModelView) -> str:
        files = {file.name: file for file in self.artifacts.files(model.job)}
        expected = {file.name: file.digest.sha256 for file in statement.subject}
        for name, sha256 in expected.items():
            if name not in files:
                raise CertificateError(f"{name} is certified and is not here.")
            if self._sha256(model.job, files[name]) != sha256:
                raise CertificateError(
                    f"{name} is not the file that was certified: its SHA-256 differs."
                )
        extra = [name for name in files if is_covered(name) and name not in expected]
        if extra:
            raise CertificateError(f"{extra[0]} is a file of the model and is not certified.")
        large = [name for name in sorted(expected) if files[name].size_bytes > _READ_BYTES]
        text = f"All {len(expected)} certified files have the SHA-256 that was signed."
        if not large:
            return text
        return f"{text} Too large to be read again: {', '.join(large)}."

    def _sha256(self, job_id: str, file: FileView) -> str:
        if file.size_bytes > _READ_BYTES:
            return file.sha256
        digest = hashlib.sha256()
        try:
            for piece in self.artifacts.pieces(job_id, file.name):
                digest.update(piece)
        except (KeyError, OSError):
            raise CertificateError(f"{file.name} cannot be read from the store.") from None
        return digest.hexdigest()

    def _epsilon(self, statement: Statement) -> str:
        key = hashlib.sha256(statement.to_bytes()).hexdigest()
        with self._one:
            if key not in self._epsilons:
                if len(self._epsilons) >= _REMEMBERED:
                    self._epsilons.clear()
                self._epsilons[key] = _recomputed(statement)
            outcome = self._epsilons[key]
        if isinstance(outcome, str):
            raise CertificateError(outcome)
        guarantee = statement.predicate.guarantee
        return (
            f"Google's accountant computes {outcome:.6g} at delta {guarantee.delta:.3g} from the "
            f"{len(guarantee.steps)} certified "
            f"{'step' if len(guarantee.steps) == 1 else 'steps'}; "
            f"{guarantee.epsilon:.6g} is stated."
        )


def _workers_key(reference: str | None) -> tuple[TrustedKey, ...]:
    """Public part of the key that workers sign with; empty where the gateway cannot ask for it."""
    if reference is None:
        return ()
    try:
        signer = find_signer(reference)
    except SigningKeyError:
        return ()
    return () if signer is None else (TrustedKey(signer.public_key, "this gateway's workers"),)


def _recomputed(statement: Statement) -> float | str:
    """Epsilon by Google's accountant, or why it does not hold."""
    try:
        return check_guarantee(statement)
    except CertificateError as error:
        return str(error)


def _promise(guarantee: Guarantee, model: ModelView) -> str:
    """Check that what is certified is what the model's page says."""
    for name in ("epsilon", "delta"):
        certified, reported = getattr(guarantee, name), model.report.get(name)
        if not isinstance(reported, float | int) or abs(certified - reported) > 1e-9 * certified:
            raise CertificateError(
                f"{name} is {_figure(certified)} in the certificate and {_figure(reported)} here."
            )
    return f"Epsilon {guarantee.epsilon:.6g} and delta {guarantee.delta:.3g}, as this page says."


def _figure(value: object) -> str:
    """Text of a figure, with the digits that tell apart what may differ by a billionth."""
    return f"{value:.10g}" if isinstance(value, float | int) else str(value)


def _signed(key: TrustedKey) -> str:
    return f"Made with key {key.keyid[:16]} of {key.name}, which was valid then and is valid now."


def _step(title: str, work: Callable[[], str]) -> CheckStep:
    try:
        return CheckStep(title, "passed", work())
    except CertificateError as error:
        text = str(error)
        # A sentence begins with a capital; a file's name stays as it is.
        begins = text.split(" ", 1)[0].isalpha()
        return CheckStep(title, "failed", text[:1].upper() + text[1:] if begins else text)
