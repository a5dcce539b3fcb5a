"""Logins through an OpenID provider: browsers get a session; command lines a one-time code, once
the person has said yes to a page.

The state of a login travels sealed: in a cookie of the browser that began it, so that nobody else
can finish it; and in the code that a command line trades for a token, with the proof (PKCE's own)
that it is the same command line.

The provider decides on roles: at each login, roles and groups become those that it names.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import Connection, Row, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory, check_roles, role_text
from taciturn.server.identity.email_addresses import keep_vouched
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.provider import Client, Provider
from taciturn.server.identity.secret import NewSecret, new_id
from taciturn.server.identity.users import check_an_admin_is_left, set_groups
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import logins, users
from taciturn.server.settings import Settings
from taciturn.wire.identity import Role

FLOW_S, CODE_S = 600, 120
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_MOST_GROUPS = 500


@dataclass(frozen=True, slots=True)
class LoginOrigin:
    """Browser that began a login, or command line with its challenge, which listens on a port of
    the same machine or else wants to show the code."""

    challenge: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Oidc:
    """Logins through the provider of the settings."""

    gateway: Gateway
    directory: Directory
    logins: Logins
    provider: Provider | None

    @classmethod
    def of(cls, gateway: Gateway, directory: Directory, logins: Logins) -> Oidc:
        """Return logins through the provider of the settings, if they name one."""
        client = _client(gateway.settings)
        return cls(gateway, directory, logins, Provider(client) if client else None)

    def begin(self, origin: LoginOrigin) -> tuple[str, str]:
        """Return the address the browser goes to, and the sealed value of the cookie that it needs
        when it comes back."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url = self._required_provider().login_url(state, nonce, verifier)
        flow = {"state": state, "nonce": nonce, "verifier": verifier}
        return url, self._seal("flow", flow | {"challenge": origin.challenge, "port": origin.port})

    def finish(self, sealed: str, state: str, code: str) -> tuple[str, LoginOrigin]:
        """Return the id of the user who has logged in, and the origin of the login.

        Raises:
            ProblemError: `unauthenticated` for a login that this browser did not begin, or that
                the provider does not vouch for; `forbidden` for a person without a role.
        """
        provider, flow = self._required_provider(), self._open("flow", sealed, FLOW_S)
        if not hmac.compare_digest(flow["state"].encode(), state.encode()):
            raise _not_begun()
        claims = provider.claims(code, flow["nonce"], flow["verifier"])
        return self._admit(claims), LoginOrigin(flow["challenge"], flow["port"])

    def ask(self, user_id: str, origin: LoginOrigin) -> str:
        """Seal the question if a command line may have a code, for the cookie of the browser that
        has just logged in: any program, or any page that leads here, can begin a login."""
        question = {"user": user_id, "challenge": origin.challenge, "port": origin.port}
        return self._seal("question", question)

    def answered(self, sealed: str) -> tuple[str, LoginOrigin]:
        """Return the user and the origin that a question was about, once the person has said yes.
        Raises ProblemError `unauthenticated` for one that this gateway has not asked, or that is
        over."""
        question = self._open("question", sealed, FLOW_S)
        return question["user"], LoginOrigin(question["challenge"], question["port"])

    def name_of(self, user_id: str) -> str:
        """Return the name of a user."""
        return str(self.gateway.rows(select(users.c.name).where(users.c.id == user_id))[0].name)

    def one_time_code(self, user_id: str, challenge: str) -> str:
        """Return a code that a command line trades for a token, within two minutes, once."""
        return self._seal("code", {"user": user_id, "challenge": challenge, "id": new_id("cod")})

    def redeem(self, code: str, verifier: str) -> NewSecret:
        """Return a token for a command line that shows the verifier of its challenge. Raises
        ProblemError `unauthenticated`, in the same words whatever is wrong."""
        values = self._open("code", code, CODE_S)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        if not hmac.compare_digest(challenge.rstrip(b"="), values["challenge"].encode()):
            raise _not_begun()
        self._use(values["id"])
        return self.logins.start(values["user"], kind="api")

    def _use(self, code_id: str) -> None:
        """Use up a code; it is kept with the logins until it has long expired."""
        subject, now_ms = f"code:{code_id}", self.gateway.now_ms()

        def work(connection: Connection) -> None:
            if connection.execute(select(logins.c.id).where(logins.c.subject == subject)).first():
                raise _not_begun()
            connection.execute(insert(logins).values(subject=subject, at_ms=now_ms))

        self.gateway.write(work)

    def _admit(self, claims: dict[str, Any]) -> str:
        """Return the id of the user of these claims, who is found by the provider's subject, never
        by name, and let in with the roles that their groups give."""
        settings = self.gateway.settings
        claim = claims.get(settings.oidc_groups_claim)
        groups = (
            [name for name in claim if isinstance(name, str)] if isinstance(claim, list) else []
        )
        person = _Person(
            subject=f"{claims['iss']} {claims['sub']}",
            name=str(claims.get(settings.oidc_name_claim, "")),
            display_name=_line(claims.get("name")),
            roles=frozenset(settings.oidc_roles[g] for g in groups if g in settings.oidc_roles),
            groups=tuple(sorted(g for g in set(groups) if _NAME.fullmatch(g)))[:_MOST_GROUPS],
            email=str(claims.get("email")) if claims.get("email_verified") is True else None,
        )
        person.check()
        now_ms, new = self.gateway.now_ms(), new_id("usr")
        user_id = self.gateway.write(lambda connection: person.keep(connection, new, now_ms))
        self.directory.remembered.forget()
        return user_id

    def _required_provider(self) -> Provider:
        if self.provider is None:
            raise ProblemError(
                "not_found", "this gateway has no OIDC login; use a password or a token"
            )
        return self.provider

    def _fernet(self) -> Fernet:
        """Return a cipher; its key is derived from the secret of all gateways of a database."""
        derived = hmac.digest(
            self.gateway.seal_key.to_text().encode(), b"taciturn: OIDC logins", "sha256"
        )
        return Fernet(base64.urlsafe_b64encode(derived))

    def _seal(self, purpose: str, values: dict[str, Any]) -> str:
        text = json.dumps({"purpose": purpose, **values})
        return self._fernet().encrypt_at_time(text.encode(), self._now_s()).decode()

    def _open(self, purpose: str, sealed: str, lifetime_s: int) -> dict[str, Any]:
        try:
            text = self._fernet().decrypt_at_time(sealed.encode(), lifetime_s, self._now_s())
        except (InvalidToken, ValueError):
            raise _not_begun() from None
        values: dict[str, Any] = json.loads(text)
        if values.pop("purpose") != purpose:
            raise _not_begun()
        return values

    def _now_s(self) -> int:
        return self.gateway.now_ms() // 1000


