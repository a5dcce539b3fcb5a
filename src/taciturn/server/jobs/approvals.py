"""Approvals: two people, neither of them the asker, let through what the rules alone refuse.

A request is bound to the digest of exactly what would run, is good for one job, expires, and is
ended by one rejection. It only records what was decided; `jobs` acts on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Connection, Row, Update, and_, insert, select, update

from taciturn.accounting.events import event_from_dict
from taciturn.certificate.canonical import canonical_json
from taciturn.server import ledger
from taciturn.server.catalog.public_datasets import declared_of
from taciturn.server.context import Gateway
from taciturn.server.identity.approval_access import (
    check_may_decide,
    may_see_approval,
    may_see_approvals,
)
from taciturn.server.identity.holders import check_access_is_settled
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.notifications.outbox import announce
from taciturn.server.paging import Paging, newest_first, position_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import approvals, decisions, jobs, policies, users
from taciturn.server.timestamps import moment
from taciturn.wire.jobs import ApprovalView, Decision, DecisionView, Withdrawal
from taciturn.wire.notifications import NotificationKind
from taciturn.wire.values import Page

NEEDED = 2

Reason = Literal["no_guarantee", "exceeds_grant"]


def request_digest(reason: str, job: Mapping[str, Any]) -> str:
    """Digest that binds an approval to its request: requester, job, and the plan that would run."""
    terms = [reason, *(job[name] for name in ("id", "requester_id", "request", "plan", "event"))]
    return hashlib.sha256(canonical_json(terms)).hexdigest()


@dataclass(frozen=True, slots=True)
class Approvals:
    """Keeps requests for approval, and what was decided."""

    gateway: Gateway

    def ask(self, connection: Connection, job: Mapping[str, Any], reason: Reason) -> str:
        """Open a request for a job, in the caller's transaction; returns its id."""
        now_ms = self.gateway.now_ms()
        approval_id = new_id("apr")
        connection.execute(
            insert(approvals).values(
                id=approval_id,
                job_id=job["id"],
                namespace=job["namespace"],
                reason=reason,
                request=request_digest(reason, job),
                needed=NEEDED,
                state="open",
                expires_at_ms=now_ms + round(self.gateway.settings.approval_s * 1000),
                created_at_ms=now_ms,
            )
        )
        announce(
            connection,
            NotificationKind.APPROVAL_ASKED,
            f"approval:{approval_id}",
            {"approval": approval_id},
            now_ms=now_ms,
        )
        return approval_id

    def decide(self, caller: Principal, approval_id: str, answer: Decision) -> ApprovalView:
        """Take an approver's answer. The same one again is answered as at first.

        Raises:
            ProblemError: `not_found`; `separation_of_duty` to the asker; `forbidden` to who is no
                approver; `expired`; `conflict` if it was decided already; `policy_refused` for a
                yes too soon after an administrator changed how the approver gets in.
        """
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> ApprovalView:
            row = _visible(connection, caller, approval_id)
            earlier = _decisions(connection, approval_id).get(caller.user_id)
            if earlier == _WORD[answer.decision]:
                return _view(connection, row)
            _check_decidable(
                caller, row, now_ms, decided=earlier is not None and earlier != _WITHDRAWN
            )
            if answer.decision == "approve":
                check_access_is_settled(connection, caller, row.namespace, now_ms)
            values = {
                "decision": _WORD[answer.decision],
                "comment": answer.comment,
                "created_at_ms": now_ms,
            }
            if earlier is None:
                who = {"approval_id": approval_id, "approver_id": caller.user_id}
                connection.execute(insert(decisions).values(who | values))
            else:
                connection.execute(_own(caller, approval_id).values(values))
            self._conclude(connection, row)
            return _view(connection, _visible(connection, caller, approval_id))

        return self.gateway.write(work)

    def withdraw(self, caller: Principal, approval_id: str, withdrawal: Withdrawal) -> ApprovalView:
        """Take one's yes back, while the job has not made use of it; again: as at first. Whoever
        has may decide anew.

        Raises:
            ProblemError: `not_found`; `conflict` without a yes of the caller's, or too late.
        """
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            row = _visible(connection, caller, approval_id)
            earlier = _decisions(connection, approval_id).get(caller.user_id)
            if earlier == _WITHDRAWN:
                return
            if earlier != "approved":
                raise ProblemError("conflict", f"you have not approved {approval_id!r}")
            if row.state not in ("open", "approved"):
                raise ProblemError(
                    "conflict",
                    f"approval {approval_id!r} is {row.state}: there is nothing to take back any "
                    "more; who asked for the job, or the data's owner, can cancel it",
                )
            values = {
                "decision": _WITHDRAWN,
                "comment": withdrawal.comment,
                "created_at_ms": now_ms,
            }
            connection.execute(_own(caller, approval_id).values(values))
            self._conclude(connection, row)

        self.gateway.write(work)
        return self.view(caller, approval_id)

    def use(self, job_id: str) -> bool:
        """True if a job has been approved. From then on no yes is taken back: before anything is
        held or recorded for it."""

        def work(connection: Connection) -> bool:
            of_job = approvals.c.job_id == job_id
            approved = update(approvals).where(of_job, approvals.c.state == "approved")
            connection.execute(approved.values(state="used"))
            state = connection.execute(select(approvals.c.state).where(of_job)).scalar()
            return state == "used"

        return self.gateway.write(work)

    def view(self, caller: Principal, approval_id: str) -> ApprovalView:
        """One request, with what it would leave of the budget; `not_found` where the caller may not
        know of it."""

        def work(connection: Connection) -> tuple[ApprovalView, Row[Any], ledger.Room | None]:
            row = _visible(connection, caller, approval_id)
            return _view(connection, row), row, self._rooms(connection, [row]).get(row.namespace)

        approval, row, room = self.gateway.read(work)
        if room is None:
            return approval
        balance, event = room.balances[None], _event(row)
        epsilon_taken = balance.epsilon_of(balance.used)
        return approval.model_copy(
            update={
                **_effect(row, room),
                "epsilon_taken": epsilon_taken,
                "epsilon_taken_after": epsilon_taken
                if event is None
                else room.epsilon_after(event),
            }
        )

    def page(self, caller: Principal, paging: Paging, state: str | None) -> Page[ApprovalView]:
        """Requests that the caller made or may decide, newest first; all to auditors.

        Args:
            state: of the requests; `decided` for all that are open no more.
        """
        query = newest_first(_select().where(may_see_approvals(caller)), approvals, paging)
        if state == "decided":
            query = query.where(approvals.c.state != "open")
        elif state is not None:
            query = query.where(approvals.c.state == state)

        def work(connection: Connection) -> Page[ApprovalView]:
            rows = [row for row in connection.execute(query) if may_see_approval(caller, row)]
            answers = _decision_views(connection, [row.id for row in rows])
            rooms = self._rooms(connection, rows)

            def viewed(row: Row[Any]) -> ApprovalView:
                view, room = _viewed(connection, row, answers.get(row.id, ())), None
                if row.state in _UNUSED:
                    room = rooms.get(row.namespace)
                return view if room is None else view.model_copy(update=_effect(row, room))

            return paging.page(rows, viewed, position_of)

        return self.gateway.read(work)

    def _rooms(self, connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, ledger.Room]:
        """Room in the joint budgets of requests for which nothing is held yet."""
        namespaces = {row.namespace for row in rows if row.state in _UNUSED}
        return ledger.rooms_within(connection, self.gateway.seal_key, namespaces)

    def expire(self) -> None:
        """End the requests that nobody decided in time."""
        now_ms = self.gateway.now_ms()
        late = update(approvals).where(
            approvals.c.state == "open", approvals.c.expires_at_ms <= now_ms
        )
        self.gateway.write(lambda connection: connection.execute(late.values(state="expired")))

    def _conclude(self, connection: Connection, row: Row[Any]) -> None:
        answers = list(_decisions(connection, row.id).values())
        state = "open"
        if "rejected" in answers:
            state = "rejected"
        elif answers.count("approved") >= row.needed:
            state = "approved"
        change = update(approvals).where(approvals.c.id == row.id)
        connection.execute(change.values(state=state))
        if state not in ("open", row.state):
            now_ms = self.gateway.now_ms()
            announce(
                connection,
                NotificationKind.APPROVAL_DECIDED,
                f"approval:{row.id}:{state}:{now_ms}",
                {"approval": row.id, "state": state},
                now_ms=now_ms,
            )


