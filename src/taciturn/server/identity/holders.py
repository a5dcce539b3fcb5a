"""Holders, `user:NAME` and `group:NAME`: whether there is anybody behind them; and whether a person
is still who they were, or may be an administrator who has let themself in as them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, case, func, select

from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import memberships, password_links, policies, users
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.identity import Role

_HOUR_MS = 3_600_000


def people(connection: Connection, holder: str) -> dict[str, frozenset[Role]]:
    """The users, with their roles, whom a holder stands for; without those who are locked out."""
    kind, _, name = holder.partition(":")
    query = select(users.c.id, users.c.roles).where(users.c.disabled.is_(False))
    if kind == "user":
        query = query.where(users.c.name == name)
    else:
        query = query.join(memberships, memberships.c.user_id == users.c.id).where(
            memberships.c.group_name == name
        )
    return {
        row.id: frozenset(Role(role) for role in json.loads(row.roles))
        for row in connection.execute(query)
    }


def people_with(connection: Connection, role: Role) -> list[str]:
    """Return the users who have a role, without those who are locked out."""
    query = select(users.c.id).where(
        users.c.disabled.is_(False), users.c.roles.contains(f'"{role}"')
    )
    return list(connection.execute(query.order_by(users.c.id)).scalars())


def check_holder(connection: Connection, holder: str) -> None:
    """Raises ProblemError if nobody could draw on a grant of this holder: a misspelt name would
    else wait, with a budget, for whoever takes it."""
    if not people(connection, holder):
        raise ProblemError(
            "invalid", f"there is no {holder.replace(':', ' ')!r} here; check the name"
        )


def check_approvers(connection: Connection, approvers: Sequence[str]) -> None:
    """Raises ProblemError unless each approver is somebody, and two owners at least are among
    them: it takes two to approve."""
    deciding: set[str] = set()
    for holder in approvers:
        check_holder(connection, holder)
        users_of_holder = people(connection, holder)
        deciding |= {user for user, roles in users_of_holder.items() if Role.OWNER in roles}
    if approvers and len(deciding) < 2:
        raise ProblemError(
            "invalid",
            f"the approvers hold {len(deciding)} person(s) with the role 'owner', and two have to "
            "approve; name more, or nobody to rule out exceptions",
        )


def check_access_is_settled(
    connection: Connection, caller: Principal, namespace: str | None, now_ms: int
) -> None:
    """Raises ProblemError `policy_refused` if an administrator has changed how the caller gets in
    since the namespace was opened, and its policy's `reset_wait_h` is not over since then. Before
    what only trusted people may do: approve, change terms, register data, read an incident.

    An administrator who makes a link for somebody's password and redeems it is found out within
    that time: the person's own password no longer works. Who does not own the namespace, and so
    approves because of a group or name, waits after a new role or group too, or after being let in:
    else an administrator could make two approvers.

    Args:
        namespace: None for all that the caller owns.
    """
    owned = policies.c.owner_id == caller.user_id
    reset = select(func.max(password_links.c.redeemed_at_ms)).where(
        password_links.c.user_id == caller.user_id
    )
    changed = case((owned, reset.scalar_subquery()), else_=users.c.access_changed_at_ms)
    query = select(policies.c.namespace, policies.c.terms, changed.label("changed_at_ms")).where(
        users.c.id == caller.user_id,
        owned if namespace is None else policies.c.namespace == namespace,
        changed > policies.c.created_at_ms,
    )
    for row in connection.execute(query):
        wait_h = PolicyTerms.model_validate_json(row.terms).reset_wait_h
        until_ms = row.changed_at_ms + round(wait_h * _HOUR_MS)
        if now_ms < until_ms:
            raise ProblemError(
                "policy_refused",
                f"at {moment(row.changed_at_ms):%Y-%m-%d %H:%M} UTC an administrator changed how "
                "you get in or what you may do here (a link for your password, a role, a group); "
                f"for {wait_h:g} h from then, until {moment(until_ms):%Y-%m-%d %H:%M} UTC, you can "
                f"do nothing that needs trust in {row.namespace!r}, by its policy. If that was not "
                "for you, tell the data's owner and an auditor now",
            )
