"""Outbox: what happened, written down with the change itself, so that it is told if it happened and
not otherwise. It holds ids and names alone; words are made when it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection, insert, select

from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import notifications
from taciturn.wire.notifications import NotificationKind

Subject = Mapping[str, str | float]


def announce(
    connection: Connection,
    kind: NotificationKind | str,
    key: str,
    subject: Subject,
    *,
    now_ms: int,
    due_ms: int | None = None,
) -> str | None:
    """Have people told of something, in the caller's transaction.

    Args:
        key: of the event: of two with one key, the first is told.
        subject: ids and names that `messages` needs.
        due_ms: not to be told before; by default at once.

    Returns:
        The id of the notification; None where there is one of this key.
    """
    if connection.execute(select(notifications.c.id).where(notifications.c.key == key)).first():
        return None
    notification_id = new_id("ntf")
    connection.execute(
        insert(notifications).values(
            id=notification_id,
            kind=str(kind),
            key=key,
            subject=json.dumps(dict(subject)),
            created_at_ms=now_ms,
            due_at_ms=now_ms if due_ms is None else due_ms,
        )
    )
    return notification_id
