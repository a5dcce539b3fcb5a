"""Policies: the terms of a namespace, and who owns it.

Terms are a row here and a cap in the ledger: two transactions. The row goes first, with the next
version; then the ledger is told, under an operation id made of that version; then the row is marked
as settled. A crash in between is made good by whoever touches the policy next (`settled`), and no
version is written before the one before it is settled, so that caps reach the ledger in their
order, each once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from taciturn.accounting.filter import RenyiFilter
from taciturn.errors import LedgerConflictError
from taciturn.server.context import Gateway
from taciturn.server.identity.holders import check_access_is_settled, check_approvers
from taciturn.server.identity.namespace_access import no_namespace, owns, sees
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, policies, users
from taciturn.server.timestamps import in_utc, moment
from taciturn.wire.datasets import BudgetTerms, PolicyTerms, PolicyView


@dataclass(frozen=True, slots=True)
class Policy:
    """The terms in force in a namespace.

    Attributes:
        settled: whether the ledger has this version's budget.
    """

    namespace: str
    owner_id: str
    owner: str
    terms: PolicyTerms
    version: int
    settled: bool
    created_at: datetime
    updated_at: datetime

    def view(self) -> PolicyView:
        """The policy, for those who may see it."""
        return PolicyView(
            **{name: getattr(self.terms, name) for name in PolicyTerms.model_fields},
            namespace=self.namespace,
            owner=self.owner,
            version=self.version,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


@dataclass(frozen=True, slots=True)
class Policies:
    """Opens namespaces, reads and changes their terms."""

    gateway: Gateway

    def find(self, connection: Connection, namespace: str) -> Policy | None:
        """The policy of a namespace, whoever asks."""
        row = connection.execute(_query().where(policies.c.namespace == namespace)).first()
        return None if row is None else _policy(row)

    def visible(self, connection: Connection, namespace: str, caller: Principal) -> Policy:
        """The policy, if the caller may know of it; else ProblemError `not_found`."""
        is_visible = sees(caller, self.gateway.now_ms())
        row = connection.execute(
            _query().where(policies.c.namespace == namespace, is_visible)
        ).first()
        if row is None:
            raise no_namespace(namespace)
        return _policy(row)

    def owned(self, connection: Connection, namespace: str, caller: Principal) -> Policy:
        """The policy, if the caller owns the namespace; `not_found` to those who may not know of
        it, `forbidden` to those who may."""
        policy = self.visible(connection, namespace, caller)
        if not owns(caller, policy.owner_id):
            raise ProblemError(
                "forbidden", f"{namespace!r} is {policy.owner}'s; only its owner may do this"
            )
        return policy

    def read(self, namespace: str, caller: Principal) -> PolicyView:
        """The terms in force, if the caller may see them."""
        policy = self.gateway.read(lambda connection: self.visible(connection, namespace, caller))
        return self.settled(policy).view()

    def page(self, caller: Principal, after: str, fetch: int) -> Sequence[Policy]:
        """Policies that the caller may see, by namespace."""
        return self.gateway.read(
            lambda connection: self.page_within(connection, caller, after, fetch)
        )

    def page_within(
        self, connection: Connection, caller: Principal, after: str, fetch: int
    ) -> Sequence[Policy]:
        """Return `page`, read in the caller's transaction."""
        query = (
            _query()
            .where(sees(caller, self.gateway.now_ms()), policies.c.namespace > after)
            .order_by(policies.c.namespace)
            .limit(fetch)
        )
        return [_policy(row) for row in connection.execute(query)]

    def open(self, namespace: str, budget: BudgetTerms, caller: Principal) -> Policy:
        """Give a namespace its first terms, with the caller as its owner.

        Idempotent: to be repeated after a crash, until it returns. An account that is open without
        a policy has never been spent from, and is whoever's who asks next.

        Raises ProblemError `conflict` if the namespace is somebody else's, or the caller's own with
        another budget.
        """
        RenyiFilter(budget.epsilon, budget.delta)
        policy = self.gateway.read(lambda connection: self.find(connection, namespace))
        if policy is None:
            has_account = self._account(namespace, budget, caller)
            self.gateway.write(
                lambda connection: self._insert(connection, namespace, budget, caller, has_account)
            )
            policy = self.gateway.read(lambda connection: self.find(connection, namespace))
            assert policy is not None, "policies are never removed"
        if policy.owner_id != caller.user_id or policy.terms.budget != budget:
            raise ProblemError(
                "conflict",
                f"the namespace {namespace!r} is in use; register without a budget if it is "
                "yours, else take another name",
            )
        return self.settled(policy)

    def change(
        self, namespace: str, terms: PolicyTerms, version: int, caller: Principal
    ) -> PolicyView:
        """Put new terms in force, if `version` is still the one in force.

        What is spent stays spent. The guarantee of a namespace is that of the highest budget it
        ever had, and only as long as it was not raised because of what released models say.

        Raises ProblemError `precondition_failed` if somebody else has changed them meanwhile.
        """
        terms = self._checked(namespace, terms)
        policy = self.settled(
            self.gateway.read(lambda connection: self.owned(connection, namespace, caller))
        )
        same = policy.version == version + 1 and policy.terms == terms  # a repeated request
        if not same:
            self.gateway.write(
                lambda connection: self._update(connection, namespace, terms, version, caller)
            )
        after = self.gateway.read(lambda connection: self.owned(connection, namespace, caller))
        return self.settled(after).view()

    def settled(self, policy: Policy) -> Policy:
        """The policy, once the ledger has its budget."""
        if policy.settled:
            return policy
        budget = policy.terms.budget
        self.gateway.ledger.set_cap(
            _operation("policy", policy.namespace, policy.version),
            policy.namespace,
            epsilon=budget.epsilon,
            delta=budget.delta,
        )
        mark = (
            update(policies)
            .where(policies.c.namespace == policy.namespace, policies.c.version == policy.version)
            .values(settled_version=policy.version)
        )
        self.gateway.write(lambda connection: connection.execute(mark))
        settled_policy = self.gateway.read(
            lambda connection: self.find(connection, policy.namespace)
        )
        assert settled_policy is not None, "policies are never removed"
        return settled_policy

    def resume(self) -> None:
        """Finish what a crash has left unfinished; to be called when a gateway starts."""
        query = _query().where(policies.c.settled_version != policies.c.version)
        unsettled_policies = self.gateway.read(
            lambda connection: [_policy(row) for row in connection.execute(query)]
        )
        for policy in unsettled_policies:
            self.settled(policy)

    def _account(self, namespace: str, budget: BudgetTerms, caller: Principal) -> bool:
        """Open the ledger's account; False if it is open already, under terms that we don't know.

        The operation id is that of caller and budget: a repeated request is the same operation.
        """
        operation = _operation(
            "open", namespace, caller.user_id, float(budget.epsilon), float(budget.delta)
        )
        try:
            self.gateway.ledger.open_account(
                operation, namespace, epsilon=budget.epsilon, delta=budget.delta
            )
        except LedgerConflictError:
            return False
        return True

    def _insert(
        self,
        connection: Connection,
        namespace: str,
        budget: BudgetTerms,
        caller: Principal,
        has_account: bool,
    ) -> None:
        if self.find(connection, namespace) is not None:
            return
        now_ms = self.gateway.now_ms()
        connection.execute(
            insert(policies).values(
                namespace=namespace,
                owner_id=caller.user_id,
                terms=PolicyTerms(budget=budget).model_dump_json(),
                version=1,
                settled_version=1 if has_account else 0,
                created_at_ms=now_ms,
                updated_at_ms=now_ms,
            )
        )

    def _update(
        self,
        connection: Connection,
        namespace: str,
        terms: PolicyTerms,
        version: int,
        caller: Principal,
    ) -> None:
        policy = self.owned(connection, namespace, caller)
        if policy.version != version or not policy.settled:
            raise ProblemError(
                "precondition_failed",
                f"the policy of {namespace!r} is at version {policy.version}, not {version}; read "
                "it again, and decide again",
            )
        check_access_is_settled(connection, caller, namespace, self.gateway.now_ms())
        check_delta(terms.budget, _most_units(connection, namespace))
        check_approvers(connection, terms.approvers)
        same_budget = terms.budget == policy.terms.budget  # then the ledger has nothing to hear
        connection.execute(
            update(policies)
            .where(policies.c.namespace == namespace)
            .values(
                terms=terms.model_dump_json(),
                version=version + 1,
                settled_version=version + 1 if same_budget else version,
                updated_at_ms=self.gateway.now_ms(),
            )
        )

    def _checked(self, namespace: str, terms: PolicyTerms) -> PolicyTerms:
        """Terms that the ledger can take, with times in UTC."""
        RenyiFilter(terms.budget.epsilon, terms.budget.delta)
        if terms.job_epsilon is not None and terms.job_epsilon > terms.budget.epsilon:
            raise ProblemError(
                "invalid",
                f"job_epsilon={terms.job_epsilon:g} is more than the whole budget of {namespace!r}"
                f", {terms.budget.epsilon:g}; lower it, or leave it out",
            )
        ends = None if terms.expires_at is None else in_utc(terms.expires_at)
        return terms.model_copy(update={"expires_at": ends})


