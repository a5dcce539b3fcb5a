"""Whatever is done to the rows behind the ledger's back is found, or said not to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, delete, insert, select, text, update

from support.ledger import KEY, NAMESPACE, LedgerWorld, steps
from taciturn.accounting.filter import RenyiCost
from taciturn.server.ledger import Anchor, SealKey, Verification, verify
from taciturn.server.ledger.entry import details_text, parse_details
from taciturn.server.ledger.rules import applied
from taciturn.server.ledger.state import LedgerState
from taciturn.server.ledger.store import (
    account_fields,
    entry_fields,
    entry_of,
    grant_fields,
    job_fields,
)
from taciturn.server.ledger.tables import accounts, entries, grants, jobs, metadata, register

Change = Callable[[Connection], None]


@pytest.fixture
def full(world: LedgerWorld) -> LedgerWorld:
    """Two namespaces, jobs in every state, some 20 entries."""
    world.open(namespace="others")
    world.reserve("elsewhere", namespace="others")
    token = world.started("done", grants=["user:ada"])
    for _ in range(3):
        world.charge(10, token, "done")
    world.ledger.commit(world.op(), "done", token)
    world.reserve("given-back")
    world.ledger.release(world.op(), "given-back")
    token = world.started("running", plan=steps(200))
    world.charge(10, token, "running")
    world.ledger.heartbeat("running", token, lease_s=100)
    world.ledger.extend(world.op(), "running", token, steps(3, noise=3.0))
    world.acquire("running", "second", takeover=True)
    world.ledger.record_exception(world.op(), NAMESPACE, "wild", approvals=["user:eve"])
    world.ledger.set_cap(world.op(), NAMESPACE, epsilon=9, delta=1e-6)
    return world


def tampered(world: LedgerWorld, change: Change) -> None:
    """Change rows as the database's owner can: no triggers, no foreign keys."""
    owner = create_engine(world.engine.url, isolation_level="SERIALIZABLE")
    with owner.begin() as connection:
        if owner.dialect.name == "sqlite":
            for action in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER IF EXISTS ledger_entries_no_{action}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        change(connection)
    owner.dispose()


def at(sequence: int, namespace: str = NAMESPACE) -> Any:
    return (entries.c.namespace == namespace) & (entries.c.sequence == sequence)


def test_an_untouched_ledger_is_in_order(full: LedgerWorld) -> None:
    found = verify(full.engine, key=KEY)
    assert found.ok, found.problems
    assert (found.accounts, found.entries, found.seals_checked) == (2, 19, True)
    assert verify(full.engine).ok
    assert not verify(full.engine).seals_checked


def test_an_empty_ledger_is_in_order(full: LedgerWorld) -> None:
    def clear(connection: Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))

    tampered(full, clear)
    assert verify(full.engine, key=KEY) == Verification(0, 0, (), (), True)


def count(world: LedgerWorld) -> int:
    with world.engine.connect() as connection:
        query = select(entries.c.sequence).where(entries.c.namespace == NAMESPACE)
        return len(connection.execute(query).all())


@pytest.mark.parametrize("column", [c.name for c in entries.columns if c.name != "namespace"])
def test_every_edited_column_of_every_entry_is_found(full: LedgerWorld, column: str) -> None:
    for sequence in range(1, count(full) + 1):
        with full.engine.connect() as connection:
            query = select(entries.c[column]).where(at(sequence))
            value = connection.execute(query).scalar_one()
        other = value + 1000 if isinstance(value, int) else value[:-1] + "~"
        where = sequence + 1000 if column == "sequence" else sequence
        edit = update(entries).where(at(sequence)).values({column: other})
        tampered(full, lambda c, edit=edit: c.execute(edit))  # type: ignore[misc]
        assert not verify(full.engine).ok, (sequence, column)
        undo = update(entries).where(at(where)).values({column: value})
        tampered(full, lambda c, undo=undo: c.execute(undo))  # type: ignore[misc]
    assert verify(full.engine, key=KEY).ok


def test_every_removed_entry_is_found(full: LedgerWorld) -> None:
    for sequence in range(1, count(full) + 1):
        with full.engine.connect() as connection:
            row = connection.execute(select(entries).where(at(sequence))).one()._asdict()
        tampered(full, lambda c, s=sequence: c.execute(delete(entries).where(at(s))))  # type: ignore[misc]
        assert not verify(full.engine).ok, sequence
        tampered(full, lambda c, row=row: c.execute(insert(entries).values(row)))  # type: ignore[misc]
    assert verify(full.engine, key=KEY).ok


