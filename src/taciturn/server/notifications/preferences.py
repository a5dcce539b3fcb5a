"""Preferences: what people are told, and where; their receivers; what was sent."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity.email_addresses import address_row, forget, keep
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.notifications import webhooks
from taciturn.server.notifications.delivery import add
from taciturn.server.notifications.messages import CONFIRMATION, TEST
from taciturn.server.notifications.outbox import announce
from taciturn.server.notifications.sealed_texts import code_digest, sealed
from taciturn.server.paging import Paging, newest_first, position_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import (
    notification_deliveries,
    notification_endpoints,
    notification_preferences,
    notifications,
)
from taciturn.server.timestamps import moment
from taciturn.wire.notifications import (
    DeliveryView,
    EndpointSecret,
    EndpointView,
    NewEndpoint,
    NotificationKind,
    NotificationSettings,
    Preference,
    Preferences,
)
from taciturn.wire.values import Page

MOST_ENDPOINTS = 10
MOST_TRIALS = 10
"""Messages of an hour that a person may ask for themself: tests, and codes for addresses."""
MOST_TRIES = 10
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
_endpoints, _deliveries = notification_endpoints, notification_deliveries


@dataclass(frozen=True, slots=True)
class NotificationPreferences:
    """One's own choices; nobody sees or changes those of others."""

    gateway: Gateway

    def view(self, caller: Principal) -> NotificationSettings:
        """All of them."""

        def work(connection: Connection) -> NotificationSettings:
            email = address_row(connection, caller.user_id)
            table = notification_preferences
            query = select(table).where(table.c.user_id == caller.user_id)
            choices = {row.kind: row for row in connection.execute(query)}
            return NotificationSettings(
                mail=self.gateway.settings.smtp_host is not None,
                address=None if email is None else email.address,
                pending_address=None if email is None else email.pending,
                preferences=tuple(
                    Preference(
                        kind=kind,
                        email=kind not in choices or choices[kind].email,
                        webhook=kind not in choices or choices[kind].webhook,
                    )
                    for kind in NotificationKind
                ),
                endpoints=tuple(_view(row) for row in _own(connection, caller)),
            )

        return self.gateway.read(work)

    def choose(self, caller: Principal, choices: Preferences) -> NotificationSettings:
        """Change how the caller is told of some kinds."""
        table = notification_preferences

        def work(connection: Connection) -> None:
            for choice in choices.preferences:
                own = (table.c.user_id == caller.user_id) & (table.c.kind == choice.kind.value)
                connection.execute(delete(table).where(own))
                connection.execute(
                    insert(table).values(
                        user_id=caller.user_id,
                        kind=choice.kind.value,
                        email=choice.email,
                        webhook=choice.webhook,
                    )
                )

        self.gateway.write(work)
        return self.view(caller)

    def set_address(self, caller: Principal, address: str) -> NotificationSettings:
        """Send a code to an address; once it is entered, mail goes there. Until then it goes where
        it went before.

        Raises:
            ProblemError: `conflict` where this gateway sends no e-mail; `too_many_requests`.
        """
        self._check_mail()
        code = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        code_text = "-".join(code[i : i + 4] for i in (0, 4, 8))
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            keep(
                connection,
                caller.user_id,
                pending=address,
                code=code_digest(self.gateway, caller.user_id, code),
                code_until_ms=now_ms + _DAY_MS,
                tries=0,
            )
            self._ask(
                connection, caller, CONFIRMATION, None, {"code": sealed(self.gateway, code_text)}
            )

        self.gateway.write(work)
        return self.view(caller)

    def confirm(self, caller: Principal, code: str) -> NotificationSettings:
        """Take the address whose code this is. Raises ProblemError `invalid`, in the same words
        whatever is wrong."""
        text = "".join(c for c in code.upper() if c in _ALPHABET)
        digest, now_ms = code_digest(self.gateway, caller.user_id, text), self.gateway.now_ms()

        def work(connection: Connection) -> bool:
            row = address_row(connection, caller.user_id)
            if row is None or row.pending is None:
                return False
            keep(connection, caller.user_id, tries=row.tries + 1)
            is_late = now_ms > (row.code_until_ms or 0)
            if row.tries >= MOST_TRIES or is_late or not secrets.compare_digest(row.code, digest):
                return False
            keep(connection, caller.user_id, address=row.pending, pending=None, code=None)
            return True

        if not self.gateway.write(work):
            raise ProblemError(
                "invalid", "code: it is not the one that was sent last, or is over; ask for another"
            )
        return self.view(caller)

    def forget_address(self, caller: Principal) -> None:
        """Send no e-mail any more."""
        self.gateway.write(lambda connection: forget(connection, caller.user_id))

    def add_endpoint(self, caller: Principal, new: NewEndpoint) -> EndpointSecret:
        """Add a receiver; its secret is shown this once.

        Raises:
            ProblemError: `invalid` for a place where nothing may be sent; `conflict` for more than
                MOST_ENDPOINTS.
        """
        networks = tuple(map(str, self.gateway.settings.notification_networks))
        try:
            receiver = webhooks.target(new.url, networks)
        except (OSError, UnicodeError):
            raise ProblemError("invalid", "url: its host is not known here; check it") from None
        secret, endpoint_id = webhooks.new_secret(), new_id("whk")
        values = {
            "id": endpoint_id,
            "user_id": caller.user_id,
            "name": new.name,
            "host": receiver.parts.hostname,
            "form": new.form,
            "url": sealed(self.gateway, new.url),
            "secret": sealed(self.gateway, secret),
            "created_at_ms": self.gateway.now_ms(),
        }

        def work(connection: Connection) -> Row[Any]:
            if len(_own(connection, caller)) >= MOST_ENDPOINTS:
                raise ProblemError(
                    "conflict", f"you have {MOST_ENDPOINTS} receivers, the most; remove one first"
                )
            connection.execute(insert(_endpoints).values(values))
            return _endpoint(connection, caller, endpoint_id)

        return _with_secret(self.gateway.write(work), secret)

    def rotate(self, caller: Principal, endpoint_id: str) -> EndpointSecret:
        """Give a receiver another secret, shown this once. The one before signs too for a day."""
        secret, now_ms = webhooks.new_secret(), self.gateway.now_ms()

        def work(connection: Connection) -> Row[Any]:
            row = _endpoint(connection, caller, endpoint_id)
            values = {"secret": sealed(self.gateway, secret), "earlier_secret": row.secret}
            change = update(_endpoints).where(_endpoints.c.id == endpoint_id)
            connection.execute(change.values(**values, rotated_at_ms=now_ms))
            return _endpoint(connection, caller, endpoint_id)

        return _with_secret(self.gateway.write(work), secret)

    def remove_endpoint(self, caller: Principal, endpoint_id: str) -> None:
        """Send nothing there any more, and forget its URL and secrets."""
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            _endpoint(connection, caller, endpoint_id)
            change = update(_endpoints).where(_endpoints.c.id == endpoint_id)
            nothing = {"url": "", "secret": "", "earlier_secret": None}
            connection.execute(change.values(**nothing, removed_at_ms=now_ms))

        self.gateway.write(work)

    def test(self, caller: Principal, endpoint_id: str | None) -> None:
        """Send the caller a message, to a receiver or by e-mail.

        Raises:
            ProblemError: `not_found`; `conflict` without an address; `too_many_requests`.
        """
        if endpoint_id is None:
            self._check_mail()

        def work(connection: Connection) -> None:
            if endpoint_id is not None:
                _endpoint(connection, caller, endpoint_id)
            else:
                email = address_row(connection, caller.user_id)
                if email is None or email.address is None:
                    raise ProblemError("conflict", "you have no e-mail address here; set one first")
            self._ask(connection, caller, TEST, endpoint_id, {})

        self.gateway.write(work)

    def deliveries(self, caller: Principal, paging: Paging) -> Page[DeliveryView]:
        """Messages to the caller, newest first, and what became of each."""
        query = (
            select(
                _deliveries,
                notifications.c.kind,
                _endpoints.c.name.label("endpoint"),
            )
            .join(notifications, notifications.c.id == _deliveries.c.notification_id)
            .outerjoin(_endpoints, _endpoints.c.id == _deliveries.c.endpoint_id)
            .where(_deliveries.c.user_id == caller.user_id)
        )
        rows = self.gateway.rows(newest_first(query, _deliveries, paging))
        return paging.page(rows, _delivery, position_of)

    def _check_mail(self) -> None:
        if self.gateway.settings.smtp_host is None:
            raise ProblemError(
                "conflict",
                "this gateway sends no e-mail; its operator sets TACITURN_SMTP_HOST",
            )

    def _ask(
        self,
        connection: Connection,
        caller: Principal,
        kind: str,
        endpoint_id: str | None,
        subject: dict[str, str],
    ) -> None:
        """Send the caller what they have asked for themself; not more often than MOST_TRIALS."""
        now_ms = self.gateway.now_ms()
        query = (
            select(func.count())
            .select_from(_deliveries)
            .join(notifications, notifications.c.id == _deliveries.c.notification_id)
            .where(
                _deliveries.c.user_id == caller.user_id,
                _deliveries.c.created_at_ms > now_ms - _HOUR_MS,
                notifications.c.kind.in_((TEST, CONFIRMATION)),
            )
        )
        if connection.execute(query).scalar_one() >= MOST_TRIALS:
            raise ProblemError(
                "too_many_requests",
                f"{MOST_TRIALS} messages to try things out were sent within an hour; wait",
                headers={"Retry-After": "600"},
            )
        key = f"{kind}:{new_id('try')}"
        notification_id = announce(connection, kind, key, subject, now_ms=now_ms)
        assert notification_id is not None
        addressed = update(notifications).where(notifications.c.id == notification_id)
        connection.execute(addressed.values(addressed_at_ms=now_ms))
        add(connection, notification_id, caller.user_id, [endpoint_id], now_ms)


