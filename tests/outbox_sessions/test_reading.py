"""Reads of what waits: at once, behind what the server has, each item once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, MemoryOutbox, Outbox
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, Line, error
from tests.faults.virtual import at_every_step, now
from tests.outbox_sessions.support import Process, in_virtual_time, opened, words
from tests.session.support import Elsewhere, Gate, sent, texts, user, users


@in_virtual_time
async def test_accepted_items_are_shown_at_once() -> None:
    """A read shows accepted items behind what the server has, without a request."""
    line, session, conversation = await opened("a", "b")
    line.always(is_append, CUT)
    await session.add_items(users("c"))
    await session.add_items(users("d", "e"))
    line.asked()
    assert words(await session.get_items()) == list("abcde")
    assert [words(await session.get_items(limit)) for limit in range(4)] == [
        [],
        ["e"],
        ["d", "e"],
        ["c", "d", "e"],
    ]
    assert words(await session.get_items(4)) == list("bcde")
    assert words(await session.get_items(100)) == list("abcde")
    assert line.asked() == []
    line.heal()
    await session.flush()
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


@in_virtual_time
async def test_in_the_shape_of_a_listing() -> None:
    """An accepted item looks as the server will list it, as far as that is known: no id."""
    items: list[Any] = [
        user("a"),
        {"role": "developer", "content": "b"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
        {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "3"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
    ]
    line, session, conversation = await opened()
    line.always(is_append, CUT)
    await session.add_items(items)
    shown: list[Any] = await session.get_items()
    line.heal()
    await session.flush()
    listed = line.service.items(conversation)
    for item, later in zip(shown, listed, strict=True):
        assert "id" not in item
        # What the server adds is beyond anybody's knowledge; nothing else differs.
        assert item == {name: later[name] for name in item}
        assert set(later) - set(item) <= {"id", "status"}
    assert [item.get("status") for item in shown[:3]] == ["completed"] * 3
    await session.aclose()


@in_virtual_time
async def test_an_id_of_its_own_stays() -> None:
    """An item that is sent under an id of its own is shown with it."""
    line, session, _ = await opened()
    line.always(is_append, CUT)
    call: Any = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "add",
        "arguments": "{}",
        "status": "completed",
    }
    await session.add_items([call])
    assert await session.get_items() == [call]
    line.heal()
    await session.aclose(timeout=60)


@in_virtual_time
async def test_reads_belong_to_the_caller() -> None:
    """Changing what was given or what was read changes nothing of what waits or is sent."""
    line, session, conversation = await opened("a")
    line.always(is_append, CUT)
    mine: Any = user("b")
    await session.add_items([mine])
    mine["content"] = "changed"
    read: Any = await session.get_items()
    read[1]["content"][0]["text"] = "changed"
    read.clear()
    assert words(await session.get_items()) == ["a", "b"]
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["a", "b"]
    await session.aclose()


async def test_no_request_once_it_is_empty(
    outbox: Outbox, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Once all is sent, a read equals the server's listing key for key, without a request."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(150)))
    session = CachedSession(
        conversation_id=conversation,
        openai_client=client,
        cache=ConversationCache(),
        outbox=outbox,
    )
    await session.get_items()
    for number in range(7):
        await session.add_items(users(f"new {number}"))
        assert words(await session.get_items(1)) == [f"new {number}"]
    await session.flush()
    emulator.clear_log()
    assert await session.get_items() == emulator.items(conversation)
    assert sent(emulator) == []
    await session.aclose()


async def test_at_every_moment_each_item_once(outbox: Outbox) -> None:
    """While items go over from the outbox to the server, every read shows each of them once."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        async with Process(emulator, outbox) as process:
            session = process.session()
            expected: list[str] = []
            for number in range(60):
                await session.add_items(users(str(number)))
                expected.append(str(number))
                for _ in range(number % 7):
                    assert words(await session.get_items()) == expected
                    assert words(await session.get_items(5)) == expected[-5:]
                    await asyncio.sleep(0)
            while session.stats.waiting:
                assert words(await session.get_items()) == expected
                await asyncio.sleep(0)
            assert texts(emulator.items(session.session_id)) == expected
            await session.aclose()


@pytest.mark.parametrize("limit", [None, 1, 4], ids=str)
def test_first_read_while_items_wait(limit: int | None) -> None:
    """The first read of a session that has appended already asks, and shows both parts."""

    async def trial(steps: int) -> bool:
        line, session, conversation = await opened()
        line.append(conversation, *"abc")
        other = line.session(conversation, outbox=MemoryOutbox())
        await other.add_items(users("d"))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = other.stats.waiting > 0
        expected = ["a", "b", "c", "d"][-limit if limit else 0 :]
        assert words(await other.get_items(limit)) == expected
        await other.aclose(timeout=60)
        await session.aclose(timeout=60)
        return going_on

    assert at_every_step(trial) > 5


def test_a_pop_while_a_read_is_on_its_way() -> None:
    """A read shows what waits when it is answered, although something was popped meanwhile."""

    async def trial(steps: int) -> bool:
        line = Line()
        conversation = line.conversation()
        for number in range(40):
            line.append(conversation, str(number))
        session = line.session(conversation, outbox=MemoryOutbox())
        line.always(is_append, error(429, headers={"retry-after": "9"}))
        await session.add_items(users("x"))
        # The server asks to wait; "x" is in a batch that was sent, the others are not.
        await asyncio.sleep(0.01)
        await session.add_items(users("y", "z"))
        reading = asyncio.create_task(session.get_items(5))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = not reading.done()
        assert words([await session.pop_item()]) == ["z"]
        expected = [["38", "39", "x", "y", "z"], ["37", "38", "39", "x", "y"]]
        assert words(await reading) in (expected if going_on else expected[:1])
        line.heal()
        await session.aclose(timeout=60)
        assert line.texts(conversation)[-3:] == ["39", "x", "y"]
        return going_on

    assert at_every_step(trial) > 3


@in_virtual_time
async def test_staleness_counts_while_items_wait() -> None:
    """With `max_staleness=0` a read shows what another writer added before what waits here."""
    line, session, conversation = await opened("a", max_staleness=0)
    line.always(is_append, CUT)
    await session.add_items(users("c"))
    await asyncio.sleep(1)
    line.append(conversation, "b")
    assert words(await session.get_items()) == ["a", "b", "c"]
    line.heal()
    await session.flush()
    assert line.texts(conversation) == ["a", "b", "c"]
    assert now() < 60
    await session.aclose()


@in_virtual_time
async def test_refresh_keeps_what_waits() -> None:
    """`refresh` forgets what the server has, and nothing of what waits."""
    line, session, conversation = await opened("a")
    line.always(is_append, CUT)
    await session.add_items(users("c"))
    await asyncio.sleep(1)
    line.append(conversation, "b")
    await session.refresh()
    assert words(await session.get_items()) == ["a", "b", "c"]
    line.heal()
    await session.aclose(timeout=60)