def test_two_entries_exchanged_are_found(full: LedgerWorld) -> None:
    for first in range(1, count(full)):

        def exchange(connection: Connection, a: int = first, b: int = first + 1) -> None:
            for old, new in ((a, 9999), (b, a), (9999, b)):
                connection.execute(update(entries).where(at(old)).values(sequence=new))

        tampered(full, exchange)
        found = verify(full.engine)
        assert not found.ok
        assert {problem.sequence for problem in found.problems} == {first}
        tampered(full, exchange)
    assert verify(full.engine, key=KEY).ok


def test_an_inserted_entry_is_found(full: LedgerWorld) -> None:
    def add(connection: Connection) -> None:
        last = connection.execute(select(entries).where(at(count(full)))).one()
        entry = replace(
            entry_of(last), sequence=last.sequence + 1, operation_id="new", previous=last.digest
        )
        connection.execute(insert(entries).values(entry_fields(entry)))

    tampered(full, add)
    assert not verify(full.engine).ok


def whole_columns() -> list[tuple[Any, str]]:
    return [
        (table, column.name)
        for table in (register, accounts, grants, jobs)
        for column in table.columns
        if not column.primary_key and not column.foreign_keys
    ]


@pytest.mark.parametrize(
    ("table", "column"), whole_columns(), ids=lambda each: getattr(each, "name", each)
)
def test_every_edited_balance_is_found(full: LedgerWorld, table: Any, column: str) -> None:
    with full.engine.connect() as connection:
        rows = connection.execute(select(table)).all()
    for row in rows:
        key = [each == row._mapping[each.name] for each in table.primary_key.columns]
        value = row._mapping[column]
        other = value + 7 if isinstance(value, int | float) else value[:-1] + "~"
        edit = update(table).where(*key).values({column: other})
        tampered(full, lambda c, edit=edit: c.execute(edit))  # type: ignore[misc]
        assert not verify(full.engine, key=KEY).ok, (row, column)
        if column not in ("seal", "lease_until_ms"):
            assert not verify(full.engine).ok, "no key is needed for what entries add up to"
        undo = update(table).where(*key).values({column: value})
        tampered(full, lambda c, undo=undo: c.execute(undo))  # type: ignore[misc]
    assert verify(full.engine, key=KEY).ok


@pytest.mark.parametrize("table", [accounts, grants, jobs], ids=lambda table: table.name)
def test_every_removed_balance_is_found(full: LedgerWorld, table: Any) -> None:
    with full.engine.connect() as connection:
        rows = connection.execute(select(table)).all()
    for row in rows:
        key = [each == row._mapping[each.name] for each in table.primary_key.columns]

        def remove(connection: Connection, key: Any = key) -> None:
            connection.execute(delete(table).where(*key))

        tampered(full, remove)
        assert not verify(full.engine).ok, row
        tampered(full, lambda c, row=row: c.execute(insert(table).values(row._asdict())))  # type: ignore[misc]
    assert verify(full.engine, key=KEY).ok


def test_values_that_are_not_even_of_the_right_kind(full: LedgerWorld) -> None:
    for column in ("parts", "grants"):
        tampered(full, lambda c, column=column: c.execute(update(jobs).values({column: "?"})))  # type: ignore[misc]
        assert not verify(full.engine).ok
    tampered(full, lambda c: c.execute(update(entries).where(at(3)).values(details="")))
    found = map(str, verify(full.engine).problems)
    assert any("entry 3: the details are not as the ledger writes them" in each for each in found)


def rechained(connection: Connection, keep: Callable[[Any], Any]) -> None:
    """A clever owner: changes entries, then all digests and balances to match; not the seals."""
    rows = connection.execute(
        select(entries).where(entries.c.namespace == NAMESPACE).order_by(entries.c.sequence)
    ).all()
    connection.execute(delete(entries).where(entries.c.namespace == NAMESPACE))
    state = LedgerState()
    for row in rows:
        entry = keep(entry_of(row))
        if entry is None:
            continue
        account = state.account
        entry = replace(
            entry,
            sequence=account.entries + 1 if account else 1,
            previous=account.head if account else entry.previous,
        )
        state = applied(state, entry)
        connection.execute(insert(entries).values(entry_fields(entry)))
    assert state.account is not None
    here = {table: table.c.namespace == NAMESPACE for table in (accounts, grants, jobs)}
    connection.execute(update(accounts).where(here[accounts]).values(account_fields(state.account)))
    for holder, balance in state.grants.items():
        where = here[grants] & (grants.c.holder == holder)
        connection.execute(
            update(grants).where(where).values(grant_fields(NAMESPACE, holder, balance))
        )
    for name, job in state.jobs.items():
        connection.execute(
            update(jobs).where(jobs.c.job == name).values(job_fields(NAMESPACE, job))
        )
    connection.execute(delete(jobs).where(here[jobs] & jobs.c.job.not_in(list(state.jobs))))


