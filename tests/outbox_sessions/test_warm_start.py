"""A new process opens a conversation from what the outbox kept of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from cached_session import CachedSession, SQLiteOutbox
from cached_session.emulator import Emulator
from tests.outbox_sessions.support import Process, left_by_an_exception, raised, words
from tests.session.support import Elsewhere, numbered, sent, texts, users

LENGTH = 500


async def read(process: Process, session: CachedSession) -> None:
    """A conversation that the process has read."""
    await session.get_items()


async def written(process: Process, session: CachedSession) -> None:
    """One that it has written, all at once."""
    await session.add_items(numbered(0, LENGTH))


async def written_in_turns(process: Process, session: CachedSession) -> None:
    """One that it has written as agents do, a few items at a time."""
    for number in range(0, LENGTH, 5):
        await session.add_items(numbered(number, number + 5))
        await session.flush()


async def both(process: Process, session: CachedSession) -> None:
    """One that it has read and added to."""
    await session.get_items()
    await session.add_items(users("more"))


PASTS = [read, written, written_in_turns, both]


async def before(
    emulator: Emulator, outbox: SQLiteOutbox, past: Callable[..., Any], **options: Any
) -> str:
    """A process that ends, and the conversation that it used."""
    there = map(str, range(LENGTH if past in (read, both) else 0))
    conversation = Elsewhere(emulator).conversation(*there)
    async with Process(emulator, outbox) as process:
        session = process.session(conversation, **options)
        await past(process, session)
        await session.aclose()
        assert not await outbox.aclose(timeout=20)
    emulator.clear_log()
    return conversation


@pytest.mark.parametrize("past", PASTS)
async def test_one_request(
    past: Callable[..., Any], new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A conversation of any length is opened with exactly one request."""
    conversation = await before(emulator, new_outbox(), past)
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        assert await session.get_items() == emulator.items(conversation)
        assert sent(emulator) == ["GET items"]
        assert await session.get_items(3) == emulator.items(conversation)[-3:]
        assert sent(emulator) == []
        await session.aclose(timeout=60)


@pytest.mark.parametrize("past", PASTS)
async def test_no_request(
    past: Callable[..., Any], new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """With `max_staleness=math.inf` it is opened without any, and goes on from there."""
    conversation = await before(emulator, new_outbox(), past)
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation, max_staleness=math.inf)
        assert await session.get_items() == emulator.items(conversation)
        assert sent(emulator) == []
        await session.add_items(users("next"))
        await session.flush()
        assert sent(emulator) == ["POST items"]
        assert await session.get_items() == emulator.items(conversation)
        await session.aclose(timeout=60)


async def test_without_the_server(new_outbox: Callable[[], SQLiteOutbox]) -> None:
    """That works while the server is away, appends and another restart included."""
    with Emulator() as emulator:
        conversation = await before(emulator, new_outbox(), both)
        expected = texts(emulator.items(conversation))
        emulator.stop()
        for name in ("one", "two"):
            async with Process(emulator, new_outbox()) as process:
                session = process.session(conversation, max_staleness=math.inf)
                assert words(await session.get_items()) == expected
                await session.add_items(users(name))
                expected.append(name)
                assert words(await session.get_items()) == expected
                await raised(session.flush(timeout=0))
                await left_by_an_exception(session)
        emulator.start()
        async with Process(emulator, new_outbox()) as process:
            session = process.session(conversation)
            await session.flush()
            assert texts(emulator.items(conversation)) == expected
            await session.aclose(timeout=60)


@pytest.mark.parametrize("news", [1, 60], ids=str)
@pytest.mark.parametrize("past", [read, both])
async def test_what_others_added(
    past: Callable[..., Any],
    news: int,
    new_outbox: Callable[[], SQLiteOutbox],
    emulator: Emulator,
) -> None:
    """What another writer added since is seen by the one request."""
    conversation = await before(emulator, new_outbox(), past)
    Elsewhere(emulator).append(conversation, *(f"new {number}" for number in range(news)))
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        assert await session.get_items() == emulator.items(conversation)
        assert sent(emulator) == ["GET items"] * (1 if news < 20 else 2)
        await session.aclose(timeout=60)


