"""Migrations go up and down on both databases, and end where the code's tables are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from taciturn.errors import DatabaseError
from taciturn.server.database import open_database
from taciturn.server.ledger.tables import metadata
from taciturn.server.schema import versions
from taciturn.server.schema.tables import datasets


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = open_database(empty_url)
    yield engine
    engine.dispose()


def test_up_down_and_up_again(empty: Engine) -> None:
    for _ in range(2):
        versions.upgrade(empty)
        assert set(metadata.tables) <= set(inspect(empty).get_table_names())
        versions.downgrade(empty, "base")
        assert inspect(empty).get_table_names() == ["alembic_version"]
    with empty.connect() as connection:
        if empty.dialect.name == "postgresql":
            left = connection.execute(
                text("SELECT proname FROM pg_proc WHERE proname LIKE 'ledger%'")
            )
            assert left.all() == []


def test_migrations_make_the_tables_that_the_code_uses(empty: Engine) -> None:
    versions.upgrade(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_who_was_there_before_was_last_changed_when_let_in(empty: Engine) -> None:
    versions.upgrade(empty, "0002")
    with empty.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO users (id, name, roles, disabled, created_at_ms) "
                "VALUES ('usr_1', 'ada', '[]', false, 1234567890123)"
            )
        )
    versions.upgrade(empty)
    with empty.connect() as connection:
        row = connection.execute(text("SELECT access_changed_at_ms FROM users")).one()
    assert row == (1234567890123,)


def test_upgrading_twice_changes_nothing(empty: Engine) -> None:
    versions.upgrade(empty)
    versions.upgrade(empty)
    versions.check(empty)


def test_datasets_of_an_earlier_version_stay_what_they_are(empty: Engine) -> None:
    """Their columns have been shown already; and what waits is not ready in a version that has no
    word for it."""
    versions.upgrade(empty, "0002")
    with empty.begin() as connection:
        for statement in (
            "INSERT INTO ledger_accounts VALUES ('n', 1, 1, 0.1, '', '', 0, 0, '', '')",
            "INSERT INTO users (id, name, roles, disabled, created_at_ms)"
            " VALUES ('u', 'u', '[]', false, 0)",
            "INSERT INTO policies VALUES ('n', 'u', '{}', 1, 1, 0, 0)",
            "INSERT INTO datasets (name, namespace, owner_id, source, unit, units, state, columns,"
            " mock, split_key, created_at_ms)"
            " VALUES ('d', 'n', 'u', '/a.csv', 'id', 1, 'ready', '[]', '[]', '', 0)",
        ):
            connection.execute(text(statement))
    versions.upgrade(empty)
    told = select(datasets.c.state, datasets.c.columns, datasets.c.header, datasets.c.found)
    with empty.begin() as connection:
        assert tuple(connection.execute(told).one()) == ("ready", "[]", True, None)
        connection.execute(update(datasets).values(state="unconfirmed", found='[{"name": "x"}]'))
    versions.downgrade(empty, "0002")
    with empty.connect() as connection:
        found = connection.execute(text("SELECT * FROM datasets")).one()
    assert "refused" in found
    assert "x" not in str(found)


def test_another_revision_is_refused(empty: Engine) -> None:
    with pytest.raises(DatabaseError, match=r"revision none.*taciturn serve --migrate"):
        versions.check(empty)
    versions.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="revision 9999"):
        versions.check(empty)
    with pytest.raises(DatabaseError, match="9999, which this taciturn does not know"):
        versions.upgrade(empty)  # of an older version, after a rollback


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
