"""Grants: what a user or a group may spend of a namespace's budget.

As with policies, the terms are a row here and a sub-cap in the ledger, and versions keep the two in
step (see `policies.py`). A grant whose terms the ledger does not have yet is not live. Revoking is
a mark on the row: the ledger's sub-cap stays, with what was spent, and nobody is let near it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from taciturn.accounting.filter import RenyiFilter
from taciturn.server.catalog.policies import Policies, Policy
from taciturn.server.context import Gateway
from taciturn.server.identity.holders import check_access_is_settled, check_holder
from taciturn.server.identity.namespace_access import sees_all
from taciturn.server.identity.principal import Principal
from taciturn.server.ledger import NamespaceStatement, statement_within
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import grant_terms
from taciturn.server.timestamps import milliseconds, moment
from taciturn.wire.datasets import GrantTerms, GrantView


@dataclass(frozen=True, slots=True)
class Grants:
    """Gives, changes, revokes and finds grants."""

    gateway: Gateway
    policies: Policies

    def give(self, namespace: str, holder: str, terms: GrantTerms, caller: Principal) -> GrantView:
        """Let a holder spend up to `terms`, or change what was given; also after a revocation.

        Raises ProblemError `not_found`, `forbidden` or `invalid`.
        """
        RenyiFilter(terms.epsilon, terms.delta)
        self.gateway.read(lambda connection: self.policies.owned(connection, namespace, caller))
        self._settle(namespace, holder)
        self.gateway.write(
            lambda connection: self._write(connection, namespace, holder, terms, caller)
        )
        self._settle(namespace, holder)
        return self.read(namespace, holder, caller)

    def revoke(self, namespace: str, holder: str, caller: Principal) -> None:
        """Keep the holder from starting anything more. Budget spent, or held by jobs, stays so."""

        def work(connection: Connection) -> None:
            self.policies.owned(connection, namespace, caller)
            row = _row(connection, namespace, holder)
            if row is None:
                raise _no_grant(namespace, holder)
            if row.revoked_at_ms is None:
                change = update(grant_terms).where(*_key(namespace, holder))
                connection.execute(change.values(revoked_at_ms=self.gateway.now_ms()))

        self.gateway.write(work)

    def read(self, namespace: str, holder: str, caller: Principal) -> GrantView:
        """One grant, to the namespace's owner, auditors, and its holder."""

        def work(connection: Connection) -> GrantView:
            policy = self.policies.visible(connection, namespace, caller)
            row = _row(connection, namespace, holder)
            if row is None or not (sees_all(caller, policy.owner_id) or holder in caller.holders):
                raise _no_grant(namespace, holder)
            return self._views(connection, policy, [row], caller)[0]

        return self.gateway.read(work)

    def page(
        self, namespace: str, caller: Principal, after: str, fetch: int
    ) -> Sequence[GrantView]:
        """The grants of a namespace by holder; practitioners see their own only."""

        def work(connection: Connection) -> list[GrantView]:
            policy = self.policies.visible(connection, namespace, caller)
            query = self._query(namespace, policy, caller).where(grant_terms.c.holder > after)
            rows = connection.execute(query.limit(fetch)).all()
            return self._views(connection, policy, rows, caller)

        return self.gateway.read(work)

    def rows(
        self, connection: Connection, policies: Collection[Policy], caller: Principal
    ) -> dict[str, list[Row[Any]]]:
        """The grants of these namespaces that the caller may see, by one query."""
        overseen = [p.namespace for p in policies if sees_all(caller, p.owner_id)]
        rows: dict[str, list[Row[Any]]] = {policy.namespace: [] for policy in policies}
        is_visible = or_(
            grant_terms.c.namespace.in_(overseen), grant_terms.c.holder.in_(caller.holders)
        )
        query = select(grant_terms).where(grant_terms.c.namespace.in_(list(rows)), is_visible)
        for row in connection.execute(query.order_by(grant_terms.c.holder)):
            rows[row.namespace].append(row)
        return rows

    def _views(
        self,
        connection: Connection,
        policy: Policy,
        rows: Sequence[Row[Any]],
        caller: Principal,
    ) -> list[GrantView]:
        """Terms from the rows, balances from the ledger."""
        if not rows:
            return []
        settled = not sees_all(caller, policy.owner_id)
        key = self.gateway.seal_key
        statement = statement_within(connection, key, policy.namespace, settled=settled)
        return [grant_view(row, statement) for row in rows]

    def resume(self) -> None:
        """Finish what a crash has left unfinished; to be called when a gateway starts."""
        query = select(grant_terms.c.namespace, grant_terms.c.holder).where(
            grant_terms.c.settled_version != grant_terms.c.version
        )
        rows = self.gateway.read(lambda connection: list(connection.execute(query)))
        for row in rows:
            self._settle(row.namespace, row.holder)

    def _query(self, namespace: str, policy: Policy, caller: Principal) -> Any:
        query = select(grant_terms).where(grant_terms.c.namespace == namespace)
        if not sees_all(caller, policy.owner_id):
            query = query.where(grant_terms.c.holder.in_(caller.holders))
        return query.order_by(grant_terms.c.holder)

    def _write(
        self,
        connection: Connection,
        namespace: str,
        holder: str,
        terms: GrantTerms,
        caller: Principal,
    ) -> None:
        policy = self.policies.owned(connection, namespace, caller)
        check_access_is_settled(connection, caller, namespace, self.gateway.now_ms())
        check_holder(connection, holder)
        _check_below(policy, terms)
        row = _row(connection, namespace, holder)
        if row is not None and row.settled_version != row.version:
            raise ProblemError("conflict", "this grant is being changed right now; try again")
        values = {
            "granted_by": caller.user_id,
            "epsilon": terms.epsilon,
            "delta": terms.delta,
            "expires_at_ms": None if terms.expires_at is None else milliseconds(terms.expires_at),
            "revoked_at_ms": None,
        }
        if row is None:
            new = {"namespace": namespace, "holder": holder, "version": 1, "settled_version": 0}
            connection.execute(insert(grant_terms).values({**new, **values}))
            return
        if (row.epsilon, row.delta) != (terms.epsilon, terms.delta):
            values["version"] = row.version + 1  # the ledger has to hear of it
        connection.execute(update(grant_terms).where(*_key(namespace, holder)).values(values))

    def _settle(self, namespace: str, holder: str) -> None:
        """Write the grant to the ledger, unless it is there."""
        row = self.gateway.read(lambda connection: _row(connection, namespace, holder))
        if row is None or row.settled_version == row.version:
            return
        digest = hashlib.sha256(f"{namespace}\n{holder}\n{row.version}".encode()).hexdigest()
        self.gateway.ledger.set_grant(
            f"grant-{digest}", namespace, holder, epsilon=row.epsilon, delta=row.delta
        )
        mark = (
            update(grant_terms)
            .where(*_key(namespace, holder), grant_terms.c.version == row.version)
            .values(settled_version=row.version)
        )
        self.gateway.write(lambda connection: connection.execute(mark))


