"""Migrations go up and down on both databases, and end where the code's tables are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from taciturn.errors import DatabaseError
from taciturn.server import schema
from taciturn.server.database import open_database
from taciturn.server.ledger.tables import metadata


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = open_database(empty_url)
    yield engine
    engine.dispose()


def test_up_down_and_up_again(empty: Engine) -> None:
    for _ in range(2):
        schema.upgrade(empty)
        assert set(metadata.tables) <= set(inspect(empty).get_table_names())
        schema.downgrade(empty, "base")
        assert inspect(empty).get_table_names() == ["alembic_version"]
    with empty.connect() as connection:
        if empty.dialect.name == "postgresql":
            left = connection.execute(
                text("SELECT proname FROM pg_proc WHERE proname LIKE 'ledger%'")
            )
            assert left.all() == []


def test_migrations_make_the_tables_that_the_code_uses(empty: Engine) -> None:
    schema.upgrade(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_upgrading_twice_changes_nothing(empty: Engine) -> None:
    schema.upgrade(empty)
    schema.upgrade(empty)
    schema.check(empty)


def test_another_revision_is_refused(empty: Engine) -> None:
    with pytest.raises(DatabaseError, match=r"revision none.*taciturn serve --migrate"):
        schema.check(empty)
    schema.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="revision 9999"):
        schema.check(empty)
    with pytest.raises(DatabaseError, match="9999, which this taciturn does not know"):
        schema.upgrade(empty)  # of an older version, after a rollback


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger_entries SET details = ''", "DELETE FROM ledger_entries"]
)
def test_the_database_itself_refuses_to_change_entries(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO ledger_accounts VALUES ('n', 1, 1, 0.1, '', '', 0, 0, '', '')")
        )
        connection.execute(
            text("INSERT INTO ledger_entries VALUES ('n', 1, 'o', '', 0, '', '', '')")
        )
    with pytest.raises(DBAPIError, match="never changed or removed"), engine.begin() as connection:
        connection.execute(text(statement))
