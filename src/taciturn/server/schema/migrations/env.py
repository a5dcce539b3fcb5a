"""Run by Alembic: migrations on the connection that `schema.versions` hands over."""

from __future__ import annotations

from alembic import context

from taciturn.server.schema.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
