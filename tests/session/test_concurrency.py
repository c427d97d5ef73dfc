"""Many tasks and several sessions on one conversation: one order, read your writes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, numbered, sent, texts, user, users


async def test_forty_tasks_and_two_sessions(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Forty tasks on two sessions: nothing is lost or doubled, batches stay whole, one order."""
    one = CachedSession(openai_client=client)
    await one.get_items()
    two = CachedSession(conversation_id=one.session_id, openai_client=client)

    async def work(number: int) -> None:
        mine = [f"{number}.{part}" for part in range(5)]
        session = (one, two)[number % 2]
        await session.add_items(users(*mine))
        read = texts(await session.get_items())
        start = read.index(mine[0])
        assert read[start : start + 5] == mine

    await asyncio.gather(*(work(number) for number in range(40)))
    stored = emulator.items(one.session_id)
    assert len(stored) == len(set(texts(stored))) == 200
    assert await one.get_items() == await two.get_items() == stored


async def test_order_is_the_order_of_calls(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Appends of several sessions land in the order in which they were called."""
    one = CachedSession(openai_client=client)
    await one.get_items()
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    await asyncio.gather(
        *((one, two)[number % 2].add_items([user(str(number))]) for number in range(40))
    )
    expected = [str(number) for number in range(40)]
    assert texts(emulator.items(one.session_id)) == texts(await two.get_items()) == expected


async def test_read_after_a_write_in_flight(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A read that is called behind an append, from another session too, shows what it added."""
    one = CachedSession(openai_client=client)
    await one.get_items()
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    await two.get_items()
    results = await asyncio.gather(
        one.add_items(users("a")),
        one.get_items(),
        two.get_items(),
        two.add_items(users("b")),
        one.get_items(),
        two.pop_item(),
        one.get_items(),
    )
    assert [texts(read) for read in (results[1], results[2], results[4], results[6])] == [  # type: ignore[arg-type]
        ["a"],
        ["a"],
        ["a", "b"],
        ["a"],
    ]


async def test_large_appends_do_not_mix(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Appends of many requests each stay together."""
    one = CachedSession(openai_client=client)
    await one.get_items()
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    await asyncio.gather(
        *((one, two)[n % 2].add_items(numbered(1000 * n, 1000 * n + 45)) for n in range(6))
    )
    expected = [str(1000 * n + part) for n in range(6) for part in range(45)]
    assert texts(emulator.items(one.session_id)) == expected


async def test_pops_at_once(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Pops at once take one item each, all different, and None when there are no more."""
    one = CachedSession(openai_client=client)
    await one.add_items(numbered(0, 10))
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    popped = await asyncio.gather(*((one, two)[n % 2].pop_item() for n in range(13)))
    items = [item for item in popped if item is not None]
    assert texts(items) == [str(number) for number in reversed(range(10))]
    assert popped[10:] == [None] * 3
    assert emulator.items(one.session_id) == []


@pytest.mark.parametrize("seed", range(2))
async def test_random_tasks(seed: int, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Random operations of forty tasks on three sessions: the copies end as the server has it."""
    draw = random.Random(seed)
    conversation = Elsewhere(emulator).conversation(*map(str, range(30)))
    sessions = [
        CachedSession(conversation_id=conversation, openai_client=client, max_staleness=staleness)
        for staleness in (None, None, 0)
    ]
    added: list[str] = []
    popped: list[str] = []

    async def work(number: int) -> None:
        for step in range(5):
            session = draw.choice(sessions)
            action = draw.choice(["read", "read", "add", "add", "pop", "refresh"])
            if action == "read":
                await session.get_items(draw.choice([None, 0, 1, 5, 40]))
            elif action == "add":
                mine = [f"{number}.{step}.{part}" for part in range(draw.choice([1, 2, 25]))]
                added.extend(mine)
                await session.add_items(users(*mine))
            elif action == "pop":
                item = await session.pop_item()
                popped.extend([] if item is None else texts([item]))
            else:
                await session.refresh()

    await asyncio.gather(*(work(number) for number in range(40)))
    stored = emulator.items(conversation)
    for session in sessions:
        assert await session.get_items() == stored, f"seed {seed}"
    left = {*map(str, range(30)), *added} - set(popped)
    assert len(popped) == len(set(popped)), f"seed {seed}"
    assert sorted(texts(stored)) == sorted(left), f"seed {seed}"


async def test_clear_among_appends(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A clear among appends takes what was called before it, and what is called after stays."""
    session = CachedSession(openai_client=client)
    await session.add_items(users("a"))
    before = session.session_id
    calls: list[Awaitable[object]] = [session.add_items(users("b")), session.clear_session()]
    await asyncio.gather(*calls)
    with pytest.raises(LookupError):
        emulator.items(before)
    await session.add_items(users("c"))
    assert session.session_id != before
    assert texts(await session.get_items()) == ["c"]


@pytest.mark.parametrize("kind", [OpenAIConversationsSession, CachedSession])
async def test_calls_behind_a_clear(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Calls that wait behind a clear go to the new conversation, as with the SDK's session."""
    session = kind(openai_client=client)
    await session.add_items(users("a"))
    before = session.session_id
    _, read, _, popped, _ = await asyncio.gather(
        session.clear_session(),
        session.get_items(),
        session.add_items(users("b", "c")),
        session.pop_item(),
        session.add_items(users("d")),
    )
    assert read == []
    assert texts([popped]) == ["c"]
    assert session.session_id != before
    assert texts(await session.get_items()) == ["b", "d"]
    assert texts(emulator.items(session.session_id)) == ["b", "d"]


@pytest.mark.parametrize("kind", [OpenAIConversationsSession, CachedSession])
async def test_calls_behind_another_id(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Calls that wait while the id is set go to the new id, as with the SDK's session."""
    elsewhere = Elsewhere(emulator)
    first, second = elsewhere.conversation("a"), elsewhere.conversation("b")
    session = kind(conversation_id=first, openai_client=client)
    await session.get_items()
    calls = [session.add_items(users("c")), session.add_items(users("d")), session.get_items()]
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    session.session_id = second
    await asyncio.gather(*tasks)
    assert texts(emulator.items(first)) == ["a", "c"]
    assert texts(emulator.items(second)) == texts(await session.get_items()) == ["b", "d"]
    assert texts(tasks[2].result()) == ["b", "d"]


async def test_first_calls_of_many_tasks(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Forty first calls at once make one conversation and keep every item."""
    session = CachedSession(openai_client=client)
    await asyncio.gather(*(session.add_items([user(str(number))]) for number in range(40)))
    assert sent(emulator).count("POST conversation") == 1
    stored = texts(emulator.items(session.session_id))
    assert sorted(stored, key=int) == [str(number) for number in range(40)]
    assert texts(await session.get_items()) == stored
