"""Places where owners may register data, and marks of sources that workers have read."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let owners keep what they have registered; workers compare it before the next job."""
    op.add_column("users", sa.Column("sources", sa.Text(), nullable=False, server_default="[]"))
    op.create_table(
        "source_marks",
        sa.Column("dataset", sa.String(length=200), nullable=False),
        sa.Column("mark", sa.String(length=32), nullable=False),
        sa.Column("lasting", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset"], ["datasets.name"], name=op.f("fk_source_marks_dataset")
        ),
        sa.PrimaryKeyConstraint("dataset", "mark", name=op.f("pk_source_marks")),
    )
    op.create_index("ix_source_marks_mark", "source_marks", ["mark"], unique=False)
    _allow_what_is_registered(op.get_bind())


def _allow_what_is_registered(connection: sa.Connection) -> None:
    sources_of_owner: dict[str, list[str]] = {}
    registered = "SELECT owner_id, source FROM datasets WHERE removed_at_ms IS NULL ORDER BY name"
    for owner_id, source in connection.execute(sa.text(registered)):
        sources_of_owner.setdefault(owner_id, []).append(source)
    change = sa.text("UPDATE users SET sources = :sources WHERE id = :id")
    for owner_id, sources in sources_of_owner.items():
        text = json.dumps(list(dict.fromkeys(sources)))
        connection.execute(change, {"id": owner_id, "sources": text})


def downgrade() -> None:
    """Remove both."""
    op.drop_table("source_marks")
    op.drop_column("users", "sources")
