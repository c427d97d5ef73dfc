"""What a path must be before it is opened: an outbox. Nothing is written to find out."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from urllib.parse import quote

from cached_session.commands.outbox.records import Stop
from cached_session.outbox.sqlite.schema import APPLICATION_ID


def check(path: str) -> None:
    """Refuses what is no outbox. Opening one would make it of a file that has no tables.

    Raises:
        Stop: It is none, or it cannot be told.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Stop(f"there is no file {path}.") from None
    except OSError as error:
        raise Stop(f"{path} cannot be looked at: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise Stop(f"{path} is {what}. Name the outbox's file.")
    if not found.st_size:
        raise Stop(f"{path} is empty. It is no outbox yet, and was left as it is.")
    try:
        application = _application(path)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            raise Stop(f"{path} is not an SQLite database; it was left as it is.") from error
        # Opening it says more.
        return
    if not application:
        raise Stop(f"{path} is an SQLite database, but no outbox; it was left as it is.")
    if application != APPLICATION_ID:
        raise Stop(f"{path} is an SQLite database of another program; it was left as it is.")


def _application(path: str) -> int:
    # As immutable: takes no lock and makes no file beside it. Through SQLite, as
    # closing a file of one's own would end the locks of all who have the outbox
    # open in this process.
    uri = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
    return int(application)
