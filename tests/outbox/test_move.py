"""A backlog that is moved to another account's address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session.errors import OutboxError
from cached_session.outbox import Claim, SQLiteOutbox, StoredWindow
from cached_session.outbox.sqlite.log import SQLiteLog
from tests.outbox.support import ADDRESS, OFFLINE, OTHER, accept, listed

NEW = ADDRESS._replace(credentials="another digest", organization="")
NEW_OFFLINE = NEW._replace(conversation=OFFLINE.conversation)


@pytest.fixture
def second(on_disk: SQLiteOutbox, path: Path) -> Iterator[SQLiteOutbox]:
    """Another living owner on the same file."""
    outbox = SQLiteOutbox(path)
    yield outbox
    asyncio.run(outbox.let_go())


def data(log: SQLiteLog) -> list[bytes]:
    return [row.data for row in log.mailbox(NEW).rows]


async def test_backlog_is_found_at_its_new_address(on_disk: SQLiteOutbox) -> None:
    """A moved backlog has the same number, items, marks, doubt and pause, and no other account."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        first, _ = store.accept(ADDRESS, [b"a", b"b"], 1.0)
        store.seal(ADDRESS, first, b"doubt")
        store.pause(ADDRESS, "reason")
        store.accept(OTHER, [b"c"], 1.0)
        store.replace_window(ADDRESS, StoredWindow(tuple(listed("x")), True, 0))
        [before, _] = store.summaries()
        store.move(ADDRESS, NEW)
        [after, other] = store.summaries()
        assert (after.number, after.address, after.owned) == (before.number, NEW, True)
        assert (after.items, after.sealed, after.paused) == (2, 1, "reason")
        assert store.mailbox(NEW).doubt == b"doubt"
        # What the one account could read is not shown to the other.
        assert after.window == 0
        assert store.window(NEW) is None
        assert store.mailbox(ADDRESS).rows == ()
        assert other.address == OTHER

    await on_disk.transact(work)


async def test_moving_nothing_makes_nothing(on_disk: SQLiteOutbox) -> None:
    """A backlog that is not there, or is there already, is left alone."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.move(ADDRESS, NEW)
        assert store.summaries() == []
        store.accept(ADDRESS, [b"a"], 1.0)
        store.move(ADDRESS, ADDRESS)
        assert store.summaries()[0].items == 1

    await on_disk.transact(work)


async def test_moved_backlog_changed_for_whoever_had_it(
    on_disk: SQLiteOutbox, second: SQLiteOutbox
) -> None:
    """Whoever sent the backlog before finds out that somebody else has had it."""
    await second.transact(accept(b"a", address=NEW))
    await second.transact(lambda log: log.store.claim(NEW))
    await second.transact(lambda log: log.store.release(NEW))
    await on_disk.transact(lambda log: log.store.move(NEW, ADDRESS))
    await on_disk.transact(lambda log: log.store.release(ADDRESS))
    assert await second.transact(lambda log: log.store.claim(ADDRESS)) is Claim.TAKEN


@pytest.mark.parametrize("held", [ADDRESS, NEW], ids=["from", "to"])
async def test_backlog_that_is_being_sent_stays(
    held: object, on_disk: SQLiteOutbox, second: SQLiteOutbox
) -> None:
    """A backlog is not taken away from a living owner, nor put under one."""
    await second.transact(accept(b"a"))
    await second.transact(accept(address=NEW))
    await second.transact(lambda log: log.store.claim(held))  # type: ignore[arg-type]
    with pytest.raises(OutboxError, match="a living process sends it"):
        await on_disk.transact(lambda log: log.store.move(ADDRESS, NEW))
    assert await on_disk.transact(data) == []


async def test_two_backlogs_are_not_mixed(on_disk: SQLiteOutbox) -> None:
    """Where the other account has a backlog of the conversation, both stay as they are."""
    await on_disk.transact(accept(b"a"))
    await on_disk.transact(accept(b"b", address=NEW))
    with pytest.raises(OutboxError, match="with number 2"):
        await on_disk.transact(lambda log: log.store.move(ADDRESS, NEW))
    assert await on_disk.transact(data) == [b"b"]


async def test_two_doubts_are_not_mixed(on_disk: SQLiteOutbox) -> None:
    """What is noted about requests of both accounts is kept, and nothing is moved."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.set_doubt(NEW, b"one")
        store.seal(ADDRESS, *store.accept(ADDRESS, [b"a"], 1.0), b"other")

    await on_disk.transact(work)
    with pytest.raises(OutboxError, match="with number 1"):
        await on_disk.transact(lambda log: log.store.move(ADDRESS, NEW))


async def test_window_of_the_new_account_stays(on_disk: SQLiteOutbox) -> None:
    """A record that has a window only takes the items in, and keeps its window."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.replace_window(NEW, StoredWindow(tuple(listed("x")), True, 0))
        store.accept(ADDRESS, [b"a"], 1.0)
        store.move(ADDRESS, NEW)
        [summary] = store.summaries()
        assert (summary.address, summary.items, summary.window) == (NEW, 1, 10)

    await on_disk.transact(work)


async def test_local_name_leads_to_the_conversation_made_for_it(on_disk: SQLiteOutbox) -> None:
    """What is moved under a local name that the other account knows joins its conversation."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.accept(NEW_OFFLINE, [b"a"], 1.0)
        store.created(NEW_OFFLINE, "conv_1")
        store.seal(NEW, 1, None)
        store.landed(NEW, 1)
        store.accept(OFFLINE, [b"b"], 1.0)
        store.move(OFFLINE, NEW_OFFLINE)
        assert data(log) == [b"b"]
        assert store.known_as(NEW_OFFLINE) == "conv_1"

    await on_disk.transact(work)


async def test_local_name_moves_along(on_disk: SQLiteOutbox) -> None:
    """The local name that a conversation had is known under the new account, too."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.accept(OFFLINE, [b"a"], 1.0)
        store.created(OFFLINE, "conv_1")
        store.move(ADDRESS, NEW)
        assert store.known_as(NEW_OFFLINE) == "conv_1"

    await on_disk.transact(work)


async def test_local_name_that_is_taken_stays_behind(on_disk: SQLiteOutbox) -> None:
    """A local name keeps its meaning where the other account knows another conversation by it."""

    def work(log: SQLiteLog) -> None:
        store = log.store
        store.accept(OFFLINE, [b"a"], 1.0)
        store.created(OFFLINE, "conv_1")
        store.accept(NEW_OFFLINE, [b"b"], 1.0)
        store.created(NEW_OFFLINE, "conv_2")
        store.move(ADDRESS, NEW)
        assert data(log) == [b"a"]
        assert store.known_as(NEW_OFFLINE) == "conv_2"

    await on_disk.transact(work)
