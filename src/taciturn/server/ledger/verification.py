"""`taciturn ledger verify`: everything derived again from the entries alone.

What is found, and what it takes:

- an entry that was edited, removed, inserted or put elsewhere: the chain breaks, or a rule does
  (nothing needed);
- a price below what this accountant computes, a balance, job or grant that is not what the entries
  add up to (nothing needed);
- a chain rewritten to its end with matching balances, entries cut off its end with the account
  adjusted, a namespace removed with the register adjusted: a seal is not true (the key needed);
- the whole database put back to an earlier state, with the seals of that time (an anchor needed
  that was taken later than that state).

Not found: what was never written; someone who holds the key; a rollback to a state after the last
anchor. Leases, which the clock and heartbeats move, are sealed and not chained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, select

from taciturn.accounting.filter import step_cost
from taciturn.errors import LedgerTamperedError, TaciturnError
from taciturn.server.database import transact
from taciturn.server.ledger import tables
from taciturn.server.ledger.entry import Entry, Extended, Reserved
from taciturn.server.ledger.rules import applied
from taciturn.server.ledger.seal import Anchor, SealKey
from taciturn.server.ledger.state import LedgerState
from taciturn.server.ledger.store import (
    Fields,
    Store,
    account_fields,
    entry_of,
    grant_fields,
    job_fields,
)

_SEALED = (tables.register, tables.accounts, tables.grants, tables.jobs)
_CHEAPER = 1e-9  # what floating point may differ by between machines


@dataclass(frozen=True, slots=True)
class LedgerFault:
    """Fault in the database: a row that the ledger did not write, or wrote otherwise.

    Attributes:
        namespace: empty where it is about the ledger as a whole.
        sequence: the entry; None where it is about a sum of entries.
    """

    namespace: str
    sequence: int | None
    what: str

    def __str__(self) -> str:
        where = f"namespace {self.namespace!r}" if self.namespace else "the ledger"
        return f"{where}{f', entry {self.sequence}' if self.sequence else ''}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification: what was checked, and what was wrong.

    Attributes:
        anchors: where each chain ends now; keep them elsewhere, and check against them later.
        seals_checked: whether a key was given.
    """

    accounts: int
    entries: int
    problems: tuple[LedgerFault, ...]
    anchors: tuple[Anchor, ...]
    seals_checked: bool

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def verify(
    engine: Engine,
    *,
    key: SealKey | None = None,
    anchors: Sequence[Anchor] = (),
    namespace: str | None = None,
) -> Verification:
    """Check the ledger as it is at one moment; nothing is changed, and nothing is raised for it.

    Args:
        namespace: whose chain alone is derived again, beside register and seals of all.
    """

    def work(connection: Connection) -> Verification:
        names = _names(connection, anchors) if namespace is None else [namespace]
        return _verify(connection, key, anchors, names)

    return transact(engine, work, read_only=True)


def _verify(
    connection: Connection, key: SealKey | None, anchors: Sequence[Anchor], names: Sequence[str]
) -> Verification:
    chains = [_chain(connection, name, anchors) for name in names]
    problems = [
        *_register_problems(connection),
        *(_seal_problems(connection, key) if key else ()),
        *(problem for chain in chains for problem in chain.problems),
    ]
    ends = [chain.state.account for chain in chains if chain.state.account and not chain.problems]
    return Verification(
        accounts=len(chains),
        entries=sum(chain.entries for chain in chains),
        problems=tuple(problems),
        anchors=tuple(
            Anchor(namespace=end.namespace, entries=end.entries, head=end.head) for end in ends
        ),
        seals_checked=key is not None,
    )


@dataclass(frozen=True, slots=True)
class _Chain:
    """A namespace replayed: how many entries, to which state, and what was wrong."""

    entries: int
    state: LedgerState
    problems: tuple[LedgerFault, ...]