@dataclass(frozen=True, slots=True)
class _Person:
    """Person, as the provider describes them."""

    subject: str
    name: str
    display_name: str | None
    roles: frozenset[Role]
    groups: tuple[str, ...]
    email: str | None = None

    def check(self) -> None:
        """Raise ProblemError if they cannot be let in."""
        if not self.roles:
            raise ProblemError(
                "forbidden",
                "none of your groups at the login provider gives you a role here; ask an "
                "administrator",
            )
        check_roles(self.roles)
        if not _NAME.fullmatch(self.name):
            raise ProblemError(
                "forbidden",
                "the login provider's name for you cannot be a name here; ask an administrator to "
                "map another claim",
            )

    def keep(self, connection: Connection, new_user_id: str, now_ms: int) -> str:
        """Add or renew the user; returns their id."""
        query = select(users).where(users.c.oidc_subject == self.subject)
        row = connection.execute(query).first()
        user_id = (
            self._renew(connection, row) if row else self._add(connection, new_user_id, now_ms)
        )
        set_groups(connection, user_id, self.groups)
        if self.email is not None:
            keep_vouched(connection, user_id, self.email)
        return user_id

    def _add(self, connection: Connection, user_id: str, now_ms: int) -> str:
        if connection.execute(select(users.c.id).where(users.c.name == self.name)).first():
            raise ProblemError(
                "conflict",
                "there is another user with your name here; ask an administrator",
            )
        connection.execute(
            insert(users).values(
                id=user_id,
                name=self.name,
                display_name=self.display_name,
                roles=role_text(self.roles),
                oidc_subject=self.subject,
                disabled=False,
                created_at_ms=now_ms,
                access_changed_at_ms=now_ms,
            )
        )
        return user_id

    def _renew(self, connection: Connection, row: Row[Any]) -> str:
        if row.disabled:
            raise ProblemError("forbidden", "you are locked out here; ask an administrator")
        own = update(users).where(users.c.id == row.id)
        connection.execute(own.values(roles=role_text(self.roles)))
        if Role.ADMIN in json.loads(row.roles):
            check_an_admin_is_left(connection)
        return str(row.id)


def _client(settings: Settings) -> Client | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    own = settings.public_url or f"http://{settings.host}:{settings.port}"
    secret = settings.oidc_client_secret
    return Client(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=secret.get_secret_value() if secret else None,
        redirect_uri=own.rstrip("/") + "/v1/oidc/callback",
        scopes=settings.oidc_scopes,
    )


def _line(claim: object) -> str | None:
    text = "".join(c for c in claim if c.isprintable())[:200] if isinstance(claim, str) else ""
    return text or None


def _not_begun() -> ProblemError:
    return ProblemError("unauthenticated", "this login was not begun here, or is over; begin again")
