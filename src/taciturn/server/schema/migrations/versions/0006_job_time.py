"""Time at which a job was first given to a worker: its time is limited."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("started_at_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("started_at_ms")
