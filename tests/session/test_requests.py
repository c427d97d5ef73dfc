"""How many requests each operation costs."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, numbered, sent, texts, users


async def test_repeated_reads(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A repeated `get_items` sends nothing, whatever its limit."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(120)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    everything = await session.get_items()
    sent(emulator)
    for limit in (1, 50, 120, 1000):
        assert await session.get_items(limit) == everything[-limit:]
    assert await session.get_items(0) == []
    assert await session.get_items() == everything
    assert sent(emulator) == []


async def test_reads_that_wait_for_one_another(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Twenty cold reads at once cost one listing."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    reads = await asyncio.gather(*(session.get_items() for _ in range(20)))
    assert [texts(read) for read in reads] == [["a", "b"]] * 20
    assert sent(emulator) == ["GET items"]


async def test_limited_read_of_a_long_conversation(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cold `get_items(20)` on a long conversation fetches one page of 20."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(500)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    assert texts(await session.get_items(20)) == [str(number) for number in range(480, 500)]
    (listing,) = emulator.requests
    assert dict(listing.query) == {"order": "desc", "limit": "20"}
    assert listing.items == 20


async def test_own_conversation_is_known_to_be_empty(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A conversation that the session made needs no listing, and neither does what it adds."""
    session = CachedSession(openai_client=client)
    assert await session.get_items() == []
    await session.add_items(users("a"))
    assert texts(await session.get_items()) == ["a"]
    await session.add_items(numbered(0, 45))
    assert len(await session.get_items()) == 46
    assert sent(emulator) == ["POST conversation", *["POST items"] * 4]


async def test_read_after_an_append_is_filled_from_its_answer(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """After an append a read sends nothing and shows the items as the server lists them."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.get_items()
    await session.add_items(users("b", "c"))
    sent(emulator)
    assert await session.get_items() == emulator.items(conversation)
    assert sent(emulator) == []


async def test_append_to_an_unread_conversation(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The first append to an existing conversation costs one listing of its last items."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(50)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.add_items(users("a"))
    await session.add_items(users("b"))
    listing, *posts = emulator.requests
    assert (listing.method, listing.items) == ("GET", 32)
    assert [post.method for post in posts] == ["POST", "POST"]


async def test_pop_on_a_known_tail(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`pop_item` on a known tail sends one request."""
    session = CachedSession(openai_client=client)
    await session.add_items(users("a", "b", "c"))
    sent(emulator)
    assert texts([await session.pop_item()]) == ["c"]
    assert sent(emulator) == ["DELETE item"]
    assert texts(await session.get_items()) == ["a", "b"]
    assert sent(emulator) == []


async def test_pop_on_an_unknown_tail(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cold `pop_item` on a long conversation lists one item and deletes it."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(200)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    assert texts([await session.pop_item()]) == ["199"]
    assert [entry.items for entry in emulator.requests] == [1, 0]
    assert sent(emulator) == ["GET items", "DELETE item"]


async def test_pop_on_a_conversation_known_to_be_empty(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`pop_item` sends nothing where there is known to be nothing."""
    session = CachedSession(openai_client=client)
    await session.get_items()
    sent(emulator)
    assert await session.pop_item() is None
    assert sent(emulator) == []


@pytest.mark.parametrize("limit", [None, 1, 20, 300])
async def test_new_session_on_a_held_conversation(
    limit: int | None, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A new session object on a conversation that the process holds asks once, for few items."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(300)))
    first = CachedSession(conversation_id=conversation, openai_client=client)
    await first.get_items()
    await first.add_items(users("a"))
    sent(emulator)
    second = CachedSession(conversation_id=conversation, openai_client=client)
    assert await second.get_items(limit) == (await first.get_items())[-(limit or 301) :]
    assert await second.get_items() == emulator.items(conversation)
    (listing,) = emulator.requests
    assert (listing.method, listing.items <= 25) == ("GET", True)


async def test_appends_of_a_new_session_need_no_check(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A new session object on a held conversation appends in one request."""
    first = CachedSession(openai_client=client)
    await first.add_items(users("a"))
    sent(emulator)
    second = CachedSession(conversation_id=first.session_id, openai_client=client)
    await second.add_items(users("b"))
    assert sent(emulator) == ["POST items"]
    assert texts(await first.get_items()) == ["a", "b"]
    assert sent(emulator) == []


async def test_clear_costs_one_request(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`clear_session` sends one request, however much the conversation holds."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(60)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.clear_session()
    assert sent(emulator) == ["DELETE conversation"]


async def test_closing_costs_nothing(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Refreshing, flushing and closing a session with nothing in doubt send nothing."""
    async with CachedSession(openai_client=client) as session:
        await session.add_items(users("a"))
        sent(emulator)
        await session.flush()
        await session.refresh()
    assert sent(emulator) == []


async def test_stats_count_what_happened(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`stats` counts hits, misses, requests and what is held, and a snapshot stays as it was."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    fresh = session.stats
    assert (fresh.hits, fresh.misses, fresh.requests, fresh.items, fresh.bytes) == (0, 0, 0, 0, 0)
    await session.get_items()
    await session.get_items()
    await session.get_items()
    await session.add_items(users("c"))
    stats = session.stats
    assert (stats.hits, stats.misses, stats.requests) == (2, 1, 2)
    assert (stats.retries, stats.reconciliations, stats.items) == (0, 0, 3)
    assert stats.requests == len(sent(emulator))
    assert stats.bytes > sum(len(str(item)) for item in emulator.items(conversation)) / 2
    assert fresh.requests == 0
    with pytest.raises(AttributeError):
        stats.hits = 5  # type: ignore[misc]
