"""Sessions that end early: left by an exception, or dropped without a word."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

from cached_session import CachedSession, ConversationCache, MemoryOutbox, Outbox, SQLiteOutbox
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT
from tests.faults.virtual import at_every_step
from tests.outbox_sessions.support import (
    Process,
    in_virtual_time,
    left_by_an_exception,
    opened,
    until,
    words,
)
from tests.session.support import Elsewhere, Gate, numbered, texts, users


async def test_left_by_an_exception(new_outbox: Callable[[], SQLiteOutbox]) -> None:
    """What a session that failed had in flight settles, and then others may send the rest."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        conversation = Elsewhere(emulator).conversation()
        async with Process(emulator, new_outbox()) as first:
            session = first.session(conversation)
            await session.get_items()
            gate.hold(skip=1)
            await session.add_items(numbered(0, 30))
            await gate.arrived()
            async with asyncio.timeout(5):
                # Without a wait for the request, which the gate holds.
                await left_by_an_exception(session)
            gate.open()
            async with Process(emulator, new_outbox()) as second:
                again = second.session(conversation)
                await again.add_items(users("last"))
                await again.flush(timeout=20)
                stored = texts(emulator.items(conversation))
                assert stored == [*map(str, range(30)), "last"]
                await again.aclose()


async def test_left_with_nothing_in_flight(
    new_outbox: Callable[[], SQLiteOutbox], path: Path
) -> None:
    """What a session leaves while its sender pauses is sent, and then the file is let go of."""
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation()
        async with Process(emulator, new_outbox()) as first:
            session = first.session(conversation)
            await session.get_items()
            emulator.stop()
            await session.add_items(users("a"))
            await left_by_an_exception(session)
            emulator.start()
            await until(lambda: not list(path.parent.glob("*-owner-*")))
            assert texts(emulator.items(conversation)) == ["a"]


@in_virtual_time
async def test_another_session_goes_on() -> None:
    """When one of two sessions is left by an exception, the other one goes on sending."""
    outbox, cache = MemoryOutbox(), ConversationCache()
    line, session, conversation = await opened("a", outbox=outbox, cache=cache)
    other = line.session(conversation, outbox=outbox, cache=cache)
    await other.get_items()
    line.on(is_append, CUT)
    await session.add_items(users("b"))
    await left_by_an_exception(session)
    await asyncio.sleep(10)
    assert line.texts(conversation) == ["a", "b"]
    assert other.stats.waiting == 0
    await other.aclose()


def test_left_at_every_moment() -> None:
    """Whenever a session is left, the next one with the outbox sends what is left, once."""

    async def trial(steps: int) -> bool:
        outbox, cache = MemoryOutbox(), ConversationCache()
        line, session, conversation = await opened("a", outbox=outbox, cache=cache)
        await session.add_items(numbered(0, 25))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = session.stats.waiting > 0
        await left_by_an_exception(session)
        again = line.session(conversation, outbox=outbox, cache=cache)
        await again.add_items(users("last"))
        expected = ["a", *map(str, range(25)), "last"]
        assert words(await again.get_items()) == expected
        await again.flush()
        assert line.texts(conversation) == expected
        await again.aclose()
        return going_on

    assert at_every_step(trial) > 5


async def test_dropped_unclosed(outbox: Outbox, emulator: Emulator) -> None:
    """A session that was dropped unclosed, with nothing waiting, is in no other outbox's way."""
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, outbox) as process:

        async def use_and_drop() -> None:
            session = process.session(conversation)
            await session.add_items(users("b"))
            await session.flush()

        await use_and_drop()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        gc.collect()
        process.outbox = MemoryOutbox()
        session: CachedSession = process.session(conversation)
        await session.add_items(users("c"))
        await session.flush()
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]
        await session.aclose()
