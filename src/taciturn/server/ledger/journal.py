"""Journal of the ledger: the one path that every operation takes into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine

from taciturn.errors import LedgerConflictError
from taciturn.server.database import transact
from taciturn.server.ledger.entry import START, Details, Entry, checked_name, request_digest
from taciturn.server.ledger.rules import applied, check_token, the_job
from taciturn.server.ledger.seal import SealKey
from taciturn.server.ledger.state import LedgerState
from taciturn.server.ledger.store import Store

Clock = Callable[[], datetime]

Maker = Callable[[Store, LedgerState, int], Details]
"""Makes the details of an entry from the store, the state, and the time in milliseconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """Request for an operation: its id, its digest, and the rows that it touches.

    Attributes:
        digest: SHA-256 of what is asked for: a repeated id must ask for the same.
        namespace: may be empty where the job's reservation tells it.
        token: the worker's, where the operation is one of a worker's.
    """

    operation_id: str
    digest: str
    namespace: str = ""
    job: str = ""
    grants: tuple[str, ...] = ()
    token: int | None = None

    @classmethod
    def of(
        cls,
        operation: str,
        operation_id: str,
        arguments: Mapping[str, Any],
        *,
        namespace: str = "",
        job: str = "",
        grants: tuple[str, ...] = (),
        token: int | None = None,
    ) -> Request:
        """A request, with the digest of the operation and its arguments."""
        request_arguments = {
            **arguments,
            "namespace": namespace,
            "job": job,
            "grants": grants,
            "token": token,
        }
        digest = request_digest(operation, request_arguments)
        return cls(
            checked_name(operation_id, "operation_id"), digest, namespace, job, grants, token
        )


@dataclass(frozen=True, slots=True)
class Journal:
    """Writer of entries: a database, the key that seals, a clock, and patience."""

    engine: Engine
    key: SealKey
    clock: Clock
    patience_s: float

    def write(self, request: Request, details: Maker) -> Entry:
        """Lock, look whether it was done already, make the entry, apply it, write it.

        Raises:
            LedgerError: it is refused, and nothing has changed.
            DatabaseUnavailableError: it is not known whether it happened.
        """

        def work(connection: Connection) -> Entry:
            store = Store(connection, self.key)
            namespace = request.namespace or store.namespace_of(request.job)
            jobs = (request.job,) if request.job else ()
            state = store.state(namespace, jobs=jobs, grants=request.grants)
            if request.token is not None:
                # First, because a worker that is fenced off must hear so even if it repeats itself.
                check_token(the_job(state, request.job), request.token)
            earlier = store.entry(request.operation_id)
            if earlier is not None:
                return _repeated(earlier, request)
            now_ms = self.now_ms()
            entry = Entry(
                namespace=namespace,
                sequence=state.account.entries + 1 if state.account else 1,
                operation_id=request.operation_id,
                request=request.digest,
                recorded_at_ms=now_ms,
                details=details(store, state, now_ms),
                previous=state.account.head if state.account else START,
            )
            store.append(state, applied(state, entry), entry)
            return entry

        return transact(self.engine, work, patience_s=self.patience_s)

    def now_ms(self) -> int:
        """The time in whole milliseconds."""
        return int(self.clock().timestamp() * 1000)


def utc_now() -> datetime:
    """The clock of the wall."""
    return datetime.now(UTC)


def _repeated(earlier: Entry, request: Request) -> Entry:
    if earlier.request != request.digest:
        raise LedgerConflictError(
            f"operation id {request.operation_id!r} was used for something else; take a new one"
        )
    return earlier
