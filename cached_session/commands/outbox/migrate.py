"""Making the tables of an outbox in a database, or printing the statements that make them."""

from __future__ import annotations

import sys

from cached_session.commands.outbox.records import Stop
from cached_session.outbox.place import connected, in_database, statements


def migrate(url: str | None, *, print_sql: bool) -> None:
    """Makes the tables, unless they are there; or prints the statements, and connects to nothing.

    Raises:
        Stop: It is no address of a database.
        OutboxError: The database cannot be reached, this role may not make the tables, or those of
            another release are there; or the extra for databases is not installed.
        OSError: The standard output cannot be written.
    """
    if print_sql:
        sys.stdout.write(statements())
        return
    if url is None:
        raise Stop("name a database, as postgresql://owner@db/agents, or give --print-sql.")
    if not in_database(url):
        raise Stop("only a database is migrated; the first program that uses a file makes it.")
    engine, name = connected(url, make=True)
    engine.close()
    what = "Made the tables" if engine.made else "The tables are there already"
    print(f"{what}: schema cached_session, version {engine.version}, in {name}.")
