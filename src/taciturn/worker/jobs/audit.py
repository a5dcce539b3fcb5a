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
from taciturn.worker.context import Task
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

    def keep(self, found: ReleasedEvaluation | ReleasedDownstream) -> None:
        """See assessment.Ledger."""


def run(task: Task, request: RemoteAudit) -> None:
    """Guess which canaries were in, and release what that proves."""
    model = task.fitted()
    expected = auditing.check_canaries(model.report, request.confidence)
    folders = list(canary_folders(task.root, expected.commitment))
    planted = auditing.find_canaries(expected, folders or _from_vault(task, expected.commitment))
    task.stage(Stage.SCORING)
    subject = model.subject(_NothingToCharge())
    spec = AuditSpec(confidence=request.confidence)
    found = auditing.audit(subject, model.report, planted, spec)
    path = task.workspace.made("results") / "audit.json"
    path.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    task.stage(Stage.RELEASING)
    task.door.file(path)


def _from_vault(task: Task, commitment: str) -> list[Path]:
    """Where the canaries are that the fit's worker has kept for other machines."""
    kept = None if task.vault is None else task.vault.vault.canaries(commitment)
    if kept is None:
        return []
    folder = task.workspace.made("canaries")
    (folder / CANARIES).write_bytes(kept)
    return [folder]
