"""What a cache says of all its sessions, and what it drops when it is told to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    CacheStats,
    ConversationCache,
    Event,
    MemoryOutbox,
    Outbox,
    PostgresOutbox,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from tests.postgres import Server
from tests.session.support import Elsewhere, Gate, new_client, sent, texts, users


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated_emulator(gate: Gate) -> Iterator[Emulator]:
    with Emulator(sleep=gate.sleep) as emulator:
        yield emulator


async def test_stats_are_of_all_sessions(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cache counts the reads of all its sessions, closed ones too, and what it dropped itself."""
    elsewhere = Elsewhere(emulator)
    cache = ConversationCache(max_bytes=30_000)
    assert cache.stats == CacheStats(0, 0, 0, 0, 0)
    for name in (elsewhere.conversation("a"), elsewhere.conversation("b")):
        async with CachedSession(conversation_id=name, openai_client=client, cache=cache) as one:
            for _ in range(3):
                await one.get_items()
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.evictions, stats.conversations) == (4, 2, 0, 2)
    assert stats.bytes == cache.bytes
    large = elsewhere.conversation("x" * 20_000)
    await CachedSession(conversation_id=large, openai_client=client, cache=cache).get_items()
    stats = cache.stats
    assert (stats.evictions, stats.conversations) == (2, 1)
    assert cache.invalidate(large) == 1
    stats = cache.stats
    assert (stats.evictions, stats.conversations, stats.bytes) == (2, 0, 0)


