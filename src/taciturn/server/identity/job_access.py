"""Which jobs, models and results a person may know of: their own, and those of their data."""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, false, or_, select, true

from taciturn.server.identity.principal import Principal
from taciturn.server.schema.tables import jobs, models, policies
from taciturn.wire.identity import Role


def watches_job(caller: Principal) -> ColumnElement[bool]:
    """A condition on rows of `jobs`: whose course the caller may follow; an auditor's all."""
    return true() if caller.has(Role.AUDITOR) else holds_job(caller)


def holds_job(caller: Principal) -> ColumnElement[bool]:
    """A condition on rows of `jobs`: whose results are the caller's to have."""
    return _holds(caller, jobs, jobs.c.requester_id)


def watches_model(caller: Principal) -> ColumnElement[bool]:
    """A condition on rows of `models`: which the caller may know of; an auditor all."""
    return true() if caller.has(Role.AUDITOR) else holds_model(caller)


def holds_model(caller: Principal) -> ColumnElement[bool]:
    """A condition on rows of `models`: which are the caller's to have and to use."""
    return _holds(caller, models, models.c.owner_id)


def owns_namespace(caller: Principal, namespace: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the namespace is the caller's, who has to be an owner still."""
    if not caller.has(Role.OWNER):
        return false()
    owned = select(policies.c.namespace).where(policies.c.owner_id == caller.user_id)
    return namespace.in_(owned)


def _holds(caller: Principal, table: FromClause, person: ColumnElement[str]) -> ColumnElement[bool]:
    return or_(person == caller.user_id, owns_namespace(caller, table.c.namespace))
