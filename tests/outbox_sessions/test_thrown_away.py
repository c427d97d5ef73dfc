"""What was thrown away is asked for, also where no session holds the conversation meanwhile."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cached_session import ConversationCache, SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_listing
from tests.outbox_sessions.support import Make, Process, until, words
from tests.session.support import Elsewhere, Gate, new_client, sent, texts


async def read(process: Process, name: str) -> list[Any]:
    """A web request that reads, with a session of its own."""
    async with process.session(name, max_staleness=math.inf) as session:
        items: list[Any] = await session.get_items()
    return items


async def collected(process: Process, *names: str) -> None:
    """Waits until nobody holds the conversations: the outbox's thread may, for a moment."""

    def held() -> bool:
        gc.collect()
        return any(one.conversation_id in names for one in process.cache.conversations())

    await until(lambda: not held())


async def refresh(process: Process, name: str) -> None:
    """A web request that has the server asked."""
    async with process.session(name) as session:
        await session.refresh()


async def invalidate(process: Process, name: str) -> None:
    """The same for the conversation's copies."""
    process.cache.invalidate(name)


async def clear(process: Process, name: str) -> None:
    """The same for all copies."""
    process.cache.clear()


HOW: list[Callable[[Process, str], Awaitable[None]]] = [refresh, invalidate, clear]


@pytest.mark.parametrize("how", HOW)
async def test_the_next_request_asks(
    how: Callable[[Process, str], Awaitable[None]], kind: Make, path: Path, emulator: Emulator
) -> None:
    """The next session's first read shows what others did, and the one after it asks no more.

    Also what they have removed further back than a check looks.
    """
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, kind(path)) as process:
        name = elsewhere.conversation(*map(str, range(90)))
        await read(process, name)
        elsewhere.remove(name, 3)
        elsewhere.remove(name, -1)
        elsewhere.append(name, "new")
        await how(process, name)
        await collected(process, name)
        sent(emulator)
        assert await read(process, name) == emulator.items(name)
        assert sent(emulator) == ["GET items"]
        assert await read(process, name) == emulator.items(name)
        assert sent(emulator) == []


async def test_the_others_show_what_was_found(kind: Make, path: Path, emulator: Emulator) -> None:
    """What the read has found is in the outbox: another process shows it without a request."""
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, kind(path)) as one, Process(emulator, kind(path)) as other:
        name = elsewhere.conversation(*map(str, range(90)))
        await read(one, name)
        if kind is not SQLiteOutbox:
            # Where nobody asks the log in the server's place, a copy of its own goes first.
            await read(other, name)
        elsewhere.remove(name, 3)
        await refresh(one, name)
        await collected(one, name)
        await read(one, name)
        sent(emulator)
        assert await read(other, name) == emulator.items(name)
        assert sent(emulator) == []


async def dropped(process: Process, name: str, large: str) -> None:
    """Has the cache drop a conversation's copy for want of room."""
    await read(process, large)
    assert process.cache.stats.conversations == 1
    await collected(process, name)


@pytest.mark.parametrize("how", HOW)
async def test_where_there_is_no_copy(
    how: Callable[[Process, str], Awaitable[None]], kind: Make, path: Path, emulator: Emulator
) -> None:
    """One that the cache has dropped before is asked for once; `clear` is about copies alone."""
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, kind(path)) as process:
        process.cache = ConversationCache(max_bytes=30_000)
        name, large = elsewhere.conversation("a"), elsewhere.conversation("x" * 20_000)
        assert words(await read(process, name)) == ["a"]
        await dropped(process, name, large)
        elsewhere.append(name, "b")
        await how(process, name)
        await collected(process, name)
        for asked in (how is not clear, False):
            sent(emulator)
            shown = await read(process, name)
            assert sent(emulator) == ["GET items"] * asked
            assert words(shown) == (["a"] if how is clear else ["a", "b"])
            await dropped(process, name, large)


@pytest.mark.parametrize("copies", [True, False])
async def test_each_account_asks(copies: bool, kind: Make, path: Path, emulator: Emulator) -> None:
    """That one account's next request has asked is none for another's, which goes by its own."""
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, kind(path)) as one, Process(emulator, kind(path)) as other:
        other.client, other.cache = new_client(emulator, "another"), one.cache
        name = elsewhere.conversation("a")
        for process in (one, other):
            await read(process, name)
        elsewhere.append(name, "b")
        if not copies:
            one.cache = other.cache = ConversationCache()
        assert one.cache.invalidate(name) == 2 * copies
        await collected(one, name)
        sent(emulator)
        for _ in range(2):
            for process in (one, other):
                assert words(await read(process, name)) == ["a", "b"]
        assert sent(emulator) == ["GET items"] * 2


async def test_while_a_read_is_in_flight(kind: Make, path: Path) -> None:
    """What a read had asked for before is kept by no outbox for those who come after."""
    gate = Gate()
    with Emulator(sleep=gate.sleep) as emulator:
        elsewhere = Elsewhere(emulator)
        async with Process(emulator, kind(path)) as process:
            process.cache = ConversationCache(max_bytes=0)
            name = elsewhere.conversation("a")
            # The listing shows how it is now, and its answer takes its time.
            emulator.faults = lambda request: Fault(FaultKind.SLOW) if is_listing(request) else None
            gate.hold()
            # By a session that nobody closes.
            session = process.session(name)
            reading = asyncio.create_task(session.get_items())
            await gate.arrived()
            elsewhere.append(name, "b")
            process.cache.invalidate(name)
            gate.open()
            assert words(await reading) == ["a"]
            del session, reading
            await collected(process, name)
            emulator.faults = None
            assert words(await read(process, name)) == ["a", "b"]


async def test_many_at_once(kind: Make, path: Path, emulator: Emulator) -> None:
    """Of 10,000 conversations it is known; of one more the outbox answers for the first."""
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, kind(path)) as process:
        names = [elsewhere.conversation("a") for _ in range(2)]
        for name in names:
            await read(process, name)
            elsewhere.append(name, "b")
            await refresh(process, name)
        await collected(process, *names)
        for number in range(10_000 - 1):
            process.cache.invalidate(f"conv_{number}")
        assert [words(await read(process, name)) for name in names] == [["a"], ["a", "b"]]


async def test_by_its_local_name(kind: Make, path: Path, emulator: Emulator) -> None:
    """Who comes to it by the name that it had before the server made it asks, too."""
    async with Process(emulator, kind(path)) as process:
        emulator.stop()
        session = process.session()
        await session.add_items([{"role": "user", "content": "a"}])
        local = session.local_name
        assert local is not None
        emulator.start()
        await session.flush()
        name = session.session_id
        await session.aclose()
        del session
        assert texts(await read(process, local)) == ["a"]
        Elsewhere(emulator).append(name, "b")
        await refresh(process, name)
        await collected(process, name)
        assert texts(await read(process, local)) == ["a", "b"]