_WORD = {"approve": "approved", "reject": "rejected"}
_WITHDRAWN = "withdrawn"
_UNUSED = ("open", "approved")  # nothing is held for it yet


def _own(caller: Principal, approval_id: str) -> Update:
    """A change of what the caller has said."""
    own_decision = (decisions.c.approval_id == approval_id) & (
        decisions.c.approver_id == caller.user_id
    )
    return update(decisions).where(own_decision)


def approvers_of(connection: Connection, job_id: str) -> tuple[str, ...]:
    """The names of who approved a job, in order."""
    query = (
        select(users.c.name)
        .join(decisions, decisions.c.approver_id == users.c.id)
        .join(approvals, approvals.c.id == decisions.c.approval_id)
        .where(approvals.c.job_id == job_id, decisions.c.decision == "approved")
        .order_by(users.c.name)
    )
    return tuple(connection.execute(query).scalars())


def _check_decidable(caller: Principal, row: Row[Any], now_ms: int, *, decided: bool) -> None:
    check_may_decide(caller, row)
    if row.state == "expired" or (row.state == "open" and row.expires_at_ms <= now_ms):
        raise ProblemError("expired", f"approval {row.id!r} was not decided in time; ask again")
    if row.state != "open" or decided:
        raise ProblemError("conflict", f"approval {row.id!r} is {row.state}, or you have decided")
    job = {"id": row.job_id, "request": row.job_request}
    job |= {name: getattr(row, name) for name in ("requester_id", "plan", "event")}
    if request_digest(row.reason, job) != row.request:
        raise ProblemError(
            "conflict", "the job has changed since approval was requested; reject it"
        )


