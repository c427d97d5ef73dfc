"""The tables of a fleet on a real PostgreSQL server, by a clock that tests set."""

from __future__ import annotations

import psycopg

from cached_session.outbox.postgres.outbox import schema
from tests.postgres import Server

CLOCK = "fleet.now"
"""The setting of a transaction that says when it is."""

_CLOCK_FUNCTION = f"""
CREATE SCHEMA fleet;
CREATE FUNCTION fleet.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT to_timestamp(current_setting('{CLOCK}')::double precision) $$;
"""


def statements() -> str:
    """The product's own, but for the clock."""
    found = schema()
    assert "clock_timestamp()" in found
    return _CLOCK_FUNCTION + found.replace("clock_timestamp()", "fleet.now()")


class Tables:
    """One database, which every run finds empty.

    Attributes:
        address: Where it is.
    """

    def __init__(self, server: Server) -> None:
        self.address = server.new_database()
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(statements())
            tables = connection.execute(
                "SELECT tablename FROM pg_tables "
                "WHERE schemaname = 'cached_session' AND tablename <> 'schema_version'"
            ).fetchall()
        self._names = ", ".join(f"cached_session.{name}" for (name,) in tables)

    def empty(self) -> None:
        """Takes out what a run has left."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            # What a run that failed has left open ends with its connections.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND state LIKE 'idle in transaction%'"
            )
            connection.execute(f"TRUNCATE {self._names} RESTART IDENTITY CASCADE")
