"""Opening an outbox file, telling whether its owners live, saying plainly why it cannot be used.

Whether the owner of a backlog lives is told without a clock. Each open outbox
holds a lock on a tiny file of its own beside the main one. The operating system
lets go of the lock when the process ends, however it ends. SQLite takes the
lock: its locks hold between two outboxes of one process, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from cached_session.errors import OutboxError
from cached_session.outbox.log import Log
from cached_session.outbox.sqlite import schema
from cached_session.outbox.sqlite.log import SQLiteLog
from cached_session.outbox.sqlite.store import IN_LINES, STEP_OUT_OF_ALL, Store
from cached_session.outbox.writer import Outcome, Work, failure, failures

_DAMAGED = (
    "is damaged. Stop its writers, move it away together with its -wal and -shm files, and "
    "start with a new one; the command `sqlite3 FILE .recover` reads what is left of it."
)

# By SQLite's primary result code: what is so, and what to do.
_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: "has no room: the disk is full. Free some space and try again.",
    sqlite3.SQLITE_READONLY: (
        "cannot be written: the file or its directory is read-only for this user. "
        "Change their permissions, or name another path."
    ),
    sqlite3.SQLITE_PERM: (
        "cannot be used: this user has no permission. Change its permissions, or name another path."
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened: this user must be able to read and write the file, and to create "
        "files in its directory. Change their permissions, or name another path."
    ),
    sqlite3.SQLITE_NOTADB: "is not an SQLite database; it was left as it is. Name another path.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_IOERR: (
        "could not be read or written. Check the disk, its quota and the limit on file sizes."
    ),
}


class OpenFile:
    """One open outbox: its file, the lock that says that its owner lives, its statements.

    Belongs to the thread that makes it.

    Args:
        path: The file, absolute and without symbolic links, so that all who
            open it agree on the names of the files beside it. Created if missing.
        busy_timeout: How long to wait for another process's transaction, in seconds.
        max_window_bytes: What all stored windows may take.

    Raises:
        OutboxError: It cannot be used; says why, and what to do.
    """

    def __init__(self, path: str, *, busy_timeout: float, max_window_bytes: int) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._owner: Owner | None = None
        _make(path)
        try:
            self.connection: sqlite3.Connection = connect(path, timeout=busy_timeout)
        except sqlite3.Error as error:
            raise self.explain(error) from error
        try:
            self._owner = owner = self._open()
            self._identity = _identity(path)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self.explain(error) from error
        except BaseException:
            self.close()
            raise
        self.log: SQLiteLog = SQLiteLog(
            Store(
                self.connection,
                owner.token,
                alive=owner.alive,
                others=owner.others,
                max_window_bytes=max_window_bytes,
            )
        )

    def check(self) -> None:
        """Looks whether what is recorded here will be found there, and by whom.

        A file that was removed or replaced can still be written by those who
        have it open, and is gone with them.

        Raises:
            OutboxError: The file, or the one that shows that its owner lives, is gone.
        """
        if _identity(self._path) != self._identity or not (self._owner and self._owner.exists()):
            raise OutboxError(
                f"The outbox {self._path}, or its file {os.path.basename(self._path)}-owner-..., "
                "was removed or replaced while it was open; nothing was recorded. "
                "Close the outbox; its next use opens what is there then."
            )

    def run(self, works: Sequence[Work], *, reads: bool) -> list[Outcome]:
        """Has works done in one transaction; see `Opened.run`."""
        try:
            self.check()
            return run_group(self.connection, self.log, self.explain, works, reads=reads)
        except BaseException as error:
            return failures(len(works), str(self.explain(error)), error)

    def tend(self) -> None:
        """Does nothing: a lock says that its owner lives."""

    def tidy(self) -> None:
        """Does nothing: what is kept is kept within its bound when it is written."""

    def explain(self, error: BaseException) -> OutboxError:
        """The error to tell callers of, with the path, what is so, and what to do."""
        return _explain(self._path, error, self._busy_timeout)

    def close(self) -> None:
        """Closes the connection, and then lets go of the owner's file."""
        self.connection.close()
        if self._owner is not None:
            self._owner.close()

    def _open(self) -> Owner:
        execute = self.connection.execute
        execute("PRAGMA foreign_keys = ON")
        # FULL: a commit is on the disk before the caller hears of it.
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")
        schema.prepare(self.connection, self._path)
        # It is an outbox, and nothing is written yet. Most have been narrowed before
        # they were opened; what is read without a lock cannot recognise all of them.
        _narrow(self._path)
        # Changes nothing. On a file that may not be written, BEGIN IMMEDIATE begins
        # a transaction that only reads; it is a statement like this that fails.
        execute("DELETE FROM totals WHERE window_size IS NULL")
        owner = self._owner = Owner(self._path)
        owner.sweep()
        for (token,) in execute(IN_LINES).fetchall():
            if not owner.alive(token):
                execute(STEP_OUT_OF_ALL, (token,))
        execute("COMMIT")
        self._use_wal()
        # What a long transaction made of the journal is given back.
        execute("PRAGMA journal_size_limit = 16777216")
        return owner

    def _use_wal(self) -> None:
        # Writers do not wait for readers, and a commit is one write to the disk.
        # SQLite does not wait for the lock that this change takes, so we do.
        end = time.monotonic() + self._busy_timeout
        while True:
            try:
                (mode,) = self.connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise OutboxError(
                    f"The outbox {self._path} is on a file system that cannot share memory between "
                    "processes, a network's for example. Name a path on a local disk."
                )
            return