def _chain(connection: Connection, namespace: str, anchors: Sequence[Anchor]) -> _Chain:
    anchored_heads = {
        anchor.entries: anchor.head for anchor in anchors if anchor.namespace == namespace
    }
    state, count = LedgerState(), 0
    for row in Store(connection, None).entry_rows(namespace):
        try:
            entry = entry_of(row)
            _check_prices(entry)
            state = applied(state, entry)
            if anchored_heads.pop(count + 1, entry.digest) != entry.digest:
                raise LedgerTamperedError("the anchor has another digest: history was rewritten")
        except TaciturnError as error:
            what = f"{error} (later entries were not checked)"
            return _Chain(count, state, (LedgerFault(namespace, count + 1, what),))
        count += 1
    problems = [
        LedgerFault(namespace, None, f"the anchor knows {entries} entries, there are {count}")
        for entries in anchored_heads
    ]
    problems += _balance_problems(connection, namespace, state)
    return _Chain(count, state, tuple(problems))


def _check_prices(entry: Entry) -> None:
    if not isinstance(entry.details, Reserved | Extended):
        return
    for price in entry.details.prices:
        lowest = step_cost(price.step).units
        if any(a < b * (1 - _CHEAPER) - 1 for a, b in zip(price.unit, lowest, strict=True)):
            raise LedgerTamperedError(
                f"a step was priced by {entry.details.accountant!r} below what it costs"
            )


def _balance_problems(
    connection: Connection, namespace: str, state: LedgerState
) -> Iterator[LedgerFault]:
    """Rows that are not what the entries add up to."""
    expected: dict[Table, list[Fields]] = {
        tables.accounts: [account_fields(state.account)] if state.account else [],
        tables.grants: [
            grant_fields(namespace, holder, balance) for holder, balance in state.grants.items()
        ],
        tables.jobs: [job_fields(namespace, job) for job in state.jobs.values()],
    }
    for table, rows in expected.items():
        names = [column.name for column in table.primary_key.columns]
        rows_by_key = {
            _key(row._mapping, names): row for row in _rows(connection, table, namespace)
        }
        for fields in rows:
            row = rows_by_key.pop(_key(fields, names), None)
            if row is None:
                yield LedgerFault(
                    namespace, None, f"{_key(fields, names)} is missing in {table.name}"
                )
            else:
                yield from _differences(namespace, table, fields, row)
        for extra in rows_by_key:
            yield LedgerFault(namespace, None, f"{extra} in {table.name} has no entries")


def _differences(
    namespace: str, table: Table, fields: Fields, row: Row[Any]
) -> Iterator[LedgerFault]:
    values = row._mapping
    for name, value in fields.items():
        moved_on = name == "lease_until_ms" and values[name] >= value  # by heartbeats
        if values[name] != value and not moved_on:
            what = f"{name} of {table.name} is not what the entries add up to"
            yield LedgerFault(namespace, None, what)


def _register_problems(connection: Connection) -> Iterator[LedgerFault]:
    rows = connection.execute(select(tables.accounts.c.ordinal)).scalars().all()
    count = connection.execute(select(tables.register.c.accounts)).scalar_one_or_none() or 0
    if sorted(rows) != list(range(1, count + 1)):
        yield LedgerFault("", None, f"{count} namespaces were opened, there are {len(rows)}")


def _seal_problems(connection: Connection, key: SealKey) -> Iterator[LedgerFault]:
    for table in _SEALED:
        for row in connection.execute(select(table)):
            values = tuple(row)
            try:
                key.check(table.name, values[:-1], values[-1])
            except LedgerTamperedError as error:
                yield LedgerFault(str(row._mapping.get("namespace", "")), None, str(error))


def _names(connection: Connection, anchors: Sequence[Anchor]) -> list[str]:
    """Every namespace that any row, or an anchor, speaks of."""
    columns = [table.c.namespace for table in (*_SEALED[1:], tables.entries)]
    names = {name for column in columns for name in connection.execute(select(column)).scalars()}
    return sorted(names | {anchor.namespace for anchor in anchors}, key=repr)


def _rows(connection: Connection, table: Table, namespace: str) -> Iterator[Row[Any]]:
    yield from connection.execute(select(table).where(table.c.namespace == namespace))


def _key(fields: Any, names: Sequence[str]) -> str:
    return " ".join(repr(fields[name]) for name in names)
