"""A fitted model attacked through its canaries, which the fit's workspace has kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taciturn.data.tokens.planted import CANARIES
from taciturn.errors import GuaranteeError
from taciturn.local import audit as auditing
from taciturn.reports.figures import ReleasedDownstream, ReleasedEvaluation
from taciturn.reports.privacy import PrivateStep
from taciturn.spec import AuditSpec
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteAudit
from taciturn.worker.context import JobContext
from taciturn.worker.workspace import canary_folders


@dataclass(frozen=True, slots=True)
class _NothingToCharge:
    """An audit costs nothing; whoever would charge for it is mistaken."""

    def check(self, unit: str) -> None:
        """See assessment.Ledger."""
        raise GuaranteeError("an audit asks for nothing that costs")

    def look(self, delta: float) -> None:
        """See assessment.Ledger."""
        raise GuaranteeError("an audit shows no private figures")

    def charge(self, step: PrivateStep, delta: float, fingerprint: str) -> None:
        """See assessment.Ledger."""
        raise GuaranteeError("an audit charges nothing")

    def keep(self, evaluation: ReleasedEvaluation | ReleasedDownstream) -> None:
        """See assessment.Ledger."""


def run(context: JobContext, request: RemoteAudit) -> None:
    """Guess which canaries were in, and release what that proves."""
    model = context.fitted()
    expected = auditing.check_canaries(model.report, request.confidence)
    folders = list(canary_folders(context.root, expected.commitment))
    planted = auditing.find_canaries(expected, folders or _from_store(context, expected.commitment))
    context.stage(Stage.SCORING)
    subject = model.subject(_NothingToCharge())
    spec = AuditSpec(confidence=request.confidence)
    audit_result = auditing.audit(subject, model.report, planted, spec)
    path = context.workspace.make_folder("results") / "audit.json"
    path.write_text(audit_result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    context.stage(Stage.RELEASING)
    context.egress.file(path)


def _from_store(context: JobContext, commitment: str) -> list[Path]:
    """Folder with the canaries that the fit's worker has kept for other machines; empty if none."""
    content = (
        None if context.checkpoints is None else context.checkpoints.store.canaries(commitment)
    )
    if content is None:
        return []
    folder = context.workspace.make_folder("canaries")
    (folder / CANARIES).write_bytes(content)
    return [folder]
