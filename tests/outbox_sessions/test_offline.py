"""The server goes away and comes back: reads, appends, what is told, and no storm."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from cached_session import (
    BacklogChanged,
    CachedSession,
    ConversationCache,
    Event,
    MemoryOutbox,
    Outbox,
    RetryBudget,
    Sending,
)
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST, Line, any_request, error, policy
from tests.faults.virtual import at_every_step, now
from tests.outbox_sessions.support import QUICK, in_virtual_time, opened, until, words
from tests.session.support import Elsewhere, numbered, texts, users

pytestmark = pytest.mark.long


def told(events: list[Event]) -> list[tuple[Sending, int]]:
    """The states that an observer was told of, with what waited."""
    changes = [event for event in events if isinstance(event, BacklogChanged)]
    return [(change.state, change.waiting) for change in changes]


@in_virtual_time
async def test_offline_and_back() -> None:
    """During an outage reads and appends go on; afterwards all is sent, in order, once."""
    events: list[Event] = []
    line, session, conversation = await opened("a", "b", observer=events.append)
    line.always(any_request, CUT)
    expected = ["a", "b"]
    for number in range(30):
        await session.add_items(users(str(number)))
        expected.append(str(number))
        await asyncio.sleep(10)
        assert words(await session.get_items()) == expected
        assert words(await session.get_items(7)) == expected[-7:]
    assert session.stats.waiting == 30
    assert session.stats.sending is Sending.OFFLINE
    line.heal()
    line.asked()
    await asyncio.sleep(10)
    assert session.stats.waiting == 0
    assert session.stats.sending is Sending.IDLE
    # The batch that was on its way is looked for first, and goes alone; then the rest.
    assert line.asked() == ["list", "append", "append", "append"]
    assert line.texts(conversation) == expected
    assert await session.get_items() == line.service.items(conversation)
    states = [state for state, _ in told(events)]
    assert states == [Sending.SENDING, Sending.OFFLINE, Sending.SENDING, Sending.IDLE]
    offline = next(event for event in events if told([event]) and told([event])[0][0] == "offline")
    assert isinstance(offline, BacklogChanged)
    assert offline.error == "AppendOutcomeUnknown"
    assert offline.conversation_id == conversation
    assert told(events)[-1] == (Sending.IDLE, 0)
    await session.aclose()


@in_virtual_time
async def test_an_outage_meets_no_storm() -> None:
    """During an hour's outage a conversation asks once in some seconds, whatever is appended."""
    line, session, _ = await opened("a")
    line.always(any_request, CUT)
    for number in range(360):
        await session.add_items(users(str(number)))
        await session.get_items()
        await asyncio.sleep(10)
    # By the policy at most one try in four seconds, and at the beginning a few more.
    assert len(line.asked()) <= 3600 / 4 + 10
    line.heal()
    await session.flush()
    assert len(line.asked()) <= 2 * 18 + 2
    await session.aclose()


@in_virtual_time
async def test_many_conversations_share_the_budget() -> None:
    """The outboxes of many conversations repeat no faster than the process's budget allows."""
    line, outbox, cache = Line(), MemoryOutbox(), ConversationCache()
    retry = policy(budget=RetryBudget(10, 1))
    sessions = [
        line.session(line.conversation(), outbox=outbox, cache=cache, retry=retry)
        for _ in range(50)
    ]
    for session in sessions:
        await session.get_items()
    line.asked()
    line.always(any_request, CUT)
    for session in sessions:
        await session.add_items(users("a"))
    await asyncio.sleep(100)
    # Each asks once and looks once what became of that. Then ten at once, one a second.
    assert len(line.asked()) <= 2 * 50 + 10 + 100 + 1
    line.heal()
    await asyncio.gather(*(session.flush() for session in sessions))
    for session in sessions:
        assert line.texts(session.session_id) == ["a"]
        await session.aclose()


