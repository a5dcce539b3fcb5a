"""Which namespaces a person may know of: their own, those with a live grant, an auditor all."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, or_, select, true

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


def grant_is_live(now_ms: int) -> ColumnElement[bool]:
    """A condition on rows of `grant_terms`."""
    lasting = or_(grant_terms.c.expires_at_ms.is_(None), grant_terms.c.expires_at_ms > now_ms)
    settled = grant_terms.c.settled_version == grant_terms.c.version
    return grant_terms.c.revoked_at_ms.is_(None) & lasting & settled


def sees(caller: Principal, now_ms: int) -> ColumnElement[bool]:
    """A condition on rows of `policies`."""
    if caller.has(Role.AUDITOR):
        return true()
    seen = policies.c.namespace.in_(live_grants(caller, now_ms))
    if caller.has(Role.OWNER):
        return or_(policies.c.owner_id == caller.user_id, seen)
    return seen


def no_namespace(namespace: str) -> ProblemError:
    """What is said where there is none, or none that the caller may know of."""
    return ProblemError(
        "not_found",
        f"there is no namespace {namespace!r}, or you hold no grant in it; ask its owner",
    )


def no_dataset(name: str) -> ProblemError:
    """As `no_namespace`, of a dataset."""
    return ProblemError(
        "not_found", f"there is no dataset {name!r}, or you hold no grant for it; ask its owner"
    )
