"""Budgets and the ledger behind them, for people: balances, entries, verdicts."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from taciturn.accounting.events import event_to_dict
from taciturn.errors import UnknownEntryError
from taciturn.server import ledger
from taciturn.server.audit_log import AuditLog
from taciturn.server.catalog.grants import Grants, grant_view
from taciturn.server.catalog.policies import Policies, Policy
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import (
    no_namespace,
    owned_namespaces,
    sees,
    sees_all,
)
from taciturn.server.identity.principal import Principal
from taciturn.server.ledger.tables import entries as entry_table
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import policies as policy_table
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import BudgetView
from taciturn.wire.identity import Role
from taciturn.wire.ledger import (
    AnchorView,
    LedgerEntryView,
    LedgerJobReport,
    LedgerJobView,
    LedgerProblem,
    VerificationView,
)
from taciturn.wire.values import Page

_CHECKS = ("/v1/ledger/verifications", "/ledger/verifications")


@dataclass(frozen=True, slots=True)
class Budgets:
    """Balances of the namespaces that a caller may know of."""

    gateway: Gateway
    policies: Policies
    grants: Grants

    def read(self, namespace: str, caller: Principal) -> BudgetView:
        """A namespace's balance, with the grants that the caller may see."""

        def work(connection: Connection) -> BudgetView:
            policy = self.policies.visible(connection, namespace, caller)
            return self._views(connection, [policy], caller)[namespace]

        return self.gateway.read(work)

    def page(self, caller: Principal, paging: Paging) -> Page[BudgetView]:
        """The balances that the caller may see, by namespace; as many queries for a page as for one
        of them."""

        def work(connection: Connection) -> Page[BudgetView]:
            policies = self.policies.page_within(connection, caller, paging.name(), paging.fetch)
            views = self._views(connection, policies[: paging.limit], caller)
            return paging.page(
                policies, lambda policy: views[policy.namespace], lambda policy: policy.namespace
            )

        return self.gateway.read(work)

    def left(self, namespaces: Collection[str]) -> dict[str, float]:
        """Shares of these budgets that are neither spent nor held, for a list of datasets that the
        caller may know of: whoever may, may know the joint balance, too."""
        return self.gateway.read(
            lambda connection: {
                namespace: max(0.0, room.left)
                for namespace, room in ledger.rooms_within(
                    connection, self.gateway.seal_key, namespaces
                ).items()
            }
        )

    def nearly_spent(self, caller: Principal, left: float, most: int) -> dict[str, float]:
        """Shares that are left of the budgets that the caller may know of and that have less than
        `left`: the fullest ones first, however many budgets there are."""

        def work(connection: Connection) -> dict[str, float]:
            visible = select(policy_table.c.namespace).where(sees(caller, self.gateway.now_ms()))
            names = connection.execute(visible).scalars().all()
            rooms = ledger.rooms_within(connection, self.gateway.seal_key, names, used=True)
            shares = sorted((room.left, name) for name, room in rooms.items() if room.left < left)
            return {name: max(0.0, share) for share, name in shares[:most]}

        return self.gateway.read(work)

    def _views(
        self, connection: Connection, policies: Sequence[Policy], caller: Principal
    ) -> dict[str, BudgetView]:
        """The balances as the ledger has them, never as policies would have them. Of jobs that run,
        owner and auditors see each charge; to others it counts as held until the job is over."""
        rows = self.grants.rows(connection, policies, caller)
        statements = ledger.statements_within(
            connection,
            self.gateway.seal_key,
            list(rows),
            settled=[p.namespace for p in policies if not sees_all(caller, p.owner_id)],
        )
        return {name: _budget(statements[name], rows[name]) for name in rows}


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The ledger, for auditors, and for owners as far as it is about their namespaces."""

    gateway: Gateway
    policies: Policies
    audit_log: AuditLog
    _verifying: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def entries(
        self, namespace: str, caller: Principal, after: int, fetch: int
    ) -> Sequence[LedgerEntryView]:
        """Entries of a namespace's chain that follow entry `after`."""
        self._check(namespace, caller)
        entries = ledger.entries(self.gateway.engine, namespace, after=after, limit=fetch)
        return [_entry(entry) for entry in entries]

    def jobs(
        self, namespace: str, caller: Principal, after: str, fetch: int
    ) -> Sequence[LedgerJobView]:
        """Shares of a namespace's budget that jobs took, by id."""
        self._check(namespace, caller)
        engine, key = self.gateway.engine, self.gateway.seal_key
        statements = ledger.job_page(engine, key, namespace, after=after, limit=fetch)
        return [_job(namespace, statement) for statement in statements]

    def job(self, namespace: str, job: str, caller: Principal) -> LedgerJobReport:
        """Cost of a job's charged steps by themselves."""
        self._check(namespace, caller)
        engine, key = self.gateway.engine, self.gateway.seal_key
        report = _report(self.gateway, namespace, job)
        return LedgerJobReport(
            **_job(namespace, ledger.job_statement(engine, key, job)).model_dump(),
            epsilon=report.epsilon,
            delta=report.delta,
            accountant=report.accountant,
            event=event_to_dict(report.event),
        )

    def length(self, namespace: str, caller: Principal) -> int:
        """Number of entries of a namespace's chain."""
        self._check(namespace, caller)
        return ledger.statement(self.gateway.engine, self.gateway.seal_key, namespace).entries

    def verify(
        self, anchors: Sequence[AnchorView], caller: Principal, namespace: str | None = None
    ) -> VerificationView:
        """Derive every balance again from the entries, and say which row is not as it was written.

        One at a time: it reads the whole ledger. Raises ProblemError `too_many_requests`.

        Args:
            namespace: whose chain alone is checked, beside the seals of the whole ledger.
        """
        if namespace is not None:
            self._check(namespace, caller)
        known_anchors = tuple(ledger.Anchor(**anchor.model_dump()) for anchor in anchors)
        if not self._verifying.acquire(blocking=False):
            raise ProblemError(
                "too_many_requests",
                "the ledger is being verified already; try again in a minute",
                headers={"Retry-After": "60"},
            )
        try:
            verification = ledger.verify(
                self.gateway.engine,
                key=self.gateway.seal_key,
                anchors=known_anchors,
                namespace=namespace,
            )
        finally:
            self._verifying.release()
        return self.gateway.read(
            lambda connection: _verdict(
                connection, verification, len(known_anchors), caller, namespace
            )
        )

    def checked_at(self) -> datetime | None:
        """Time at which somebody last had the whole ledger or one budget checked, by the audit
        log; None if it knows of no check."""
        at_ms = self.audit_log.last_ms(_CHECKS)
        return None if at_ms is None else moment(at_ms)

    def _check(self, namespace: str, caller: Principal) -> None:
        """A grant in a namespace does not show its books; `not_found` as elsewhere."""
        policy = self.gateway.read(
            lambda connection: self.policies.visible(connection, namespace, caller)
        )
        if not sees_all(caller, policy.owner_id):
            raise no_namespace(namespace)


