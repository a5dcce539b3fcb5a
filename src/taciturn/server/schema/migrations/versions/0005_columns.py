"""Datasets: what their owner has stated of columns, and what was found and is to be confirmed.

Columns that are there stay as they are: they have been shown to whoever may know of the dataset.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    header: sa.Column[bool] = sa.Column(
        "header", sa.Boolean(), nullable=False, server_default=sa.true()
    )
    op.add_column("datasets", header)
    op.add_column("datasets", sa.Column("stated", sa.Text(), nullable=True))
    op.add_column("datasets", sa.Column("found", sa.Text(), nullable=True))


def downgrade() -> None:
    """Remove them; what was not confirmed is probed again by whoever wants it."""
    op.execute("UPDATE datasets SET state = 'refused' WHERE state = 'unconfirmed'")
    for name in ("found", "stated", "header"):
        op.drop_column("datasets", name)