def without_the_tail(entry: Any) -> Any:
    return entry if entry.sequence <= 3 else None


def with_a_larger_cap(entry: Any) -> Any:
    if entry.sequence != 1:
        return entry
    return replace(entry, details=entry.details.model_copy(update={"epsilon": 80.0}))


@pytest.mark.parametrize("keep", [without_the_tail, with_a_larger_cap])
def test_a_rewritten_chain_needs_the_key(full: LedgerWorld, keep: Callable[[Any], Any]) -> None:
    tampered(full, lambda connection: rechained(connection, keep))
    assert verify(full.engine).ok, "plain digests cannot tell"
    found = verify(full.engine, key=KEY)
    assert any("sealed" in problem.what for problem in found.problems)


def test_a_namespace_removed_as_a_whole_needs_the_key(full: LedgerWorld) -> None:
    def remove(connection: Connection) -> None:
        for table in (entries, jobs, grants, accounts):
            connection.execute(delete(table).where(table.c.namespace == "others"))

    tampered(full, remove)
    assert any("were opened" in problem.what for problem in verify(full.engine).problems)
    tampered(full, lambda c: c.execute(update(register).values(accounts=1)))
    assert verify(full.engine).ok
    assert not verify(full.engine, key=KEY).ok


def test_going_back_to_an_earlier_state_needs_an_anchor(world: LedgerWorld) -> None:
    world.reserve()
    with world.engine.connect() as connection:
        backup = {
            table: connection.execute(select(table)).all() for table in metadata.sorted_tables
        }
    token = world.acquire()
    world.charge(100, token)
    anchors = verify(world.engine, key=KEY).anchors
    assert verify(world.engine, key=KEY, anchors=anchors).ok

    def restore(connection: Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
        for table, rows in backup.items():
            if rows:
                connection.execute(insert(table), [row._asdict() for row in rows])

    tampered(world, restore)
    assert verify(world.engine, key=KEY).ok, "true seals of an earlier time"
    (problem,) = verify(world.engine, key=KEY, anchors=anchors).problems
    assert "the anchor knows 5 entries, there are 3" in str(problem)


def test_an_anchor_of_another_history_is_found(full: LedgerWorld) -> None:
    anchor = Anchor(namespace=NAMESPACE, entries=4, head="0" * 64)
    (problem,) = verify(full.engine, key=KEY, anchors=[anchor]).problems
    assert (problem.sequence, "rewritten" in problem.what) == (4, True)
    gone = Anchor(namespace="gone", entries=1, head="0" * 64)
    (problem,) = verify(full.engine, key=KEY, anchors=[gone]).problems
    assert problem.namespace == "gone"


def test_anchors_stay_true_as_the_chain_grows(full: LedgerWorld) -> None:
    anchors = verify(full.engine, key=KEY).anchors
    full.reserve("later", steps(1))
    assert verify(full.engine, key=KEY, anchors=anchors).ok


def test_another_key_finds_no_seal_true(full: LedgerWorld) -> None:
    found = verify(full.engine, key=SealKey.generate())
    assert len(found.problems) == 1 + 2 + 1 + 4


def test_a_price_that_is_too_low_is_found_though_the_chain_holds(world: LedgerWorld) -> None:
    """Even someone with the key cannot sell steps below what they cost."""
    cheap = RenyiCost(tuple(unit // 2 for unit in _unit(world)))

    def change(connection: Connection) -> None:
        rechained(connection, lambda entry: _cheaper(entry, cheap))

    tampered(world, change)
    (problem,) = verify(world.engine).problems
    assert "below what it costs" in problem.what


def _unit(world: LedgerWorld) -> tuple[int, ...]:
    world.reserve()
    with world.engine.connect() as connection:
        row = connection.execute(select(entries).where(at(3))).one()
    details: Any = parse_details(row.details)
    unit: tuple[int, ...] = details.prices[0].unit
    return unit


def _cheaper(entry: Any, unit: RenyiCost) -> Any:
    if entry.sequence != 3:
        return entry
    fields = json.loads(details_text(entry.details))
    fields["prices"][0]["unit"] = unit.units
    fields["cost"] = (unit * 100).units
    text_ = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return replace(entry, details=parse_details(text_))
