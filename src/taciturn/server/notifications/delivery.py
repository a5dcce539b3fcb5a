"""Delivery, in the leader alone: of each event one message to each person and receiver, at least
once, with the same id each time.

A message is marked as sent once its receiver has taken it. Whoever is killed in between sends it
again. One that fails is sent again after a rest that grows, until `notification_days` are over;
then it is given up, which its reader sees in the console. Before each attempt the reader's access
is looked at again: what somebody may know no more is dropped; and what tells of a job is on record
in the audit log as read, so that it stands among the disclosures of a dataset.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, update

from taciturn.server.audit_log import Record, add_record
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import person
from taciturn.server.identity.email_addresses import address_row
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.notifications import mail, webhooks
from taciturn.server.notifications.mail import Outcome
from taciturn.server.notifications.messages import (
    CONFIRMATION,
    SETTINGS_PAGE,
    Message,
    candidates,
    message,
)
from taciturn.server.notifications.sealed_texts import unsealed
from taciturn.server.notifications.watch import Watch
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import (
    notification_deliveries,
    notification_endpoints,
    notification_preferences,
    notifications,
)

log = logging.getLogger("taciturn.server.notifications")

FIRST_REST_MS, LONGEST_REST_MS = 10_000, 6 * 3_600_000
KEPT_MS = 90 * 86_400_000
"""How long what has ended is shown."""
EARLIER_SECRET_MS = 86_400_000
"""How long the secret before the present one signs too."""
_LOOK_MS = 60_000
_AT_ONCE, _MOST = 8, 64
_deliveries, _endpoints = notification_deliveries, notification_endpoints


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Delivery with all that is needed to send it, read in one transaction.

    Attributes:
        address: of e-mail; None for a webhook.
    """

    row: Row[Any]
    reader: Principal
    message: Message
    address: str | None
    endpoint: Row[Any] | None