def run_group(
    connection: sqlite3.Connection,
    log: Log,
    explain: Callable[[sqlite3.Error], OutboxError],
    works: Sequence[Work],
    *,
    reads: bool = False,
) -> list[Outcome]:
    """Runs works in one transaction; one that raises is undone alone.

    Args:
        connection: Where no transaction is open.
        log: What the works get.
        explain: Makes of SQLite's error one for users.
        works: The works, in their order.
        reads: Whether none of them writes: they wait for nobody, and keep nobody from writing.

    Returns:
        What became of each; see `Opened.run`.

    Raises:
        BaseException: The transaction failed, and nothing is recorded.
    """
    try:
        connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
        outcomes = [_attempt(connection, log, explain, work) for work in works]
        connection.execute("COMMIT")
    except BaseException:
        # Where this fails, too, SQLite has undone the transaction by itself.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _attempt(
    connection: sqlite3.Connection,
    log: Log,
    explain: Callable[[sqlite3.Error], OutboxError],
    work: Work,
) -> Outcome:
    connection.execute("SAVEPOINT work")
    try:
        value = work(log)
        connection.execute("RELEASE work")
    except BaseException as error:
        if not connection.in_transaction:
            # A full disk, for example, makes SQLite undo all of it.
            raise
        connection.execute("ROLLBACK TO work")
        connection.execute("RELEASE work")
        if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode"):
            return Outcome(None, failure(str(explain(error)), error))
        return Outcome(None, error)
    return Outcome(value, None)


def _explain(path: str, error: BaseException, busy_timeout: float = 0) -> OutboxError:
    if isinstance(error, OutboxError):
        return OutboxError(str(error))
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_CANTOPEN
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        explanation = (
            f"was locked for longer than {busy_timeout:g} s. "
            "Look for a process that holds a transaction open on it."
        )
    else:
        explanation = _EXPLANATIONS.get(code, f"could not be used ({name}).")
    return OutboxError(f"The outbox {path} {explanation}")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _make(path: str) -> None:
    """Creates the file, or takes the permissions of others away from it if it is an outbox.

    That comes before it is opened: SQLite gives the files beside it the same
    permissions. What is not an outbox, or not one of this release, keeps its own.

    Opens an existing file by SQLite only: closing it would otherwise end the
    locks that SQLite holds on it for other outboxes of this process.
    """
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise OutboxError(
            f"The outbox {path} cannot be made: there is no directory {directory}. Make it first."
        )
    try:
        create(path)
    except FileExistsError:
        if _empty(path) or _looks_like_outbox(path):
            _narrow(path)
    except OSError as error:
        raise _explain(path, error) from error


def _empty(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError as error:
        raise _explain(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise OutboxError(f"{path} is {what}. Name a file for the outbox.")
    return found.st_size == 0


def _looks_like_outbox(path: str) -> bool:
    """Whether the header says so. Changes nothing, and makes no file beside it."""
    uri = f"file:{quote(path)}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error:
        # Opening it will say what is so.
        return False
    return bool(application == schema.APPLICATION_ID and version <= schema.VERSION)


def _narrow(path: str) -> None:
    for name in (path, f"{path}-wal", f"{path}-shm"):
        try:
            mode = stat.S_IMODE(os.stat(name).st_mode)
            if mode & 0o077:
                os.chmod(name, mode & 0o600)
        except FileNotFoundError:
            # The other files come and go with those who use them.
            continue
        except OSError as error:
            raise OutboxError(
                f"The outbox {path} can be read by others, and this user cannot change that "
                f"({error.strerror}). Change the permissions of {name} to 0600."
            ) from error


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
        self.token: str = secrets.token_hex(16)
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
