"""The ledger: accounts, grants, jobs, and entries that can only be added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_REFUSED = "entries of the ledger are added, never changed or removed"


def upgrade() -> None:
    """Create the tables, and have the database itself refuse to change an entry."""
    op.create_table(
        "ledger_register",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("accounts", sa.Integer(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_ledger_register_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_register")),
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        *_purse(),
        sa.Column("exceptions", sa.Integer(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name=op.f("pk_ledger_accounts")),
        sa.UniqueConstraint("ordinal", name=op.f("uq_ledger_accounts_ordinal")),
    )
    op.create_table(
        "ledger_grants",
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        *_purse(),
        sa.Column("seal", sa.Text(), nullable=False),
        _of_account("ledger_grants"),
        sa.PrimaryKeyConstraint("namespace", "holder", name=op.f("pk_ledger_grants")),
    )
    op.create_table(
        "ledger_jobs",
        sa.Column("job", sa.String(200), nullable=False),
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        _of_account("ledger_jobs"),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_ledger_jobs")),
    )
    op.create_index(op.f("ix_ledger_jobs_namespace"), "ledger_jobs", ["namespace"])
    op.create_index("ix_ledger_jobs_lease", "ledger_jobs", ["status", "lease_until_ms"])
    op.create_table(
        "ledger_entries",
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("operation_id", sa.String(200), nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("recorded_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        _of_account("ledger_entries"),
        sa.PrimaryKeyConstraint("namespace", "sequence", name=op.f("pk_ledger_entries")),
        sa.UniqueConstraint("operation_id", name=op.f("uq_ledger_entries_operation_id")),
    )
    for statement in _guards(op.get_bind().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables with all that was spent: only for a database that holds nothing yet."""
    for name in ("entries", "jobs", "grants", "accounts", "register"):
        op.drop_table(f"ledger_{name}")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_entries_refuse()")


def _purse() -> list[sa.Column[object]]:
    return [
        sa.Column("epsilon", sa.Float(53), nullable=False),
        sa.Column("delta", sa.Float(53), nullable=False),
        sa.Column("charged", sa.Text(), nullable=False),
        sa.Column("held", sa.Text(), nullable=False),
    ]


def _of_account(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_namespace")
    return sa.ForeignKeyConstraint(["namespace"], ["ledger_accounts.namespace"], name=name)


def _guards(dialect: str) -> list[str]:
    """Triggers: they stop a careless hand, not the database's owner, whom `verify` finds out."""
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER ledger_entries_no_{action.lower()} BEFORE {action} ON ledger_entries "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
            for action in ("UPDATE", "DELETE")
        ]
    return [
        "CREATE FUNCTION ledger_entries_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$",
        "CREATE TRIGGER ledger_entries_no_change BEFORE UPDATE OR DELETE ON ledger_entries "
        "FOR EACH ROW EXECUTE FUNCTION ledger_entries_refuse()",
        "CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_entries_refuse()",
    ]
