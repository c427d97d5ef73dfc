"""What waits is put on the server in order, in full batches, each item once."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, MemoryOutbox, Outbox
from cached_session.emulator import Emulator
from tests.emulator.samples import INPUT_TYPES, sample
from tests.outbox_sessions.support import batches, in_virtual_time, opened, until
from tests.session.support import Elsewhere, Gate, new_client, numbered, sent, texts, user, users

pytestmark = pytest.mark.long


@pytest.mark.parametrize("appends", [600])
async def test_full_batches(
    appends: int, outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Appends that come as fast as they can need one request for 20 items, and keep their order."""
    session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
    items = 3 * appends
    calls = (session.add_items(numbered(3 * n, 3 * n + 3)) for n in range(appends))
    await asyncio.gather(*calls)
    await session.flush()
    assert batches(emulator) <= 1.05 * items / 20
    stored = emulator.items(session.session_id)
    assert texts(stored) == [str(number) for number in range(items)]
    emulator.clear_log()
    assert await session.get_items() == stored
    assert sent(emulator) == []
    await session.aclose()


@pytest.mark.parametrize("appends", [300])
async def test_full_batches_on_an_existing_conversation(
    appends: int, outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The same for a conversation that is there already: nobody overtakes while it is opened."""
    conversation = Elsewhere(emulator).conversation("first")
    session = CachedSession(
        conversation_id=conversation,
        openai_client=client,
        cache=ConversationCache(),
        outbox=outbox,
    )
    await asyncio.gather(*(session.add_items(users(f"{n}")) for n in range(appends)))
    await session.flush()
    expected = ["first", *map(str, range(appends))]
    assert texts(emulator.items(conversation)) == expected
    assert batches(emulator) <= 1 + 1.05 * appends / 20
    await session.aclose()
    await outbox.aclose(timeout=20)


async def test_late_callers_wait_behind_early_ones(outbox: Outbox, emulator: Emulator) -> None:
    """Whoever comes while others still wait for the first request does not overtake them."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as slow:
        async with new_client(slow) as client:
            session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
            gate.hold()
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(session.add_items(users(str(number))))
                await gate.arrived()
                gate.open()
                # At every moment from here on one more comes.
                for number in range(20, 300):
                    group.create_task(session.add_items(users(str(number))))
                    await asyncio.sleep(0)
            await session.flush()
            stored = texts(slow.items(session.session_id))
            assert stored == [str(number) for number in range(300)]
            await session.aclose()
            await outbox.aclose(timeout=20)


async def test_what_comes_meanwhile_goes_together(outbox: Outbox) -> None:
    """What is appended while a request is in flight is joined, up to 20 items a request."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as slow:
        async with new_client(slow) as client:
            session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
            await session.get_items()
            gate.hold()
            await session.add_items(users("first"))
            await gate.arrived()
            for number in range(45):
                await session.add_items(users(str(number)))
            assert session.stats.waiting == 46
            gate.open()
            await session.flush()
            # The first went alone: nobody waits for company.
            assert batches(slow) == 4
            expected = ["first", *map(str, range(45))]
            assert texts(slow.items(session.session_id)) == expected
            await session.aclose()


async def test_large_items_travel_alone(
    outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A batch is bounded in bytes as well: four items of 0.4 MB need two requests."""
    session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
    large = ["x" * 400_000, "y" * 400_000, "z" * 400_000, "w" * 400_000]
    await session.add_items(users(*large))
    await session.flush()
    assert texts(emulator.items(session.session_id)) == large
    assert batches(emulator) == 2
    await session.aclose()


async def test_every_type_of_item(outbox: Outbox, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Items of every type arrive as without an outbox, key for key, once they are sent."""
    kinds = [kind for kind in INPUT_TYPES if kind.__name__ != "ItemReference"]
    items: list[Any] = []
    for kind in kinds:
        item: dict[str, Any] = sample(kind, whole=True)
        item.pop("id", None)
        if item.get("role") == "unknown":
            item["role"] = "developer"
        items.append(item)
    plain = CachedSession(openai_client=client, cache=ConversationCache())
    await plain.add_items(items)
    session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
    await session.add_items(items)
    assert len(await session.get_items()) == len(items)
    await session.flush()
    emulator.clear_log()
    shown = await session.get_items()
    assert shown == emulator.items(session.session_id)
    assert sent(emulator) == []

    def without_ids(listed: list[Any]) -> list[Any]:
        return [{name: item[name] for name in item if name != "id"} for item in listed]

    assert without_ids(shown) == without_ids(emulator.items(plain.session_id))
    await session.aclose()


@in_virtual_time
async def test_memory_stays_flat() -> None:
    """Once everything is sent, nothing of it is left behind: neither recorded nor in memory."""
    outbox = MemoryOutbox()
    # With a copy that lets go of everything, so that what is counted is the backlog's.
    line, session, _ = await opened("before", outbox=outbox, cache=ConversationCache(max_bytes=0))
    draw = random.Random(1)

    async def burst() -> int:
        for _ in range(10):
            await session.add_items(users(draw.randbytes(20_000).hex()))
        await session.flush()
        line.asked()
        line.trace.clear()
        gc.collect()
        # What the server keeps is none of this test's business.
        ours = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(False, "*/emulator/*", all_frames=True)]
        )
        return sum(trace.size for trace in ours.traces)

    tracemalloc.start(12)
    try:
        sizes = [await burst() for _ in range(3)]
    finally:
        tracemalloc.stop()
    assert await outbox.transact(lambda log: log.summaries()) == []
    # Each burst brings 0.4 MB of items.
    assert max(sizes[1:]) - min(sizes[1:]) < 50_000, sizes


async def test_nobody_has_to_ask(outbox: Outbox, emulator: Emulator, client: AsyncOpenAI) -> None:
    """What was accepted is sent in the background, without any further call."""
    session = CachedSession(openai_client=client, cache=ConversationCache(), outbox=outbox)
    await session.add_items([user("a")])
    await until(lambda: session.stats.waiting == 0)
    assert texts(emulator.items(session.session_id)) == ["a"]
    await session.aclose()
