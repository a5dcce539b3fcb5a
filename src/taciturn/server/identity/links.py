"""Links through which people set their own passwords: nobody sets one for somebody else.

An administrator makes a link and hands it over; whoever redeems it is the person from then on. So
an administrator could still redeem it, and the rest of the gateway allows for that: the person's
old password, tokens and sessions end at that moment, so they notice; who has made the link, and
when and from where it was used, is shown to them and in the audit log; and until a policy's time
has passed they neither approve nor change terms (`people.check_access_is_settled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity import secret
from taciturn.server.identity.directory import Directory, open_links, revoke_all
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.users import user_row
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import password_links, users
from taciturn.server.timestamps import moment
from taciturn.wire.identity import LinkRedemption, PasswordLink, PasswordLinkView

PAGE = "/v1/password"
_SHOWN_MS = 90 * 86_400_000


@dataclass(frozen=True, slots=True)
class PasswordLinks:
    """Makes links, and takes them back with a password."""

    gateway: Gateway
    directory: Directory
    passwords: Passwords
    logins: Logins

    def make(self, caller: Principal, name: str) -> PasswordLink:
        """A link for a person, in place of any that they have not used.

        Raises ProblemError `not_found`; `conflict` for who is disabled or logs in by OIDC.
        """
        new_token, now_ms = secret.new_secret(), self.gateway.now_ms()
        expires_at_ms = now_ms + round(self.gateway.settings.password_link_s * 1000)

        def work(connection: Connection) -> None:
            row = user_row(connection, name)
            _check_may_have_a_password(row)
            connection.execute(open_links(row.id, now_ms).values(expires_at_ms=now_ms))
            connection.execute(
                insert(password_links).values(
                    id=new_token.id.replace("tok_", "pwl_"),
                    user_id=row.id,
                    made_by=caller.name,
                    digest=new_token.digest,
                    created_at_ms=now_ms,
                    expires_at_ms=expires_at_ms,
                )
            )

        self.gateway.write(work)
        settings = self.gateway.settings
        own = settings.public_url or f"http://{settings.host}:{settings.port}"
        # Behind the #, which browsers send to nobody: not in any proxy's log.
        url = f"{own.rstrip('/')}{PAGE}#{new_token.text}"
        return PasswordLink(name=name, url=url, expires_at=moment(expires_at_ms))

    def redeem(self, redemption: LinkRedemption, address: str) -> str:
        """Set the password of the person whom the link is for; returns their name. What tokens and
        sessions they had end. Raises ProblemError `unauthenticated`, in the same words whatever is
        wrong with the link."""
        digest = secret.digest(redemption.link.get_secret_value().strip().rpartition("#")[2])
        self.gateway.read(lambda connection: self._open(connection, digest))
        hashed = self.passwords.hash(redemption.password.get_secret_value())
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> str:
            row = self._open(connection, digest)
            used = update(password_links).where(password_links.c.id == row.link_id)
            connection.execute(used.values(redeemed_at_ms=now_ms, address=address[:60]))
            changed = {"password_hash": hashed, "access_changed_at_ms": now_ms}
            connection.execute(update(users).where(users.c.id == row.id).values(changed))
            revoke_all(connection, row.id, now_ms)
            self.logins.forgive(connection, row.name, address)
            return str(row.name)

        name = self.gateway.write(work)
        self.directory.remembered.forget()
        return name

    def history(self, caller: Principal) -> tuple[int, tuple[PasswordLinkView, ...]]:
        """Time of the last change of the caller's access, in milliseconds since 1970, and the links
        that were made for them in the last 90 days, the newest first."""
        since_ms = self.gateway.now_ms() - _SHOWN_MS
        recent = (password_links.c.user_id == users.c.id) & (
            password_links.c.created_at_ms > since_ms
        )
        query = (
            select(users.c.access_changed_at_ms, password_links)
            .outerjoin(password_links, recent)
            .where(users.c.id == caller.user_id)
            .order_by(password_links.c.created_at_ms.desc(), password_links.c.id)
        )
        rows = self.gateway.rows(query)
        return rows[0].access_changed_at_ms, tuple(_view(row) for row in rows if row.id)

    def made_for(self, name: str) -> tuple[PasswordLinkView, ...]:
        """The links that were made for a person in the last 90 days, the newest first."""
        query = (
            select(password_links)
            .join(users, users.c.id == password_links.c.user_id)
            .where(
                users.c.name == name,
                password_links.c.created_at_ms > self.gateway.now_ms() - _SHOWN_MS,
            )
            .order_by(password_links.c.created_at_ms.desc(), password_links.c.id)
        )
        return tuple(_view(row) for row in self.gateway.rows(query))

    def _open(self, connection: Connection, digest: str) -> Row[Any]:
        """The person of a link that can be redeemed."""
        query = (
            select(users, password_links.c.id.label("link_id"))
            .join(password_links, password_links.c.user_id == users.c.id)
            .where(
                password_links.c.digest == digest,
                password_links.c.redeemed_at_ms.is_(None),
                password_links.c.expires_at_ms > self.gateway.now_ms(),
                users.c.disabled.is_(False),
            )
        )
        row: Row[Any] | None = connection.execute(query).first()
        if row is None:
            raise ProblemError(
                "unauthenticated",
                "this link was not made by this gateway, was used already, was replaced by another "
                "one, or has expired; ask an administrator for another one",
            )
        return row


def _check_may_have_a_password(row: Row[Any]) -> None:
    if row.oidc_subject is not None:
        raise ProblemError(
            "conflict",
            f"{row.name} logs in through the OIDC provider, which sets their password; a link here "
            "would be a second way in",
        )
    if row.disabled:
        raise ProblemError("conflict", f"{row.name} is disabled; enable the user first")


def _view(row: Row[Any]) -> PasswordLinkView:
    return PasswordLinkView(
        made_by=row.made_by,
        created_at=moment(row.created_at_ms),
        expires_at=moment(row.expires_at_ms),
        redeemed_at=None if row.redeemed_at_ms is None else moment(row.redeemed_at_ms),
        address=row.address,
    )
