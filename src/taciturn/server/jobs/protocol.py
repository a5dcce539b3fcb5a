"""Protocol between a worker and the gateway while a job runs; see `wire.worker`.

A message is taken only from the worker that holds the job, and is decided on in the transaction
that takes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, insert, select

from taciturn.planning.plan import TrainingPlan
from taciturn.server.catalog.public_datasets import declaration, declared, standing_row
from taciturn.server.catalog.references import References
from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import held_job
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.completion import Completion, End
from taciturn.server.jobs.events import Events, newest_only, worker_sequence
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.mechanism import Mechanism
from taciturn.server.jobs.states import job_row
from taciturn.server.ledger import job_steps, was_done
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, base_models, datasets, incidents, jobs, models
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import AnyRequest, JobKind, JobState
from taciturn.wire.worker import (
    Assignment,
    BaseModelFacts,
    Charge,
    EventBatch,
    Incident,
    IncidentId,
    JobsAsked,
    JobsOver,
    LeaseRequest,
    Orders,
    Outcome,
    PublicSourceRef,
    ReleasePlan,
    SourceMarks,
    SourceRef,
)

_OVER = tuple(state.value for state in JobState if state.over)
_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)


@dataclass(frozen=True, slots=True)
class WorkerProtocol:
    """Speaks with workers."""

    gateway: Gateway
    leases: Leases
    ending: Completion
    events: Events
    references: References

    def lease(self, worker: WorkerPrincipal, request: LeaseRequest) -> Assignment:
        """Give the job to a worker. Raises ProblemError `fenced`, `lease_held`."""
        row = self.leases.take(worker, request)
        charged = self._steps(row.id)[1] if row.event is not None else 0
        return self.gateway.read(lambda connection: self._assignment(connection, row, charged))

    def heartbeat(self, worker: WorkerPrincipal, token: int) -> Orders:
        """A sign of life; the answer says whether to stop."""
        return Orders(cancel=self.leases.beat(worker, token))

    def charge(self, worker: WorkerPrincipal, token: int, charge: Charge) -> None:
        """Spend steps that are about to run. What is left of the plan is held first, steps that run
        again after a crash included: where there is no room for all, none of it runs. So a balance
        moves when a worker comes back to its first block, a moment that does not depend on rows,
        and not when it comes to its last one, which does.

        Raises:
            ProblemError: `fenced`; `invalid` for steps that the plan does not have.
            BudgetExceededError: there is no room for steps that run again.
        """
        row = self.gateway.read(lambda connection: held_job(connection, worker, token))
        if row.event is None:
            return
        mechanism = Mechanism.of(row)
        if charge.first_step + charge.steps > mechanism.steps:
            raise ProblemError(
                "invalid",
                f"steps {charge.first_step} to {charge.first_step + charge.steps} are not in the "
                f"plan of {mechanism.steps}",
            )
        operation, ledger = f"{row.id}-charge-{charge.operation_id}", self.gateway.ledger
        missing = mechanism.steps - charge.first_step - self._steps(row.id)[0]
        # A charge that was made, and whose answer was lost, has left less held than before it.
        if missing > 0 and not was_done(self.gateway.engine, operation):
            more = mechanism.event(missing)
            ledger.extend(f"{row.id}-extend-{charge.operation_id}", row.id, token, more)
        ledger.charge(operation, row.id, token, mechanism.event(charge.steps))

    def say(self, worker: WorkerPrincipal, token: int, batch: EventBatch) -> None:
        """Keep events, each once."""

        def work(connection: Connection) -> None:
            row = held_job(connection, worker, token)
            for number, event in newest_only(batch.events, batch.first):
                sequence = worker_sequence(row.lease, number)
                self.events.append(connection, row.id, event, sequence)

        self.gateway.write(work)

    def incident(self, worker: WorkerPrincipal, token: int, report: Incident) -> IncidentId:
        """Keep the full log of a failure, which only the owner of the data may read."""
        incident_id = new_id("inc")

        def work(connection: Connection) -> None:
            row = held_job(connection, worker, token)
            connection.execute(
                insert(incidents).values(
                    id=incident_id,
                    job_id=row.id,
                    namespace=row.namespace,
                    log=report.log.encode("utf-8", "replace"),
                    created_at_ms=self.gateway.now_ms(),
                )
            )

        self.gateway.write(work)
        return IncidentId(incident=incident_id)

    def source(self, worker: WorkerPrincipal, token: int, marks: SourceMarks) -> None:
        """Hear what the source of a job's rows, or of its public text, is, before they are read.
        Raises ProblemError `source_taken` where another budget has the same, or where the text
        is anybody's private rows; the job must not go on."""

        def work(connection: Connection) -> bool:
            row = held_job(connection, worker, token)
            if (row.public_data if marks.public else row.dataset) is None:
                raise ProblemError("invalid", "the job reads no such dataset")
            if marks.public:
                return self.references.is_public(connection, marks)
            return self.references.identify(connection, row.dataset, marks)

        if not self.gateway.write(work):
            raise ProblemError(
                "source_taken",
                "the same data are registered at this gateway under another budget; its "
                "administrator can say more",
            )

    def over(self, worker: WorkerPrincipal, token: int, request: JobsAsked) -> JobsOver:
        """Jobs among these that are over: no worker will come and go on from their checkpoints."""

        def work(connection: Connection) -> JobsOver:
            held_job(connection, worker, token)
            query = select(jobs.c.id).where(jobs.c.id.in_(request.jobs), jobs.c.state.in_(_OVER))
            return JobsOver(jobs=tuple(connection.execute(query).scalars()))

        return self.gateway.read(work)

    def outcome(self, worker: WorkerPrincipal, token: int, outcome_report: Outcome) -> None:
        """The job is over. Repeated: as at first.

        When a job is over that reads rows depends on them, so that its end comes at a tick of the
        public clock: what it releases, what it gives back, who is next.
        """

        def work(connection: Connection) -> None:
            row = job_row(connection, worker.job_id)
            if row is not None and _said_before(row, worker, token):
                return
            row = held_job(connection, worker, token)
            due_ms = self.events.tick_ms() if JobKind(row.kind).reads_rows else 0
            end = _end(connection, row, outcome_report, token).model_copy(update={"due_ms": due_ms})
            self.ending.intend(connection, row.id, end)

        self.gateway.write(work)
        self.ending.settle(worker.job_id)

    def _steps(self, job_id: str) -> tuple[int, int]:
        return job_steps(self.gateway.engine, self.gateway.seal_key, job_id)

    def _source(self, connection: Connection, row: Row[Any]) -> SourceRef | None:
        if row.dataset is None:
            return None
        dataset = connection.execute(select(datasets).where(datasets.c.name == row.dataset)).first()
        if dataset is None or dataset.removed_at_ms is not None:
            raise ProblemError(
                "conflict", f"dataset {row.dataset!r} was removed; the job cannot run"
            )
        return self.references.of(connection, dataset)

    def _public_source(self, connection: Connection, row: Row[Any]) -> PublicSourceRef | None:
        if row.public_data is None:
            return None
        text = standing_row(connection, row.public_data)
        if text is None:
            raise ProblemError(
                "conflict", f"public data set {row.public_data!r} was removed; the job cannot run"
            )
        return self.references.of_public(connection, text, declaration(declared(text)))

    def _assignment(self, connection: Connection, row: Row[Any], charged: int) -> Assignment:
        request = _REQUEST.validate_json(row.request)
        plan = json.loads(row.plan) if row.plan else None
        return Assignment(
            job=row.id,
            attempt=row.attempt,
            lease=row.lease,
            lease_s=self.gateway.settings.lease_s,
            bucket_s=self.gateway.settings.tick_s,
            preparation_s=self.gateway.settings.preparation_s,
            request=request,
            source=self._source(connection, row),
            public_source=self._public_source(connection, row),
            plan=TrainingPlan(**plan) if row.kind == JobKind.FIT and plan else None,
            release=ReleasePlan(**plan) if row.kind == JobKind.EVALUATE and plan else None,
            base_model=_base(connection, request.model) if request.kind is JobKind.FIT else None,
            model=row.model_id,
            files=_files(connection, row),
            namespace=row.namespace,
            charged_steps=charged,
        )


