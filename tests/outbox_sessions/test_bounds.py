"""The limits of a backlog: who waits for room, who is refused, and that nothing is dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import cached_session.conversation.backlog
import cached_session.conversation.record
from cached_session import ConversationCache, MemoryOutbox, Outbox, OutboxError, OutboxFull
from cached_session.core.items import accept
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST, Line, any_request
from tests.faults.virtual import at_every_step, now
from tests.outbox_sessions.support import (
    Process,
    in_virtual_time,
    left_by_an_exception,
    opened,
    raised,
    words,
)
from tests.session.support import Gate, numbered, texts, user, users

pytestmark = pytest.mark.long

SIZE = len(accept([user("0")])[0])
"""Bytes of a message of one digit."""

TIGHT: dict[str, dict[str, Any]] = {
    "max_items": {"max_items": 3},
    "max_bytes": {"max_bytes": 3 * SIZE + SIZE // 2},
}


class Clock:
    """The calendar's clock, which tells how old an item is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in (cached_session.conversation.record, cached_session.conversation.backlog):
            patch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("options", TIGHT.values(), ids=TIGHT.keys())
@in_virtual_time
async def test_refused_when_it_stays_full(options: dict[str, Any]) -> None:
    """A call that finds no room for `max_wait` seconds is refused whole; the rest is kept."""
    line, session, conversation = await opened(outbox=MemoryOutbox(max_wait=7, **options))
    line.always(is_append, CUT)
    await session.add_items(users("0", "1"))
    began = now()
    error = await raised(session.add_items(users("2", "3")))
    assert isinstance(error, OutboxFull)
    assert isinstance(error, OutboxError)
    assert error.conversation_id == conversation
    assert "2 items" in str(error)
    assert "7 s" in str(error)
    assert now() - began == pytest.approx(7, abs=0.01)
    # A smaller one still has room.
    await session.add_items(users("4"))
    assert words(await session.get_items()) == ["0", "1", "4"]
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["0", "1", "4"]
    await session.aclose()


@pytest.mark.parametrize("options", TIGHT.values(), ids=TIGHT.keys())
@in_virtual_time
async def test_goes_on_when_there_is_room(options: dict[str, Any]) -> None:
    """A call that waits goes on as soon as the server has taken enough."""
    line, session, conversation = await opened(outbox=MemoryOutbox(max_wait=100, **options))
    line.always(is_append, CUT)
    await session.add_items(users("0", "1", "2"))
    began = now()
    appending = asyncio.create_task(session.add_items(users("3", "4")))
    await asyncio.sleep(9)
    assert not appending.done()
    line.heal()
    await appending
    assert now() - began < 18  # one wait of the sender's
    await session.flush()
    assert line.texts(conversation) == ["0", "1", "2", "3", "4"]
    await session.aclose()


@in_virtual_time
async def test_a_pop_makes_room() -> None:
    """A call that waits goes on when another one takes something out."""
    line, session, conversation = await opened(outbox=MemoryOutbox(max_items=3, max_wait=100))
    line.always(is_append, CUT)
    await session.add_items(users("0"))
    await asyncio.sleep(1)
    await session.add_items(users("1", "2"))
    appending = asyncio.create_task(session.add_items(users("3")))
    await asyncio.sleep(1)
    began = now()
    assert words([await session.pop_item()]) == ["2"]
    await appending
    assert now() == began
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["0", "1", "3"]
    await session.aclose()


@pytest.mark.parametrize("options", TIGHT.values(), ids=TIGHT.keys())
@in_virtual_time
async def test_more_than_there_is_ever_room_for(options: dict[str, Any]) -> None:
    """A call with more than the whole limit is refused at once."""
    line, session, _ = await opened(outbox=MemoryOutbox(max_wait=100, **options))
    began = now()
    error = await raised(session.add_items(numbered(0, 4)))
    assert isinstance(error, OutboxFull)
    assert "4 items" in str(error)
    assert now() == began
    assert line.asked() == []
    assert await session.get_items() == []
    await session.add_items(numbered(0, 3))
    await session.aclose(timeout=60)


@pytest.mark.parametrize("limit", ["max_items", "max_bytes"])
async def test_calls_at_once_keep_the_limit(limit: str, outbox: Outbox) -> None:
    """However many calls come at once, no more waits than the limit; in order, nothing is lost."""
    value = 10 if limit == "max_items" else 10 * SIZE + 10
    for name, bound in ((limit, value), ("max_wait", 60.0)):
        setattr(outbox, name, bound)
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            await session.get_items()
            gate.hold()
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(session.add_items(users(str(number))))
                await gate.arrived()
                for _ in range(50):
                    assert session.stats.waiting <= 10
                    await asyncio.sleep(0)
                gate.open()
            await session.flush()
            stored = emulator.items(session.session_id)
            assert texts(stored) == [str(number) for number in range(100)]
            await session.aclose()


