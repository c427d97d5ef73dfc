"""Whether the owner of a backlog lives, told without a clock.

Each open outbox holds a lock on a tiny file of its own beside the main one.
The operating system lets go of the lock when the process ends, however it ends.
SQLite takes the lock: its locks hold between two outboxes of one process, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
from pathlib import Path
from urllib.parse import quote

_TOKEN = re.compile(r"[0-9a-f]{32}")


def connect(path: str, *, timeout: float) -> sqlite3.Connection:
    """Opens a file that exists, without transactions of the module's own making.

    SQLite would create a missing file with the permissions that the umask leaves.

    Args:
        path: The file.
        timeout: How long a statement waits for a lock, in seconds.
    """
    return sqlite3.connect(
        f"file:{quote(path)}?mode=rw", uri=True, timeout=timeout, isolation_level=None
    )


def create(path: str) -> None:
    """Makes an empty file that only its owner may read and write.

    Raises:
        FileExistsError: It exists already.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


class Owner:
    """One owner, alive until it is closed or the process ends.

    Made while the main file is locked against writers, as `sweep` runs under
    that lock, too: it does not take a file that is not locked yet for a dead one's.

    Args:
        path: The main file.

    Raises:
        OSError: The owner's file cannot be created.
        sqlite3.Error: It cannot be locked.
    """

    def __init__(self, path: str) -> None:
        self.token = secrets.token_hex(16)
        self._main = path
        self._path = _path(path, self.token)
        create(self._path)
        self._connection = connect(self._path, timeout=0)
        try:
            _lock(self._connection)
        except BaseException:
            self.close()
            raise

    def alive(self, token: str) -> bool:
        """Whether the owner of `token` lives. The file of one that does not is removed."""
        return token == self.token or _alive(self._main, token)

    def exists(self) -> bool:
        """Whether others can still see that this owner lives."""
        return os.path.exists(self._path)

    def sweep(self) -> None:
        """Removes the files of owners that died without a backlog that names them."""
        for token in self._tokens():
            self.alive(token)

    def others(self) -> bool:
        """Whether another owner may live."""
        return any(token != self.token and _alive(self._main, token) for token in self._tokens())

    def _tokens(self) -> list[str]:
        prefix = _path(os.path.basename(self._main), "")
        with os.scandir(os.path.dirname(self._main)) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix)]
        return [name.removeprefix(prefix) for name in names]

    def close(self) -> None:
        """Ends this owner."""
        Path(self._path).unlink(missing_ok=True)
        self._connection.close()


def _path(main: str, token: str) -> str:
    return f"{main}-owner-{token}"


def _lock(connection: sqlite3.Connection) -> None:
    # Nothing is ever written, so there is no need for a journal beside the file.
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("BEGIN EXCLUSIVE")


def _alive(main: str, token: str) -> bool:
    # What is no token names no file of ours, and no file is removed for it.
    if not _TOKEN.fullmatch(token):
        return False
    path = _path(main, token)
    try:
        with contextlib.closing(connect(path, timeout=0)) as connection:
            _lock(connection)
            # A token is never used twice, so this is nobody's file.
            Path(path).unlink(missing_ok=True)
            return False
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            # A lock is met before content is: nobody holds this one.
            return False
        # Locked, which is what a living owner looks like, or not to be opened
        # by this user: then it is not known to be dead.
        return os.path.exists(path)
