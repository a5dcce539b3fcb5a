"""Users, groups and tokens: who there is, and who a token stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, Update, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity import secret
from taciturn.server.identity.permissions import Action, actions_of
from taciturn.server.identity.principal import Principal, WorkerPrincipal
from taciturn.server.identity.remembered import Remembered
from taciturn.server.identity.token_uses import TokenUses
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import memberships, password_links, tokens, users
from taciturn.wire.identity import Role

_DAY_MS = 86_400_000
_ATTEMPT, _AUDIENCE = "attempt:", "audience:"  # what a worker's token is bound to


@dataclass(frozen=True, slots=True)
class _TokenRecord:
    token: Row[Any]
    groups: frozenset[str]

    def principal(self, now_ms: int, audience: str) -> Principal | WorkerPrincipal:
        token = self.token
        if token.revoked_at_ms is not None or token.expires_at_ms <= now_ms:
            raise unauthenticated()
        if token.kind == "worker":
            return _worker(token, audience)
        if token.user_name is None or token.disabled:
            raise unauthenticated()
        roles = frozenset(Role(name) for name in json.loads(token.user_roles))
        scopes = json.loads(token.scopes)
        actions = actions_of(roles)
        if scopes:
            actions &= {Action(scope) for scope in scopes if scope in set(Action)}
        return Principal(
            user_id=token.user_id,
            name=token.user_name,
            display_name=token.user_display_name,
            roles=roles,
            groups=self.groups,
            actions=actions,
            token_id=token.id,
            expires_at_ms=token.expires_at_ms,
            session=token.kind == "session",
        )


@dataclass(frozen=True, slots=True)
class Directory:
    """Looks people and tokens up."""

    gateway: Gateway
    remembered: Remembered[Principal] = field(default_factory=Remembered)
    uses: TokenUses = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uses", TokenUses(self.gateway))

    def authenticate(self, token: str) -> Principal | WorkerPrincipal:
        """Return the holder of this token. Raises ProblemError `unauthenticated`, always with the
        same words: nobody learns whether a token never was, has expired or was revoked.

        People are remembered for a second; workers never are, so that the token of a job can be
        revoked without a word to this process.
        """
        cached_caller = self.cached_principal(token)
        if cached_caller is not None:
            return cached_caller
        token_id = secret.token_id(token)
        if token_id is None:
            raise unauthenticated()
        generation = self.remembered.generation
        record = _token_record(self.gateway.rows(_of_token(token_id)))
        if record is None or not secret.matches(token, record.token.digest):
            raise unauthenticated()
        caller = record.principal(self.gateway.now_ms(), self.gateway.audience)
        if isinstance(caller, Principal):
            self.remembered.keep(record.token.digest, caller, generation)
            self.uses.note(caller.token_id)
        return caller

    def cached_principal(self, token: str) -> Principal | None:
        """Return the holder of this token if it was looked up within the last second, without the
        database."""
        principal = self.remembered.get(secret.digest(token))
        if principal is not None and principal.expires_at_ms <= self.gateway.now_ms():
            raise unauthenticated()
        return principal

    def create_user(
        self,
        name: str,
        roles: Sequence[Role],
        *,
        display_name: str | None = None,
        groups: Sequence[str] = (),
        password_hash: str | None = None,
        oidc_subject: str | None = None,
        sources: Sequence[str] = (),
    ) -> str:
        """Add a person; returns their id. Raises ProblemError `conflict` if the name is taken."""
        check_roles(roles)
        user_id = secret.new_id("usr")
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            if connection.execute(select(users.c.id).where(users.c.name == name)).first():
                raise ProblemError("conflict", f"there is a user {name!r} already")
            connection.execute(
                insert(users).values(
                    id=user_id,
                    name=name,
                    display_name=display_name,
                    roles=role_text(roles),
                    password_hash=password_hash,
                    oidc_subject=oidc_subject,
                    disabled=False,
                    sources=json.dumps(list(sources)),
                    created_at_ms=now_ms,
                    access_changed_at_ms=now_ms,
                )
            )
            for group in sorted(set(groups)):
                connection.execute(insert(memberships).values(user_id=user_id, group_name=group))

        self.gateway.write(work)
        return user_id

    def create_token(
        self,
        *,
        kind: str,
        name: str,
        lifetime_ms: int = 30 * _DAY_MS,
        user_id: str | None = None,
        job_id: str | None = None,
        scopes: Sequence[str] = (),
    ) -> secret.NewSecret:
        """Make a token; its text is nowhere but in the answer."""
        new_token = secret.new_secret()
        now_ms = self.gateway.now_ms()
        row = {
            "id": new_token.id,
            "kind": kind,
            "user_id": user_id,
            "job_id": job_id,
            "name": name,
            "digest": new_token.digest,
            "scopes": json.dumps(sorted(scopes)),
            "created_at_ms": now_ms,
            "expires_at_ms": now_ms + lifetime_ms,
        }
        self.gateway.add(insert(tokens), [row])
        return new_token

    def create_worker_token(self, job_id: str, attempt: int) -> secret.NewSecret:
        """A token for the worker of one attempt of a job, good at this gateway, and for as long as
        a job is held without a worker; signs of life make that longer."""
        return self.create_token(
            kind="worker",
            name=f"worker {attempt}",
            job_id=job_id,
            lifetime_ms=round(1000 * self.gateway.settings.hold_s),
            scopes=(f"{_ATTEMPT}{attempt}", f"{_AUDIENCE}{self.gateway.audience}"),
        )

    def revoke(self, token_id: str) -> None:
        """Revoke a token."""
        change = (
            update(tokens)
            .where(tokens.c.id == token_id, tokens.c.revoked_at_ms.is_(None))
            .values(revoked_at_ms=self.gateway.now_ms())
        )
        self.gateway.write(lambda connection: connection.execute(change))
        self.remembered.forget()


def person(connection: Connection, user_id: str) -> Principal | None:
    """Return a person as they are now, without a token in hand; None for one who is locked out. For
    what is decided about people while they ask for nothing."""
    query = select(users).where(users.c.id == user_id, users.c.disabled.is_(False))
    row = connection.execute(query).first()
    if row is None:
        return None
    groups = select(memberships.c.group_name).where(memberships.c.user_id == user_id)
    roles = frozenset(Role(name) for name in json.loads(row.roles))
    return Principal(
        user_id=row.id,
        name=row.name,
        display_name=row.display_name,
        roles=roles,
        groups=frozenset(connection.execute(groups).scalars()),
        actions=actions_of(roles),
        token_id="",
        expires_at_ms=0,
    )


def check_roles(roles: Iterable[Role]) -> None:
    """Raises ProblemError unless one person may have all of these: an auditor looks at what others
    did, so has no other role."""
    own_roles = set(roles)
    if Role.AUDITOR in own_roles and len(own_roles) > 1:
        other_roles = ", ".join(sorted(own_roles - {Role.AUDITOR}))
        raise ProblemError(
            "separation_of_duty",
            f"an auditor has no other role, and this would also be {other_roles}; give one or the "
            "other",
        )


def revoke_all(
    connection: Connection, user_id: str, now_ms: int, *, but: str | None = None
) -> None:
    """End a person's tokens and sessions, but one, and the links through which their password could
    still be set. Whoever calls it makes `remembered` forget."""
    live_tokens = (
        tokens.c.user_id == user_id,
        tokens.c.revoked_at_ms.is_(None),
        tokens.c.id != (but or ""),
    )
    connection.execute(update(tokens).where(*live_tokens).values(revoked_at_ms=now_ms))
    connection.execute(open_links(user_id, now_ms).values(expires_at_ms=now_ms))


def open_links(user_id: str, now_ms: int) -> Update:
    """A change to those of a person's links that can still be redeemed."""
    return update(password_links).where(
        password_links.c.user_id == user_id,
        password_links.c.redeemed_at_ms.is_(None),
        password_links.c.expires_at_ms > now_ms,
    )