def _own(connection: Connection, caller: Principal) -> list[Row[Any]]:
    query = select(_endpoints).where(
        _endpoints.c.user_id == caller.user_id, _endpoints.c.removed_at_ms.is_(None)
    )
    return list(connection.execute(query.order_by(_endpoints.c.created_at_ms, _endpoints.c.id)))


def _endpoint(connection: Connection, caller: Principal, endpoint_id: str) -> Row[Any]:
    for row in _own(connection, caller):
        if row.id == endpoint_id:
            return row
    raise ProblemError("not_found", f"you have no receiver {endpoint_id!r}")


def _view(row: Row[Any]) -> EndpointView:
    return EndpointView(
        id=row.id,
        name=row.name,
        host=row.host,
        form=row.form,
        created_at=moment(row.created_at_ms),
        rotated_at=None if row.rotated_at_ms is None else moment(row.rotated_at_ms),
    )


def _with_secret(row: Row[Any], secret: str) -> EndpointSecret:
    return EndpointSecret(**_view(row).model_dump(), secret=secret)


def _delivery(row: Row[Any]) -> DeliveryView:
    waiting = row.state == "waiting"
    return DeliveryView(
        id=row.id,
        kind=row.kind,
        channel="email" if row.endpoint_id is None else "webhook",
        endpoint=row.endpoint,
        state=row.state,
        attempts=row.attempts,
        answer=row.answer,
        created_at=moment(row.created_at_ms),
        next_at=moment(row.next_at_ms) if waiting else None,
        ended_at=None if row.ended_at_ms is None else moment(row.ended_at_ms),
    )
