"""A process keeps others from sending only while it works: whatever fails, it lets go."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from openai import PermissionDeniedError

from cached_session import (
    BacklogChanged,
    CachedSession,
    OutboxError,
    OutboxFull,
    Sending,
)
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import CUT, error, is_conversation_delete, policy
from tests.faults.virtual import now
from tests.outbox_sessions.one_disk import LATE, OneDisk, fails, on_one_disk
from tests.outbox_sessions.support import raised, words
from tests.session.support import numbered, users


@on_one_disk("a")
async def test_a_doubt_that_a_waiting_sender_finds(world: OneDisk) -> None:
    """Who waited for another process to be done with sending lets go of what that one left."""
    one, two = await world.opened(world.process("1"), world.process("2"))
    world.line.on(is_append, LATE)
    await one.add_items(users("x"))
    await asyncio.sleep(0.05)
    await two.add_items(users("y"))
    await one.flush()
    await asyncio.sleep(10)
    await world.goes_on(one)
    await world.goes_on(two)


@pytest.mark.parametrize("statement", ["release", "seal"])
@on_one_disk("a")
async def test_a_sender_that_fails(world: OneDisk, statement: str) -> None:
    """A sender that cannot record what it does is no hindrance to others."""
    failing = world.process("1")
    one, two = await world.opened(failing, world.process("2"))
    await one.add_items(numbered(0, 25))
    failed = fails(failing, statement, 1 if statement == "release" else 2)
    await asyncio.sleep(10)
    assert failed()
    await world.goes_on(two)
    assert world.line.texts(world.conversation) == ["a", *map(str, range(25)), "after"]


@pytest.mark.parametrize("call", ["read", "pop"])
@on_one_disk("a")
async def test_letting_go_fails(world: OneDisk, call: str) -> None:
    """Where a call cannot record that it lets go, something else does so soon."""
    failing = world.process("1")
    one, two = await world.opened(failing, world.process("2"))
    await world.left_in_doubt(one)
    failed = fails(failing, "release")
    with contextlib.suppress(OutboxError):
        await (one.get_items() if call == "read" else one.pop_item())
    await asyncio.sleep(10)
    assert failed()
    await world.goes_on(two)


@pytest.mark.parametrize("step", range(12))
@on_one_disk("a")
async def test_a_cancelled_read(world: OneDisk, step: int) -> None:
    """A read that is cancelled at whatever moment lets go."""
    one, two = await world.opened(world.process("1", delay=0.1), world.process("2"))
    await world.left_in_doubt(one)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02 * step):
            await one.get_items()
    await asyncio.sleep(5)
    await world.goes_on(two)


@pytest.mark.parametrize("step", range(1, 8))
@on_one_disk("a")
async def test_a_cancelled_first_use(world: OneDisk, step: int) -> None:
    """A first use that is cancelled sends what it found, or leaves it to others."""
    (zero,) = await world.opened(world.process("0"))
    world.had_by_a_dead_process("d")
    one = world.session(world.process("1", delay=0.1))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02 * step):
            await one.get_items()
    await asyncio.sleep(5)
    await world.goes_on(zero)
    assert world.line.texts(world.conversation) == ["a", "d", "after"]


async def _refused(session: CachedSession, world: OneDisk) -> None:
    world.line.always(is_conversation_delete, error(403))
    assert isinstance(await raised(session.clear_session()), PermissionDeniedError)
    world.line.heal()


async def _too_many(session: CachedSession, world: OneDisk) -> None:
    assert isinstance(await raised(session.add_items(numbered(0, 1001))), OutboxFull)


async def _refreshed(session: CachedSession, world: OneDisk) -> None:
    await session.refresh()


async def _read(session: CachedSession, world: OneDisk) -> None:
    await session.get_items()


async def _read_nothing(session: CachedSession, world: OneDisk) -> None:
    assert await session.get_items(0) == []


@pytest.mark.parametrize("call", [_refused, _too_many, _refreshed, _read, _read_nothing])
@on_one_disk("a")
async def test_a_first_use_that_finds_a_doubt(world: OneDisk, call: Any) -> None:
    """Whatever a process uses a conversation for first, it does not keep what is in doubt."""
    (one,) = await world.opened(world.process("1"))
    await world.left_in_doubt(one)
    two = world.session(world.process("2"))
    await call(two, world)
    await asyncio.sleep(10)
    await world.goes_on(one)


@pytest.mark.parametrize("call", ["read", "flush"])
@on_one_disk("a")
async def test_what_a_dead_process_had_accepted(world: OneDisk, call: str) -> None:
    """Items that a call finds are sent; a flush that finds them waits for that."""
    one, two = await world.opened(world.process("1"), world.process("2"))
    await world.left_in_doubt(one)
    world.had_by_a_dead_process("d")
    if call == "read":
        assert words(await one.get_items()) == ["a", "x", "d"]
        await asyncio.sleep(10)
    else:
        await one.flush()
        assert one.stats.waiting == 0
    assert world.line.texts(world.conversation)[:3] == ["a", "x", "d"]
    await world.goes_on(two)


@on_one_disk("a")
async def test_a_pop_of_what_a_dead_process_had_accepted(world: OneDisk) -> None:
    """A pop takes such an item back, and lets go."""
    one, two = await world.opened(world.process("1"), world.process("2"))
    await world.left_in_doubt(one)
    world.had_by_a_dead_process("d")
    assert words([await one.pop_item()]) == ["d"]
    await asyncio.sleep(10)
    await world.goes_on(two)


@on_one_disk("a")
async def test_what_another_process_has_recorded_meanwhile(world: OneDisk) -> None:
    """A flush does not return while an item waits that another process has recorded."""
    told: list[Any] = []
    one, two = await world.opened(world.process("1"), world.process("2"), observer=told.append)
    world.line.on(is_append, error(429, "insufficient_quota"))
    await one.add_items(users("b"))
    await asyncio.sleep(1)
    assert one.stats.sending is Sending.PAUSED
    assert "OutboxPaused" in repr(await raised(two.flush()))
    assert (two.stats.waiting, two.stats.sending) == (1, "paused")
    assert any(isinstance(event, BacklogChanged) for event in told)


@pytest.mark.parametrize("cancelled", [1, 2])
@on_one_disk("a")
async def test_a_cancelled_close(world: OneDisk, cancelled: int) -> None:
    """A close that is cancelled, once or again, ends at once and lets go."""
    process = world.process("1", delay=0.1)
    retry = policy(deadline=30.0, attempt_timeout=20.0)
    one, two = await world.opened(process, world.process("2"), retry=retry)
    await world.kept_open(process)
    world.line.on(is_append, FaultKind.HANG)
    await one.add_items(users("x"))
    closing = world.begin(one.aclose(timeout=60))
    for _ in range(cancelled):
        await asyncio.sleep(1)
        closing.cancel()
    began = now()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    assert now() - began < 1
    await asyncio.sleep(100)
    await world.goes_on(two)
    assert world.line.texts(world.conversation) == ["a", "x", "after"]


@on_one_disk("a")
async def test_a_close_that_is_cancelled_late(world: OneDisk) -> None:
    """A close whose flush has given up, and that is cancelled behind it, lets go, too."""
    process = world.process("1")
    retry = policy(deadline=5.0, attempt_timeout=3.0)
    one, two = await world.opened(process, world.process("2"), retry=retry)
    await world.kept_open(process)
    world.line.always(is_append, FaultKind.HANG)
    await one.add_items(users("x"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.3):
            await one.aclose(timeout=60)
    world.line.heal()
    await asyncio.sleep(100)
    await world.goes_on(two)


@on_one_disk("a")
async def test_a_key_provider_that_fails_late(world: OneDisk) -> None:
    """What a key provider raises while nothing waits any more keeps nobody from sending."""
    away, sent = False, 0

    async def key() -> str:
        if away:
            raise KeyError("no key")
        return "key"

    def sixteenth(event: Any) -> None:
        nonlocal away, sent
        sent += getattr(event, "operation", "") == "append"
        # What no listing has shown is looked at after so many batches.
        away = sent == 16

    def session(name: str, **options: Any) -> CachedSession:
        client = world.line.client()
        client._api_key_provider = key
        return world.session(world.process(name), client=client, **options)

    one, two = session("1", observer=sixteenth), session("2")
    await one.get_items()
    await two.get_items()
    for number in range(16):
        await one.add_items(numbered(6 * number, 6 * number + 6))
        await asyncio.sleep(1)
    assert away
    away = False
    await asyncio.sleep(10)
    assert one.stats.waiting == 0
    await world.goes_on(two)


@on_one_disk("a")
async def test_a_close_that_cannot_let_go(world: OneDisk) -> None:
    """Where it cannot be recorded that a closed session's backlog is let go of, others send."""
    process = world.process("1")
    one, two = await world.opened(process, world.process("2"))
    other = await world.kept_open(process)
    world.line.always(is_append, CUT)
    await one.add_items(users("x"))
    await asyncio.sleep(1)
    failed = fails(process, "release")
    await one.aclose()
    world.line.heal()
    await asyncio.sleep(60)
    assert failed()
    await world.goes_on(two)
    await other.add_items(users("p"))
    await other.flush()
    assert world.line.texts(world.conversation) == ["a", "x", "after"]


