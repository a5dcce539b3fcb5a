"""Watch of what nobody does at a moment of their own: budgets that run low, grants that end.

Each is announced by a key of its own, so that however often it is looked at, it is told once. The
share of a budget that is spent never falls, so that a look that comes late misses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from taciturn.errors import TaciturnError
from taciturn.server.context import Gateway
from taciturn.server.identity.namespace_access import grant_is_live
from taciturn.server.ledger import namespaces, statement
from taciturn.server.notifications.outbox import announce
from taciturn.server.schema.tables import grant_terms, notifications
from taciturn.wire.notifications import NotificationKind

PERCENTS = (50, 80, 95)
DAYS = (7, 1)
_DAY_MS = 86_400_000
log = logging.getLogger("taciturn.server.notifications")


@dataclass(frozen=True, slots=True)
class _Event:
    """Event to be announced, and its key."""

    kind: NotificationKind
    key: str
    subject: Mapping[str, str | float]


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at budgets and grants."""

    gateway: Gateway

    def look(self) -> None:
        """Announce what is new."""
        events = [*self._grants(), *self._budgets()]
        keys = [event.key for event in events]
        known_keys = {row.key for row in self.gateway.rows(_earlier_keys(keys))} if keys else set()
        new_events = [event for event in events if event.key not in known_keys]
        now_ms = self.gateway.now_ms()

        def work(connection: Connection) -> None:
            for event in new_events:
                announce(connection, event.kind, event.key, event.subject, now_ms=now_ms)

        if new_events:
            self.gateway.write(work)

    def _budgets(self) -> Iterator[_Event]:
        """Yield the highest mark that each budget has passed; those below are passed with it.

        What a running job has charged is left out until it is over, as for everybody: when a block
        of steps is charged depends on rows.
        """
        engine, key = self.gateway.engine, self.gateway.seal_key
        for namespace in namespaces(engine):
            try:
                budget = statement(engine, key, namespace, settled=True).budget
            except TaciturnError as error:
                log.error("budget not read", extra={"namespace": namespace, "reason": str(error)})
                continue
            passed = [percent for percent in PERCENTS if budget.charged * 100 >= percent]
            if passed:
                yield _Event(
                    NotificationKind.BUDGET_THRESHOLD,
                    f"budget:{namespace}:{budget.epsilon!r}:{passed[-1]}",
                    {"namespace": namespace, "percent": passed[-1], "epsilon": budget.epsilon},
                )

    def _grants(self) -> Iterator[_Event]:
        """Yield grants that end within one of DAYS."""
        now_ms = self.gateway.now_ms()
        soon_ms = now_ms + max(DAYS) * _DAY_MS
        query = select(grant_terms).where(
            grant_is_live(now_ms), grant_terms.c.expires_at_ms <= soon_ms
        )
        for row in self.gateway.rows(query):
            days = min(days for days in DAYS if row.expires_at_ms - now_ms <= days * _DAY_MS)
            subject = {"namespace": row.namespace, "holder": row.holder}
            yield _Event(
                NotificationKind.GRANT_ENDS,
                f"grant:{row.namespace}:{row.holder}:{row.expires_at_ms}:{days}",
                {**subject, "expires_at_ms": row.expires_at_ms, "days": days},
            )


def _earlier_keys(keys: Sequence[str]) -> Select[Any]:
    return select(notifications.c.key).where(notifications.c.key.in_(keys))
