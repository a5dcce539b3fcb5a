"""Jobs: asked for, priced, held in the ledger, approved where needed, queued; seen; cancelled.

The ledger and the gateway's tables change in separate transactions. So a job is first a row
(`validating`), then a reservation under the job's own operation id, then `queued`; `advance` does
what is left of this after a crash anywhere, and doing it twice changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Row, select, update

from taciturn.accounting.events import event_from_dict, event_to_dict
from taciturn.certificate.canonical import canonical_json
from taciturn.data.arrow_types import type_of_column
from taciturn.data.schema_fields import choose_fields
from taciturn.errors import BudgetExceededError, UnknownEntryError
from taciturn.planning.plan import Speed, TrainingPlan, adapter_plan, other_times
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import no_job, watches_job
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs import idempotency
from taciturn.server.jobs.approvals import Approvals, approvers_of
from taciturn.server.jobs.completion import Completion, End
from taciturn.server.jobs.durations import duration_of, speed_of
from taciturn.server.jobs.pricing import (
    Price,
    Verdict,
    decide,
    fitting_epsilon,
    planned_from,
    price,
)
from taciturn.server.jobs.states import States, job_row
from taciturn.server.jobs.terms import SubmittedRequest, Terms, is_paid_for, terms_of
from taciturn.server.jobs.views import (
    all_jobs,
    job_view,
    operated_job,
    operated_jobs,
    the_job,
    visible_job,
    visible_jobs,
)
from taciturn.server.launchers.base import Sizing, own_machine
from taciturn.server.ledger import job_cost
from taciturn.server.paging import Paging, newest_first, newest_of, position_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import approvals, jobs, users
from taciturn.spec import DataSpec
from taciturn.wire.events import FailureCode, NumberedEvent
from taciturn.wire.jobs import (
    ApprovalView,
    Decision,
    JobCost,
    JobKind,
    JobState,
    JobView,
    OperatedJob,
    PlanView,
    RemoteEvaluate,
    RemoteFit,
    RemoteProbe,
)
from taciturn.wire.values import Page, PolicyLine

_PROBE_LINE = PolicyLine(
    kind="public", text="names and types of columns: public once their owner has confirmed them"
)


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs, for people: planning, submission, approval, views, cancelling.

    Attributes:
        queued: called when a job has come into the queue, so that it need not wait for a tick.
        keeps: what fits leave for audits is there when their workers are gone.
        machine: says which machine a fit would get.
    """

    gateway: Gateway
    states: States
    ending: Completion
    approvals: Approvals
    sandbox: SqlSandbox
    queued: Callable[[], object] = lambda: None
    keeps: bool = True
    machine: Sizing = own_machine

    def plan(self, caller: Principal, request: SubmittedRequest) -> PlanView:
        """Plan and price a job as of now; nothing is held. Raises as `submit`."""
        terms, priced, verdict = self._judged(caller, request)
        short = not verdict.admitted or verdict.reason == "exceeds_grant"
        view = PlanView(
            plan=priced.plan,
            epsilon=priced.epsilon,
            delta=priced.delta,
            share_of_budget=verdict.share_of_budget,
            share_of_grant=verdict.share_of_grant,
            left_of_budget=verdict.left_of_budget,
            left_of_grant=verdict.left_of_grant,
            left_of_budget_after=verdict.left_of_budget_after,
            left_of_grant_after=verdict.left_of_grant_after,
            admitted=verdict.admitted,
            fitting_epsilon=fitting_epsilon(self.gateway, priced, terms) if short else None,
            needs_approval=verdict.reason,
            public_data=terms.public_data,
            policy=priced.policy,
        )
        if isinstance(request, RemoteFit):
            return view.model_copy(update=self._of_a_fit(caller, request, terms, priced))
        return view

    def _of_a_fit(
        self, caller: Principal, request: RemoteFit, terms: Terms, priced: Price
    ) -> dict[str, Any]:
        """Duration and machine of the fit, and the worth of it and of other amounts of time."""
        assert terms.base is not None
        base, plan = terms.base, TrainingPlan(**priced.plan)
        duration = self.gateway.read(
            lambda connection: duration_of(connection, caller, base.name, plan, base.parameters)
        )
        times = other_times(*planned_from(request, terms), plan)
        machine = self.machine(request, plan, base)
        if machine.price_per_hour is not None:
            cost = round(machine.price_per_hour * duration.seconds / 3600, 4)
            machine = machine.model_copy(update={"cost": cost})
        return {
            "duration": duration,
            "worth": plan.worth,
            "other_times": times,
            "machine": machine,
        }

    def _speed(self, caller: Principal, request: SubmittedRequest, terms: Terms) -> Speed | None:
        """Speed that a fit's max_minutes is reckoned with; None without max_minutes."""
        if not isinstance(request, RemoteFit) or request.max_minutes is None:
            return None
        spec, facts = planned_from(request, terms)
        method = adapter_plan(spec, facts).method
        return self.gateway.read(
            lambda connection: speed_of(
                connection, caller, facts.base_model, method, facts.base_parameters
            )
        )

    def submit(self, caller: Principal, request: SubmittedRequest, key: str | None) -> JobView:
        """Ask for a job. The same key and request again: the same job.

        Raises:
            ProblemError: `not_found`, `not_ready`, `policy_refused`, `budget_exceeded` and
                others; nothing was held, and nothing will run.
            SpecError, DataError: the request itself is wrong.
        """
        if key is None and is_paid_for(request):
            raise ProblemError(
                "idempotency_key_missing",
                f"a job of kind {request.kind.value!r} spends budget: give the header "
                "Idempotency-Key, a new random text for each new job and the same one for a retry",
            )
        digest = idempotency.digest_of(request)
        earlier = self._earlier(caller, key, digest)
        if earlier is None:
            terms, priced, verdict = self._judged(caller, request)
            if not verdict.admitted:
                raise self._no_room(priced, terms, verdict)
            earlier = self._insert(caller, request, key, digest, terms, priced, verdict)
            if _first_state(priced, verdict) is JobState.QUEUED:
                self.queued()
                return self.view(caller, earlier)
        self.advance(earlier)
        return self._answer(caller, earlier, request)

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        """Queue a look at a dataset, in the caller's transaction; returns the job's id."""
        request = RemoteProbe(dataset=dataset)
        row = self._row(owner_id, JobKind.PROBE, request.model_dump_json(), namespace, _PROBE_LINE)
        row |= {"dataset": dataset}
        self.states.begin(connection, row, JobState.QUEUED)
        return str(row["id"])

    def advance(self, job_id: str) -> None:
        """Do what is left between asking and the queue; after a crash, or once approved."""
        row = self.gateway.read(lambda connection: job_row(connection, job_id))
        if row is None or row.outcome is not None:
            return
        if row.state == JobState.AWAITING_APPROVAL:
            self._advance_decided(row)
        elif row.state == JobState.VALIDATING and self._reserved(row):
            self._queue(row, {})

    def decide(self, caller: Principal, approval_id: str, answer: Decision) -> ApprovalView:
        """Take an approver's answer, and act on what it comes to; raises as Approvals.decide."""
        approval = self.approvals.decide(caller, approval_id, answer)
        self.advance(approval.job)
        return self.approvals.view(caller, approval_id)

    def view(self, caller: Principal, job_id: str) -> JobView:
        """One job; `not_found` where the caller may not know of it."""
        query = visible_jobs(caller).where(jobs.c.id == job_id)
        row = the_job(self.gateway.rows(query), job_id)
        return job_view(row).model_copy(update={"cost": self._cost(row)})

    def _cost(self, row: Row[Any]) -> JobCost | None:
        """Shares of budgets that a job takes; None where it takes none, or is not held yet."""
        if row.event is None:
            return None
        try:
            cost = job_cost(self.gateway.engine, self.gateway.seal_key, row.id)
        except UnknownEntryError:
            return None
        grants = [share for holder, share in cost.shares.items() if holder is not None]
        return JobCost(
            epsilon=cost.epsilon if JobState(row.state).over else None,
            delta=cost.delta,
            share_of_budget=cost.shares[None],
            share_of_grant=grants[0] if grants else None,
        )

    def page(
        self, caller: Principal, paging: Paging, state: JobState | None, kind: JobKind | None
    ) -> Page[JobView]:
        """The jobs that the caller may know of, newest first."""
        condition = watches_job(caller)
        if state is not None:
            condition &= jobs.c.state == state
        if kind is not None:
            condition &= jobs.c.kind == kind
        query = newest_of(all_jobs(), jobs, condition, paging)
        return paging.page(self.gateway.rows(query), job_view, position_of)

    def events(
        self, caller: Principal, job_id: str, after: int, limit: int
    ) -> tuple[NumberedEvent, ...]:
        """A page of the events of a job that the caller may follow; raises ProblemError
        `not_found` for any other."""
        is_followed = watches_job(caller)
        page = self.states.events.page_of(job_id, is_followed, after, limit)
        if page is None:
            raise no_job(job_id)
        return page

    def latest_events(
        self, caller: Principal, job_id: str, before: int, limit: int
    ) -> tuple[NumberedEvent, ...]:
        """Return events with a number below `before`, newest first; raises as `events`."""
        is_followed = watches_job(caller)
        page = self.states.events.page_of(job_id, is_followed, before, limit, newest_first=True)
        if page is None:
            raise no_job(job_id)
        return page

    def outline(self, caller: Principal, job_id: str, most: int) -> tuple[NumberedEvent, ...]:
        """Return the events of a job that the caller may follow, of those that say how far it is
        about `most`; raises ProblemError `not_found` for any other."""
        events = self.states.events.outline_of(job_id, watches_job(caller), most)
        if events is None:
            raise no_job(job_id)
        return events

    def approval_of(self, caller: Principal, job_id: str) -> ApprovalView:
        """The approval that a job needed; `not_found` if it needed none."""
        approval_id = self.view(caller, job_id).approval
        if approval_id is None:
            raise ProblemError("not_found", f"job {job_id!r} needs no approval")
        return self.approvals.view(caller, approval_id)

    def cancel(self, caller: Principal, job_id: str) -> JobView:
        """End a job: one that waits at once; one that runs is told, and stopped if it does not end
        by itself. A job that is over stays as it is."""

        self._stop(job_id, lambda connection: visible_job(connection, caller, job_id))
        return self.view(caller, job_id)

    def operated(
        self,
        paging: Paging,
        state: JobState | None = None,
        kind: JobKind | None = None,
        requester: str | None = None,
    ) -> Page[OperatedJob]:
        """Everybody's jobs, newest first, without what they are about."""
        query = newest_first(operated_jobs(), jobs, paging)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if requester is not None:
            query = query.where(users.c.name == requester)
        return paging.page(self.gateway.rows(query), operated_job, position_of)

    def stop(self, job_id: str) -> OperatedJob:
        """End anybody's job, as `cancel` does; raises ProblemError `not_found`."""
        query = operated_jobs().where(jobs.c.id == job_id)
        self._stop(job_id, lambda connection: the_job(connection.execute(query).all(), job_id))
        return operated_job(self.gateway.rows(query)[0])

    def _stop(self, job_id: str, find: Callable[[Connection], Row[Any]]) -> None:
        def work(connection: Connection) -> JobState:
            row = find(connection)
            if row.state == JobState.RUNNING and not row.cancel:
                change = update(jobs).where(jobs.c.id == job_id)
                connection.execute(change.values(cancel=True, updated_at_ms=self.gateway.now_ms()))
            return JobState(row.state)

        if self.gateway.write(work) is not JobState.RUNNING:
            self.ending.end(job_id, End(state=JobState.CANCELLED))

    def unfinished(self, older_than_ms: int) -> tuple[str, ...]:
        """Jobs that a crash left before the queue, or that were decided: to be advanced."""
        interrupted = (jobs.c.state == JobState.VALIDATING) & (
            jobs.c.created_at_ms <= older_than_ms
        )
        decided = (jobs.c.state == JobState.AWAITING_APPROVAL) & (approvals.c.state != "open")
        query = (
            select(jobs.c.id)
            .outerjoin(approvals, approvals.c.job_id == jobs.c.id)
            .where(interrupted | decided)
            .order_by(jobs.c.created_at_ms)
        )
        return tuple(self.gateway.read(lambda connection: connection.execute(query)).scalars())

    def _judged(self, caller: Principal, request: SubmittedRequest) -> tuple[Terms, Price, Verdict]:
        now_ms = self.gateway.now_ms()
        terms = self.gateway.read(lambda connection: terms_of(connection, caller, request, now_ms))
        self._check_fields(request, terms)
        self._check_canaries(request)
        priced = price(request, terms, self._speed(caller, request, terms))
        return terms, priced, decide(self.gateway, priced, terms)

    def _check_fields(self, request: SubmittedRequest, terms: Terms) -> None:
        """Check that the columns to be read are there, by the schema that the gateway knows.

        Raises:
            MissingColumnError, RowError, SpecError: they are not, or hold no text.
            ProblemError: `invalid` for a selection that fails on the schema.
        """
        data = request.data if isinstance(request, RemoteFit | RemoteEvaluate) else None
        if data is None or terms.dataset is None:
            return
        assert isinstance(request, DataSpec)
        columns = terms.dataset.columns
        if data.select is not None:
            columns = self.sandbox.run(data.select, columns, ()).columns
        schema = pa.schema([(column.name, type_of_column(column.type)) for column in columns])
        choose_fields(schema, request.model_copy(update={"privacy_unit": terms.dataset.unit}))

    def _check_canaries(self, request: SubmittedRequest) -> None:
        """Canaries whose names nobody would know after the fit only make it worse."""
        if isinstance(request, RemoteFit) and request.canaries and not self.keeps:
            raise ProblemError(
                "invalid",
                f"canaries={request.canaries}: no audit would find them, for what a worker keeps "
                "here ends with its machine. Leave canaries out, or have whoever runs the gateway "
                "give workers a store for checkpoints or a volume for workspaces",
            )

    def _no_room(self, priced: Price, terms: Terms, verdict: Verdict) -> ProblemError:
        fits = fitting_epsilon(self.gateway, priced, terms)
        taken_share = 1 - (verdict.left_of_budget_after or 0.0)
        remedy = (
            f"target_epsilon={fits:g} would fit now"
            if fits is not None
            else "no target_epsilon would fit now; its owner can raise the budget"
        )
        return ProblemError(
            "budget_exceeded",
            f"the budget of namespace {terms.namespace!r} (epsilon="
            f"{terms.policy.budget.epsilon:g}) has no room for target_epsilon="
            f"{priced.epsilon:.4g}: {taken_share:.1%} of it would be spent or held. It holds for "
            "all jobs together, whatever each is chosen for, and that costs more than one job's "
            f"own epsilon. {remedy}",
            fitting_epsilon=fits,
        )

    def _earlier(self, caller: Principal, key: str | None, digest: str) -> str | None:
        if key is None:
            return None
        return self.gateway.read(
            lambda connection: idempotency.made_before(connection, caller.user_id, key, digest)
        )

    def _insert(
        self,
        caller: Principal,
        request: SubmittedRequest,
        key: str | None,
        digest: str,
        terms: Terms,
        priced: Price,
        verdict: Verdict,
    ) -> str:
        """The job as a row, under the terms that it was priced for; or the one that a request with
        the same key has made meanwhile."""
        row = self._request_row(caller, request, terms, priced, verdict)

        def work(connection: Connection) -> str:
            now_ms = self.gateway.now_ms()
            if key is not None:
                earlier_job = idempotency.made_before(connection, caller.user_id, key, digest)
                if earlier_job is not None:
                    return earlier_job
            if terms_of(connection, caller, request, now_ms) != terms:
                raise ProblemError("conflict", "the terms have just changed; submit the job again")
            self.states.begin(connection, row, _first_state(priced, verdict))
            if key is not None:
                idempotency.remember(connection, caller.user_id, key, digest, row["id"], now_ms)
            if verdict.reason is not None:
                self.approvals.ask(connection, row, verdict.reason)
            return str(row["id"])

        return self.gateway.write(work)

    def _request_row(
        self,
        caller: Principal,
        request: SubmittedRequest,
        terms: Terms,
        priced: Price,
        verdict: Verdict,
    ) -> dict[str, Any]:
        event = priced.event
        row = self._row(
            caller.user_id, request.kind, request.model_dump_json(), terms.namespace, priced.policy
        )
        return row | {
            "dataset": terms.dataset and terms.dataset.name,
            "public_data": terms.public_data and terms.public_data.name,
            "model_id": terms.fitted and terms.fitted.id,
            "plan": json.dumps(priced.plan) if priced.plan else None,
            "event": None if event is None else canonical_json(event_to_dict(event)).decode(),
            "grants": json.dumps(verdict.grants),
        }

    def _row(
        self, requester_id: str, kind: JobKind, request: str, namespace: str, line: PolicyLine
    ) -> dict[str, Any]:
        now_ms = self.gateway.now_ms()
        return {
            "id": new_id("job"),
            "kind": kind.value,
            "requester_id": requester_id,
            "namespace": namespace,
            "dataset": None,
            "public_data": None,
            "model_id": None,
            "request": request,
            "plan": None,
            "event": None,
            "grants": "[]",
            "attempt": 0,
            "lease": 0,
            "cancel": False,
            "policy": line.model_dump_json(),
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }

    def _reserved(self, row: Row[Any]) -> bool:
        """Hold what the job costs; a job for which there is no room any more fails."""
        if row.event is None:
            return True
        try:
            self.gateway.ledger.reserve(
                f"{row.id}-reserve",
                row.id,
                namespace=row.namespace,
                grants=json.loads(row.grants),
                event=event_from_dict(json.loads(row.event)),
                hold_s=self.gateway.settings.hold_s,
            )
        except BudgetExceededError:
            self.ending.end(row.id, End.failed(FailureCode.BUDGET_EXCEEDED))
            return False
        return True

    def _queue(self, row: Row[Any], values: dict[str, Any]) -> None:
        """Into the queue. Where the job has ended meanwhile, its reservation is given back."""

        def work(connection: Connection) -> bool:
            now = job_row(connection, row.id)
            if now is None or now.outcome is not None or now.state != row.state:
                return now is not None and not JobState(now.state).over and now.outcome is None
            return self.states.move(connection, row.id, JobState.QUEUED, values)

        if self.gateway.write(work):
            self.queued()
        else:
            self.ending.close(row.id)

    def _advance_decided(self, row: Row[Any]) -> None:
        query = select(approvals).where(approvals.c.job_id == row.id)
        approval = self.gateway.read(lambda connection: connection.execute(query).one())
        if approval.state == "rejected":
            self.ending.end(row.id, End.failed(FailureCode.REJECTED))
        elif approval.state == "expired":
            self.ending.end(row.id, End.failed(FailureCode.EXPIRED))
        elif self.approvals.use(row.id) and self._paid_or_excepted(row, approval.reason):
            self._queue(row, self._approved_line(row, approval.reason))

    def _paid_or_excepted(self, row: Row[Any], reason: str) -> bool:
        if reason != "no_guarantee":
            return self._reserved(row)
        names = self.gateway.read(lambda connection: approvers_of(connection, row.id))
        self.gateway.ledger.record_exception(
            f"{row.id}-exception", row.namespace, row.id, approvals=names
        )
        return True

    def _approved_line(self, row: Row[Any], reason: str) -> dict[str, Any]:
        if reason != "no_guarantee":
            return {}
        names = self.gateway.read(lambda connection: approvers_of(connection, row.id))
        text = f"no guarantee (approved by {', '.join(names)})"
        return {"policy": PolicyLine(kind="no guarantee", text=text[:400]).model_dump_json()}

    def _answer(self, caller: Principal, job_id: str, request: SubmittedRequest) -> JobView:
        """The job; or, again, the refusal of one for which there was no room when it was asked."""
        view = self.view(caller, job_id)
        failure = view.failure
        if failure is None or failure.code != FailureCode.BUDGET_EXCEEDED:
            return view
        if view.approval is not None or not self._never_ran(job_id):
            return view
        terms, priced, _ = self._judged(caller, request)
        fits = fitting_epsilon(self.gateway, priced, terms)
        now = "no target_epsilon" if fits is None else f"target_epsilon={fits:g}"
        raise ProblemError(
            "budget_exceeded",
            f"job {job_id!r}: {failure.text}; {now} would fit now",
            fitting_epsilon=fits,
        )

    def _never_ran(self, job_id: str) -> bool:
        row = self.gateway.read(lambda connection: job_row(connection, job_id))
        return row is not None and row.attempt == 0


def _first_state(priced: Price, verdict: Verdict) -> JobState:
    """First state of a job: one that needs approval waits for it at once, and one that costs
    nothing waits for a worker; any other has to be held first."""
    if verdict.reason is not None:
        return JobState.AWAITING_APPROVAL
    return JobState.QUEUED if priced.event is None else JobState.VALIDATING
