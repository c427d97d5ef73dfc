"""The files that an emulator reads its beginning from, and keeps its state in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .habits import Habits
from .snapshot import Snapshot, SnapshotError, parse_snapshot, read_snapshot

__all__ = ["StateFile", "read_initial"]


def read_initial(given: Mapping[str, Any] | str | os.PathLike[str], habits: Habits) -> Snapshot:
    """Reads what an emulator begins with.

    Args:
        given: The path of a JSON file, or what such a file holds.
        habits: Differences from the real service.

    Raises:
        OSError: The file cannot be read.
        SnapshotError: It is no snapshot.
    """
    if isinstance(given, Mapping):
        return read_snapshot(dict(given), habits)
    return _read(Path(given), habits)


class StateFile:
    """The file that an emulator's state is kept in, by one emulator at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Where a link leads: a rename would replace the link.
        self._path = Path(os.path.realpath(path))
        self._locks = self._path.with_name(f"{self._path.name}.lock")
        self._lock: sqlite3.Connection | None = None

    def lock(self) -> None:
        """Keeps other emulators from it until `unlock`, or the end of the process.

        Raises:
            OSError: Another one has it, or its lock cannot be made.
        """
        # A file beside it: the state's own is replaced. The lock is SQLite's, which is there on
        # every system, holds within a process, too, and ends with it.
        with contextlib.ExitStack() as failed:
            try:
                lock = sqlite3.connect(
                    self._locks, timeout=0, isolation_level=None, check_same_thread=False
                )
                failed.callback(lock.close)
                lock.execute("PRAGMA journal_mode = MEMORY")
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    why = "another emulator keeps its state there; stop it, or name another file"
                    raise OSError(errno.EBUSY, why, str(self._path)) from None
                why = (
                    f"cannot be made a lock ({error}); see that it is no other file, and that its "
                )
                why += "directory is there and may be written"
                raise OSError(errno.ENOLCK, why, str(self._locks)) from None
            failed.pop_all()
        self._lock = lock

    def unlock(self) -> None:
        """Lets others have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            self._locks.unlink(missing_ok=True)
            lock.close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from it in here, where it does not anyway; errors as in `lock`."""
        if self._lock is not None:
            yield
            return
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def load(self, habits: Habits) -> Snapshot | None:
        """Returns what is kept; None: nothing yet. Is called with the lock.

        Raises:
            OSError: The file cannot be read.
            SnapshotError: It is damaged, or no state. It is left as it is.
        """
        return _read(self._path, habits) if self._path.exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Puts a state in the place of the one that is kept, or leaves that as it is.

        Raises:
            OSError: It cannot be written, or as in `lock`.
        """
        # In the same directory, so that a rename, which is all or nothing, puts it in place.
        new = self._path.with_name(f"{self._path.name}.new")
        text = json.dumps(state, ensure_ascii=False, indent=1) + "\n"
        # Of an emulator that does not serve, changes are made in process.
        with self.locked():
            new.write_text(text, encoding="utf-8")
            new.replace(self._path)


def _read(path: Path, habits: Habits) -> Snapshot:
    try:
        return parse_snapshot(path.read_bytes(), habits)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None
