"""Public data sets, and the one that a job learns from first; runs of a tracker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and the column."""
    op.create_table(
        "public_datasets",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("declared_by", sa.String(40), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("text_field", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger()),
    )
    op.create_table(
        "tracked_runs",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("run_id", sa.String(100)),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("failing_since_ms", sa.BigInteger()),
        sa.Column("ended_at_ms", sa.BigInteger()),
    )
    op.create_index("ix_tracked_runs_ended_at_ms", "tracked_runs", ["ended_at_ms", "next_at_ms"])
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("public_data", sa.String(200), nullable=True))
    op.create_index("ix_jobs_public_data", "jobs", ["public_data"])


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_tracked_runs_ended_at_ms", "tracked_runs")
    op.drop_table("tracked_runs")
    op.drop_index("ix_jobs_public_data", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("public_data")
    op.drop_table("public_datasets")
