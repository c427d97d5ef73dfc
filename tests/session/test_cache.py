"""Which copies a ConversationCache keeps, and that letting go of one costs a request, no item."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator, Fault, FaultKind
from tests.session.support import Elsewhere, Gate, new_client, sent, texts, users


@pytest.mark.campaign
async def test_bound_holds_with_a_thousand_conversations(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The copies of a thousand conversations stay within `max_bytes`, and all read right."""
    elsewhere = Elsewhere(emulator)
    cache = ConversationCache(max_bytes=500_000)
    sessions = []
    for number in range(1000):
        conversation = elsewhere.conversation(*(f"{number}.{part} " * 20 for part in range(4)))
        session = CachedSession(conversation_id=conversation, openai_client=client, cache=cache)
        sessions.append(session)
        await session.get_items()
        assert cache.bytes <= 500_000
    assert 50 < len(cache) < 500
    assert sum(session.stats.bytes for session in sessions) <= cache.bytes
    for session in random.Random(1).sample(sessions, 100):
        assert await session.get_items() == emulator.items(session.session_id)
        await session.add_items(users("more"))
        assert cache.bytes <= 500_000
    for session in sessions[::20]:
        assert await session.get_items() == emulator.items(session.session_id)
        assert cache.bytes <= 500_000


