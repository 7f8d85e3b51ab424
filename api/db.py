"""The engine and the two ways to use it: `transaction()` writes, `reading()` reads."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Engine, MetaData, create_engine, event, text
from sqlalchemy.engine import Connection, Dialect, ExceptionContext, make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from api.settings import settings

BUSY_TIMEOUT_MS = 30_000
# Without limits, a host that does not answer holds a request for minutes, and a worker for hours.
POSTGRESQL_LIMITS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


# Of the server, which else keeps the locks of a host without power for two hours, and those of one
# that is paused for good: the sweep and every claim would wait for them.
IDLE_LIMIT = "SET LOCAL idle_in_transaction_session_timeout = '30s'"
POSTGRESQL_SESSION = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
AWAY = (OperationalError, InterfaceError, InternalError)
"""What is raised where the database does not answer, has ended a transaction that was left alone
for too long, or takes no writes, as one that stands by does."""


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can name them too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on both databases; SQLite itself forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; SQLite gets it without the zone, so that text order is time order."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From UTC, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def make_engine(url: str) -> Engine:
    """An engine for SQLite (WAL, immediate write transactions) or PostgreSQL."""
    if make_url(url).get_backend_name() != "sqlite":
        told = make_url(url).query
        limits = {name: value for name, value in POSTGRESQL_LIMITS.items() if name not in told}
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=limits)
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    database = make_url(url).database
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "handle_error", _give_up_sqlite)
    return engine


def missing_file() -> Path | None:
    """The SQLite file that the settings name, where there is none: looking at it would make it."""
    where = make_url(settings().database)
    path = where.database if where.get_backend_name() == "sqlite" else None
    return Path(path) if path is not None and not Path(path).exists() else None


def _prepare_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        for name, value in POSTGRESQL_SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
    connection.commit()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by us, below
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _give_up_sqlite(context: ExceptionContext) -> None:
    """Who has opened the file while it could not be written never can by that connection."""
    code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
        context.is_disconnect = True


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write gets SQLITE_BUSY at once, timeout or not.
    read_only = connection.get_execution_options().get("sepgate_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@lru_cache
def engine() -> Engine:
    """The engine of this process; made after a fork, never before."""
    return make_engine(settings().database)


@contextmanager
def transaction() -> Iterator[Session]:
    """One state change: commits at the end, rolls back on any exception.

    What is done beside the database meanwhile must take less than half a minute.
    """
    with Session(engine(), expire_on_commit=False) as session, session.begin():
        if engine().dialect.name != "sqlite":
            session.execute(text(IDLE_LIMIT))
        yield session


@contextmanager
def reading() -> Iterator[Session]:
    """A consistent read that never waits for a writer."""
    read_only = engine().execution_options(sepgate_read_only=True)
    if read_only.dialect.name != "sqlite":
        # By default every statement there sees another state: rows vanish between two of them.
        read_only = read_only.execution_options(isolation_level="REPEATABLE READ")
    with Session(read_only, expire_on_commit=False) as session:
        if read_only.dialect.name != "sqlite":
            # By a statement: as an option it makes the next transaction one that asks to write.
            session.execute(text("SET TRANSACTION READ ONLY"))
        yield session


def write_objection() -> str | None:
    """Why nothing can be written, as in a PostgreSQL that stands by; None where it can.

    Of SQLite the file is looked at: it would have to wait until nobody writes.
    """
    if engine().dialect.name == "sqlite":
        file = str(engine().url.database)
        if os.access(file, os.W_OK) or not Path(file).exists():  # a URI, say
            return None
        return f"Expected a database that takes writes, got {file}: read-only."
    with transaction() as session:
        refused = session.scalar(text("SHOW transaction_read_only")) == "on"
    return "Expected a database that takes writes, got one that refuses them." if refused else None


def now(session: Session) -> datetime:
    """The database's clock: the one that all hosts share."""
    if session.get_bind().dialect.name == "sqlite":
        value = session.scalar(text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
    value = session.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(value, datetime)
    return value.astimezone(UTC)