@in_virtual_time
async def test_first_come_first_served() -> None:
    """Calls that wait for room are served in order: a small one does not overtake a large one."""
    line, session, conversation = await opened(outbox=MemoryOutbox(max_items=6, max_wait=100))
    line.always(is_append, CUT)
    await session.add_items(users("a"))
    await asyncio.sleep(1)
    await session.add_items(users("b", "c"))
    large = asyncio.create_task(session.add_items(users("1", "2", "3", "4")))
    await asyncio.sleep(1)
    small = asyncio.create_task(session.add_items(users("5")))
    await asyncio.sleep(1)
    assert not small.done()
    line.heal()
    await asyncio.gather(large, small)
    await session.flush()
    assert line.texts(conversation) == ["a", "b", "c", "1", "2", "3", "4", "5"]
    await session.aclose()


def test_a_caller_who_is_cancelled_holds_no_place() -> None:
    """A call that is cancelled while it waits for room leaves nothing, and blocks nobody."""

    async def trial(steps: int) -> bool:
        outbox = MemoryOutbox(max_items=2, max_wait=50)
        line, session, conversation = await opened(outbox=outbox)
        line.on(is_append, CUT, CUT)
        await session.add_items(users("0"))
        leaving = asyncio.create_task(session.add_items(users("1", "2")))
        staying = asyncio.create_task(session.add_items(users("3")))
        for _ in range(steps):
            await asyncio.sleep(0)
            if steps > 20:
                await asyncio.sleep(0.05)
        going_on = not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await staying
        await session.add_items(users("4", "5"))
        await session.flush()
        whole = ["1", "2"] if not leaving.cancelled() else []
        assert line.texts(conversation) == ["0", *whole, "3", "4", "5"]
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 20


@in_virtual_time
async def test_age(clock: Clock) -> None:
    """While the oldest item waits longer than `max_age`, nothing more is accepted."""
    outbox = MemoryOutbox(max_age=60, max_wait=5)
    line, session, conversation = await opened(outbox=outbox)
    line.always(is_append, CUT)
    await session.add_items(users("0"))
    clock.now += 60
    await session.add_items(users("1"))
    clock.now += 1
    error = await raised(session.add_items(users("2")))
    assert isinstance(error, OutboxFull)
    assert "its limit of age (the oldest has waited for more than 60 s)" in str(error)
    # A clock that was set back makes nothing old.
    clock.now -= 10_000
    await session.add_items(users("3"))
    clock.now += 20_000
    appending = asyncio.create_task(session.add_items(users("4")))
    await asyncio.sleep(1)
    assert not appending.done()
    line.heal()
    await appending
    await session.flush()
    assert line.texts(conversation) == ["0", "1", "3", "4"]
    await session.aclose()


async def test_a_process_that_begins_full(new_outbox: Any) -> None:
    """A process that finds the backlog full of what another one left sends it, and goes on."""
    with Emulator() as away:
        async with Process(away, new_outbox(max_items=3)) as before:
            first = before.session()
            await first.get_items()
            conversation = first.session_id
            away.stop()
            await first.add_items(numbered(0, 3))
            await raised(first.flush(timeout=0.01))
            await left_by_an_exception(first)
            away.start()
            async with Process(away, new_outbox(max_items=3, max_wait=20)) as after:
                session = after.session(conversation)
                await session.add_items(numbered(3, 6))
                await session.flush()
                assert texts(away.items(conversation)) == [str(n) for n in range(6)]
                await session.aclose()


@in_virtual_time
async def test_the_history_before_what_waits_is_bounded() -> None:
    """What is shown before waiting items counts for the cache, and goes when there is no room."""
    line, outbox = Line(), MemoryOutbox()
    big = "x" * 20_000
    conversations = [line.conversation(*[f"{big}{n}" for n in range(5)]) for _ in range(20)]
    cache = ConversationCache(max_bytes=500_000)
    sessions = [line.session(name, cache=cache, outbox=outbox) for name in conversations]
    for number, session in enumerate(sessions):
        line.heal()
        await session.get_items()
        # With the answer lost nothing is held but what is shown before what waits.
        line.always(is_append, LOST if number % 2 else CUT)
        line.always(any_request, CUT)
        await session.add_items(users("waits"))
        await asyncio.sleep(0.01)
    await asyncio.sleep(30)
    assert cache.bytes <= 500_000
    # The ones that fit are still shown without the server; the others ask, when it is there.
    held = [session for session in sessions if await raised(session.get_items()) is None]
    assert 2 <= len(held) <= 5
    line.heal()
    for session in sessions:
        assert len(await session.get_items()) == 6
        await session.aclose(timeout=60)
    assert all(len(line.texts(name)) == 6 for name in conversations)
