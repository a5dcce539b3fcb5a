"""Access to namespaces and their datasets: to a person's own, and to those with a live grant; an
auditor's to all."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, or_, select, true

from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import grant_terms, policies
from taciturn.wire.identity import Role


def live_grants(caller: Principal, now_ms: int) -> Select[tuple[str]]:
    """The namespaces of the grants that the caller or a group of theirs holds: not revoked, not
    expired, and with the ledger's agreement to the terms that stand there."""
    return select(grant_terms.c.namespace).where(
        grant_terms.c.holder.in_(caller.holders), grant_is_live(now_ms)
    )


def live_holders(
    connection: Connection, caller: Principal, namespace: str, now_ms: int
) -> tuple[str, ...]:
    """Holders whose grants a person may draw on now: their own first, then their groups'."""
    query = select(grant_terms.c.holder).where(
        grant_terms.c.namespace == namespace,
        grant_terms.c.holder.in_(caller.holders),
        grant_is_live(now_ms),
    )
    live = set(connection.execute(query).scalars())
    return tuple(holder for holder in caller.holders if holder in live)


def grant_is_live(now_ms: int) -> ColumnElement[bool]:
    """Condition on rows of `grant_terms`."""
    lasting = or_(grant_terms.c.expires_at_ms.is_(None), grant_terms.c.expires_at_ms > now_ms)
    settled = grant_terms.c.settled_version == grant_terms.c.version
    return grant_terms.c.revoked_at_ms.is_(None) & lasting & settled


def sees(caller: Principal, now_ms: int) -> ColumnElement[bool]:
    """Condition on rows of `policies` that the caller may know of."""
    if caller.has(Role.AUDITOR):
        return true()
    has_grant = policies.c.namespace.in_(live_grants(caller, now_ms))
    if caller.has(Role.OWNER):
        return or_(policies.c.owner_id == caller.user_id, has_grant)
    return has_grant


def owned_namespaces(caller: Principal) -> Select[tuple[str]]:
    """The namespaces that were opened by the caller, who may be no owner any more."""
    return select(policies.c.namespace).where(policies.c.owner_id == caller.user_id)


def owns(caller: Principal, owner_id: str) -> bool:
    """True if a namespace of this owner is the caller's, who has to be an owner still."""
    return caller.has(Role.OWNER) and owner_id == caller.user_id


def sees_all(caller: Principal, owner_id: str) -> bool:
    """True if the caller sees everybody's grants and spending in a namespace of this owner."""
    return caller.has(Role.AUDITOR) or owns(caller, owner_id)


def no_namespace(namespace: str) -> ProblemError:
    """Problem for a namespace that is not there, or that the caller may not know of."""
    return ProblemError(
        "not_found",
        f"there is no namespace {namespace!r}, or you hold no grant in it; ask its owner",
    )


def no_dataset(name: str) -> ProblemError:
    """Problem for a dataset that is not there, or that the caller may not know of."""
    return ProblemError(
        "not_found", f"there is no dataset {name!r}, or you hold no grant for it; ask its owner"
    )
