"""Rows of the ledger's tables as the values of `state` and `entry`, and back.

A row that was not written here under the same key is refused when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, insert, or_, select, update

from taciturn.accounting.filter import RenyiCost
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.certificate.canonical import canonical_json
from taciturn.errors import LedgerTamperedError, UnknownEntryError
from taciturn.server.ledger import tables
from taciturn.server.ledger.entry import Entry, details_text, parse_details
from taciturn.server.ledger.seal import SealKey
from taciturn.server.ledger.state import (
    Account,
    Balance,
    JobReservation,
    LedgerState,
    ReservedSteps,
)

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Store:
    """The ledger's tables within one transaction.

    Attributes:
        key: None leaves seals unchecked; such a store only reads.
    """

    connection: Connection
    key: SealKey | None

    def namespace_of(self, job: str) -> str:
        """Namespace in which a job has its reservation; raises UnknownEntryError."""
        query = select(tables.jobs.c.namespace).where(tables.jobs.c.job == job)
        namespace = self.connection.execute(query).scalar_one_or_none()
        if namespace is None:
            raise _no_job(job)
        return str(namespace)

    def state(
        self, namespace: str, *, jobs: Collection[str] = (), grants: Collection[str] = ()
    ) -> LedgerState:
        """The account, these jobs and grants, and the jobs' own grants; locked until the end.

        Whatever does not exist is left out.
        """
        account = self.account(namespace)
        if account is None:
            return LedgerState()
        self._check_end(account)
        # Wherever they are: a job has one reservation in the whole ledger.
        query = select(tables.jobs).where(tables.jobs.c.job.in_(list(jobs)))
        locked_jobs = {row.job: self._job(row) for row in self._rows(query.with_for_update())}
        holders = {*grants, *(holder for job in locked_jobs.values() for holder in job.grants)}
        return LedgerState(account, self._grants(namespace, holders), locked_jobs)

    def balances(self, namespace: str) -> LedgerState:
        """The account with all its grants, and no jobs; nothing is locked."""
        return self.balances_of([namespace])[namespace]

    def balances_of(self, namespaces: Collection[str]) -> dict[str, LedgerState]:
        """The same of several namespaces, by two queries."""
        accounts = {account.namespace: account for account in self.accounts(namespaces)}
        grants: dict[str, dict[str, Balance]] = {namespace: {} for namespace in namespaces}
        table = tables.grants
        for row in self._rows(select(table).where(table.c.namespace.in_(sorted(namespaces)))):
            self._check(table, row)
            grants[row.namespace][row.holder] = _balance(row)
        return {name: LedgerState(accounts.get(name), grants[name]) for name in namespaces}

    def open_jobs(self, namespaces: Collection[str]) -> list[tuple[str, JobReservation]]:
        """The jobs of these namespaces that are open, by name, each with its namespace; nothing is
        locked."""
        table = tables.jobs
        is_open = table.c.namespace.in_(sorted(namespaces)), table.c.status == "open"
        rows = self._rows(select(table).where(*is_open).order_by(table.c.job))
        return [(row.namespace, self._job(row)) for row in rows]

    def jobs(self, namespace: str, *, only_open: bool) -> list[JobReservation]:
        """The jobs of a namespace by name, or those that are open; nothing is locked."""
        table = tables.jobs
        query = select(table).where(table.c.namespace == namespace).order_by(table.c.job)
        if only_open:
            query = query.where(table.c.status == "open")
        return [self._job(row) for row in self._rows(query)]

    def job_page(self, namespace: str, after: str, limit: int) -> list[JobReservation]:
        """Page of at most `limit` jobs of a namespace, with names after `after`; locks nothing."""
        table = tables.jobs
        query = select(table).where(table.c.namespace == namespace, table.c.job > after)
        return [self._job(row) for row in self._rows(query.order_by(table.c.job).limit(limit))]

    def named_jobs(self, namespace: str, names: Collection[str]) -> list[JobReservation]:
        """Jobs of a namespace that have one of these names; nothing is locked."""
        table = tables.jobs
        query = select(table).where(table.c.namespace == namespace, table.c.job.in_(sorted(names)))
        return [self._job(row) for row in self._rows(query)]

    def job(self, name: str, *, lock: bool) -> tuple[str, JobReservation]:
        """A job and its namespace; raises UnknownEntryError."""
        query = select(tables.jobs).where(tables.jobs.c.job == name)
        row = self.connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise _no_job(name)
        return row.namespace, self._job(row)

    def account(self, namespace: str, *, lock: bool = True) -> Account | None:
        """The account of a namespace, if it is open."""
        table = tables.accounts
        query = select(table).where(table.c.namespace == namespace)
        row = self.connection.execute(query.with_for_update() if lock else query).one_or_none()
        return None if row is None else self._account(row)

    def accounts(self, namespaces: Collection[str], *, used: bool = False) -> list[Account]:
        """The accounts of these namespaces, or those where anything is spent or held; nothing is
        locked."""
        table = tables.accounts
        query = select(table).where(table.c.namespace.in_(sorted(namespaces)))
        if used:
            nothing = _text(RenyiCost.nothing().units)
            query = query.where(or_(table.c.charged != nothing, table.c.held != nothing))
        return [self._account(row) for row in self._rows(query)]

    def _account(self, row: Row[Any]) -> Account:
        self._check(tables.accounts, row)
        return Account(
            row.namespace, row.ordinal, _balance(row), row.exceptions, row.entries, row.head
        )

    def namespaces(self) -> list[str]:
        """All namespaces, in the order in which they were opened."""
        query = select(tables.accounts.c.namespace).order_by(tables.accounts.c.ordinal)
        return [str(name) for name in self.connection.execute(query).scalars()]

    def accounts_opened(self) -> int:
        """Number of namespaces, from the sealed register."""
        row = self.connection.execute(select(tables.register).with_for_update()).one_or_none()
        if row is None:
            return 0
        self._check(tables.register, row)
        return int(row.accounts)

    def write_accounts_opened(self, count: int) -> None:
        """Write the register."""
        self._write(tables.register, register_fields(count), new=count == 1)

    def entry(self, operation_id: str) -> Entry | None:
        """The entry that an operation wrote, if it did."""
        query = select(tables.entries).where(tables.entries.c.operation_id == operation_id)
        row = self.connection.execute(query).one_or_none()
        return None if row is None else entry_of(row)

    def entry_rows(self, namespace: str) -> Iterator[Row[Any]]:
        """The rows of a namespace's chain as they are, in order."""
        table = tables.entries
        query = select(table).where(table.c.namespace == namespace).order_by(table.c.sequence)
        return self._rows(query)

    def entry_page(self, namespace: str, after: int, limit: int) -> list[Entry]:
        """Page of at most `limit` entries of a namespace's chain after entry `after`, in order."""
        table = tables.entries
        query = select(table).where(table.c.namespace == namespace, table.c.sequence > after)
        rows = self._rows(query.order_by(table.c.sequence).limit(limit))
        return [entry_of(row) for row in rows]

    def expired(self, moment_ms: int) -> list[tuple[str, int]]:
        """Open jobs whose lease has run out, with their tokens."""
        table = tables.jobs
        query = select(table.c.job, table.c.token).where(
            table.c.status == "open", table.c.lease_until_ms <= moment_ms
        )
        return [(row.job, row.token) for row in self._rows(query.order_by(table.c.lease_until_ms))]

    def append(self, before: LedgerState, after: LedgerState, entry: Entry) -> None:
        """Write an entry, and whatever of the state it changed."""
        if after.account is not None:
            self._write(tables.accounts, account_fields(after.account), new=before.account is None)
        for holder, balance in after.grants.items():
            if before.grants.get(holder) != balance:
                fields = grant_fields(entry.namespace, holder, balance)
                self._write(tables.grants, fields, new=holder not in before.grants)
        for name, job in after.jobs.items():
            if before.jobs.get(name) != job:
                self.write_job(entry.namespace, job, new=name not in before.jobs)
        self.connection.execute(insert(tables.entries).values(entry_fields(entry)))

    def write_job(self, namespace: str, job: JobReservation, *, new: bool = False) -> None:
        """Write a job's row."""
        self._write(tables.jobs, job_fields(namespace, job), new=new)

    def _check_end(self, account: Account) -> None:
        """The chain ends where the account says: an older row of it that was put back does not."""
        table = tables.entries
        query = select(table.c.sequence, table.c.digest).where(
            table.c.namespace == account.namespace
        )
        last = self.connection.execute(query.order_by(table.c.sequence.desc()).limit(1)).first()
        if last is None or tuple(last) != (account.entries, account.head):
            raise LedgerTamperedError(
                f"the entries of {account.namespace!r} do not end where its account says; "
                "run `taciturn ledger verify`"
            )

    def _grants(self, namespace: str, holders: Collection[str]) -> dict[str, Balance]:
        table = tables.grants
        query = select(table).where(table.c.namespace == namespace)
        query = query.where(table.c.holder.in_(sorted(holders)))
        grants = {}
        for row in self._rows(query):
            self._check(table, row)
            grants[row.holder] = _balance(row)
        return grants

    def _job(self, row: Row[Any]) -> JobReservation:
        self._check(tables.jobs, row)
        return JobReservation(
            job=row.job,
            grants=tuple(_read(row.grants)),
            parts=tuple(_part(part) for part in _read(row.parts)),
            lease_until_ms=row.lease_until_ms,
            status=row.status,
            token=row.token,
            worker=row.worker,
        )

    def _rows(self, query: Select[Any]) -> Iterator[Row[Any]]:
        yield from self.connection.execute(query)

    def _check(self, table: Table, row: Row[Any]) -> None:
        """Check that a row is what was sealed, before anything of it is read."""
        if self.key is not None:
            values = tuple(row)
            self.key.check(table.name, values[:-1], values[-1])

    def _write(self, table: Table, fields: Fields, *, new: bool) -> None:
        assert self.key is not None, "a store without a key only reads"
        sealed = {**fields, "seal": self.key.seal(table.name, list(fields.values()))}
        if new:
            self.connection.execute(insert(table).values(sealed))
            return
        keys = [column == fields[column.name] for column in table.primary_key.columns]
        outcome = self.connection.execute(update(table).where(*keys).values(sealed))
        assert outcome.rowcount == 1, f"{table.name} lost a row within a transaction"


