"""Whoever comes while a session's conversation is being made queues behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai import APIError

from cached_session import CachedSession, MemoryOutbox, Outbox
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_create
from tests.faults.line import Line, error
from tests.faults.virtual import at_every_step
from tests.outbox_sessions.support import QUICK, held, in_virtual_time, raised, session_on, words
from tests.session.support import users

SLOW = Fault(FaultKind.SLOW, delay=5.0)

CALLS: dict[str, Callable[[CachedSession], Awaitable[Any]]] = {
    "flush": lambda session: session.flush(),
    "clear": lambda session: session.clear_session(),
    "refresh": lambda session: session.refresh(),
    "aclose": lambda session: session.aclose(),
    "get": lambda session: session.get_items(),
    "pop": lambda session: session.pop_item(),
}
every_call = pytest.mark.parametrize("name", CALLS)
with_and_without = pytest.mark.parametrize(
    "new_outbox", [lambda: None, MemoryOutbox], ids=["without", "with outbox"]
)


async def _after(line: Line, session: CachedSession, name: str, result: Any, text: str) -> None:
    """What is right once an append of one item and then a call have both returned."""
    if name == "get":
        assert words(result) == [text]
    if name == "pop":
        assert words([result]) == [text]
    if name == "flush":
        assert line.texts(session.session_id) == [text]
    if name == "clear":
        with pytest.raises(ValueError, match="not yet available"):
            _ = session.session_id
        assert line.asked().count("delete conversation") == 1
    if name == "aclose":
        # What was appended before is sent, with an outbox behind the close.
        await asyncio.sleep(60)
        assert line.texts(session.session_id) == [text]
        return
    await session.flush()
    read = await session.get_items()
    assert words(read) == ([] if name in ("clear", "pop") else [text])
    assert read == line.service.items(session.session_id)
    await session.aclose()


@with_and_without
@every_call
def test_at_every_moment(name: str, new_outbox: Callable[[], Outbox | None]) -> None:
    """At whatever moment of a new session's first append a call comes, it comes after it."""

    async def trial(steps: int) -> bool:
        line = Line()
        session = line.session(outbox=new_outbox())
        adding = asyncio.create_task(session.add_items(users("a")))
        for _ in range(steps + 1):
            await asyncio.sleep(0)
        under_way = not adding.done()
        result = await CALLS[name](session)
        await adding
        await _after(line, session, name, result, "a")
        made = [each for each in line.sent if each == "create"]
        assert len(made) <= 2
        return under_way

    assert at_every_step(trial) > 5


@with_and_without
@every_call
def test_an_existing_conversation(name: str, new_outbox: Callable[[], Outbox | None]) -> None:
    """On a conversation that is there, too, a call comes after the append before it."""

    async def trial(steps: int) -> bool:
        line = Line()
        session = line.session(line.conversation(), outbox=new_outbox())
        adding = asyncio.create_task(session.add_items(users("a")))
        for _ in range(steps + 1):
            await asyncio.sleep(0)
        under_way = not adding.done()
        result = await CALLS[name](session)
        await adding
        await _after(line, session, name, result, "a")
        return under_way

    assert at_every_step(trial) > 2


@with_and_without
@every_call
@in_virtual_time
async def test_the_caller_is_cancelled(name: str, new_outbox: Callable[[], Outbox | None]) -> None:
    """A creation that its caller has left is waited for: the call finds the conversation made."""
    line = Line()
    session = line.session(outbox=new_outbox())
    line.on(is_create, SLOW)
    adding = asyncio.create_task(session.add_items(users("a")))
    await asyncio.sleep(1)
    adding.cancel()
    await asyncio.wait({adding})
    assert adding.cancelled()
    calling = asyncio.create_task(CALLS[name](session))
    await asyncio.sleep(1)
    assert not calling.done()
    result = await calling
    assert line.asked()[:1] == ["create"]
    if name == "clear":
        with pytest.raises(ValueError, match="not yet available"):
            _ = session.session_id
    else:
        assert line.texts(session.session_id) == []
    assert result in (None, [])
    await session.aclose(timeout=60)


@with_and_without
@every_call
@in_virtual_time
async def test_the_creation_fails(name: str, new_outbox: Callable[[], Outbox | None]) -> None:
    """Behind a creation that the server refuses, a call finds that there is nothing to do."""
    line = Line(latency=1.0)
    session = line.session(outbox=new_outbox())
    line.on(is_create, error(403))
    adding = asyncio.create_task(raised(session.add_items(users("a"))))
    await asyncio.sleep(0.5)
    calling = asyncio.create_task(CALLS[name](session))
    result = await calling
    assert adding.done()
    assert isinstance(await adding, APIError)
    assert result in (None, [])
    # Only what needs a conversation makes one.
    assert line.asked().count("create") == (2 if name in ("get", "pop") else 1)
    await session.aclose()


@with_and_without
@in_virtual_time
async def test_behind_the_one_who_tries_again(new_outbox: Callable[[], Outbox | None]) -> None:
    """When a creation fails, the next append in the queue makes one, and a flush waits for it."""
    line = Line(latency=1.0)
    session = line.session(outbox=new_outbox())
    line.on(is_create, error(403), SLOW)
    calls = [
        asyncio.create_task(raised(call))
        for call in (session.add_items(users("a")), session.add_items(users("b")), session.flush())
    ]
    first, second, flushed = await asyncio.gather(*calls)
    assert isinstance(first, APIError)
    assert second is None
    assert flushed is None
    assert line.texts(session.session_id) == ["b"]
    await session.aclose()


@every_call
async def test_over_http(name: str, outbox: Outbox) -> None:
    """The same over HTTP, with each kind of outbox."""
    with held() as (emulator, gate):
        session = session_on(emulator, outbox, retry=QUICK)
        gate.hold()
        adding = asyncio.create_task(session.add_items(users("a")))
        await gate.arrived()
        calling = asyncio.create_task(CALLS[name](session))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not calling.done()
        gate.open()
        await asyncio.gather(adding, calling)
        if name == "clear":
            assert [entry.method for entry in emulator.requests].count("DELETE") == 1
        if name == "aclose":
            assert not await outbox.aclose(timeout=20)
            assert words(emulator.items(session.session_id)) == ["a"]
        else:
            await session.flush()
            assert words(await session.get_items()) == ([] if name in ("clear", "pop") else ["a"])
        await session.aclose(timeout=60)
