"""A fitted model judged: on public texts exactly, on a part of a dataset with paid noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from taciturn.errors import GuaranteeError, SpecError
from taciturn.local import evaluate
from taciturn.local.evaluate import Budget
from taciturn.reports.figures import ReleasedDownstream, ReleasedEvaluation
from taciturn.reports.privacy import PrivateStep
from taciturn.wire.events import Stage
from taciturn.wire.jobs import DataRef, RemoteEvaluate
from taciturn.worker.context import Task
from taciturn.worker.rows import declared, with_owners_terms


@dataclass(slots=True)
class _GatewaysLedger:
    """Charges the one release of a job, and keeps what may be shown."""

    task: Task
    found: ReleasedEvaluation | None = field(default=None)

    def check(self, unit: str) -> None:
        """Nothing to refuse here: the gateway has reserved it, under the dataset's own unit."""

    def look(self, delta: float) -> None:
        """Exact figures of private rows are for their owner, who needs no gateway to see them."""
        raise GuaranteeError("a gateway shows no exact figures of private rows")

    def charge(self, step: PrivateStep, delta: float, fingerprint: str) -> None:
        """Called before the noise is drawn, once all rows were read and judged."""
        self.task.rows_are_read()
        self.task.charge(0, 1)

    def keep(self, found: ReleasedEvaluation | ReleasedDownstream) -> None:
        """The figures that leave; there are none of another type."""
        if isinstance(found, ReleasedEvaluation):
            self.found = found


def run(task: Task, request: RemoteEvaluate) -> None:
    """Judge, and release the figures."""
    model = task.fitted()
    ledger = _GatewaysLedger(task)
    task.stage(Stage.SCORING)
    if request.data is None:
        texts = list(request.public_texts)
        evaluate.evaluate(model.subject(ledger), texts, request.evaluate_spec(), None)
    else:
        _private(task, request, request.data, model.subject(ledger))
    if ledger.found is None:
        raise SpecError("the evaluation has no figure that may be shown")
    path = task.workspace.made("results") / "evaluation.json"
    path.write_text(ledger.found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    task.stage(Stage.RELEASING)
    task.door.file(path)


def _private(task: Task, request: RemoteEvaluate, data: DataRef, subject: evaluate.Subject) -> None:
    source, plan = task.assignment.source, task.assignment.release
    if plan is None:
        raise SpecError("the evaluation is private, and its assignment has no release")
    limit_s = task.assignment.preparation_s
    rows = declared(source, data, plan.n_units, task.opened, limit_s)
    spec = with_owners_terms(request.evaluate_spec(), source, data)
    task.pace.begin()
    budget = Budget(plan.epsilon, plan.delta, plan.noise_multiplier)
    evaluate.evaluate(subject, rows, spec, None, budget)