async def test_what_others_removed(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A newest item that another writer removed since is gone."""
    conversation = await before(emulator, new_outbox(), read)
    Elsewhere(emulator).remove(conversation, LENGTH - 1)
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        assert await session.get_items() == emulator.items(conversation)
        assert sent(emulator) == ["GET items"]
        await session.aclose()


@pytest.mark.parametrize("closed", [False, True], ids=["killed", "closed"])
async def test_a_popped_item_stays_away(
    closed: bool, new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """An item that was popped is not shown by the next process, however this one ends."""
    conversation = Elsewhere(emulator).conversation("a", "b", "c")
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.add_items(users("d"))
        await session.flush()
        await session.get_items()
        assert words([await session.pop_item(), await session.pop_item()]) == ["d", "c"]
        if closed:
            await session.aclose()
        async with Process(emulator, new_outbox()) as after:
            again = after.session(conversation, max_staleness=math.inf)
            assert await again.get_items() == emulator.items(conversation)
            await again.aclose()
        await session.aclose()


async def test_killed_after_a_read(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """What was read is kept when it was read, not when the session is closed."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(LENGTH)))
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.get_items()
        emulator.clear_log()
        async with Process(emulator, new_outbox()) as after:
            again = after.session(conversation)
            assert await again.get_items() == emulator.items(conversation)
            assert sent(emulator) == ["GET items"]
            await again.aclose()
        await session.aclose()


async def test_a_cleared_conversation_is_forgotten(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """Nothing is kept of a conversation that was cleared."""
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.get_items()
        await session.add_items(users("b"))
        await session.flush()
        await session.clear_session()
        await session.aclose()
    outbox = new_outbox()
    assert await outbox.transact(lambda log: log.summaries()) == []


async def test_more_than_there_is_room_for(
    new_outbox: Callable[..., SQLiteOutbox], emulator: Emulator
) -> None:
    """Of a window larger than `max_window_bytes` the newest part is kept."""
    conversation = await before(emulator, new_outbox(max_window_bytes=40_000), read)
    async with Process(emulator, new_outbox(max_window_bytes=40_000)) as process:
        session = process.session(conversation, max_staleness=math.inf)
        assert await session.get_items(50) == emulator.items(conversation)[-50:]
        assert sent(emulator) == []
        # The rest is asked for when somebody wants it.
        assert await session.get_items() == emulator.items(conversation)
        assert sent(emulator)
        await session.aclose()


async def test_no_windows(new_outbox: Callable[..., SQLiteOutbox], emulator: Emulator) -> None:
    """With `max_window_bytes=0` nothing of a history is kept in the file."""
    conversation = await before(emulator, new_outbox(max_window_bytes=0), both)
    outbox = new_outbox(max_window_bytes=0)
    assert await outbox.transact(lambda log: log.summaries()) == []
    async with Process(emulator, outbox) as process:
        session = process.session(conversation)
        assert await session.get_items(20) == emulator.items(conversation)[-20:]
        assert sent(emulator) == ["GET items"]
        await session.aclose(timeout=60)


async def test_two_processes_keep_one_window(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """What two processes keep of one conversation, in turns and at once, is what the server has."""
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        sessions = [
            process.session(conversation, max_staleness=staleness)
            for process, staleness in ((one, 0), (two, None))
        ]
        for number in range(6):
            for name, session in zip("xy", sessions, strict=True):
                await session.add_items(users(f"{name}{number}"))
                if number % 2:
                    await session.flush()
                await session.get_items()
        await asyncio.gather(*(session.flush() for session in sessions))
        for session in sessions:
            await session.aclose()
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation, max_staleness=math.inf)
        listed = {item["id"] for item in emulator.items(conversation)}
        shown: list[Any] = await session.get_items()
        ids = [item["id"] for item in shown]
        assert len(ids) == len(set(ids))
        assert set(ids) <= listed
        assert ids == [item["id"] for item in emulator.items(conversation)]
        await session.aclose()