@on_one_disk("a")
async def test_a_paused_backlog_that_is_looked_after(world: OneDisk) -> None:
    """While a process finds out what became of a paused batch, no other one sends it."""
    one, two = await world.opened(world.process("1"), world.process("2"))
    # Which is watched for from now on: the first request may still come through.
    world.line.on(is_append, CUT)
    await one.add_items(users("x"))
    await one.flush()
    world.had_by_a_dead_process("d", sealed=True)
    world.pause("RateLimitError")
    world.line.asked()
    world.line.on(is_listing, Fault(FaultKind.SLOW, delay=5.0))
    reading = world.begin(one.get_items())
    await asyncio.sleep(1)
    world.pause(None)
    await two.add_items(users("e"))
    await asyncio.sleep(3)
    assert "append" not in world.line.asked()
    assert words(await reading)[:3] == ["a", "x", "d"]
    await two.flush(500)
    assert world.line.texts(world.conversation) == ["a", "x", "d", "e"]


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.add_items(users("b")),
        CachedSession.pop_item,
        CachedSession.aclose,
    ],
    ids=["add", "pop", "close"],
)
@on_one_disk("a")
async def test_whose_call_it_was(world: OneDisk, call: Any) -> None:
    """An error of the file names the conversation whose call met it."""
    process = world.process("1")
    (session,) = await world.opened(process)
    process.failures = 1.0
    error = await raised(call(session))
    process.failures = 0.0
    assert isinstance(error, OutboxError)
    assert "the disk is full" in str(error)
    assert error.conversation_id == world.conversation
