"""Speeds of fits that are over, so that a plan need not read their events."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_MOST = 1000  # of the fits before this version; plans look at the newest alone


def upgrade() -> None:
    """Add the table, with the newest fits that are over, and an index for lists of jobs."""
    table = op.create_table(
        "fit_speeds",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("base_model", sa.String(300), nullable=False),
        sa.Column("method", sa.String(20), nullable=False),
        sa.Column("seconds_per_unit", sa.Float(53), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
    )
    op.create_index(
        "ix_fit_speeds_base_model", "fit_speeds", ["base_model", "method", "created_at_ms"]
    )
    op.create_index("ix_jobs_created_at_ms", "jobs", ["created_at_ms", "id"])
    connection = op.get_bind()
    fits = connection.execute(
        sa.text(
            "SELECT id, request, plan, created_at_ms FROM jobs WHERE kind = 'fit' AND "
            "state = 'succeeded' ORDER BY created_at_ms DESC LIMIT :most"
        ),
        {"most": _MOST},
    ).all()
    for fit in fits:
        seconds = _training_s(connection, fit.id)
        plan = json.loads(fit.plan)
        if seconds is not None:
            row = {
                "job_id": fit.id,
                "base_model": json.loads(fit.request)["model"],
                "method": plan["adapter"]["method"],
                "seconds_per_unit": seconds / (plan["batch_size"] * plan["steps"]),
                "created_at_ms": fit.created_at_ms,
            }
            connection.execute(sa.insert(table).values(row))


def _training_s(connection: sa.Connection, job_id: str) -> float | None:
    """Seconds from the beginning of training to the job's end; None where a worker was lost."""
    events = connection.execute(
        sa.text("SELECT data, visible_at_ms FROM job_events WHERE job_id = :id ORDER BY sequence"),
        {"id": job_id},
    )
    began, over_ms = list[int](), 0
    for row in events:
        event = json.loads(row.data)
        if event.get("stage") == "training":
            began.append(row.visible_at_ms)
        if event.get("state") == "succeeded":
            over_ms = row.visible_at_ms
    return (over_ms - began[0]) / 1000 if len(began) == 1 and over_ms > began[0] else None


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_jobs_created_at_ms", "jobs")
    op.drop_table("fit_speeds")