def check_delta(budget: BudgetTerms, units: int) -> None:
    """Raises ProblemError unless delta is below 1/units: above, losing one unit's rows outright
    would be within the promise."""
    if budget.delta * units >= 1:
        raise ProblemError(
            "invalid",
            f"delta={budget.delta:g} must be below 1/units={1 / units:.3g}; lower it, for example "
            f"to {0.01 / units:.0e}",
        )


def _most_units(connection: Connection, namespace: str) -> int:
    """The declared size of the namespace's largest dataset, removed ones included: models of
    theirs are still about."""
    query = select(func.max(datasets.c.units)).where(datasets.c.namespace == namespace)
    return connection.execute(query).scalar() or 1


def _operation(kind: str, *parts: object) -> str:
    """An operation id of the ledger: the same for the same parts, and of bounded length."""
    text = "\n".join(str(part) for part in parts)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}"


def _query() -> Any:
    return select(policies, users.c.name.label("owner")).join(
        users, users.c.id == policies.c.owner_id
    )


def _policy(row: Row[Any]) -> Policy:
    return Policy(
        namespace=row.namespace,
        owner_id=row.owner_id,
        owner=row.owner,
        terms=PolicyTerms.model_validate_json(row.terms),
        version=row.version,
        settled=row.settled_version == row.version,
        created_at=moment(row.created_at_ms),
        updated_at=moment(row.updated_at_ms),
    )
