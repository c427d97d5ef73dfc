"""The last known window of a conversation, kept in the outbox for the next process."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from typing import TypeAlias

from cached_session.core.history import History
from cached_session.core.items import Held, hold, unhold
from cached_session.outbox.records import Address, StoredItem, StoredWindow
from cached_session.outbox.store import Store

# A history, its revision, how much of it there is, and how much of that is
# verified. Weakly: what the cache lets go of must not stay for this.
_State: TypeAlias = tuple[weakref.ref[History], int, int, int]
Writing: TypeAlias = Callable[[Store, Address], None]


class KeptWindow:
    """What of a window is in the outbox."""

    def __init__(self, *, wanted: bool) -> None:
        """`wanted` says whether the outbox keeps windows at all."""
        self._wanted = wanted
        self._state: _State | None = None

    def behind(self, history: History | None) -> bool:
        """Whether the outbox does not hold what `history` does."""
        return self._wanted and history is not None and _state(history) != self._state

    def writing(self, history: History | None) -> tuple[Writing, Callable[[], None]]:
        """How the outbox is brought up to date.

        Only what was appended is written, where that is all that has changed.

        Returns:
            What to do in a transaction, and what to call when it is committed.
        """
        if history is None or not self.behind(history):
            return _nothing, lambda: None
        kept, state = self._state, _state(history)
        items, unverified = history.items, len(history) - history.verified

        def written() -> None:
            self._state = state

        if kept is not None and kept[:2] == state[:2]:
            newer = tuple(map(_stored, items[kept[2] :]))
            return lambda store, address: store.append_window(address, newer, unverified), written
        window = StoredWindow(tuple(map(_stored, items)), history.complete, unverified)
        return lambda store, address: store.replace_window(address, window), written

    def read(self, stored: StoredWindow) -> History:
        """The history that an outbox holds."""
        items = [hold(json.loads(item.data)) for item in stored.items]
        history = History(items, complete=stored.complete)
        history.verified = max(0, len(history) - stored.unverified)
        self._state = _state(history)
        return history


def _state(history: History) -> _State:
    return weakref.ref(history), history.revision, len(history), history.verified


def _stored(item: Held) -> StoredItem:
    # JSON: what is held in memory has a form that is this process's own.
    return StoredItem(item.id, json.dumps(unhold(item), separators=(",", ":")).encode())


def _nothing(store: Store, address: Address) -> None:
    """There is nothing to write."""
