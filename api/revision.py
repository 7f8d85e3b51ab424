"""Which migration the tables are at, which one this version needs, and the way there."""

import logging
import sqlite3
import time
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
GIVE_UP_SECONDS, PAUSE_SECONDS = 150, 2
LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"
"""PostgreSQL's codes. Its driver is not imported for them: who works on SQLite never needs it."""

log = logging.getLogger(__name__)


def config() -> Config:
    """Alembic's."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


def migrate(scripts: Config | None = None, to: str = "head") -> None:
    """Bring the tables up to date, whoever works on them meanwhile.

    On PostgreSQL a table can't be changed while any transaction uses it. Whoever asks for it next
    waits behind the migration, so that gives up soon (`migrations/env.py`) and tries again. On
    SQLite two that open a new file at once may find it locked, without being let wait.

    Args:
        scripts: Alembic's configuration; this version's unless it is given.

    Raises:
        OperationalError: the database does not answer, or a table was in use for minutes.
    """
    until = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            command.upgrade(scripts or config(), to)
        except OperationalError as error:
            if not _is_busy(error) or time.monotonic() > until:
                raise
            log.warning("others are at the tables, will try again: %s", error.orig)
            time.sleep(PAUSE_SECONDS)
        else:
            return


def _is_busy(error: OperationalError) -> bool:
    if isinstance(error.orig, sqlite3.Error):  # whose codes tell more in their higher bytes
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return getattr(error.orig, "sqlstate", None) in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED}


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
