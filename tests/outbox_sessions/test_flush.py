"""Waiting for the server: flush and close, in time and too late."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from openai import InternalServerError

from cached_session import (
    CachedSession,
    DeadlineExceeded,
    MemoryOutbox,
    Outbox,
    Sending,
    SessionClosed,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST
from tests.faults.line import error as status
from tests.faults.virtual import now
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import Process, in_virtual_time, opened, raised, words
from tests.session.support import Gate, numbered, texts, users

SLOW = Fault(FaultKind.SLOW, delay=5.0)


@in_virtual_time
async def test_flush_waits() -> None:
    """`flush` returns when everything that was accepted before is on the server."""
    line, session, conversation = await opened()
    line.on(is_append, SLOW, LOST, CUT, None)
    await session.add_items(numbered(0, 50))
    await session.flush()
    assert now() >= 5
    assert line.texts(conversation) == [str(number) for number in range(50)]
    assert session.stats.waiting == 0
    assert session.stats.sending is Sending.IDLE
    await session.aclose()


@in_virtual_time
async def test_flush_that_takes_too_long() -> None:
    """A flush that is not done in time says how many items wait, and all of them are kept."""
    line, session, conversation = await opened()
    line.always(is_append, CUT)
    await session.add_items(users("a", "b"))
    await session.add_items(users("c"))
    for seconds in (0, 3.5):
        began = now()
        error = await raised(session.flush(timeout=seconds))
        assert isinstance(error, DeadlineExceeded)
        assert isinstance(error, TimeoutError)
        assert "3 items" in str(error)
        assert conversation in str(error)
        assert error.conversation_id == conversation
        assert now() - began == pytest.approx(seconds, abs=0.01)
    assert words(await session.get_items()) == ["a", "b", "c"]
    line.heal()
    await session.flush(timeout=60)
    assert line.texts(conversation) == ["a", "b", "c"]
    await session.aclose()


@in_virtual_time
async def test_why_a_flush_took_too_long() -> None:
    """A flush that is not done in time says what went wrong last, and has it as its cause."""
    line, session, conversation = await opened("a")
    line.on(is_append, status(503), Fault(FaultKind.SLOW, delay=50.0))
    await session.add_items(users("b"))
    error = await raised(session.flush(timeout=0.1))
    assert isinstance(error, DeadlineExceeded)
    assert "(sending: offline, InternalServerError)" in str(error)
    assert isinstance(error.__cause__, InternalServerError)
    # It is history as soon as it goes on.
    line.heal()
    await session.flush()
    line.on(is_append, Fault(FaultKind.SLOW, delay=50.0))
    await session.add_items(users("c"))
    error = await raised(session.flush(timeout=0.1))
    assert isinstance(error, DeadlineExceeded)
    assert "(sending: sending)" in str(error)
    assert error.__cause__ is None
    await session.aclose(timeout=60)
    assert line.texts(conversation) == ["a", "b", "c"]


@in_virtual_time
async def test_flush_without_a_time() -> None:
    """Without a timeout a flush takes as long as the policy's deadline says."""
    line, session, _ = await opened()
    line.always(is_append, CUT)
    await session.add_items(users("a"))
    began = now()
    assert isinstance(await raised(session.flush()), DeadlineExceeded)
    assert now() - began == pytest.approx(60, abs=0.01)
    line.heal()
    await session.aclose(timeout=60)


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, -math.inf, "1", True, [1]], ids=str)
@in_virtual_time
async def test_bad_timeouts(timeout: Any) -> None:
    """What is no timeout is refused, by name, before anything is done."""
    _, session, _ = await opened()
    error = await raised(session.flush(timeout=timeout))
    assert isinstance(error, ValueError if isinstance(timeout, int | float) else TypeError) or (
        timeout is True and isinstance(error, TypeError)
    )
    assert "timeout" in str(error)
    await session.aclose()


async def test_flush_before_the_first_use(outbox: Outbox, emulator: Emulator) -> None:
    """A session that was not used has nothing to wait for: no request, no conversation."""
    async with Process(emulator, outbox) as process:
        session = process.session()
        await session.flush(timeout=0)
        await session.aclose()
        assert emulator.requests == []


async def test_close_waits(outbox: Outbox) -> None:
    """`aclose(timeout)` returns when everything is on the server; then the session is closed."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            await session.get_items()
            gate.hold()
            await session.add_items(numbered(0, 30))
            closing = asyncio.create_task(session.aclose(timeout=60))
            await gate.arrived()
            assert not closing.done()
            gate.open()
            await closing
            conversation = session.session_id
            assert texts(emulator.items(conversation)) == [str(n) for n in range(30)]
            assert isinstance(await raised(session.add_items(users("x"))), SessionClosed)
            again: CachedSession = process.session(conversation)
            assert await again.get_items() == emulator.items(conversation)
            await again.aclose(timeout=60)


@in_virtual_time
async def test_close_that_takes_too_long() -> None:
    """A close that is not done in time closes all the same; what waits is sent behind it."""
    outbox = MemoryOutbox()
    line, session, conversation = await opened("a", outbox=outbox)
    line.always(is_append, CUT)
    await session.add_items(users("b"))
    assert isinstance(await raised(session.aclose(timeout=60)), DeadlineExceeded)
    assert isinstance(await raised(session.get_items()), SessionClosed)
    line.heal()
    await asyncio.sleep(100)
    assert line.texts(conversation) == ["a", "b"]
    assert not await outbox.aclose()


@on_one_disk("a")
async def test_flush_beside_one_who_appends(world: OneDisk) -> None:
    """A flush does not wait for what is appended after it had begun."""
    (session,) = await world.opened(world.process("1", delay=0.1))
    await session.add_items(users("first"))

    async def append() -> None:
        for number in range(1000):
            await session.add_items(users(str(number)))
            await asyncio.sleep(0.05)

    appending = asyncio.create_task(append())
    began = now()
    await session.flush(timeout=5)
    assert now() - began < 2
    assert "first" in world.line.texts(world.conversation)
    appending.cancel()


@on_one_disk("a")
async def test_old_troubles(world: OneDisk) -> None:
    """A flush that waits for another process says nothing of what went wrong here before."""
    one, two = await world.opened(world.process("1"), world.process("2"))
    world.line.on(is_append, status(400, "no"))
    await one.add_items(users("b"))
    await asyncio.sleep(1)
    world.line.heal()
    world.pause(None)  # somebody decides, and the other process is quicker
    world.line.always(is_append, CUT)
    await two.add_items(users("c"))
    await asyncio.sleep(1)
    error = await raised(one.flush(timeout=3))
    assert isinstance(error, DeadlineExceeded)
    assert "(sending: elsewhere)" in str(error)
    assert error.__cause__ is None
