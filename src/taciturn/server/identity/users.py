"""People: who there is, what roles and groups they have; the rules that keep duties apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from taciturn.data import places
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory, check_roles, revoke_all, role_text
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import memberships, users
from taciturn.server.timestamps import moment
from taciturn.wire.identity import NewUser, Role, UserChange, UserView
from taciturn.wire.values import Page


@dataclass(frozen=True, slots=True)
class Users:
    """Administrators' work on people."""

    gateway: Gateway
    directory: Directory

    def list(self, paging: Paging, text: str | None = None) -> Page[UserView]:
        """All users, or those whose name holds a text, by name."""

        def work(connection: Connection) -> Page[UserView]:
            query = select(users).where(users.c.name > paging.name()).order_by(users.c.name)
            if text is not None:
                query = query.where(users.c.name.icontains(text, autoescape=True))
            rows = connection.execute(query.limit(paging.fetch)).all()
            groups = _groups(connection, (row.id for row in rows))
            return paging.page(rows, lambda row: _view(row, groups), lambda row: row.name)

        return self.gateway.read(work)

    def get(self, name: str) -> UserView:
        """One person; raises ProblemError `not_found`."""

        def work(connection: Connection) -> UserView:
            row = user_row(connection, name)
            return _view(row, _groups(connection, [row.id]))

        return self.gateway.read(work)

    def create(self, new: NewUser) -> UserView:
        """Let a person in; raises ProblemError if the name is taken or the roles contradict,
        SpecError for a source that is none."""
        self.directory.create_user(
            new.name,
            new.roles,
            display_name=new.display_name,
            groups=new.groups,
            sources=_spelled(new.sources),
        )
        return self.get(new.name)

    def change(self, caller: Principal, name: str, change: UserChange) -> UserView:
        """Change a person, by somebody else. Who is disabled is logged out everywhere, for good.

        Raises:
            ProblemError: `separation_of_duty` for one's own roles, groups, sources or state;
                `conflict` if no enabled admin would be left.
            SpecError: a source is none.
        """
        if name == caller.name and not _only_cosmetic(change):
            raise ProblemError(
                "separation_of_duty",
                "you cannot change your own roles, groups, sources or state; ask another "
                "administrator",
            )
        if change.roles is not None:
            check_roles(change.roles)
            if not change.roles:
                raise ProblemError("invalid", "roles: give one at least, or disable the user")
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            row = user_row(connection, name)
            _apply(connection, row, change, now_ms)
            check_an_admin_is_left(connection)
            if change.disabled:
                revoke_all(connection, row.id, now_ms)

        self.gateway.write(work)
        self.directory.remembered.forget()
        return self.get(name)


def _apply(connection: Connection, row: Row[Any], change: UserChange, now_ms: int) -> None:
    values: dict[str, Any] = {}
    if _gains(row, change, _groups(connection, [row.id]).get(row.id, ())):
        values["access_changed_at_ms"] = now_ms
    if change.display_name is not None:
        values["display_name"] = change.display_name
    if change.roles is not None:
        values["roles"] = role_text(change.roles)
    if change.disabled is not None:
        values["disabled"] = change.disabled
    if change.sources is not None:
        values["sources"] = json.dumps(_spelled(change.sources))
    if values:
        connection.execute(update(users).where(users.c.id == row.id).values(values))
    if change.groups is not None:
        set_groups(connection, row.id, change.groups)


def _gains(row: Row[Any], change: UserChange, groups: Iterable[str]) -> bool:
    """True if the person may do more afterwards than before."""
    roles = set(change.roles or ()) - {Role(name) for name in json.loads(row.roles)}
    let_in = bool(row.disabled) and change.disabled is False
    return bool(roles) or let_in or bool(set(change.groups or ()) - set(groups))


def set_groups(connection: Connection, user_id: str, groups: Iterable[str]) -> None:
    """A person is in these groups and no others."""
    connection.execute(delete(memberships).where(memberships.c.user_id == user_id))
    for group in sorted(set(groups)):
        connection.execute(insert(memberships).values(user_id=user_id, group_name=group))


def check_an_admin_is_left(connection: Connection) -> None:
    """Raises ProblemError if nobody could administer the gateway any more."""
    admins = select(users.c.id).where(
        users.c.disabled.is_(False), users.c.roles.contains(f'"{Role.ADMIN}"')
    )
    if connection.execute(admins.limit(1)).first() is None:
        raise ProblemError(
            "conflict",
            "no enabled administrator would be left; make somebody else an administrator first",
        )


def _only_cosmetic(change: UserChange) -> bool:
    fields = (change.roles, change.groups, change.disabled, change.sources)
    return all(field is None for field in fields)


def _spelled(sources: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(places.prefix, sources)))


def user_row(connection: Connection, name: str) -> Row[Any]:
    """The row of a person; raises ProblemError `not_found`."""
    row = connection.execute(select(users).where(users.c.name == name)).first()
    if row is None:
        raise ProblemError("not_found", f"there is no user {name!r}; `taciturn user list` has all")
    return row


def _groups(connection: Connection, user_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    query = select(memberships).where(memberships.c.user_id.in_(list(user_ids)))
    groups: dict[str, list[str]] = {}
    for row in connection.execute(query.order_by(memberships.c.group_name)):
        groups.setdefault(row.user_id, []).append(row.group_name)
    return {user_id: tuple(names) for user_id, names in groups.items()}


def _view(row: Row[Any], groups: dict[str, tuple[str, ...]]) -> UserView:
    return UserView(
        name=row.name,
        display_name=row.display_name,
        roles=tuple(Role(name) for name in json.loads(row.roles)),
        groups=groups.get(row.id, ()),
        disabled=row.disabled,
        sources=tuple(json.loads(row.sources)),
        created_at=moment(row.created_at_ms),
        access_changed_at=moment(row.access_changed_at_ms),
    )