@dataclass(slots=True)
class Delivery:
    """Addresses and sends what the outbox holds.

    Attributes:
        leads: says if this process still has the lead.
    """

    gateway: Gateway
    leads: Callable[[], bool] = lambda: True
    _looked_ms: int = field(default=0)

    def turn(self) -> None:
        """Look at budgets and grants now and then; address what is new; send what is due."""
        now_ms = self.gateway.now_ms()
        if now_ms >= self._looked_ms + _LOOK_MS:
            self._looked_ms = now_ms
            Watch(self.gateway).look()
            self._forget(now_ms)
        self.address()
        while self.leads() and self.send():
            pass

    def address(self) -> None:
        """Make deliveries of what happened, for who may know of it and has not turned it off."""
        query = select(notifications).where(
            notifications.c.addressed_at_ms.is_(None),
            notifications.c.due_at_ms <= self.gateway.now_ms(),
        )
        for row in self.gateway.rows(query.order_by(notifications.c.created_at_ms).limit(_MOST)):
            self.gateway.write(partial(self._address, row))

    def send(self) -> bool:
        """Send what is due, to different receivers at once; True if there was any. To one receiver
        one message at a time, so that a slow one keeps nobody waiting but itself."""
        now_ms = self.gateway.now_ms()
        query = (
            select(_deliveries, notifications.c.kind, notifications.c.subject)
            .join(notifications, notifications.c.id == _deliveries.c.notification_id)
            .where(_deliveries.c.state == "waiting", _deliveries.c.next_at_ms <= now_ms)
            .order_by(_deliveries.c.next_at_ms, _deliveries.c.id)
            .limit(_MOST)
        )
        first_rows = {row.endpoint_id or row.id: row for row in reversed(self.gateway.rows(query))}
        if not first_rows:
            return False
        with ThreadPoolExecutor(min(_AT_ONCE, len(first_rows))) as pool:
            list(pool.map(self._deliver, first_rows.values()))
        return True

    def _address(self, row: Row[Any], connection: Connection) -> None:
        of_row = notifications.c.id == row.id
        addressed = select(notifications.c.addressed_at_ms).where(of_row)
        if connection.scalar(addressed) is not None:
            return  # by a leader before this one, which still worked
        now_ms = self.gateway.now_ms()
        subject = json.loads(row.subject)
        for user_id in candidates(connection, row.kind, subject):
            reader = person(connection, user_id)
            if reader is None:
                continue
            if message(connection, row.kind, subject, reader, now_ms) is not None:
                receivers = _receivers(connection, self.gateway, user_id, row.kind)
                add(connection, row.id, user_id, receivers, now_ms)
        change = update(notifications).where(of_row)
        connection.execute(change.values(addressed_at_ms=now_ms))

    def _deliver(self, row: Row[Any]) -> None:
        try:
            parcel = self.gateway.read(lambda connection: self._parcel(connection, row))
            if parcel is not None:
                self._record(parcel)
            outcome = None if parcel is None else self._attempt(parcel)
        except Exception:
            log.exception("a notification could not be sent", extra={"delivery": row.id})
            outcome = Outcome(False, "the gateway could not send it")
        self._mark(row, outcome)

    def _parcel(self, connection: Connection, row: Row[Any]) -> _Parcel | None:
        """Message to be sent; None if the reader may not have it any more, or nowhere."""
        reader = person(connection, row.user_id)
        if reader is None:
            return None
        words = self._words(connection, row, reader)
        if words is None:
            return None
        if row.endpoint_id is None:
            email = address_row(connection, row.user_id)
            address = email and (email.pending if row.kind == CONFIRMATION else email.address)
            return _Parcel(row, reader, words, address, None) if address else None
        query = select(_endpoints).where(
            _endpoints.c.id == row.endpoint_id, _endpoints.c.removed_at_ms.is_(None)
        )
        endpoint = connection.execute(query).first()
        return None if endpoint is None else _Parcel(row, reader, words, None, endpoint)

    def _words(self, connection: Connection, row: Row[Any], reader: Principal) -> Message | None:
        subject = json.loads(row.subject)
        if row.kind != CONFIRMATION:
            return message(connection, row.kind, subject, reader, self.gateway.now_ms())
        return Message(
            "Your code to confirm this address",
            f"Enter this code on the page below to have notifications sent here: "
            f"{unsealed(self.gateway, subject['code'])}\n\n"
            "If you did not ask for it, do nothing.",
            SETTINGS_PAGE,
        )

    def _record(self, parcel: _Parcel) -> None:
        job = parcel.message.facts.get("job")
        if job is None:
            return
        way = "webhook" if parcel.address is None else "email"
        record = Record(
            at_ms=self.gateway.now_ms(),
            actor=f"user:{parcel.reader.name}",
            action=Action.JOBS_READ.value,
            resource=f"/jobs/{job}/{way}",
            status=202,
            code=None,
            request_id=parcel.row.id,
            address=None,
            token_id=None,
        )
        add_record(self.gateway, record)

    def _attempt(self, parcel: _Parcel) -> Outcome:
        settings = self.gateway.settings
        url = (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")
        row = parcel.row
        if parcel.address is not None:
            if settings.smtp_host is None:
                return Outcome(False, "this gateway sends no e-mail", final=True)
            letter = mail.letter(settings, row.id, parcel.address, parcel.message, url)
            return mail.send(settings, letter)
        endpoint = parcel.endpoint
        assert endpoint is not None
        try:
            networks = tuple(map(str, settings.notification_networks))
            receiver = webhooks.target(unsealed(self.gateway, endpoint.url), networks)
        except ProblemError as problem:
            return Outcome(False, problem.detail, final=True)
        except OSError:
            return Outcome(False, "its host is not known")
        body = webhooks.body_of(
            endpoint.form, row.id, row.kind, row.created_at_ms, parcel.message, url
        )
        now_ms = self.gateway.now_ms()
        keys = [unsealed(self.gateway, key) for key in _signing(endpoint, now_ms)]
        return webhooks.send(receiver, row.id, keys, body, now_ms // 1000)

    def _mark(self, row: Row[Any], outcome: Outcome | None) -> None:
        now_ms, attempts = self.gateway.now_ms(), row.attempts + 1
        values: dict[str, Any] = {"attempts": attempts}
        if outcome is None:
            values = {"state": "dropped", "ended_at_ms": now_ms}
        else:
            values["answer"] = outcome.answer[:300]
            rest_ms = min(FIRST_REST_MS << min(2 * row.attempts, 20), LONGEST_REST_MS)
            values["next_at_ms"] = now_ms + round(rest_ms * random.uniform(0.9, 1.1))
            until_ms = row.created_at_ms + self.gateway.settings.notification_days * 86_400_000
            if outcome.success:
                values |= {"state": "sent", "ended_at_ms": now_ms}
            elif outcome.final or values["next_at_ms"] > until_ms:
                values |= {"state": "given_up", "ended_at_ms": now_ms}
        change = update(_deliveries).where(
            _deliveries.c.id == row.id, _deliveries.c.state == "waiting"
        )
        self.gateway.write(lambda connection: connection.execute(change.values(values)))

    def _forget(self, now_ms: int) -> None:
        """Remove what has ended long ago. Of budgets the event stays, so that it is told once."""
        before_ms = now_ms - KEPT_MS
        old = _deliveries.c.ended_at_ms < before_ms
        is_used = select(_deliveries.c.id).where(
            _deliveries.c.notification_id == notifications.c.id
        )
        past = and_(
            notifications.c.addressed_at_ms < before_ms,
            ~notifications.c.key.startswith("budget:"),
            ~is_used.exists(),
        )
        if self.gateway.rows(select(_deliveries.c.id).where(old).limit(1)):
            self.gateway.write(
                lambda connection: connection.execute(delete(_deliveries).where(old))
            )
        if self.gateway.rows(select(notifications.c.id).where(past).limit(1)):
            self.gateway.write(
                lambda connection: connection.execute(delete(notifications).where(past))
            )


def add(
    connection: Connection,
    notification_id: str,
    user_id: str,
    receivers: Iterable[str | None],
    now_ms: int,
) -> None:
    """Add deliveries to a person's receivers; None stands for e-mail."""
    rows = [
        {
            "id": new_id("dlv"),
            "notification_id": notification_id,
            "user_id": user_id,
            "endpoint_id": endpoint_id,
            "state": "waiting",
            "attempts": 0,
            "next_at_ms": now_ms,
            "created_at_ms": now_ms,
        }
        for endpoint_id in receivers
    ]
    if rows:
        connection.execute(insert(_deliveries), rows)


def _receivers(
    connection: Connection, gateway: Gateway, user_id: str, kind: str
) -> Sequence[str | None]:
    """Return where a person wants to be told of this; without a choice of theirs, everywhere."""
    query = select(notification_preferences).where(_preference(user_id, kind))
    choice = connection.execute(query).first()
    receivers: list[str | None] = []
    if gateway.settings.smtp_host is not None and (choice is None or choice.email):
        email = address_row(connection, user_id)
        if email is not None and email.address is not None:
            receivers.append(None)
    if choice is None or choice.webhook:
        own = select(_endpoints.c.id).where(
            _endpoints.c.user_id == user_id, _endpoints.c.removed_at_ms.is_(None)
        )
        receivers.extend(connection.execute(own.order_by(_endpoints.c.id)).scalars())
    return receivers


def _preference(user_id: str, kind: str) -> ColumnElement[bool]:
    table = notification_preferences
    return and_(table.c.user_id == user_id, table.c.kind == kind)


def _signing(endpoint: Row[Any], now_ms: int) -> list[str]:
    keys = [endpoint.secret]
    if endpoint.earlier_secret and now_ms < (endpoint.rotated_at_ms or 0) + EARLIER_SECRET_MS:
        keys.append(endpoint.earlier_secret)
    return keys