def _select() -> Any:
    columns = (
        approvals,
        jobs.c.requester_id,
        jobs.c.kind,
        jobs.c.dataset,
        jobs.c.public_data,
        jobs.c.request.label("job_request"),
        jobs.c.plan,
        jobs.c.event,
        policies.c.owner_id,
        policies.c.terms,
        users.c.name.label("requester"),
    )
    return (
        select(*columns)
        .join(jobs, jobs.c.id == approvals.c.job_id)
        .join(policies, policies.c.namespace == approvals.c.namespace)
        .join(users, users.c.id == jobs.c.requester_id)
    )


def _visible(connection: Connection, caller: Principal, approval_id: str) -> Row[Any]:
    row: Row[Any] | None = connection.execute(
        _select().where(and_(approvals.c.id == approval_id))
    ).first()
    if row is None or not may_see_approval(caller, row):
        raise ProblemError(
            "not_found", f"there is no approval {approval_id!r}, or it is not for you to see"
        )
    return row


def _event(row: Row[Any]) -> DpEvent | None:
    """Event that the job would be held for; None without a guarantee."""
    return None if row.event is None else event_from_dict(json.loads(row.event))


def _effect(row: Row[Any], room: ledger.Room) -> dict[str, float]:
    """Return what is left of the joint budget, before and after; by the filter, as the shares of
    unlike jobs do not add up."""
    event, balance = _event(row), room.balances[None]
    return {
        "left": room.left,
        "left_after": room.left if event is None else room.left_after(event),
        "budget_epsilon": balance.epsilon,
        "budget_delta": balance.delta,
    }


def _decisions(connection: Connection, approval_id: str) -> dict[str, str]:
    query = select(decisions).where(decisions.c.approval_id == approval_id)
    return {row.approver_id: row.decision for row in connection.execute(query)}


def _decision_views(
    connection: Connection, approval_ids: Sequence[str]
) -> dict[str, tuple[DecisionView, ...]]:
    """Return what was decided about each of these requests, in order."""
    query = (
        select(decisions, users.c.name)
        .join(users, users.c.id == decisions.c.approver_id)
        .where(decisions.c.approval_id.in_(approval_ids))
        .order_by(decisions.c.created_at_ms, users.c.name)
    )
    views: dict[str, tuple[DecisionView, ...]] = {}
    for row in connection.execute(query):
        view = DecisionView(
            approver=row.name,
            decision=row.decision,
            comment=row.comment,
            at=moment(row.created_at_ms),
        )
        views[row.approval_id] = (*views.get(row.approval_id, ()), view)
    return views


def _view(connection: Connection, row: Row[Any]) -> ApprovalView:
    return _viewed(connection, row, _decision_views(connection, [row.id]).get(row.id, ()))


def _viewed(
    connection: Connection, row: Row[Any], answers: tuple[DecisionView, ...]
) -> ApprovalView:
    public = None if row.public_data is None else declared_of(connection, row.public_data)
    request, plan = json.loads(row.job_request), json.loads(row.plan or "{}")
    privacy = plan.get("privacy") or plan  # of a fit, or of a release of figures
    return ApprovalView(
        id=row.id,
        job=row.job_id,
        namespace=row.namespace,
        requester=row.requester,
        reason=row.reason,
        request=request,
        state=row.state,
        approved_by=tuple(
            sorted(answer.approver for answer in answers if answer.decision == "approved")
        ),
        needed=row.needed,
        expires_at=moment(row.expires_at_ms),
        created_at=moment(row.created_at_ms),
        kind=row.kind,
        dataset=row.dataset,
        public_data=public,
        model=request.get("model"),
        epsilon=privacy.get("epsilon"),
        delta=privacy.get("delta"),
        steps=plan.get("steps", 1 if plan else None),
        purpose=request.get("purpose"),
        decisions=answers,
    )