def _said_before(row: Row[Any], worker: WorkerPrincipal, token: int) -> bool:
    if row.outcome is None or row.worker_token != worker.token_id:
        return False
    return End.model_validate_json(row.outcome).lease == token


def _end(connection: Connection, row: Row[Any], outcome_report: Outcome, token: int) -> End:
    if outcome_report.succeeded:
        return End(state=JobState.SUCCEEDED, lease=token)
    query = select(incidents.c.id).where(
        incidents.c.id == outcome_report.incident, incidents.c.job_id == row.id
    )
    incident = connection.scalar(query) if outcome_report.incident else None
    if row.cancel:
        return End(state=JobState.CANCELLED, incident=incident, lease=token)
    code = outcome_report.code or FailureCode.INTERNAL
    return End(state=JobState.FAILED, code=code, incident=incident, lease=token)


def _base(connection: Connection, name: str) -> BaseModelFacts:
    row = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if row is None:
        raise ProblemError("conflict", f"base model {name!r} was removed; the job cannot run")
    return BaseModelFacts.model_validate(row, from_attributes=True)


def _files(connection: Connection, row: Row[Any]) -> tuple[str, ...]:
    """Names of the fitted model's files, where the job needs one."""
    if row.model_id is None:
        return ()
    query = (
        select(artifacts.c.name)
        .join(models, models.c.job_id == artifacts.c.job_id)
        .where(models.c.id == row.model_id)
        .order_by(artifacts.c.name)
    )
    return tuple(connection.execute(query).scalars())
