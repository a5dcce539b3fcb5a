"""Context that the gateway's services share: database, ledger, stores, clock. Made at the start."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Insert, Row, Select

from taciturn.server.database import add, rows, transact
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.journal import Clock
from taciturn.server.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running gateway that every service may use.

    Attributes:
        clock: the only source of time; milliseconds are taken from it.
    """

    settings: Settings
    engine: Engine
    seal_key: SealKey
    ledger: Ledger
    clock: Clock

    @property
    def audience(self) -> str:
        """Audience of workers' tokens: this gateway, known by the key of its ledger, where its
        workers find it. A copy of the database elsewhere takes none of them."""
        where = (self.settings.public_url or "").rstrip("/")
        text = b"taciturn audience of workers 1\0" + where.encode()
        return hmac.new(self.seal_key.secret, text, hashlib.sha256).hexdigest()[:32]

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return round(self.clock().timestamp() * 1000)

    def tick_ms(self) -> int:
        """The next tick of the public clock, or now if it is one: what depends on rows and happens
        now is shown then."""
        tick_ms = self.settings.tick_s * 1000
        return math.ceil(math.ceil(self.now_ms() / tick_ms) * tick_ms)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run queries in a read-only transaction."""
        return transact(self.engine, work, read_only=True)

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Rows of one query: cheaper than `read`, where one query is enough."""
        return rows(self.engine, query)

    def add(self, statement: Insert, values: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows: as `write`, for less, where that is all."""
        add(self.engine, statement, values)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run a serialisable transaction; again, if it lost a race. No network call inside."""
        return transact(self.engine, work)
