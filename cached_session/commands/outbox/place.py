"""Where an outbox is, as the command line says it: a file, or a database.

Here it is decided what is opened. All that the commands do then goes through the outbox.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cached_session.commands.outbox.checks import check
from cached_session.commands.outbox.records import Stop
from cached_session.outbox import Outbox, SQLiteOutbox

if TYPE_CHECKING:
    from cached_session.outbox.postgres.engine import Engine

_SCHEMES = ("postgresql://", "postgres://")

# What addresses of libpq's other form begin with: "host=db dbname=agents".
_KEYWORD = re.compile(
    r"\s*(host|hostaddr|port|dbname|user|password|service|sslmode|connect_timeout|application_name"
    r"|target_session_attrs|options|passfile)\s*="
)


class Place(NamedTuple):
    """Where an outbox is.

    Attributes:
        name: In words, and as commands take it, but for what must not be told.
        open: Makes the outbox for an account, or for that of each key.
    """

    name: str
    open: Callable[[str | None], Outbox]


def in_database(text: str) -> bool:
    """Whether a text is the address of a database, and no file's."""
    if text.startswith(_SCHEMES):
        return True
    return _KEYWORD.match(text) is not None and not os.path.lexists(text)


def place(text: str) -> Place:
    """Where the outbox is that the command line names. Nothing is made to find out.

    Raises:
        Stop: There is none, or the extra for databases is not installed.
        OutboxError: It cannot be reached, or used.
    """
    if not in_database(text):
        check(text)
        return Place(text, lambda account: SQLiteOutbox(text, account=account))
    engine, name = connected(text, make=False)
    engine.close()
    # Only now: psycopg is an extra.
    from cached_session.outbox.postgres.outbox import PostgresOutbox

    return Place(name, lambda account: PostgresOutbox(text, account=account))


def statements() -> str:
    """The statements that make an outbox's tables in a database.

    Raises:
        Stop: The extra for databases is not installed.
    """
    with _extra():
        from cached_session.outbox.postgres.outbox import schema
    return schema()


def connected(text: str, *, make: bool) -> tuple[Engine, str]:
    """A connection to a database with an outbox's tables, and the database in words.

    Args:
        text: Its address.
        make: Whether the tables are made if there are none.

    Raises:
        Stop: It is no address, or the extra for databases is not installed.
        OutboxError: It cannot be reached or used, or has no tables.
    """
    with _extra():
        from cached_session.outbox.postgres.outbox import connect, named
    try:
        name, _ = named(text)
    except ValueError as error:
        raise Stop(f"{error}.") from None
    return connect(text, make=make), name


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Around an import that needs psycopg, which is an extra.

    Raises:
        Stop: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise Stop(f"{error}.") from error
