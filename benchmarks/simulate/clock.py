"""The database's clock, when the simulation sets it."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Clock:
    """Seconds since the start; the database is asked for it."""

    seconds: float = 0.0

    def text(self, _format: str, _of: str) -> str:
        """SQLite's `strftime`, as `api.db.now` calls it."""
        at = START + timedelta(seconds=self.seconds)
        return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}"


def set_clock(connection: sqlite3.Connection, clock: Clock) -> None:
    """Of one connection."""
    connection.create_function("strftime", 2, clock.text)
    connection.execute("PRAGMA synchronous = OFF")  # nothing here has to outlive the process
