"""What of a window is kept in an outbox, and when it is better not kept."""

from __future__ import annotations

import pytest

from cached_session.conversation.record import Keeping
from cached_session.core.history import History
from cached_session.core.items import hold
from cached_session.outbox import SQLiteOutbox
from cached_session.outbox.log import Epoch, Noted
from cached_session.outbox.shared import Contents
from cached_session.outbox.sqlite.log import SQLiteLog
from tests.outbox.support import ADDRESS


def history(*names: str) -> History:
    """A conversation from its beginning."""
    items = [hold({"id": name, "type": "message", "role": "user"}) for name in names]
    return History(items, complete=True)


async def keep(
    outbox: SQLiteOutbox,
    keeping: Keeping,
    known: History | None,
    *,
    landed: int = 0,
    removed: int = 0,
) -> None:
    """Brings the outbox up to date, as its owner does."""
    kept, written = keeping.kept(known, (landed, removed), listed=False)

    def work(log: SQLiteLog) -> Noted:
        store = log.store
        store.claim(ADDRESS)
        return log.note(
            ADDRESS,
            Epoch(store.token, store.mark(ADDRESS)[::2]),
            0,
            landed=0,
            doubt=None,
            undoubted=True,
            kept=kept,
            release=False,
        )

    written((await outbox.transact(work)).written)


async def names(outbox: SQLiteOutbox) -> list[str] | None:
    """What is kept."""
    window = await outbox.transact(lambda log: log.store.window(ADDRESS))
    return None if window is None else [item.id for item in window.items]


async def test_what_changes_is_kept(on_disk: SQLiteOutbox) -> None:
    """What was appended is added, and what was removed goes, while all of it is known."""
    kept, known = Keeping(wanted=True, stored=Contents("").stored), history("a", "b")
    await keep(on_disk, kept, known)
    known.append(history("c").items)
    await keep(on_disk, kept, known, landed=1)
    assert await names(on_disk) == ["a", "b", "c"]
    known.drop_last()
    await keep(on_disk, kept, known, landed=1, removed=1)
    assert await names(on_disk) == ["a", "b"]


@pytest.mark.parametrize("so", [{"landed": 3}, {"removed": 1}], ids=str)
async def test_not_known_any_more(so: dict[str, int], on_disk: SQLiteOutbox) -> None:
    """What lacks items that landed, or holds some that were removed, is forgotten."""
    kept = Keeping(wanted=True, stored=Contents("").stored)
    await keep(on_disk, kept, history("a", "b"))
    await keep(on_disk, kept, None)
    assert await names(on_disk) == ["a", "b"]
    await keep(on_disk, kept, None, **so)
    assert await names(on_disk) is None
    await keep(on_disk, kept, history("c"), **so)
    await keep(on_disk, kept, None, **so)
    assert await names(on_disk) == ["c"]


async def test_what_has_landed_and_is_not_kept(on_disk: SQLiteOutbox) -> None:
    """A window that would lack what has just landed goes: others read it with what waits."""
    kept = Keeping(wanted=True, stored=Contents("").stored)
    await keep(on_disk, kept, history("a", "b"))

    def work(log: SQLiteLog) -> Noted:
        store = log.store
        (place,) = store.accept(ADDRESS, [b"{}"], 0.0)
        store.seal(ADDRESS, place, None)
        return log.note(
            ADDRESS,
            Epoch(store.token, store.mark(ADDRESS)[::2]),
            place,
            landed=place,
            doubt=None,
            undoubted=True,
            kept=None,
            release=False,
        )

    await on_disk.transact(work)
    assert await names(on_disk) is None
