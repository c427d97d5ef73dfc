"""The files that an emulator reads its beginning from, and keeps its state in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
        self._path = Path(path)

    def load(self, habits: Habits) -> Snapshot | None:
        """Returns what is kept; None: nothing yet.

        Raises:
            OSError: The file cannot be read.
            SnapshotError: It is damaged, or no state. It is left as it is.
        """
        return _read(self._path, habits) if self._path.exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Puts a state in the place of the one that is kept, or leaves that as it is.

        Raises:
            OSError: It cannot be written.
        """
        # In the same directory, so that a rename, which is all or nothing, puts it in place.
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps(state, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        new.replace(self._path)


def _read(path: Path, habits: Habits) -> Snapshot:
    try:
        return parse_snapshot(path.read_bytes(), habits)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None
