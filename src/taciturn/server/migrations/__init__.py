"""Alembic's environment and the versions of the schema; `taciturn.server.schema` runs them."""