async def test_an_invalidated_copy_is_asked_for(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The next read asks the server, whatever its `max_staleness`; other copies stay."""
    elsewhere = Elsewhere(emulator)
    cache = ConversationCache()
    names = elsewhere.conversation("a"), elsewhere.conversation("b")
    one, other = (
        CachedSession(
            conversation_id=name, openai_client=client, cache=cache, max_staleness=math.inf
        )
        for name in names
    )
    await one.get_items()
    await other.get_items()
    elsewhere.append(names[0], "new")
    assert texts(await one.get_items()) == ["a"]
    assert cache.invalidate(names[0]) == 1
    assert cache.invalidate(names[0]) == 0
    assert one.stats.items == 0
    sent(emulator)
    assert texts(await one.get_items()) == ["a", "new"]
    await one.get_items()
    await other.get_items()
    assert sent(emulator) == ["GET items"]


async def test_an_empty_copy_is_dropped_too(emulator: Emulator, client: AsyncOpenAI) -> None:
    """That a conversation is empty is knowledge as well: it is asked for when that is dropped."""
    cache = ConversationCache()
    session = CachedSession(openai_client=client, cache=cache)
    assert await session.get_items() == []
    Elsewhere(emulator).append(session.session_id, "new")
    assert cache.invalidate(session.session_id) == 1
    assert texts(await session.get_items()) == ["new"]


async def test_it_drops_the_copies_of_all_accounts(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Each account's copy of the conversation goes, and the cache says how many there were."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    name = elsewhere.conversation("a")
    async with new_client(emulator, "another") as another:
        sessions = [
            CachedSession(conversation_id=name, openai_client=one, cache=cache)
            for one in (client, another)
        ]
        for session in sessions:
            await session.get_items()
        elsewhere.append(name, "new")
        assert cache.invalidate(name) == 2
        for session in sessions:
            assert texts(await session.get_items()) == ["a", "new"]


async def test_clear_drops_all(emulator: Emulator, client: AsyncOpenAI) -> None:
    """After `clear` each session asks once, and another cache's copies are its own."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    names = [elsewhere.conversation("a") for _ in range(3)]
    sessions = [
        CachedSession(conversation_id=name, openai_client=client, cache=cache) for name in names
    ]
    apart = CachedSession(conversation_id=names[0], openai_client=client, cache=ConversationCache())
    for session in (*sessions, apart):
        await session.get_items()
    assert cache.clear() == 3
    assert (len(cache), cache.bytes) == (0, 0)
    sent(emulator)
    for session in (*sessions, apart):
        await session.get_items()
        await session.get_items()
    assert sent(emulator) == ["GET items"] * 3


async def test_while_an_append_is_in_flight(gated_emulator: Emulator, gate: Gate) -> None:
    """The append goes on and is there once; the next read asks for what else there is."""
    emulator, cache = gated_emulator, ConversationCache()
    name = Elsewhere(emulator).conversation("a")
    async with new_client(emulator) as client:
        session = CachedSession(
            conversation_id=name, openai_client=client, cache=cache, max_staleness=math.inf
        )
        await session.get_items()
        emulator.faults = lambda request: Fault(FaultKind.SLOW) if is_append(request) else None
        gate.hold()
        adding = asyncio.create_task(session.add_items(users("b")))
        await gate.arrived()
        assert cache.invalidate(name) == 1
        Elsewhere(emulator).append(name, "c")
        gate.open()
        await adding
        sent(emulator)
        assert texts(await session.get_items()) == ["a", "b", "c"]
        assert sent(emulator) == ["GET items"]


async def test_while_a_read_is_in_flight(gated_emulator: Emulator, gate: Gate) -> None:
    """What a read has asked for before is its own answer, and nobody else's after it."""
    emulator, cache = gated_emulator, ConversationCache()
    name = Elsewhere(emulator).conversation("a")
    async with new_client(emulator) as client:
        session = CachedSession(
            conversation_id=name, openai_client=client, cache=cache, max_staleness=math.inf
        )
        # The listing shows how it is now, and its answer takes its time.
        emulator.faults = lambda request: Fault(FaultKind.SLOW) if is_listing(request) else None
        gate.hold()
        reading = asyncio.create_task(session.get_items())
        await gate.arrived()
        Elsewhere(emulator).append(name, "b")
        cache.invalidate(name)
        gate.open()
        assert texts(await reading) == ["a"]
        emulator.faults = None
        assert texts(await session.get_items()) == ["a", "b"]


@pytest.fixture(params=["memory", "file", pytest.param("database", marks=pytest.mark.processes)])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Outbox:
    if request.param == "memory":
        return MemoryOutbox()
    if request.param == "file":
        return SQLiteOutbox(tmp_path / "agent.db")
    postgres: Server = request.getfixturevalue("postgres")
    return PostgresOutbox(postgres.with_tables())


async def test_what_waits_in_an_outbox_stays(
    outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """What is accepted is shown behind what the server says, and gets there once."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    name = elsewhere.conversation("a")
    session = CachedSession(
        conversation_id=name,
        openai_client=client,
        cache=cache,
        outbox=outbox,
        max_staleness=math.inf,
    )
    await session.get_items()
    emulator.faults = lambda request: (
        Fault(FaultKind.ERROR_BEFORE_COMMIT) if is_append(request) else None
    )
    await session.add_items(users("b"))
    assert len(await session.get_items()) == 2
    elsewhere.append(name, "new")
    assert cache.invalidate(name) == 1
    assert session.stats.waiting == 1
    shown = await session.get_items()
    assert [item["content"][0]["text"] for item in shown] == ["a", "new", "b"]
    emulator.faults = None
    await session.flush()
    assert texts(emulator.items(name)) == ["a", "new", "b"]
    elsewhere.append(name, "newer")
    assert cache.invalidate(name) == 1
    assert texts(await session.get_items()) == ["a", "new", "b", "newer"]
    await session.aclose()
    await outbox.aclose()


@dataclass
class Recorder:
    """An observer without a hash, which is equal to another one that has heard the same."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def hear(self, event: Event) -> None:
        self.events.append(event)


async def test_observers_that_are_equal(client: AsyncOpenAI) -> None:
    """Two observers are two, equal or not; one that is given twice, or its method, is told once."""
    one, other, cache = Recorder(), Recorder(), ConversationCache()
    session = CachedSession(openai_client=client, cache=cache, observer=one)
    ends = [cache.observe(other), session.observe(one), session.observe(one.hear)]
    again = cache.observe(one.hear)
    await session.add_items(users("a"))
    # Itself, and its method.
    assert len(one.events) == 2 * len(other.events) > 0
    heard = len(one.events)
    ends[0]()
    await session.add_items(users("b"))
    assert len(other.events) == heard / 2
    assert len(one.events) > heard
    for end in (*ends, again):
        end()
        end()
    heard = len(one.events)
    await session.get_items()
    # What it was given when it was made it keeps.
    assert len(one.events) > heard


async def test_a_name_that_is_none(emulator: Emulator) -> None:
    """What cannot be a conversation's id is refused; an id of no copy drops none."""
    cache = ConversationCache()
    with pytest.raises(TypeError, match="conversation_id must be a str"):
        cache.invalidate(7)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match="conversation_id must be a conversation's id"):
        cache.invalidate("")
    assert (cache.invalidate("conv_1"), cache.clear()) == (0, 0)