def _check_below(policy: Policy, terms: GrantTerms) -> None:
    joint = policy.terms.budget
    if terms.epsilon > joint.epsilon or terms.delta > joint.delta:
        raise ProblemError(
            "invalid",
            f"epsilon={terms.epsilon:g}, delta={terms.delta:g} is more than the joint budget of "
            f"{policy.namespace!r}, epsilon={joint.epsilon:g}, delta={joint.delta:g}; give less",
        )


def _key(namespace: str, holder: str) -> tuple[Any, Any]:
    return grant_terms.c.namespace == namespace, grant_terms.c.holder == holder


def _row(connection: Connection, namespace: str, holder: str) -> Row[Any] | None:
    return connection.execute(select(grant_terms).where(*_key(namespace, holder))).first()


def _no_grant(namespace: str, holder: str) -> ProblemError:
    return ProblemError(
        "not_found", f"{holder!r} holds no grant in {namespace!r}, or one that you may not see"
    )


def grant_view(row: Row[Any], statement: NamespaceStatement) -> GrantView:
    """A grant's terms from its row, its balance from the ledger, which may not have it yet."""
    balance = statement.grants.get(row.holder)
    return GrantView(
        namespace=row.namespace,
        holder=row.holder,
        epsilon=row.epsilon,
        delta=row.delta,
        expires_at=None if row.expires_at_ms is None else moment(row.expires_at_ms),
        revoked_at=None if row.revoked_at_ms is None else moment(row.revoked_at_ms),
        charged=0.0 if balance is None else balance.charged,
        taken=0.0 if balance is None else balance.used,
    )
