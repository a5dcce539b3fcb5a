"""Public data sets, and the one that a job learns from first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column."""
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
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("public_data", sa.String(200), nullable=True))
    op.create_index("ix_jobs_public_data", "jobs", ["public_data"])


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_jobs_public_data", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("public_data")
    op.drop_table("public_datasets")
