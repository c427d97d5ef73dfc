"""What comes after appends: pop and clear, with items that wait or are in flight."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cached_session import (
    DeadlineExceeded,
    MemoryOutbox,
    Outbox,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, Line, is_conversation_delete, notes
from tests.faults.virtual import at_every_step, now
from tests.outbox_sessions.support import Process, in_flight, in_virtual_time, opened, raised, words
from tests.session.support import numbered, users

SLOW = Fault(FaultKind.SLOW, delay=5.0)


@in_virtual_time
async def test_pop_of_what_was_not_sent() -> None:
    """An item that was not sent yet is taken from the outbox; the server never sees it."""
    line, session, conversation = await opened("a")
    line.on(is_append, SLOW)
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    await session.add_items(users("c", "d"))
    before = await session.get_items()
    assert await session.pop_item() == before[-1]
    assert words(await session.get_items()) == ["a", "b", "c"]
    await session.flush()
    assert line.asked() == ["append", "append"]
    assert line.texts(conversation) == ["a", "b", "c"]
    await session.aclose()


@in_virtual_time
async def test_pop_of_what_is_in_flight() -> None:
    """An item that is in flight is waited for, and then removed on the server."""
    line, session, conversation = await opened("a")
    line.on(is_append, SLOW)
    await session.add_items(users("b", "c"))
    await asyncio.sleep(1)
    popped: Any = await session.pop_item()
    assert now() >= 5
    assert words([popped]) == ["c"]
    assert "id" in popped
    assert line.asked() == ["append", "delete item"]
    assert line.texts(conversation) == ["a", "b"]
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


@in_virtual_time
async def test_pop_of_what_stays_in_flight() -> None:
    """A pop that cannot be decided before its deadline says so, and removes nothing."""
    line, session, conversation = await opened("a")
    line.always(is_append, CUT)
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    error = await raised(session.pop_item())
    assert isinstance(error, DeadlineExceeded)
    assert "not removed" in str(error)
    assert "1 item " in str(error)
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["a", "b"]
    await session.aclose()


@pytest.mark.parametrize("waiting", [1, 3, 25])
def test_pop_at_every_moment(waiting: int) -> None:
    """At whatever moment a pop comes, it takes the newest item and no other."""

    async def trial(steps: int) -> bool:
        line, session, conversation = await opened("a")
        await session.add_items(numbered(0, waiting))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = session.stats.waiting > 0
        popped = [await session.pop_item() for _ in range(2)]
        expected = ["a", *map(str, range(waiting))]
        assert words(popped) == [expected[-1], expected[-2]]
        await session.flush()
        assert line.texts(conversation) == expected[:-2]
        assert await session.get_items() == line.service.items(conversation)
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 2


async def test_pop_until_nothing_is_left(outbox: Outbox, emulator: Emulator) -> None:
    """Pops go through what waits and what is on the server alike, newest first, to the end."""
    async with Process(emulator, outbox) as process:
        session = process.session()
        await session.add_items(users("a", "b"))
        await session.flush()
        await session.add_items(users("c"))
        popped = [await session.pop_item() for _ in range(4)]
        assert popped[3] is None
        assert words(popped[:3]) == ["c", "b", "a"]
        await session.flush()
        assert emulator.items(session.session_id) == []
        await session.aclose()


@in_virtual_time
async def test_clear_drops_then_deletes() -> None:
    """`clear_session` drops what waits, lets what is in flight land, and deletes, in this order."""
    line, session, conversation = await opened("a")
    line.on(is_append, SLOW)
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    await session.add_items(users("c"))
    await session.clear_session()
    # What was in flight has landed before: nothing comes after the deletion.
    assert line.asked() == ["append", "delete conversation"]
    assert await session.get_items() == []
    assert session.session_id != conversation
    await session.add_items(users("new"))
    await session.flush()
    assert line.texts(session.session_id) == ["new"]
    assert line.asked() == ["create", "append"]
    await session.aclose()


@in_virtual_time
async def test_clear_that_fails() -> None:
    """A clear that the server does not take says how many items were dropped before it."""
    line, session, conversation = await opened("a")
    line.on(is_append, SLOW)
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    await session.add_items(users("c", "d"))
    line.always(is_conversation_delete, CUT)
    error = await raised(session.clear_session())
    assert error is not None
    assert "2 items" in notes(error)
    assert "dropped" in notes(error)
    line.heal()
    assert session.session_id == conversation
    assert words(await session.get_items()) == ["a", "b"]
    await session.add_items(users("e"))
    await session.flush()
    assert line.texts(conversation) == ["a", "b", "e"]
    await session.aclose()


@in_virtual_time
async def test_clear_while_a_batch_stays_in_flight() -> None:
    """A clear that cannot know what a batch became deletes nothing, and says what it dropped."""
    line, session, conversation = await opened("a")
    line.always(is_append, CUT)
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    await session.add_items(users("c", "d"))
    error = await raised(session.clear_session())
    assert isinstance(error, DeadlineExceeded)
    assert "2 items that waited behind it were dropped" in str(error)
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["a", "b"]
    await session.aclose()


def test_appends_beside_a_clear() -> None:
    """An append that comes while a clear is under way goes, whole, to the next conversation."""

    async def trial(steps: int) -> bool:
        line, session, conversation = await opened("a")
        await session.add_items(users("b"))
        while not line.in_flight:  # noqa: ASYNC110 - the line announces nothing
            await asyncio.sleep(0)
        await session.add_items(users("c"))
        clearing = asyncio.create_task(session.clear_session())
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        going_on = not clearing.done()
        await asyncio.gather(
            session.add_items(users("1", "2")), session.add_items(users("3")), clearing
        )
        await session.flush()
        assert session.session_id != conversation
        assert line.texts(session.session_id) == ["1", "2", "3"]
        assert await session.get_items() == line.service.items(session.session_id)
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 3


@pytest.mark.parametrize("max_wait", [0.0, 30.0])
def test_a_clear_makes_room(max_wait: float) -> None:
    """An append that waits for room while a clear begins is dropped with the rest, or goes on."""

    async def trial(steps: int) -> bool:
        outbox = MemoryOutbox(max_items=3, max_wait=max_wait)
        line, session, conversation = await opened("a", outbox=outbox)
        await session.add_items(users("b"))
        while not line.in_flight:  # noqa: ASYNC110 - the line announces nothing
            await asyncio.sleep(0)
        await session.add_items(users("c", "d"))
        clearing = asyncio.create_task(session.clear_session())
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = not clearing.done()
        await raised(session.add_items(users("x", "y")))
        await clearing
        await session.add_items(users("z"))
        await session.flush()
        # Nothing is left lying for a conversation that is gone.
        left = await outbox.transact(lambda log: log.summaries())
        assert left == []
        assert session.session_id != conversation
        assert line.texts(session.session_id) in (["z"], ["x", "y", "z"])
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 3


@pytest.mark.parametrize("ends", ["refused", "done"])
@pytest.mark.parametrize("count", [2, 5])
@in_virtual_time
async def test_all_go_on_behind_a_clear(ends: str, count: int) -> None:
    """Whoever appends while the conversation is being deleted goes on at once when that is over.

    Each took the others who waited for somebody who deletes it, and they went round until their
    deadline, with all of the processor.
    """
    line, outbox = Line(latency=1.0), MemoryOutbox()
    conversation = line.conversation("a")
    one = line.session(conversation, outbox=outbox)
    await one.get_items()
    others = [line.session(conversation, outbox=outbox) for _ in range(count)]
    waiting = [one] * count if ends == "refused" else others
    if ends == "refused":
        line.on(is_conversation_delete, FaultKind.RATE_LIMITED_QUOTA)
    clearing = asyncio.ensure_future(one.clear_session())
    await in_flight(line)
    appending = [asyncio.ensure_future(session.add_items(users("x"))) for session in waiting]
    await asyncio.wait({clearing})
    for _ in range(500):
        await asyncio.sleep(0)
    went_on = [task.done() for task in appending]
    for task in appending:
        task.cancel()
    await asyncio.gather(clearing, *appending, return_exceptions=True)
    for session in (one, *others):
        await raised(session.aclose(timeout=60))
    assert went_on == [True] * count