async def test_least_recently_used_goes_first(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The copy that was not read for longest is dropped first; a hit counts as a use."""
    elsewhere = Elsewhere(emulator)
    cache = ConversationCache(max_bytes=60_000)

    async def opened() -> CachedSession:
        conversation = elsewhere.conversation("x" * 5_000)
        session = CachedSession(conversation_id=conversation, openai_client=client, cache=cache)
        await session.get_items()
        return session

    favourite = await opened()
    others = []
    for _ in range(20):
        others.append(await opened())
        await favourite.get_items()
    sent(emulator)
    await favourite.get_items()
    assert sent(emulator) == []
    await others[-1].get_items()
    assert sent(emulator) == []
    await others[0].get_items()
    assert sent(emulator) == ["GET items"]


async def test_dropped_copies_cost_a_request(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Where nothing fits, every read asks the server and is right, and appends and pops work."""
    cache = ConversationCache(max_bytes=0)
    session = CachedSession(openai_client=client, cache=cache)
    await session.add_items(users("a", "b", "c"))
    for _ in range(3):
        sent(emulator)
        assert texts(await session.get_items()) == ["a", "b", "c"]
        assert sent(emulator) == ["GET items"]
    await session.add_items(users("d"))
    assert texts([await session.pop_item()]) == ["d"]
    assert texts([await session.pop_item()]) == ["c"]
    assert texts(await session.get_items()) == ["a", "b"]
    assert (cache.bytes, len(cache), session.stats.items) == (0, 0, 0)


async def test_a_copy_that_outgrows_the_cache(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A conversation that becomes larger than the whole cache is dropped, others stay."""
    cache = ConversationCache(max_bytes=20_000)
    small, growing = (CachedSession(openai_client=client, cache=cache) for _ in "12")
    await small.add_items(users("a"))
    for number in range(40):
        await growing.add_items(users(f"{number} " * 500))
        assert cache.bytes <= 20_000
    assert growing.stats.items == 0
    assert await growing.get_items() == emulator.items(growing.session_id)
    await small.refresh()
    assert texts(await small.get_items()) == ["a"]


async def test_bytes_follow_the_items(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`bytes` grows with appends, shrinks with pops, and is nothing after a clear."""
    cache = ConversationCache()
    session = CachedSession(openai_client=client, cache=cache)
    await session.add_items(users("a" * 10_000))
    one = cache.bytes
    assert 10_000 < one < 20_000
    await session.add_items(users("b" * 10_000))
    assert one + 10_000 < cache.bytes
    assert session.stats.bytes <= cache.bytes
    await session.pop_item()
    assert cache.bytes == one
    await session.clear_session()
    assert (cache.bytes, len(cache)) == (0, 0)


async def test_dropped_copies_in_use_stay_consistent(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Tasks on conversations that push one another out of the cache lose and double nothing."""
    cache = ConversationCache(max_bytes=8_000)
    sessions: list[CachedSession] = []
    for _ in range(4):
        first = CachedSession(openai_client=client, cache=cache)
        await first.get_items()
        second = CachedSession(conversation_id=first.session_id, openai_client=client, cache=cache)
        sessions += [first, second]

    async def work(session: CachedSession, number: int) -> None:
        for step in range(5):
            await session.add_items(users(f"{number}.{step}"))
            assert f"{number}.{step}" in texts(await session.get_items())
            assert cache.bytes <= 8_000

    await asyncio.gather(*(work(session, number) for number, session in enumerate(sessions)))
    for first, second in zip(sessions[::2], sessions[1::2], strict=True):
        stored = emulator.items(first.session_id)
        assert len(stored) == len(set(texts(stored))) == 10
        assert await first.get_items() == await second.get_items() == stored


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated_emulator(gate: Gate) -> Iterator[Emulator]:
    with Emulator(sleep=gate.sleep) as emulator:
        yield emulator


async def test_dropped_while_an_append_is_in_flight(gated_emulator: Emulator, gate: Gate) -> None:
    """A copy that is pushed out while its append is in flight is right when the append is done."""
    emulator = gated_emulator
    elsewhere = Elsewhere(emulator)
    slow, other = elsewhere.conversation("a"), elsewhere.conversation("x" * 4_000)
    cache = ConversationCache(max_bytes=8_000)
    async with new_client(emulator) as client:
        session = CachedSession(conversation_id=slow, openai_client=client, cache=cache)
        await session.get_items()
        emulator.faults = lambda request: (
            Fault(FaultKind.SLOW) if request.method == "POST" else None
        )
        gate.hold()
        adding = asyncio.create_task(session.add_items(users("b")))
        await gate.arrived()
        pusher = CachedSession(conversation_id=other, openai_client=client, cache=cache)
        await pusher.get_items()
        latecomer = CachedSession(conversation_id=slow, openai_client=client, cache=cache)
        reading = asyncio.create_task(latecomer.get_items())
        gate.open()
        await adding
        assert texts(await reading) == ["a", "b"]
        assert await session.get_items() == emulator.items(slow)


async def test_process_wide_by_default(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Sessions share one cache unless they are given their own; separate caches share nothing."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(60)))
    await CachedSession(conversation_id=conversation, openai_client=client).get_items()
    sent(emulator)
    shared = CachedSession(conversation_id=conversation, openai_client=client)
    await shared.get_items()
    (check,) = emulator.requests
    assert check.items < 60
    sent(emulator)
    own = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    await own.get_items()
    (listing,) = emulator.requests
    assert listing.items == 60


async def test_ttl(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A copy that was not used for `ttl` seconds is dropped; the next read asks the server."""
    conversation = Elsewhere(emulator).conversation("a")
    # So short that it is over by the next line.
    cache = ConversationCache(ttl=1e-9)
    session = CachedSession(conversation_id=conversation, openai_client=client, cache=cache)
    for _ in range(3):
        assert texts(await session.get_items()) == ["a"]
        assert (cache.bytes, len(cache)) == (0, 0)
        assert sent(emulator) == ["GET items"]


async def test_ttl_counts_on_the_next_read(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A copy whose time is over is not served, though nothing has asked the cache meanwhile."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache(ttl=1e-9)
    )
    for _ in range(3):
        assert texts(await session.get_items()) == ["a"]
        assert sent(emulator) == ["GET items"]


async def test_ttl_not_over(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Within `ttl` the copy is kept."""
    cache = ConversationCache(ttl=3600)
    session = CachedSession(openai_client=client, cache=cache)
    await session.add_items(users("a"))
    sent(emulator)
    await session.get_items()
    assert sent(emulator) == []
    assert len(cache) == 1


def test_repr_shows_state() -> None:
    """The repr says how much is kept of how much."""
    assert repr(ConversationCache(1000)) == "ConversationCache(0 conversations, 0 of 1000 bytes)"


@pytest.mark.parametrize("value", ["1", 1.5, None, True])
def test_max_bytes_of_a_wrong_type(value: object) -> None:
    """`max_bytes` has to be an int, and the error names it."""
    with pytest.raises(TypeError, match="max_bytes"):
        ConversationCache(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1", True, [1]])
def test_ttl_of_a_wrong_type(value: object) -> None:
    """`ttl` has to be a number or None, and the error names it."""
    with pytest.raises(TypeError, match="ttl"):
        ConversationCache(ttl=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), pytest.param(10**400, id="too large")]
)
def test_impossible_values(value: float) -> None:
    """A `ttl` that is not a finite number above 0, or a negative bound, is refused by name."""
    with pytest.raises(ValueError, match="ttl"):
        ConversationCache(ttl=value)
    with pytest.raises(ValueError, match="max_bytes"):
        ConversationCache(max_bytes=-1)
