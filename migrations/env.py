"""How Alembic reaches the database: one connection, with batch operations for SQLite."""

from alembic import context
from sqlalchemy import Connection, text

from api import models  # noqa: F401  fills the metadata
from api.db import Base, engine

# Of several that migrate one tries at a time; who comes after it has succeeded finds nothing to do.
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('sepgate migrate'))")
# While a migration waits for a table, everybody else waits behind it. It gives up before PostgreSQL
# looks for deadlocks (by default 1 s), so that it is seldom a worker's transaction that is broken,
# which would be tried again as well.
SOON = text("SET LOCAL lock_timeout = '500ms'")


def run() -> None:
    """Run the migrations in one transaction, so that a failed upgrade leaves nothing half done."""
    with engine().begin() as connection:
        _take_turns(connection)
        context.configure(
            connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
        )
        context.run_migrations()


def _take_turns(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time in any case
        connection.execute(ONE_AT_A_TIME)
        connection.execute(SOON)


run()
