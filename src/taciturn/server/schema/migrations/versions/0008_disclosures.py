"""Indexes by which disclosures are found: jobs of a dataset, and reads of what they left."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_jobs_dataset", "jobs", ["dataset", "created_at_ms"]),
    ("ix_jobs_model_id", "jobs", ["model_id"]),
    ("ix_audit_log_resource", "audit_log", ["resource", "id"]),
)


def upgrade() -> None:
    """Add them."""
    for name, table, columns in _INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    """Remove them."""
    for name, table, _ in _INDEXES:
        op.drop_index(name, table)
