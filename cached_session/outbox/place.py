"""Where an outbox is, as those say it who look after one: a file, or a database.

Here it is decided what is opened: nothing is made, or written, to find out.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from cached_session.errors import OutboxError
from cached_session.outbox import Outbox, SQLiteOutbox
from cached_session.outbox.ciphers import Cipher
from cached_session.outbox.sqlite.schema import APPLICATION_ID

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


def place(text: str, cipher: Cipher | None) -> Place:
    """Where the outbox of a name is, with its cipher. Nothing is made to find out.

    Raises:
        OutboxError: There is none, it cannot be reached or used, or the extra for databases is
            not installed.
    """
    if not in_database(text):
        _check(text)
        return Place(text, lambda account: SQLiteOutbox(text, account=account, cipher=cipher))
    engine, name = connected(text, make=False)
    engine.close()
    # Only now: psycopg is an extra.
    from cached_session.outbox.postgres.outbox import PostgresOutbox

    return Place(name, lambda account: PostgresOutbox(text, account=account, cipher=cipher))


def statements() -> str:
    """The statements that make an outbox's tables in a database.

    Raises:
        OutboxError: The extra for databases is not installed.
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
        OutboxError: It is no address, cannot be reached or used, or has no tables; or the extra
            for databases is not installed.
    """
    with _extra():
        from cached_session.outbox.postgres.outbox import connect, named
    try:
        name, _ = named(text)
    except ValueError as error:
        raise OutboxError(f"{error}.") from None
    return connect(text, make=make), name


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Around an import that needs psycopg, which is an extra.

    Raises:
        OutboxError: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise OutboxError(f"{error}.") from error


def _check(path: str) -> None:
    """Refuses what is no outbox. Opening one would make it of a file that has no tables.

    Raises:
        OutboxError: It is none, or it cannot be told.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise OutboxError(f"there is no file {path}.") from None
    except OSError as error:
        raise OutboxError(f"{path} cannot be looked at: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise OutboxError(f"{path} is {what}. Name the outbox's file.")
    if not found.st_size:
        raise OutboxError(f"{path} is empty. It is no outbox yet, and was left as it is.")
    try:
        application = _application(path)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            raise OutboxError(f"{path} is not an SQLite database; it was left as it is.") from error
        # Opening it says more.
        return
    if not application:
        raise OutboxError(f"{path} is an SQLite database, but no outbox; it was left as it is.")
    if application != APPLICATION_ID:
        raise OutboxError(f"{path} is an SQLite database of another program; it was left as it is.")


def _application(path: str) -> int:
    # As immutable: takes no lock and makes no file beside it. Through SQLite, as
    # closing a file of one's own would end the locks of all who have the outbox
    # open in this process.
    uri = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
    return int(application)
