"""Notifications: addresses, preferences and receivers of people, messages and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "email_addresses",
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("address", sa.Text()),
        sa.Column("pending", sa.Text()),
        sa.Column("code", sa.String(64)),
        sa.Column("code_until_ms", sa.BigInteger()),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
    )
    op.create_table(
        "notification_preferences",
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("kind", sa.String(40), primary_key=True),
        sa.Column("email", sa.Boolean(), nullable=False),
        sa.Column("webhook", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "notification_endpoints",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("form", sa.String(20), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("earlier_secret", sa.Text()),
        sa.Column("rotated_at_ms", sa.BigInteger()),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger()),
    )
    op.create_index("ix_notification_endpoints_user_id", "notification_endpoints", ["user_id"])
    op.create_table(
        "notifications",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("key", sa.String(600), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("addressed_at_ms", sa.BigInteger()),
        sa.UniqueConstraint("key", name="uq_notifications_key"),
    )
    op.create_index("ix_notifications_addressed_at_ms", "notifications", ["addressed_at_ms"])
    op.create_table(
        "notification_deliveries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column(
            "notification_id", sa.String(40), sa.ForeignKey("notifications.id"), nullable=False
        ),
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("endpoint_id", sa.String(40), sa.ForeignKey("notification_endpoints.id")),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("answer", sa.String(300)),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger()),
    )
    for columns in (
        ["state", "next_at_ms"],
        ["user_id", "created_at_ms"],
        ["notification_id"],
    ):
        name = f"ix_notification_deliveries_{columns[0]}"
        op.create_index(name, "notification_deliveries", columns)


def downgrade() -> None:
    """Remove them, with what waits to be delivered."""
    for table in (
        "notification_deliveries",
        "notifications",
        "notification_endpoints",
        "notification_preferences",
        "email_addresses",
    ):
        op.drop_table(table)
