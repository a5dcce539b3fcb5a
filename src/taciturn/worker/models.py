"""A fitted model that a job needs: fetched from the gateway, opened beside its base."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from taciturn.engine.evaluation.likelihood import base_model
from taciturn.engine.model.load import LoadedModel, load_fitted, load_original
from taciturn.errors import SpecError
from taciturn.local.evaluate import Ledger, Subject
from taciturn.reports.privacy import CERTIFICATE, REPORT, PrivacyReport
from taciturn.spec import PerformanceSpec
from taciturn.wire.artifacts import MODEL_FILES
from taciturn.wire.worker import Assignment
from taciturn.worker.client import GatewayClient

_READABLE = frozenset(MODEL_FILES) - {"report.html", "README.md"}


@dataclass(frozen=True, slots=True)
class FittedModel:
    """A fitted model in memory.

    Attributes:
        id: the gateway's name for it.
    """

    id: str
    base: LoadedModel
    fitted: Any
    report: PrivacyReport
    certificate: str | None

    @property
    def policy(self) -> str:
        """The guarantee in one line."""
        return self.report.policy

    def unfitted(self) -> AbstractContextManager[Any]:
        """The model as it was before it was fitted."""
        original = partial(load_original, self.report, PerformanceSpec(), None)
        return base_model(self.fitted, self.base.model, original)

    def subject(self, ledger: Ledger) -> Subject:
        """The model as evaluations and audits see it."""
        return Subject(self.base, self.fitted, self.unfitted, self.report.delta, ledger)


def open_model(client: GatewayClient, assignment: Assignment, folder: Path) -> FittedModel:
    """Fetch the job's model into `folder` and open it."""
    if assignment.model is None:
        raise SpecError("the job needs a fitted model, and its assignment names none")
    for name in assignment.files:
        if name in _READABLE:
            client.download(assignment.model, name, folder / name)
    report = PrivacyReport.model_validate_json((folder / REPORT).read_bytes())
    base, fitted = load_fitted(folder, report, PerformanceSpec())
    certificate = folder / CERTIFICATE
    signed = certificate.read_text(encoding="utf-8") if certificate.is_file() else None
    return FittedModel(assignment.model, base, fitted, report, signed)
