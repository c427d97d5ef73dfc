"""Several sessions, outboxes and caches on one conversation, in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    OutboxError,
    OutboxPaused,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import CUT, LOST, Do, Line, notes
from tests.faults.virtual import at_every_step
from tests.outbox_sessions.support import in_flight, in_virtual_time, raised, words
from tests.session.support import Elsewhere, new_client, texts, users


async def pair(
    emulator: Emulator, client: AsyncOpenAI, outbox: Outbox | None, other: Outbox | None
) -> tuple[CachedSession, CachedSession, str]:
    """Two sessions on one conversation and one copy."""
    conversation = Elsewhere(emulator).conversation("start")
    cache = ConversationCache()
    first, second = (
        CachedSession(conversation_id=conversation, openai_client=client, cache=cache, outbox=which)
        for which in (outbox, other)
    )
    return first, second, conversation


async def test_with_and_without(outbox: Outbox, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A session without an outbox appends behind what another one has accepted, and sees it."""
    queued, plain, conversation = await pair(emulator, client, outbox, None)
    expected = ["start"]
    for number in range(10):
        await queued.add_items(users(f"queued {number}"))
        expected.append(f"queued {number}")
        assert words(await plain.get_items()) == expected
        await plain.add_items(users(f"plain {number}"))
        expected.append(f"plain {number}")
        # A plain append returns when it is on the server, and so is all before it.
        assert texts(emulator.items(conversation)) == expected
        assert words(await queued.get_items()) == expected
    for session in (queued, plain):
        assert await session.get_items() == emulator.items(conversation)
        await session.aclose()


