"""What is issued can be verified; what cannot be promised is not issued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taciturn.certificate import sign
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.keys import TrustedKey, TrustStore
from taciturn.certificate.sign import issue, library_versions, read_audit, statement_for
from taciturn.certificate.signers import KeySigner
from taciturn.certificate.statement import CertifiedAudit
from taciturn.certificate.verify import Folders, verify_file
from taciturn.errors import CertificateError, OutputError
from taciturn.reports.privacy import CERTIFICATE, Audit, PrivacyReport, ScoreHistogram
from taciturn.reports.spending import with_steps


def write(folder: Path, report: PrivacyReport) -> None:
    (folder / "privacy_report.json").write_text(report.model_dump_json())


def test_issued_and_verified(folder: Path, signer: KeySigner) -> None:
    statement = issue(folder, signer)
    trust = TrustStore((TrustedKey(signer.public_key, "me"),))
    verified = verify_file(folder / CERTIFICATE, trust, Folders(model=folder))
    assert verified.statement == statement
    assert verified.recomputed_epsilon == pytest.approx(
        statement.predicate.guarantee.epsilon, rel=2e-3
    )
    assert {path.name for path in folder.iterdir()} >= {CERTIFICATE}
    assert not list(folder.glob(".*partial*"))


def test_several_steps_are_composed(folder: Path, report: PrivacyReport, signer: KeySigner) -> None:
    (step,) = report.private_steps
    second = step.model_copy(update={"purpose": "evaluate", "max_records_per_unit": 9})
    both = with_steps(report, [step, second])
    assert both.epsilon is not None
    assert report.epsilon is not None
    assert both.epsilon > report.epsilon
    write(folder, both)
    guarantee = issue(folder, signer).predicate.guarantee
    assert [each.purpose for each in guarantee.steps] == ["fit", "evaluate"]
    assert guarantee.epsilon == both.epsilon
    assert guarantee.max_records_per_unit == 9


def test_a_promise_of_too_little_is_not_signed(
    folder: Path, report: PrivacyReport, signer: KeySigner
) -> None:
    assert report.epsilon is not None
    write(folder, report.model_copy(update={"epsilon": report.epsilon / 2}))
    with pytest.raises(CertificateError, match="promises too much"):
        issue(folder, signer)
    assert not (folder / CERTIFICATE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guarantee": "none", "epsilon": None, "delta": None}, "unlimited"),
        ({"private_steps": ()}, "older version"),
        ({"base_model_sha256": {}}, "were not found"),
        ({"epsilon": None}, "epsilon"),
    ],
)
def test_what_cannot_be_certified(
    folder: Path, report: PrivacyReport, signer: KeySigner, change: dict[str, object], message: str
) -> None:
    write(folder, report.model_copy(update=change))
    with pytest.raises(CertificateError, match=message):
        issue(folder, signer)
    assert not (folder / CERTIFICATE).exists()


def test_reports_that_cannot_be_read(folder: Path, signer: KeySigner) -> None:
    path = folder / "privacy_report.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CertificateError, match="damaged or truncated"):
        issue(folder, signer)
    path.unlink()
    with pytest.raises(CertificateError, match="name the output folder"):
        issue(folder, signer)


def test_a_signer_that_signs_something_else(folder: Path, signer: KeySigner) -> None:
    class Wrong(KeySigner):
        def sign(self, message: bytes) -> bytes:
            return self.key.sign(message + b" ")

    with pytest.raises(CertificateError, match="the signer's own"):
        issue(folder, Wrong(signer.key))
    assert not (folder / CERTIFICATE).exists()


def test_a_full_disk_leaves_the_old_certificate(
    folder: Path, signer: KeySigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(folder, signer)
    before = (folder / CERTIFICATE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sign.os, "replace", full)
    with pytest.raises(OutputError, match="nothing changed"):
        issue(folder, signer)
    assert (folder / CERTIFICATE).read_bytes() == before
    assert not list(folder.glob(".*partial*"))


def test_image_digest(folder: Path, signer: KeySigner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert issue(folder, signer).predicate.software.image_digest is None
    monkeypatch.setenv("TACITURN_IMAGE_DIGEST", "sha256:" + "ef" * 32)
    assert issue(folder, signer).predicate.software.image_digest == "sha256:" + "ef" * 32
    monkeypatch.setenv("TACITURN_IMAGE_DIGEST", "latest")
    with pytest.raises(CertificateError, match="64 hexadecimal"):
        issue(folder, signer)


def test_audit_results_from_a_file(folder: Path, signer: KeySigner, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    fields = {"epsilon_lower_bound": 0.4, "confidence": 0.95, "threat_model": "white box"}
    path.write_text(json.dumps({**fields, "canaries": 500, "method": "one run"}))
    audit = issue(folder, signer, audit=read_audit(path)).predicate.audit
    assert audit is not None
    assert audit.canaries == 500
    path.write_text(json.dumps(fields))
    with pytest.raises(CertificateError, match="canaries"):
        read_audit(path)
    with pytest.raises(CertificateError, match="cannot be read"):
        read_audit(tmp_path / "none.json")


def released_audit_of(folder: Path, bound: float) -> Path:
    found = Audit(
        threat_model="black box",
        method="one run",
        canaries=300,
        canary_kind="random",
        canary_commitment="00",
        confidence=0.95,
        rounds=(),
        guesses=100,
        correct=70,
        epsilon_lower_bound=bound,
        gaussian_epsilon_lower_bound=bound,
        auc=0.6,
        promised_epsilon=1.0,
        delta=1e-4,
        largest_advantage=0.1,
        attacker_limits=(),
        histogram=ScoreHistogram(edges=(), included=(), excluded=()),
        verdict="",
        taciturn_version="0.1.0",
    )
    path = folder / "audit.json"
    path.write_text(found.model_dump_json())
    return path


def test_the_folders_own_audit_goes_in(folder: Path, signer: KeySigner) -> None:
    assert issue(folder, signer).predicate.audit is None
    path = released_audit_of(folder, 0.25)
    statement = issue(folder, signer)
    assert statement.predicate.audit is not None
    assert statement.predicate.audit.epsilon_lower_bound == 0.25
    assert statement.predicate.audit.canaries == 300
    assert "audit.json" in {file.name for file in statement.subject}
    assert read_audit(path) == statement.predicate.audit
    path.write_text(path.read_text()[:-9])
    with pytest.raises(CertificateError, match="damaged or truncated; audit the model again"):
        issue(folder, signer)


def test_no_certificate_for_a_guarantee_that_an_audit_refutes(
    folder: Path, signer: KeySigner
) -> None:
    released_audit_of(folder, 50.0)
    with pytest.raises(CertificateError, match=r"at least 50, more than the .* the guarantee is"):
        issue(folder, signer)
    better = CertifiedAudit(
        epsilon_lower_bound=0.1,
        confidence=0.95,
        threat_model="black box",
        canaries=10,
        method="another",
    )
    with pytest.raises(CertificateError, match="the guarantee is broken"):
        issue(folder, signer, audit=better)
    assert not (folder / CERTIFICATE).exists()


def test_nothing_private_is_in_it(folder: Path, signer: KeySigner) -> None:
    (folder / "private").mkdir()
    (folder / "private" / "metrics.jsonl").write_text("secret-loss")
    issue(folder, signer)
    payload = Envelope.from_bytes((folder / CERTIFICATE).read_bytes()).payload
    assert b"secret" not in payload
    assert b"private/" not in payload
    assert str(folder).encode() not in payload


def test_libraries() -> None:
    assert {"python", "taciturn", "dp-accounting"} <= set(library_versions())


def test_statement_does_not_sign(folder: Path) -> None:
    from taciturn.certificate.clock import now

    assert statement_for(folder, audit=None, moment=now()).subject