def _budget(statement: ledger.NamespaceStatement, grants: Sequence[Row[Any]]) -> BudgetView:
    return BudgetView(
        namespace=statement.namespace,
        epsilon=statement.budget.epsilon,
        delta=statement.budget.delta,
        charged=statement.budget.charged,
        taken=statement.budget.used,
        exceptions=statement.exceptions,
        grants=tuple(grant_view(row, statement) for row in grants),
    )


def _report(gateway: Gateway, namespace: str, job: str) -> ledger.JobReport:
    """The report of a job; the same `not_found` for one elsewhere as for none."""
    with suppress(UnknownEntryError):
        report = ledger.job_report(gateway.engine, gateway.seal_key, job)
        if report.namespace == namespace:
            return report
    raise ProblemError("not_found", f"job {job!r} has no reservation in {namespace!r}")


def _entry(entry: ledger.Entry) -> LedgerEntryView:
    return LedgerEntryView(
        namespace=entry.namespace,
        sequence=entry.sequence,
        operation_id=entry.operation_id,
        recorded_at=moment(entry.recorded_at_ms),
        details=entry.details.model_dump(mode="json"),
        previous=entry.previous,
        digest=entry.digest,
    )


def _job(namespace: str, statement: ledger.JobStatement) -> LedgerJobView:
    return LedgerJobView(
        job=statement.job,
        namespace=namespace,
        status=statement.status,
        grants=statement.grants,
        charged=statement.charged,
        held=statement.reserved,
    )


def _verdict(
    connection: Connection,
    verification: ledger.Verification,
    anchors: int,
    caller: Principal,
    namespace: str | None,
) -> VerificationView:
    """Result of a verification, as far as the caller may see it."""
    visible = _namespaces(connection, caller) if namespace is None else frozenset({namespace})
    problems = [
        LedgerProblem(namespace=problem.namespace, sequence=problem.sequence, text=problem.what)
        for problem in verification.problems
        if visible is None or problem.namespace in visible | {""}
    ]
    visible_anchors = [
        anchor for anchor in verification.anchors if visible is None or anchor.namespace in visible
    ]
    return VerificationView(
        ok=not problems,
        namespaces=verification.accounts if visible is None else len(visible),
        entries=verification.entries if visible is None else _count(connection, visible),
        seals_checked=verification.seals_checked,
        anchors_checked=anchors,
        problems=tuple(problems),
        anchors=tuple(AnchorView(**anchor.model_dump()) for anchor in visible_anchors),
    )


def _namespaces(connection: Connection, caller: Principal) -> frozenset[str] | None:
    """Namespaces that the caller owns; None, which is all, for an auditor."""
    if caller.has(Role.AUDITOR):
        return None
    return frozenset(connection.scalars(owned_namespaces(caller)))


def _count(connection: Connection, namespaces: frozenset[str]) -> int:
    query = select(func.count()).select_from(entry_table)
    return int(
        connection.execute(
            query.where(entry_table.c.namespace.in_(sorted(namespaces)))
        ).scalar_one()
    )
