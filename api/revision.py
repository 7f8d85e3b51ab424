"""Which migration the tables are at, and which one this version needs."""

from functools import lru_cache
from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def config() -> Config:
    """Alembic's."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


@lru_cache
def needed() -> str | None:
    """The newest migration."""
    return ScriptDirectory.from_config(config()).get_current_head()


@lru_cache
def _known() -> frozenset[str]:
    return frozenset(
        each.revision for each in ScriptDirectory.from_config(config()).walk_revisions()
    )


def objection(connection: Connection) -> str | None:
    """Why this version can't work on these tables, and what to do; None if it can."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found == needed():
        return None
    told = f"{connection.dialect.name}: expected migration {needed()}, got {found}"
    if found is None or found in _known():
        return f"{told}; run `sepgate migrate`."
    return f"{told}, which is of a later version: run that one here, too."
