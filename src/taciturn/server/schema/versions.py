"""The database's tables, brought to a version by Alembic's migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from taciturn.errors import DatabaseError

_LOCK = 0x7461636974  # "tacit": any number that nobody else takes
_FOLDER = Path(__file__).parent / "migrations"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to a revision, by default the newest; does nothing where they are there.

    Raises:
        DatabaseError: they are of a later version of taciturn, as after a rollback.
    """
    with _alone(engine) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(_config(connection))
        known_revisions = {script_revision.revision for script_revision in script.walk_revisions()}
        if current is not None and current not in known_revisions:
            raise DatabaseError(
                f"the database is at revision {current}, which this taciturn does not know; use "
                "the version that it was made with, or a later one"
            )
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the tables back to an earlier revision; what only later ones hold is lost."""
    with _alone(engine) as connection:
        command.downgrade(_config(connection), revision)


def check(engine: Engine) -> None:
    """Raises DatabaseError unless the tables are those of this version of taciturn."""
    current, newest = revisions(engine)
    if current != newest:
        raise DatabaseError(
            f"the database is at revision {current or 'none'}, this taciturn needs {newest}; "
            "run `taciturn serve --migrate`, or use the version of taciturn that it was made with"
        )


def revisions(engine: Engine) -> tuple[str | None, str | None]:
    """Return the revision of the tables, and the newest that this version of taciturn knows."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        newest = ScriptDirectory.from_config(_config(connection)).get_current_head()
    return current, newest


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """One transaction, while no other process migrates: several may start at once."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # Whoever waited sees what the other one did, which a serialisable snapshot would not.
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    return config