def _no_job(name: str) -> UnknownEntryError:
    return UnknownEntryError(f"job {name!r} has no reservation; reserve its whole plan first")


def entry_of(row: Row[Any]) -> Entry:
    """The entry of a row; raises LedgerTamperedError if it is not as it was written."""
    entry = Entry(
        namespace=row.namespace,
        sequence=row.sequence,
        operation_id=row.operation_id,
        request=row.request,
        recorded_at_ms=row.recorded_at_ms,
        details=parse_details(row.details),
        previous=row.previous,
    )
    if entry.digest != row.digest:
        raise LedgerTamperedError(f"entry {row.sequence} of {row.namespace!r} has another digest")
    return entry


def entry_fields(entry: Entry) -> Fields:
    """The row of an entry."""
    return {
        "namespace": entry.namespace,
        "sequence": entry.sequence,
        "operation_id": entry.operation_id,
        "request": entry.request,
        "recorded_at_ms": entry.recorded_at_ms,
        "details": details_text(entry.details),
        "previous": entry.previous,
        "digest": entry.digest,
    }


def register_fields(count: int) -> Fields:
    """The row of the register, but for its seal; so for the others below."""
    return {"id": 1, "accounts": count}


def account_fields(account: Account) -> Fields:
    """The row of an account."""
    return {
        "namespace": account.namespace,
        "ordinal": account.ordinal,
        **_purse_fields(account.balance),
        "exceptions": account.exceptions,
        "entries": account.entries,
        "head": account.head,
    }


