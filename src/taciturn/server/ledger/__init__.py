"""The privacy ledger: budgets that hold whoever spends, whatever crashes.

    engine = open_database("sqlite:///ledger.db")       # taciturn.server.database
    upgrade(engine)                                     # taciturn.server.schema.versions
    ledger = Ledger(engine, SealKey.from_text(secret))
    ledger.open_account("op-1", "patients-2026", epsilon=8, delta=1e-6)
    ledger.set_grant("op-2", "patients-2026", "user:ada", epsilon=3, delta=1e-6)

    ledger.reserve("op-3", "job-7", namespace="patients-2026", grants=["user:ada"],
                   event=plan, hold_s=3600)             # BudgetExceededError: nothing has changed
    lease = ledger.acquire("op-4", "job-7", worker="pod-1", lease_s=30)
    ledger.charge("op-5", "job-7", lease.token, block)  # then, and only then, run the block
    ledger.heartbeat("job-7", lease.token, lease_s=30)  # every few seconds, by a thread of its own
    ledger.check_token("job-7", lease.token)            # before what a worker reports is believed
    ledger.commit("op-6", "job-7", lease.token)         # frees what never ran, nothing else
    ledger.release("op-7", "job-8")                     # instead, for a job that never started
    ledger.reap()                                       # at every start, and every few seconds

    statement(engine, key, "patients-2026"), job_statements(engine, key, "patients-2026")
    job_report(engine, key, "job-7")
    verify(engine, key=key, anchors=kept_elsewhere)

Every operation is one transaction, idempotent by its operation id, and calls nobody. Errors are
under `taciturn.LedgerError`; after DatabaseUnavailableError, repeat the operation with its id.
To stop a job that runs, acquire it with `takeover=True`, which fences its worker off, and commit.
The caller decides who may do what, and keeps operation ids of different users apart.

Everything is in Rényi costs under the filter of `taciturn.accounting.filter`, in whole numbers;
epsilon of one job is reported from its charged events by privacy loss distributions.
"""

from taciturn.server.ledger.entry import Entry
from taciturn.server.ledger.ledger import Lease, Ledger, Receipt
from taciturn.server.ledger.seal import Anchor, SealKey, anchors_text, read_anchors
from taciturn.server.ledger.statement import (
    BudgetStatement,
    JobReport,
    JobShares,
    JobStatement,
    NamespaceStatement,
    Room,
    RoomQuote,
    Together,
    entries,
    job_cost,
    job_page,
    job_report,
    job_statement,
    job_statements,
    job_statements_within,
    job_steps,
    namespaces,
    room,
    rooms_within,
    statement,
    statement_within,
    statements_within,
    together,
    was_done,
)
from taciturn.server.ledger.verification import LedgerFault, Verification, verify

__all__ = [
    "Anchor",
    "BudgetStatement",
    "Entry",
    "JobReport",
    "JobShares",
    "JobStatement",
    "Lease",
    "Ledger",
    "LedgerFault",
    "NamespaceStatement",
    "Receipt",
    "Room",
    "RoomQuote",
    "SealKey",
    "Together",
    "Verification",
    "anchors_text",
    "entries",
    "job_cost",
    "job_page",
    "job_report",
    "job_statement",
    "job_statements",
    "job_statements_within",
    "job_steps",
    "namespaces",
    "read_anchors",
    "room",
    "rooms_within",
    "statement",
    "statement_within",
    "statements_within",
    "together",
    "verify",
    "was_done",
]
