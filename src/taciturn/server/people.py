"""Holders, `user:NAME` and `group:NAME`: whether there is anybody behind them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, select

from taciturn.server.problems import ProblemError
from taciturn.server.tables import memberships, users
from taciturn.wire.identity import Role


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
        found = people(connection, holder)
        deciding |= {user for user, roles in found.items() if Role.OWNER in roles}
    if approvers and len(deciding) < 2:
        raise ProblemError(
            "invalid",
            f"the approvers hold {len(deciding)} person(s) with the role 'owner', and two have to "
            "approve; name more, or nobody to rule out exceptions",
        )
