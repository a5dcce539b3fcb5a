"""A ledger for runs that no gateway arranges: one file in which they add up.

It is the gateway's own, with its entries and rules. Two things differ. Nobody has set a budget, so
nothing is refused below the largest epsilon that can be accounted for; and a run is charged as a
whole before its first step, so that whatever ends it, it has been paid for.

Runs add up by data set and privacy unit: epsilons about different units do not add up to anything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Engine, make_url

from taciturn.accounting.calibrate import MAX_EPSILON
from taciturn.errors import DatabaseError, LedgerConflictError, SigningKeyError, SpecError
from taciturn.server.database import open_database
from taciturn.server.ledger import (
    Ledger,
    SealKey,
    Together,
    namespaces,
    statement,
    together,
    was_done,
)
from taciturn.server.ledger.ledger import MAX_HOLD_S
from taciturn.server.schema import versions

KEY_VARIABLE = "TACITURN_LEDGER_KEY"
NO_BUDGET = MAX_EPSILON
"""The budget of a namespace for which nobody has set one."""

_LONGEST_NAME = 200  # of a namespace


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A ledger's database and the key of its seals."""

    engine: Engine
    key: SealKey

    @classmethod
    def open(cls, url: str) -> LedgerFile:
        """Open the database of `url`; a file of SQLite is made, with its key beside it.

        The key is that of the environment variable TACITURN_LEDGER_KEY, else that of the file with
        the suffix .key.

        Raises:
            DatabaseError: not a ledger's URL, or a place where none can be made.
            SigningKeyError: no key, where it has to be given; or one that cannot be used.
        """
        engine = open_database(url)
        text = os.environ.get(KEY_VARIABLE)
        if engine.dialect.name != "sqlite":
            if not text:
                raise SigningKeyError(
                    f"a ledger in PostgreSQL needs the key of its seals; set {KEY_VARIABLE}"
                )
            versions.check(engine)  # it may be a gateway's, which migrates it when it is at rest
            return cls(engine, SealKey.from_text(text))
        path = Path(make_url(url).database or "").with_suffix(".key")
        try:
            with _locked(path) as key_text:
                versions.upgrade(engine)
        except OSError as error:
            raise DatabaseError(
                f"the ledger beside {path} cannot be made or opened ({error.strerror}); name a "
                "file in a folder that is there and can be written"
            ) from None
        return cls(engine, SealKey.from_text(text or key_text))

    def charge(self, run: str, namespace: str, event: DpEvent, delta: float) -> Together:
        """Charge all of a run, which may then begin; repeated for the same run, nothing more.

        Returns:
            What all runs in the namespace cost together, this one included.

        Raises:
            LedgerError: it is not charged, and must not begin.
        """
        self._open(namespace, delta)
        ledger = self._ledger
        ledger.reserve(
            f"{run}-reserve", run, namespace=namespace, grants=(), event=event, hold_s=MAX_HOLD_S
        )
        lease = ledger.acquire(f"{run}-acquire", run, worker="here", lease_s=MAX_HOLD_S)
        ledger.charge(f"{run}-charge", run, lease.token, event)
        return self.total(namespace)

    def settle(self, run: str) -> None:
        """The run that was charged is over; one that was not charged is none of the ledger's."""
        if not was_done(self.engine, f"{run}-charge"):
            return
        lease = self._ledger.acquire(f"{run}-acquire", run, worker="here", lease_s=MAX_HOLD_S)
        self._ledger.commit(f"{run}-commit", run, lease.token)

    def record_exception(self, run: str, namespace: str, delta: float) -> Together:
        """Write down what has no guarantee: a fit without privacy, or a look at exact figures."""
        if namespace not in namespaces(self.engine):
            self._open(namespace, delta)
        self._ledger.record_exception(f"{run}-except", namespace, run, approvals=["here"])
        return self.total(namespace)

    def total(self, namespace: str) -> Together:
        """Joint cost of all runs in the namespace."""
        return together(self.engine, self.key, namespace)

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self.engine, self.key)

    def _open(self, namespace: str, delta: float) -> None:
        """Have an account, at the smallest delta that a run in it has promised."""
        if namespace not in namespaces(self.engine):
            with suppress(LedgerConflictError):  # another process has, meanwhile
                self._ledger.open_account(_new_id(), namespace, epsilon=NO_BUDGET, delta=delta)
        budget = statement(self.engine, self.key, namespace).budget
        if budget.epsilon == NO_BUDGET and delta < budget.delta:
            self._ledger.set_cap(_new_id(), namespace, epsilon=NO_BUDGET, delta=delta)


def namespace_of(source: str, unit: str) -> str:
    """Namespace of runs on a data set about a unit; cut where it is too long for a name."""
    name = " ".join(f"{source} [{unit}]".split())
    if not name.isprintable():
        raise SpecError(
            "the data set cannot be named in a ledger by where it is; give ledger_namespace"
        )
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - 18]}.. {digest}"[:_LONGEST_NAME]


def _new_id() -> str:
    return secrets.token_hex(16)


@contextmanager
def _locked(path: Path) -> Iterator[str]:
    """Content of the key file, made if it is not there, while no other process prepares the
    database beside it."""
    if not path.exists():
        _make(path)
    with path.open("r+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.read()


def _make(path: Path) -> None:
    """A new key, whole or not at all; of several processes, one makes it."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(SealKey.generate().to_text())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        os.unlink(partial)
