"""How Alembic reaches the database: one connection, with batch operations for SQLite."""

from alembic import context

from api import models  # noqa: F401  fills the metadata
from api.db import Base, engine


def run() -> None:
    """Run the migrations in one transaction, so that a failed upgrade leaves nothing half done."""
    with engine().begin() as connection:
        context.configure(
            connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
        )
        context.run_migrations()


run()
