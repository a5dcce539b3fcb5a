"""Origin of an exported model: its guarantee and certificate, in every form, and the statement."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from taciturn._version import __version__
from taciturn.certificate.clock import next_minute, time_text
from taciturn.certificate.derivation import (
    Comparison,
    Derivation,
    DerivationStatement,
    Form,
    Weights,
    certificate_digest,
    derivation_bytes,
)
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.files import check_files, digests, model_files
from taciturn.certificate.sign import check_promise, library_versions
from taciturn.certificate.signers import Signer
from taciturn.certificate.statement import Digest, File, Software, Statement
from taciturn.certificate.verify import read_certificate
from taciturn.errors import CertificateError
from taciturn.reports.privacy import AUDIT, CERTIFICATE, DERIVATION, REPORT, PrivacyReport


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that is exported, as its report and its certificate say.

    Attributes:
        report: its guarantee.
        folder: where its released files are; None for a model that was saved nowhere.
        certificate: the bytes of its certificate, if it has one.
        source: files that the certificate covers.
    """

    report: PrivacyReport
    folder: Path | None = None
    certificate: bytes | None = None
    source: tuple[File, ...] = ()

    @classmethod
    def of(cls, report: PrivacyReport, folder: Path | None) -> Origin:
        """Return the origin of a model in `folder`.

        Raises:
            CertificateError: the folder's certificate does not cover what is in the folder.
        """
        if folder is None or not (folder / CERTIFICATE).is_file():
            return cls(report, folder)
        if (folder / DERIVATION).is_file():
            raise CertificateError(
                f"{folder} is itself an export; export the model that it was made of"
            )
        certificate = read_certificate(folder / CERTIFICATE)
        source = Statement.from_bytes(Envelope.from_bytes(certificate).payload).subject
        check_files(folder, source, "the model")
        return cls(report, folder, certificate, source)

    @property
    def certificate_sha256(self) -> str | None:
        """Return the digest that names the certificate."""
        return None if self.certificate is None else certificate_digest(self.certificate)

    def check_signing(self, signer: Signer | None, *, demanded: bool) -> Signer | None:
        """Return who signs the statement; None where nothing is promised.

        Args:
            demanded: a key was named in the call itself.

        Raises:
            CertificateError: there is nothing to sign.
        """
        private = self.report.guarantee != "none"
        if demanded:
            check_promise(private)
        if signer is not None and private and self.certificate is None:
            raise CertificateError(
                "the model has no certificate that a signed export could name; make one first: "
                "model.certificate(signing_key=...), or model.save(folder, signing_key=...)"
            )
        return signer if private else None

    def about(self) -> dict[str, str | float]:
        """Return what travels in the metadata of each form."""
        report = self.report
        values = {
            "policy": report.policy,
            "guarantee": report.guarantee,
            "epsilon": report.epsilon,
            "delta": report.delta,
            "privacy_unit": report.privacy_unit,
            "base_model": report.base_model,
            "certificate_sha256": self.certificate_sha256,
            "version": __version__,
        }
        return {name: value for name, value in values.items() if value is not None}

    def write(
        self,
        output: Path,
        form: Form,
        weights: Weights,
        comparison: Comparison,
        signer: Signer | None,
    ) -> None:
        """Write certificate and statement of derivation beside the exported files.

        What is said of the model (report and audit) is taken over as it was certified.
        """
        for name in (REPORT, AUDIT):
            if self.folder is not None and (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, output / name)
        if self.certificate is not None:
            (output / CERTIFICATE).write_bytes(self.certificate)
        digest = self.certificate_sha256
        derivation = Derivation(
            certificate=None if digest is None else Digest(sha256=digest),
            source=self.source,
            form=form,
            weights=weights,
            comparison=comparison,
            software=Software(engine=f"taciturn {__version__}", libraries=library_versions()),
            issued_at=time_text(next_minute()),
        )
        statement = DerivationStatement.of(digests(model_files(output)), derivation)
        (output / DERIVATION).write_bytes(derivation_bytes(statement, signer))
