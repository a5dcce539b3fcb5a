"""Pieces of streamed text, on their way from a worker to its reader."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. On PostgreSQL it is neither in backups nor at replicas: text is not kept."""
    op.create_table(
        "text_pieces",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("chars", sa.Integer(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_text_pieces_created_at_ms", "text_pieces", ["created_at_ms"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE text_pieces SET UNLOGGED")


def downgrade() -> None:
    """Remove it."""
    op.drop_table("text_pieces")
