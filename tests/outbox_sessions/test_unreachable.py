"""A conversation that cannot be created, because the server is away when the session begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from agents import OpenAIConversationsSession

from cached_session import CachedSession, ConversationCache, MemoryOutbox, Outbox, SQLiteOutbox
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_create
from tests.faults.line import CUT, Line, error
from tests.faults.virtual import at_every_step
from tests.outbox_sessions.support import (
    QUICK,
    Process,
    in_flight,
    in_virtual_time,
    raised,
    until,
    words,
)
from tests.session.support import new_client, numbered, sent, texts, users


@contextmanager
def stopped() -> Iterator[Emulator]:
    """A server that is not there yet; `start` makes it answer on the port that clients know."""
    emulator = Emulator()
    emulator.start()
    emulator.stop()
    try:
        yield emulator
    finally:
        emulator.stop()


async def test_everything_works_without_the_server(outbox: Outbox) -> None:
    """Reads, appends and pops work, and everything is sent once the server is there."""
    with stopped() as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            assert await session.get_items() == []
            assert await session.pop_item() is None
            await session.add_items(users("a", "b"))
            await session.add_items(numbered(0, 30))
            expected = ["a", "b", *map(str, range(30))]
            assert words(await session.get_items()) == expected
            assert words(await session.get_items(3)) == expected[-3:]
            assert await session.get_items(0) == []
            assert words([await session.pop_item()]) == ["29"]
            emulator.start()
            await session.flush()
            stored = emulator.items(session.session_id)
            assert texts(stored) == expected[:-1]
            emulator.clear_log()
            assert await session.get_items() == stored
            await session.add_items(users("more"))
            await session.flush()
            assert sent(emulator) == ["POST items"]
            await session.aclose()


async def test_session_id_says_so(outbox: Outbox) -> None:
    """Until it is created the conversation has no id, which is said clearly, and how to get it."""
    with stopped() as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            await session.get_items()
            with pytest.raises(ValueError, match=r"server could not be reached.*flush"):
                _ = session.session_id
            await session.add_items(users("a"))
            with pytest.raises(ValueError, match=r"server could not be reached.*flush"):
                _ = session.session_id
            emulator.start()
            await session.flush()
            assert session.session_id.startswith("conv_")
            assert session.session_id in repr(session)
            await session.aclose()


async def test_nothing_but_a_read(outbox: Outbox) -> None:
    """A conversation that was only read has its id after a flush, as the error promises."""
    with stopped() as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            assert await session.get_items() == []
            await session.flush()  # nothing waits: the server's absence is no failure
            with pytest.raises(ValueError, match="server could not be reached"):
                _ = session.session_id
            emulator.start()
            await session.flush()
            assert emulator.items(session.session_id) == []
            assert await session.get_items() == []
            assert sent(emulator) == ["POST conversation"]
            await session.aclose()


async def test_close_without_the_server(outbox: Outbox) -> None:
    """A session that only read can be closed while the server is away."""
    with stopped() as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            assert await session.get_items() == []
            await session.aclose()


@pytest.mark.parametrize("looked_at", [False, True], ids=["", "looked at before"])
async def test_wrapped_sessions_agree(looked_at: bool, outbox: Outbox) -> None:
    """A wrapped session has the conversation's id as soon as the server has created it."""
    with stopped() as emulator:
        async with new_client(emulator) as client:
            wrapped = OpenAIConversationsSession(openai_client=client)
            session = CachedSession(wrapped, outbox=outbox, retry=QUICK, cache=ConversationCache())
            await session.add_items(users("a"))
            if looked_at:
                with pytest.raises(ValueError, match="not yet available"):
                    _ = wrapped.session_id
            emulator.start()
            # In the background: nobody calls anything here.
            await until(lambda: session.stats.waiting == 0)
            assert wrapped.session_id.startswith("conv_")
            assert session.session_id == wrapped.session_id
            assert await wrapped.get_items() == emulator.items(session.session_id)
            await session.aclose()
            # What is noted behind the session has its end with the outbox.
            await outbox.aclose()


