"""Stored windows, and the bound on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session.outbox import Address, SQLiteOutbox, StoredWindow
from tests.outbox.support import ADDRESS, OFFLINE, OTHER, accept, listed


@pytest.fixture
def outbox(path: Path) -> Iterator[SQLiteOutbox]:
    """An outbox with room for ten items of `listed`."""
    outbox = SQLiteOutbox(path, max_window_bytes=100)
    yield outbox
    asyncio.run(outbox.let_go())


def _replace(address: Address, *names: str, complete: bool = True, unverified: int = 0):
    window = StoredWindow(tuple(listed(*names)), complete, unverified)
    return lambda log: log.store.replace_window(address, window)


def _append(address: Address, *names: str, unverified: int = 0):
    return lambda log: log.store.append_window(address, listed(*names), unverified)


async def _read(outbox: SQLiteOutbox, address: Address) -> tuple[str, bool, int] | None:
    window = await outbox.transact(lambda log: log.store.window(address))
    if window is None:
        return None
    return "".join(item.id for item in window.items), window.complete, window.unverified


async def test_round_trip(outbox: SQLiteOutbox) -> None:
    """A window is read as it was stored, replaced as a whole, and forgotten."""
    window = StoredWindow(tuple(listed("a", "b")), True, 1)
    await outbox.transact(lambda log: log.store.replace_window(ADDRESS, window))
    assert await outbox.transact(lambda log: log.store.window(ADDRESS)) == window
    await outbox.transact(_replace(ADDRESS, "c", complete=False))
    assert await _read(outbox, ADDRESS) == ("c", False, 0)
    await outbox.transact(lambda log: log.store.replace_window(ADDRESS, None))
    assert await _read(outbox, ADDRESS) is None


async def test_empty(outbox: SQLiteOutbox) -> None:
    """That a conversation is known to be empty is something else than knowing nothing."""
    await outbox.transact(_replace(ADDRESS))
    assert await _read(outbox, ADDRESS) == ("", True, 0)
    (summary,) = await outbox.transact(lambda log: log.store.summaries())
    assert (summary.address, summary.window) == (ADDRESS, 0)


async def test_append(outbox: SQLiteOutbox) -> None:
    """Newer items go behind the window; without one they are a window that is not complete."""
    await outbox.transact(_replace(ADDRESS, "a", "b"))
    await outbox.transact(_append(OTHER, "x"))
    await outbox.transact(_append(ADDRESS, "c", "d", unverified=2))
    assert await _read(outbox, ADDRESS) == ("abcd", True, 2)
    assert await _read(outbox, OTHER) == ("x", False, 0)
    sizes = [row.window for row in await outbox.transact(lambda log: log.store.summaries())]
    assert sizes == [40, 10]


async def test_the_window_written_least_recently_goes_first(outbox: SQLiteOutbox) -> None:
    """At the bound whole windows go, and the one just written stays."""
    third = ADDRESS._replace(conversation="conv_3")
    await outbox.transact(_replace(ADDRESS, *"abcd"))
    await outbox.transact(_replace(OTHER, *"efgh"))
    await outbox.transact(_append(ADDRESS, "i", "j"))
    assert await _read(outbox, OTHER) == ("efgh", True, 0)
    await outbox.transact(_replace(third, "k"))
    assert await _read(outbox, OTHER) is None
    assert await _read(outbox, ADDRESS) == ("abcdij", True, 0)
    assert await _read(outbox, third) == ("k", True, 0)
    await outbox.transact(_replace(OTHER, *"lmnopqrst"))
    assert await _read(outbox, ADDRESS) is None
    assert await _read(outbox, third) == ("k", True, 0)


async def test_a_window_beyond_the_bound(outbox: SQLiteOutbox) -> None:
    """A window that exceeds the bound by itself keeps its newest items, and is not complete."""
    await outbox.transact(_replace(ADDRESS, *"abcdefghijkl", unverified=11))
    assert await _read(outbox, ADDRESS) == ("cdefghijkl", False, 10)
    await outbox.transact(_append(ADDRESS, "m", unverified=1))
    assert await _read(outbox, ADDRESS) == ("defghijklm", False, 1)


async def test_an_item_beyond_the_bound(outbox: SQLiteOutbox) -> None:
    """Where not even the newest item fits, there is no window."""
    await outbox.transact(_replace(ADDRESS, "a"))
    items = listed("b", size=101)
    await outbox.transact(lambda log: log.store.append_window(ADDRESS, items, 1))
    assert await _read(outbox, ADDRESS) is None
    # Nothing of it counts against the bound.
    await outbox.transact(_replace(OTHER, *"abcdefghij"))
    assert await _read(outbox, OTHER) == ("abcdefghij", True, 0)


async def test_a_removed_record_counts_no_more(outbox: SQLiteOutbox) -> None:
    """A window that goes with its record makes room for others."""
    await outbox.transact(accept(b"1", address=OFFLINE))
    await outbox.transact(_replace(OFFLINE, *"abcdefgh"))
    await outbox.transact(_replace(ADDRESS, "i"))
    await outbox.transact(lambda log: log.store.created(OFFLINE, ADDRESS.conversation))
    assert await _read(outbox, ADDRESS) == ("i", True, 0)
    await outbox.transact(_replace(OTHER, *"jklmnopqr"))
    assert await _read(outbox, ADDRESS) == ("i", True, 0)


async def test_no_room_at_all(path: Path) -> None:
    """With a bound of 0 no window is kept."""
    outbox = SQLiteOutbox(path, max_window_bytes=0)
    await outbox.transact(_replace(ADDRESS))
    await outbox.transact(_append(ADDRESS, "a"))
    assert await _read(outbox, ADDRESS) is None
    await outbox.let_go()
