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
Newest: TypeAlias = tuple[int, str] | None
Writing: TypeAlias = Callable[[Store, Address], None]


class KeptWindow:
    """What of a window is in the outbox."""

    def __init__(self, *, wanted: bool) -> None:
        """`wanted` says whether the outbox keeps windows at all."""
        self._wanted = wanted
        self._state: _State | None = None
        # Its newest item there. Another one, or the same written anew, is another process's.
        self._newest: Newest = None
        # The place up to which items had landed by then, and how many were removed.
        self._known = (0, 0)

    def behind(self, history: History | None) -> bool:
        """Whether the outbox does not hold what `history` does."""
        return self._wanted and history is not None and _state(history) != self._state

    def writing(
        self, history: History | None, *, landed: int, removed: int, listed: bool = False
    ) -> tuple[Writing, Callable[[], None]]:
        """How the outbox is brought up to date.

        Only what was appended is written, where that is all that has changed.
        Nothing is written where another process may have kept a newer one.

        Args:
            history: What is known.
            landed: The place up to which items have landed. Where it is not known
                what stands there now, what is kept goes: it lacks them.
            removed: How many items were removed from the server. Likewise: what
                is kept may hold them, and no check looks so far back.
            listed: Whether the server was asked for it just now.

        Returns:
            What to do in a transaction, and what to call when it is committed.
        """
        if history is None:
            return self._dropping((landed, removed))
        if not self.behind(history):
            return _nothing, lambda: None
        kept, state, complete = self._state, _state(history), history.complete
        items, unverified = history.items[:], len(history) - history.verified
        done: list[Newest] = []

        def write(store: Store, address: Address) -> None:
            newest = store.window_newest(address)
            ours = newest == self._newest
            if not store.owns(address):
                if store.elsewhere(address) or not (ours or listed):
                    return
                # Nor while a batch may have landed that nobody has looked for:
                # the next process would show both, what was kept and what waits.
                if store.any_sealed(address):
                    return
                # One that is not known here may have been kept since the server was asked.
                if not (ours or newest is None or any(newest[1] == item.id for item in items)):
                    return
            if ours and kept is not None and kept[:2] == state[:2]:
                newer = tuple(map(_stored, items[kept[2] :]))
                store.append_window(address, newer, unverified)
            else:
                window = StoredWindow(tuple(map(_stored, items)), complete, unverified)
                # A window of nothing that may not be all shows nothing: no
                # batch could be told by what stands before it.
                store.replace_window(address, window if items or complete else None)
            done.append(store.window_newest(address))

        def written() -> None:
            if done:
                self._state, self._newest, self._known = state, done[-1], (landed, removed)

        return write, written

    def _dropping(self, known: tuple[int, int]) -> tuple[Writing, Callable[[], None]]:
        if not self._wanted or known == self._known:
            return _nothing, lambda: None

        def write(store: Store, address: Address) -> None:
            if store.owns(address):
                store.replace_window(address, None)

        def written() -> None:
            self._state, self._newest, self._known = None, None, known

        return write, written

    def read(self, stored: StoredWindow, newest: Newest, *, removed: int) -> History:
        """The history that an outbox holds.

        Args:
            stored: As it holds it.
            newest: As `Store.window_newest` has it.
            removed: As in `writing`.
        """
        self._newest, self._known = newest, (0, removed)
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