@in_virtual_time
async def test_another_session_by_the_new_id() -> None:
    """A session that is opened by the new id shares the copy, the backlog and the order."""
    line, outbox, cache = Line(), MemoryOutbox(), ConversationCache()
    line.on(is_create, CUT)
    first = line.session(cache=cache, outbox=outbox)
    await first.add_items(users("a"))
    await first.flush()
    second = line.session(first.session_id, cache=cache, outbox=outbox)
    for number in range(5):
        await first.add_items(users(f"first {number}"))
        await second.add_items(users(f"second {number}"))
        assert await first.get_items() == await second.get_items()
    await second.flush()
    expected = ["a", *(f"{who} {number}" for number in range(5) for who in ("first", "second"))]
    assert line.texts(first.session_id) == expected
    assert first.stats.waiting == second.stats.waiting == 0
    await first.aclose()
    await second.aclose()


@in_virtual_time
async def test_refused_for_good() -> None:
    """A refusal that waiting cannot help, such as a wrong key, reaches the first caller."""
    line = Line()
    line.on(is_create, error(401, "invalid_api_key"))
    session = line.session(outbox=MemoryOutbox())
    refusal: Any = await raised(session.add_items(users("a")))
    assert refusal.status_code == 401
    await session.add_items(users("b"))
    await session.flush()
    assert line.texts(session.session_id) == ["b"]
    await session.aclose()


@in_virtual_time
async def test_one_attempt_then_on() -> None:
    """Nobody waits for a server that is away: one attempt, and the call goes on."""
    line = Line()
    line.always(is_create, CUT)
    session = line.session(outbox=MemoryOutbox())
    assert await session.get_items() == []
    assert line.asked() == ["create"]
    assert await session.get_items() == []
    assert line.asked() == []
    line.heal()
    await session.aclose()


def test_clear_at_every_moment() -> None:
    """A clear before or while the conversation is created leaves nothing of it on the server."""

    async def trial(steps: int) -> bool:
        # No time passes in these steps: a request that has begun stays in flight.
        line = Line(latency=0.01)
        line.on(is_create, CUT)
        session = line.session(outbox=MemoryOutbox())
        await session.get_items()
        await session.add_items(users("a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = not line.in_flight
        await session.clear_session()
        await session.add_items(users("b"))
        await session.flush()
        assert list(line.service.store.ids()) == [session.session_id]
        assert line.texts(session.session_id) == ["b"]
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 3


@in_virtual_time
async def test_clear_with_the_creation_in_flight() -> None:
    """A clear that comes while the conversation is being created deletes that conversation."""
    line = Line(latency=0.01)
    line.on(is_create, CUT)
    session = line.session(outbox=MemoryOutbox())
    await session.add_items(users("a"))
    await in_flight(line)
    await session.clear_session()
    assert line.service.store.ids() == ()
    await session.add_items(users("b"))
    await session.flush()
    assert [line.texts(one) for one in line.service.store.ids()] == [["b"]]
    await session.aclose()


def test_first_calls_at_every_moment() -> None:
    """First calls that race with the server's return make one conversation, in order."""

    async def trial(steps: int) -> bool:
        line = Line()
        line.on(is_create, CUT)
        session = line.session(outbox=MemoryOutbox())
        calls = [asyncio.create_task(session.add_items(users(str(n)))) for n in range(3)]
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        going_on = not all(call.done() for call in calls) or session.stats.waiting > 0
        await session.add_items(users("3"))
        await asyncio.gather(*calls)
        await session.flush()
        assert line.texts(session.session_id) == ["0", "1", "2", "3"]
        assert line.asked().count("create") == 2
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 3


async def test_who_waits_for_the_server_owns_it(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """A conversation that is not made yet belongs to the process that tries to make it."""
    with stopped() as emulator:
        async with Process(emulator, new_outbox()) as process:
            session = process.session()
            await session.add_items(users("a"))
            await until(lambda: session.stats.sending == "offline")
            looker = new_outbox()
            (found,) = await looker.transact(lambda log: log.summaries())
            assert (found.items, found.sealed, found.owned) == (1, 0, True)
            await looker.let_go()
            emulator.start()
            await session.aclose()
