"""Last uses of people's tokens, written down once a minute and not at each request.

Each process keeps the newest use of each token in memory, and writes what has come when its turn
does, or when the gateway stops. What a crash loses is of the last minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, or_, update

from taciturn.server.context import Gateway
from taciturn.server.schema.tables import tokens

PERIOD_S = 60.0
_log = logging.getLogger("taciturn.tokens")


@dataclass(slots=True)
class TokenUses:
    """Newest uses that are not written yet: a token's id -> milliseconds since 1970."""

    gateway: Gateway
    _uses: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, token_id: str) -> None:
        """Note that a token was used now."""
        with self._lock:
            self._uses[token_id] = self.gateway.now_ms()

    def write(self) -> None:
        """Write what was noted, all in one transaction; nothing where nothing was. What cannot be
        written is kept for the next turn."""
        with self._lock:
            uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            self.gateway.write(lambda connection: _write(connection, uses))
        except BaseException:
            with self._lock:
                self._uses = uses | self._uses
            raise

    def start(self) -> None:
        """Do nothing: turns come from elsewhere."""

    def stop(self) -> None:
        """Write what is left; what else has to stop does so where that fails."""
        try:
            self.write()
        except Exception:
            _log.exception("last uses of tokens were not written")


def _write(connection: Connection, uses: Mapping[str, int]) -> None:
    is_older = or_(tokens.c.used_at_ms.is_(None), tokens.c.used_at_ms < bindparam("at_ms"))
    change = update(tokens).where(tokens.c.id == bindparam("token"), is_older)
    rows = [{"token": token, "at_ms": at_ms} for token, at_ms in sorted(uses.items())]
    connection.execute(change.values(used_at_ms=bindparam("at_ms")), rows)
