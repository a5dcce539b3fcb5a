"""Reads of datasets, kept as they are found; jobs and incidents by when they ended; a token's last
use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_jobs_ended", "jobs", ["namespace", "state", "updated_at_ms", "id", "kind"]),
    ("ix_incidents_namespace", "incidents", ["namespace", "created_at_ms"]),
)


def upgrade() -> None:
    """Add them. What was read so far is found by the gateway, once it runs."""
    op.create_table(
        "dataset_reads",
        sa.Column("dataset", sa.String(200), primary_key=True),
        sa.Column("entry", sa.BigInteger(), primary_key=True, autoincrement=False),
    )
    op.create_index("ix_dataset_reads_entry", "dataset_reads", ["entry"])
    op.create_table(
        "dataset_reads_end",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("entry", sa.BigInteger(), nullable=False),
    )
    for name, table, columns in _INDEXES:
        op.create_index(name, table, columns)
    op.add_column("tokens", sa.Column("used_at_ms", sa.BigInteger()))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("tokens", "used_at_ms")
    for name, table, _ in reversed(_INDEXES):
        op.drop_index(name, table)
    op.drop_table("dataset_reads_end")
    op.drop_table("dataset_reads")