def unauthenticated() -> ProblemError:
    """Problem for a caller without a valid token."""
    return ProblemError(
        "unauthenticated",
        "give a valid token in the header `Authorization: Bearer ...`; `taciturn login` gets one",
        headers={"WWW-Authenticate": 'Bearer realm="taciturn"'},
    )


def prolonged(token_id: str, until_ms: int) -> Update:
    """A worker that lives keeps its token."""
    own_token = (tokens.c.id == token_id) & tokens.c.revoked_at_ms.is_(None)
    return update(tokens).where(own_token).values(expires_at_ms=until_ms)


def _worker(token: Row[Any], audience: str) -> WorkerPrincipal:
    """Worker that a token stands for; raises ProblemError if it was made for another gateway."""
    bound = json.loads(token.scopes)
    attempts = [int(scope.removeprefix(_ATTEMPT)) for scope in bound if scope.startswith(_ATTEMPT)]
    if f"{_AUDIENCE}{audience}" not in bound or len(attempts) != 1:
        raise unauthenticated()
    return WorkerPrincipal(token.job_id, token.id, attempts[0])


def _of_token(token_id: str) -> Select[Any]:
    """A token with its user, who may be nobody, a row for each of their groups."""
    person = (users.c[name].label(f"user_{name}") for name in ("name", "display_name", "roles"))
    return (
        select(tokens, *person, users.c.disabled, memberships.c.group_name)
        .outerjoin(users, users.c.id == tokens.c.user_id)
        .outerjoin(memberships, memberships.c.user_id == tokens.c.user_id)
        .where(tokens.c.id == token_id)
    )


def _token_record(rows: Sequence[Row[Any]]) -> _TokenRecord | None:
    groups = frozenset(row.group_name for row in rows if row.group_name is not None)
    return _TokenRecord(rows[0], groups) if rows else None


def role_text(roles: Iterable[Role]) -> str:
    """Roles as the table keeps them."""
    return json.dumps(sorted(set(roles)))