@in_virtual_time
async def test_a_server_that_asks_to_wait() -> None:
    """A server that says when to come back is not asked before."""
    line, session, conversation = await opened("a")
    line.on(is_append, error(429, headers={"retry-after": "100"}))
    await session.add_items(users("b"))
    await asyncio.sleep(99)
    assert session.stats.sending is Sending.OFFLINE
    assert line.asked() == ["append"]
    await session.flush()
    assert now() >= 100
    assert line.texts(conversation) == ["a", "b"]
    await session.aclose()


@pytest.mark.parametrize("fault", [CUT, LOST], ids=str)
def test_whenever_it_goes_away(fault: Any) -> None:
    """Whatever was under way when the server went away, reads are served from then on."""

    async def trial(steps: int) -> bool:
        line, session, conversation = await opened("a")
        await session.add_items(users("b"))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = session.stats.waiting > 0 or len(asyncio.all_tasks()) > 1
        line.always(any_request, fault)
        await session.add_items(users("c"))
        for _ in range(3):
            assert words(await session.get_items()) == ["a", "b", "c"]
            await asyncio.sleep(20)
        assert now() == 60
        await session.add_items(users("d"))
        assert words(await session.get_items()) == ["a", "b", "c", "d"]
        line.heal()
        await session.flush()
        assert line.texts(conversation) == ["a", "b", "c", "d"]
        await session.aclose()
        return going_on

    assert at_every_step(trial) > 5


@in_virtual_time
async def test_the_copy_was_dropped() -> None:
    """A cache that lets go of a copy takes nothing from a reader while the server is away."""
    cache = ConversationCache(max_bytes=1)
    line, session, conversation = await opened("a", cache=cache)
    line.on(is_append, CUT)
    await session.add_items(users("b"))
    await session.flush()
    assert await session.get_items() == line.service.items(conversation)
    await session.add_items(numbered(0, 30))
    await session.flush()
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


class NoNetwork(Exception):
    """What a library of somebody else's raises; it derives from nothing that anybody knows."""


async def test_a_key_provider_without_a_network(outbox: Outbox, emulator: Emulator) -> None:
    """A key provider that fails for a while counts as offline: nobody has refused anything."""
    down = False

    async def key() -> str:
        if down:
            raise NoNetwork
        return "any"

    async with AsyncOpenAI(base_url=emulator.base_url, api_key=key) as client:
        events: list[Event] = []
        session = CachedSession(
            openai_client=client,
            outbox=outbox,
            cache=ConversationCache(),
            retry=QUICK,
            observer=events.append,
        )
        await session.add_items(users("a"))
        await session.flush()
        down = True
        await session.add_items(users("b"))
        await until(lambda: session.stats.sending is Sending.OFFLINE)
        await session.add_items(users("c"))
        assert words(await session.get_items()) == ["a", "b", "c"]
        down = False
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["a", "b", "c"]
        assert Sending.PAUSED not in [state for state, _ in told(events)]
        await session.aclose()


async def test_a_client_that_was_closed_too_early(outbox: Outbox, emulator: Emulator) -> None:
    """What its owner's closed HTTP client cannot send is kept, not paused, and sent by another."""
    http, cache = httpx2.AsyncClient(trust_env=False), ConversationCache()
    closed = AsyncOpenAI(base_url=emulator.base_url, api_key="key", http_client=http)
    async with AsyncOpenAI(base_url=emulator.base_url, api_key="key") as client:
        session, other = (
            CachedSession(
                conversation_id=conversation,
                openai_client=one,
                cache=cache,
                retry=QUICK,
                outbox=outbox,
            )
            for conversation in [Elsewhere(emulator).conversation("a")]
            for one in (closed, client)
        )
        await session.get_items()
        await http.aclose()
        await session.add_items(users("b"))
        await until(lambda: session.stats.sending is Sending.OFFLINE)
        assert words(await session.get_items()) == ["a", "b"]
        await other.flush()
        assert texts(emulator.items(other.session_id)) == ["a", "b"]
        await session.aclose()
        await other.aclose()
