"""An outbox in a file, which survives the process."""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cached_session.forks import in_child, keep
from cached_session.outbox.ciphers import Cipher, Encrypted
from cached_session.outbox.shared import MIB, Contents, how_to_move
from cached_session.outbox.sqlite.file import OpenFile
from cached_session.outbox.writer import Threaded


class SQLiteOutbox(Threaded):
    """A durable outbox: what it has recorded survives the process and the machine's power.

    Safe to use from several threads, event loops and processes. After a fork,
    the child makes one of its own.

    While a session uses it, what others have left in the file is sent, too, of
    whichever conversation: backlogs of the same account whose owner is gone.

    Args:
        path: The file, on a local disk; made if it is missing, for its owner
            alone to read and write. Files beside it, whose names begin with
            its name, belong to it.
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long; None: never.
        max_wait: Seconds that a call waits for room at most.
        max_window_bytes: Bytes for the stored windows of all conversations
            together; those written least recently go first. 0: none is written;
            one that the file holds stays until something of its conversation
            is sent or removed.
        account: A name for the account that all who use the outbox belong to,
            such as "prod". Clients with different keys then have one backlog,
            and one copy, of a conversation. None: each key has its own.
        cipher: Encrypts what was said before it is recorded, as one of
            `fernet_cipher` does. All who use the file need one that decrypts
            what the others encrypt. None: it is recorded as it is.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
        OutboxError: The file cannot be used; says why, and what to do.
    """

    # Seconds to wait for another process's transaction.
    _busy_timeout = 10.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_items: int = 100_000,
        max_bytes: int = 256 * MIB,
        max_age: float | None = None,
        max_wait: float = 10.0,
        max_window_bytes: int = 64 * MIB,
        account: str | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        self._path = _absolute(path)
        contents = Contents(self._path) if cipher is None else Encrypted(self._path, cipher)
        super().__init__(
            max_items, max_bytes, max_age, max_wait, max_window_bytes, account, contents
        )
        self._glances = _Glances(self._path)
        weakref.finalize(self, self._glances.close)
        self._open()

    @property
    def _opening(self) -> Callable[[], OpenFile]:
        return functools.partial(
            OpenFile,
            self._path,
            busy_timeout=self._busy_timeout,
            max_window_bytes=self.max_window_bytes,
        )

    def glance(self) -> tuple[int, int] | None:
        """What is another one as soon as anybody has written to the file."""
        # Who has closed it, or has it from before a fork, hears that from the log.
        return self._glances.take() if self.ours and self._writer is not None else None

    def _stop(self) -> None:
        # First: the last connection that is closed moves what the journal holds.
        self._glances.close()
        super()._stop()

    def how_to_move(self, number: int) -> str:
        """What somebody can do about a backlog of another account, as a sentence."""
        return how_to_move(self._path, number, self.account)

    def same_as(self, other: object) -> bool:
        """Whether both record in the same file."""
        return isinstance(other, SQLiteOutbox) and other._path == self._path

    @property
    def path(self) -> Path:
        """The file, absolute and without symbolic links."""
        return Path(self._path)

    def __repr__(self) -> str:
        return f"SQLiteOutbox({self._path!r})"


class _Glances:
    """A connection of its own, by which any thread sees in microseconds if a file is the same.

    Reads nothing but a counter in memory that all connections share, and never waits for any.
    """

    def __init__(self, path: str) -> None:
        self._uri = f"file:{quote(path)}?mode=ro"
        self._opened = 0
        self._begin()
        in_child(self, _Glances._begin_anew)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def _begin_anew(self) -> None:
        keep(self._connection)
        self._begin()

    def take(self) -> tuple[int, int] | None:
        """A count that only this connection's own is to be compared with; None: there is none."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect(
                        self._uri,
                        uri=True,
                        timeout=0,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                    self._opened += 1
                [(version,)] = self._connection.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error:
                # Whoever asks the log hears what is so.
                return None
            return self._opened, int(version)

    def close(self) -> None:
        """Closes the connection; the next glance opens another one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _absolute(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, not {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError("path must be made of str, not bytes")
    if name == ":memory:":
        raise ValueError("path must name a file; for an outbox in memory there is MemoryOutbox")
    if not name or "\0" in name:
        raise ValueError("path must name a file")
    return os.path.realpath(name)
