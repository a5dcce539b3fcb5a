"""Permissions of each role: one table, from which routes, documents and the deny tests are made.

An action is `resource:verb`, and lets a caller use a route. The rows that they see or change there
(their own jobs, datasets with a grant) follow from `job_access`, `namespace_access` and
`approval_access`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from types import MappingProxyType

from taciturn.wire.identity import Role


class Action(StrEnum):
    """Everything that the gateway lets anybody do."""

    SELF_READ = "self:read"
    TOKENS_MANAGE = "tokens:manage"
    NOTIFICATIONS_MANAGE = "notifications:manage"
    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    PUBLIC_DATASETS_READ = "public-datasets:read"
    PUBLIC_DATASETS_WRITE = "public-datasets:write"
    POLICIES_READ = "policies:read"
    POLICIES_WRITE = "policies:write"
    GRANTS_READ = "grants:read"
    GRANTS_WRITE = "grants:write"
    BUDGETS_READ = "budgets:read"
    JOBS_READ = "jobs:read"
    JOBS_CREATE = "jobs:create"
    JOBS_CANCEL = "jobs:cancel"
    JOBS_OPERATE = "jobs:operate"
    MODELS_READ = "models:read"
    MODELS_USE = "models:use"
    MODELS_WRITE = "models:write"
    BASE_MODELS_READ = "base-models:read"
    BASE_MODELS_WRITE = "base-models:write"
    APPROVALS_READ = "approvals:read"
    APPROVALS_DECIDE = "approvals:decide"
    INCIDENTS_READ = "incidents:read"
    LEDGER_READ = "ledger:read"
    AUDIT_LOG_READ = "audit-log:read"
    GATEWAY_READ = "gateway:read"
    RETENTION_READ = "retention:read"
    RETENTION_PRUNE = "retention:prune"


_EVERYBODY = frozenset(Role)
_OWNER, _ADMIN, _AUDITOR = Role.OWNER, Role.ADMIN, Role.AUDITOR
_PRACTITIONER = Role.PRACTITIONER

PERMISSIONS = MappingProxyType(
    {
        Action.SELF_READ: _EVERYBODY,
        Action.TOKENS_MANAGE: _EVERYBODY,
        Action.NOTIFICATIONS_MANAGE: _EVERYBODY,
        Action.USERS_READ: frozenset({_ADMIN, _AUDITOR}),
        Action.USERS_WRITE: frozenset({_ADMIN}),
        Action.DATASETS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.DATASETS_WRITE: frozenset({_OWNER}),
        Action.PUBLIC_DATASETS_READ: _EVERYBODY,
        Action.PUBLIC_DATASETS_WRITE: frozenset({_OWNER, _ADMIN}),
        Action.POLICIES_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.POLICIES_WRITE: frozenset({_OWNER}),
        Action.GRANTS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.GRANTS_WRITE: frozenset({_OWNER}),
        Action.BUDGETS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.JOBS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.JOBS_CREATE: frozenset({_OWNER, _PRACTITIONER}),
        Action.JOBS_CANCEL: frozenset({_OWNER, _PRACTITIONER}),
        Action.JOBS_OPERATE: frozenset({_ADMIN}),
        Action.MODELS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.MODELS_USE: frozenset({_OWNER, _PRACTITIONER}),
        Action.MODELS_WRITE: frozenset({_OWNER, _PRACTITIONER}),
        Action.BASE_MODELS_READ: frozenset({_ADMIN, _OWNER, _PRACTITIONER, _AUDITOR}),
        Action.BASE_MODELS_WRITE: frozenset({_ADMIN}),
        Action.APPROVALS_READ: frozenset({_OWNER, _PRACTITIONER, _AUDITOR}),
        Action.APPROVALS_DECIDE: frozenset({_OWNER}),
        Action.INCIDENTS_READ: frozenset({_OWNER}),
        Action.LEDGER_READ: frozenset({_OWNER, _AUDITOR}),
        Action.AUDIT_LOG_READ: frozenset({_AUDITOR}),
        Action.GATEWAY_READ: frozenset({_ADMIN}),
        Action.RETENTION_READ: frozenset({_ADMIN, _AUDITOR}),
        Action.RETENTION_PRUNE: frozenset({_ADMIN}),
    }
)


def actions_of(roles: Iterable[Role]) -> frozenset[Action]:
    """Actions that these roles allow."""
    own_roles = frozenset(roles)
    return frozenset(
        action for action, allowed_roles in PERMISSIONS.items() if own_roles & allowed_roles
    )