async def test_both_with_one_outbox(
    outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Two sessions with one outbox have one order, and each sees the other's items at once."""
    first, second, conversation = await pair(emulator, client, outbox, outbox)
    expected = ["start"]
    for number in range(20):
        for name, session in (("first", first), ("second", second)):
            await session.add_items(users(f"{name} {number}"))
            expected.append(f"{name} {number}")
        assert words(await first.get_items()) == words(await second.get_items()) == expected
    await first.aclose(timeout=60)
    assert texts(emulator.items(conversation)) == expected
    await second.add_items(users("after"))
    await second.aclose(timeout=60)
    assert texts(emulator.items(conversation)) == [*expected, "after"]


@pytest.mark.parametrize("how", ["failed", "closed"])
@pytest.mark.parametrize("call", ["get_items", "pop_item", "flush", "clear_session", "add_items"])
async def test_what_is_recorded_is_not_known(
    call: str,
    how: str,
    path: Path,
    emulator: Emulator,
    client: AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session without the outbox works where the other one could not read it, or closed it."""
    outbox = SQLiteOutbox(path)
    queued, plain, conversation = await pair(emulator, client, outbox, None)
    if how == "failed":

        async def full(*_: Any) -> Any:
            raise OutboxError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(outbox, "transact", full)
            assert isinstance(await raised(queued.get_items()), OutboxError)
    else:
        await queued.get_items()
        await outbox.let_go()
    async with asyncio.timeout(20):
        await getattr(plain, call)(*([users("b")] if call == "add_items" else []))
    if call != "clear_session":
        left = {"pop_item": [], "add_items": ["start", "b"]}.get(call, ["start"])
        assert texts(emulator.items(conversation)) == left
    await plain.aclose()
    await queued.aclose()


async def test_pops_beside_appends(outbox: Outbox, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A pop by a session without an outbox takes the newest item, wherever it is."""
    queued, plain, conversation = await pair(emulator, client, outbox, None)
    await queued.add_items(users("a", "b"))
    assert words([await plain.pop_item()]) == ["b"]
    await queued.flush()
    assert words([await plain.pop_item()]) == ["a"]
    assert words([await queued.pop_item()]) == ["start"]
    assert emulator.items(conversation) == []
    await queued.aclose()
    await plain.aclose()


@pytest.mark.parametrize("fault", [None, CUT, LOST], ids=str)
def test_at_every_moment(fault: Any) -> None:
    """Whenever a plain append comes, it stands behind what was accepted before it."""

    async def trial(steps: int) -> bool:
        line, cache = Line(), ConversationCache()
        conversation = line.conversation("start")
        queued = line.session(conversation, cache=cache, outbox=MemoryOutbox())
        plain = line.session(conversation, cache=cache)
        await queued.get_items()
        line.on(is_append, fault)
        await queued.add_items(users("a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = queued.stats.waiting > 0
        appending = asyncio.create_task(plain.add_items(users("b")))
        await asyncio.sleep(0)
        await queued.add_items(users("c"))
        await appending
        shown = words(await plain.get_items())
        assert shown in (["start", "a", "b", "c"], ["start", "a", "c", "b"])
        assert words(await queued.get_items()) == shown
        await queued.flush()
        assert line.texts(conversation) == shown
        await queued.aclose()
        await plain.aclose()
        # A sender that pauses goes on pausing while nobody waits.
        return going_on and steps < 60

    at_every_step(trial)


async def test_two_outboxes(emulator: Emulator, client: AsyncOpenAI, outbox: Outbox) -> None:
    """A conversation with another outbox in the process is refused, by the argument's name."""
    first, second, conversation = await pair(emulator, client, outbox, MemoryOutbox())
    await first.get_items()
    for call in (second.get_items, lambda: second.add_items(users("x"))):
        error = await raised(call())
        assert isinstance(error, ValueError)
        assert str(error).startswith("outbox: ")
        assert conversation in str(error)
    await first.add_items(users("a"))
    await first.aclose(timeout=60)
    # With the first one closed the conversation is free.
    assert texts(await second.get_items()) == ["start", "a"]
    await second.add_items(users("b"))
    await second.aclose(timeout=60)
    assert texts(emulator.items(conversation)) == ["start", "a", "b"]


async def test_two_caches(emulator: Emulator, client: AsyncOpenAI, outbox: Outbox) -> None:
    """One outbox with the conversation in two caches is refused, by the argument's name."""
    conversation = Elsewhere(emulator).conversation("start")
    first, second = (
        CachedSession(
            conversation_id=conversation,
            openai_client=client,
            cache=ConversationCache(),
            outbox=outbox,
        )
        for _ in range(2)
    )
    await first.get_items()
    error = await raised(second.add_items(users("x")))
    assert isinstance(error, ValueError)
    assert str(error).startswith("cache: ")
    assert conversation in str(error)
    await first.aclose()
    assert texts(await second.get_items()) == ["start"]
    await second.aclose()


@pytest.mark.parametrize(
    "value", ["agent.db", 1, object(), MemoryOutbox], ids=["path", "number", "object", "class"]
)
def test_what_is_no_outbox(value: Any) -> None:
    """What is no outbox is refused when the session is made, by the argument's name."""
    with pytest.raises(TypeError, match="outbox must be an Outbox"):
        CachedSession(openai_client=AsyncOpenAI(api_key="key"), outbox=value)


@in_virtual_time
async def test_many_conversations() -> None:
    """One outbox serves many conversations, each with a sender and an order of its own."""
    line, outbox, cache = Line(latency=0.01), MemoryOutbox(), ConversationCache()
    sessions = [line.session(cache=cache, outbox=outbox) for _ in range(20)]
    await asyncio.gather(
        *(
            session.add_items(users(f"{number} {part}"))
            for part in range(10)
            for number, session in enumerate(sessions)
        )
    )
    await asyncio.gather(*(session.flush() for session in sessions))
    for number, session in enumerate(sessions):
        assert line.texts(session.session_id) == [f"{number} {part}" for part in range(10)]
        await session.aclose()


async def test_other_accounts(outbox: Outbox, emulator: Emulator) -> None:
    """One outbox serves several accounts: nothing of one is shown to or sent by another."""
    async with new_client(emulator, "one") as one, new_client(emulator, "two") as two:
        first, second = (
            CachedSession(openai_client=client, outbox=outbox, cache=ConversationCache())
            for client in (one, two)
        )
        await asyncio.gather(first.add_items(users("a")), second.add_items(users("b")))
        assert words(await first.get_items()) == ["a"]
        assert words(await second.get_items()) == ["b"]
        await first.aclose(timeout=60)
        await second.aclose(timeout=60)
        assert texts(emulator.items(first.session_id)) == ["a"]
        assert texts(emulator.items(second.session_id)) == ["b"]


@in_virtual_time
async def test_an_append_that_promises_delivery_behind_an_undecided_batch() -> None:
    """A batch of which nothing can tell any more is paused, whoever comes to look for it first."""
    line = Line(latency=1.0)
    conversation = line.conversation()
    for start in range(0, 120, 20):
        line.append(conversation, *map(str, range(start, start + 20)))
    cache = ConversationCache()
    one = line.session(conversation, outbox=MemoryOutbox(), cache=cache)
    two = line.session(conversation, cache=cache)
    await one.get_items(2)
    await two.get_items(2)
    await one.refresh()
    reading = asyncio.create_task(one.get_items(2))
    await in_flight(line)
    # The sender waits for its turn behind that, and the append behind the sender.
    await one.add_items(users("x"))
    for _ in range(30):
        await asyncio.sleep(0)
    assert await one.pop_item() is not None
    appending = asyncio.create_task(two.add_items(users("z")))
    for _ in range(30):
        await asyncio.sleep(0)
    await one.add_items(users("y"))
    line.on(is_append, LOST)
    line.on(is_listing, None, Do(lambda: line.remove(conversation, "118", "119"), CUT), None)
    await reading
    error = await raised(appending)
    assert isinstance(error, OutboxPaused)
    assert "nothing was stored" in notes(error)
    assert one.stats.sending == "paused"
    assert line.texts(conversation)[-2:] == ["117", "y"]
    assert isinstance(await raised(one.flush()), OutboxPaused)
    await one.clear_session()
    await one.aclose()