def grant_fields(namespace: str, holder: str, balance: Balance) -> Fields:
    """The row of a grant."""
    return {"namespace": namespace, "holder": holder, **_purse_fields(balance)}


def job_fields(namespace: str, job: JobReservation) -> Fields:
    """The row of a job."""
    return {
        "job": job.job,
        "namespace": namespace,
        "grants": _text(job.grants),
        "parts": _text([_part_fields(part) for part in job.parts]),
        "status": job.status,
        "token": job.token,
        "worker": job.worker,
        "lease_until_ms": job.lease_until_ms,
    }


def _purse_fields(balance: Balance) -> Fields:
    return {
        "epsilon": balance.epsilon,
        "delta": balance.delta,
        "charged": _text(balance.charged.units),
        "held": _text(balance.reserved.units),
    }


def _balance(row: Row[Any]) -> Balance:
    charged, reserved = (RenyiCost(tuple(_read(text))) for text in (row.charged, row.held))
    return Balance(row.epsilon, row.delta, charged, reserved)


def _part_fields(part: ReservedSteps) -> Fields:
    return {
        "sampling_probability": part.step.sampling_probability,
        "noise_multiplier": part.step.noise_multiplier,
        "unit": part.unit.units,
        "held": part.reserved,
        "charged": part.charged,
    }


def _part(fields: Fields) -> ReservedSteps:
    step = SampledGaussian(fields["sampling_probability"], fields["noise_multiplier"])
    return ReservedSteps(step, RenyiCost(tuple(fields["unit"])), fields["held"], fields["charged"])


def _text(value: object) -> str:
    return canonical_json(value).decode()


def _read(text: str) -> Any:
    return json.loads(text)
