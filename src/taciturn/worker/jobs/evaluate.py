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
from taciturn.worker.context import JobContext
from taciturn.worker.rows import declared, with_owners_terms


@dataclass(slots=True)
class _GatewaysLedger:
    """Charges the one release of a job, and keeps what may be shown."""

    context: JobContext
    evaluation: ReleasedEvaluation | None = field(default=None)

    def check(self, unit: str) -> None:
        """Nothing to refuse here: the gateway has reserved it, under the dataset's own unit."""

    def look(self, delta: float) -> None:
        """Exact figures of private rows are for their owner, who needs no gateway to see them."""
        raise GuaranteeError("a gateway shows no exact figures of private rows")

    def charge(self, step: PrivateStep, delta: float, fingerprint: str) -> None:
        """Charge the release: before the noise is drawn, once all rows were read and judged."""
        self.context.rows_are_read()
        self.context.charge(0, 1)

    def keep(self, evaluation: ReleasedEvaluation | ReleasedDownstream) -> None:
        """The figures that leave; there are none of another type."""
        if isinstance(evaluation, ReleasedEvaluation):
            self.evaluation = evaluation


def run(context: JobContext, request: RemoteEvaluate) -> None:
    """Judge, and release the figures."""
    model = context.fitted()
    ledger = _GatewaysLedger(context)
    context.stage(Stage.SCORING)
    if request.data is None:
        texts = list(request.public_texts)
        evaluate.evaluate(model.subject(ledger), texts, request.evaluate_spec(), None)
    else:
        _private(context, request, request.data, model.subject(ledger))
    if ledger.evaluation is None:
        raise SpecError("the evaluation has no figure that may be shown")
    path = context.workspace.make_folder("results") / "evaluation.json"
    path.write_text(ledger.evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    context.stage(Stage.RELEASING)
    context.egress.file(path)


def _private(
    context: JobContext, request: RemoteEvaluate, data: DataRef, subject: evaluate.Subject
) -> None:
    source, plan = context.assignment.source, context.assignment.release
    if plan is None:
        raise SpecError("the evaluation is private, and its assignment has no release")
    limit_s = context.assignment.preparation_s
    rows = declared(source, data, plan.n_units, context.open_rows, limit_s)
    spec = with_owners_terms(request.evaluate_spec(), source, data)
    context.padding.begin()
    budget = Budget(plan.epsilon, plan.delta, plan.noise_multiplier)
    evaluate.evaluate(subject, rows, spec, None, budget)
