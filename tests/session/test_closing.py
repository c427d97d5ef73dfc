"""Closing a session: writes are settled, connections let go of, the client left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from openai import APIConnectionError, AsyncOpenAI

from cached_session import AppendOutcomeUnknown, CachedSession, RetryPolicy, SessionClosed
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, sent, texts, users

USES: dict[str, Callable[[CachedSession], Awaitable[Any]]] = {
    "get": lambda session: session.get_items(),
    "get-0": lambda session: session.get_items(0),
    "add": lambda session: session.add_items(users("x")),
    "add nothing": lambda session: session.add_items([]),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "refresh": lambda session: session.refresh(),
    "flush": lambda session: session.flush(),
    "enter": lambda session: session.__aenter__(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_use_after_close(
    use: Callable[[CachedSession], Awaitable[Any]], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A closed session refuses every use and sends nothing; its id can still be read."""
    session = CachedSession(openai_client=client)
    await session.add_items(users("a"))
    await session.aclose()
    sent(emulator)
    with pytest.raises(SessionClosed) as caught:
        await use(session)
    assert caught.value.conversation_id == session.session_id
    assert sent(emulator) == []
    assert texts(emulator.items(session.session_id)) == ["a"]


async def test_close_twice(client: AsyncOpenAI) -> None:
    """Closing twice does nothing, used or not."""
    for session in (CachedSession(openai_client=client), CachedSession(openai_client=client)):
        await session.aclose()
        await session.aclose()
        async with CachedSession(openai_client=client) as other:
            await other.aclose()


async def test_close_flushes(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Leaving `async with` waits for the writes that were called before."""
    async with CachedSession(openai_client=client) as session:
        await session.get_items()
        adding = asyncio.create_task(session.add_items(users("a")))
        await asyncio.sleep(0)
    assert texts(emulator.items(session.session_id)) == ["a"]
    await adding


async def test_client_stays_open(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A client that was passed in works on after the session is closed."""
    async with CachedSession(openai_client=client) as session:
        await session.add_items(users("a"))
    page = await client.conversations.items.list(session.session_id)
    assert len(page.data) == 1
    again = CachedSession(conversation_id=session.session_id, openai_client=client)
    assert texts(await again.get_items()) == ["a"]


async def test_other_sessions_go_on(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Closing one session leaves the others on the conversation and their copy as they are."""
    one = CachedSession(openai_client=client)
    await one.add_items(users("a"))
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    await two.get_items()
    sent(emulator)
    await one.aclose()
    assert texts(await two.get_items()) == ["a"]
    assert sent(emulator) == []
    await two.add_items(users("b"))
    assert texts(await two.get_items()) == ["a", "b"]


async def test_copy_outlives_its_sessions(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The process keeps a copy that no session is open on: the next one only checks."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(60)))
    async with CachedSession(conversation_id=conversation, openai_client=client) as session:
        await session.get_items()
    del session
    sent(emulator)
    async with CachedSession(conversation_id=conversation, openai_client=client) as session:
        assert len(await session.get_items()) == 60
    (check,) = emulator.requests
    assert check.items < 60


async def test_error_inside_async_with(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An error inside `async with` comes out as it is, and the session is closed."""
    session = CachedSession(openai_client=client)

    async def fail() -> None:
        async with session:
            await session.add_items(users("a"))
            raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        await fail()
    with pytest.raises(SessionClosed):
        await session.get_items()


async def test_client_with_its_own_transport(emulator: Emulator) -> None:
    """A client that was given an HTTP client sends over that one, and it stays open."""
    seen: list[str] = []

    async def note(request: httpx2.Request) -> None:
        seen.append(request.method)

    async with httpx2.AsyncClient(event_hooks={"request": [note]}, trust_env=False) as http:
        client = AsyncOpenAI(base_url=emulator.base_url, api_key="key", http_client=http)
        async with CachedSession(openai_client=client) as session:
            await session.add_items(users("a"))
            await session.pop_item()
        assert seen == ["POST", "POST", "DELETE"]
        assert not http.is_closed


@pytest.mark.parametrize("call", ["add_items", "get_items"])
async def test_client_whose_own_transport_is_closed(call: str, emulator: Emulator) -> None:
    """Nothing is sent over it; the error says so, soon, and an append is not in doubt."""
    http = httpx2.AsyncClient(trust_env=False)
    client = AsyncOpenAI(base_url=emulator.base_url, api_key="key", http_client=http)
    quick = RetryPolicy(initial_delay=0.001)
    async with CachedSession(openai_client=client, retry=quick, max_staleness=0) as session:
        await session.add_items(users("a"))
        await http.aclose()
        sent(emulator)
        with pytest.raises(APIConnectionError, match="http_client is closed") as caught:
            await getattr(session, call)(*([users("b")] if call == "add_items" else []))
        assert not isinstance(caught.value, AppendOutcomeUnknown)
        assert sent(emulator) == []
        assert session.stats.retries == quick.connect_attempts - 1
    assert texts(emulator.items(session.session_id)) == ["a"]


async def test_repr(client: AsyncOpenAI) -> None:
    """The repr says which conversation, how much is held, and whether the session is closed."""
    session = CachedSession(openai_client=client)
    assert repr(session) == "CachedSession(a new conversation, 0 items held, 0 bytes)"
    await session.add_items(users("a"))
    assert repr(session).startswith(f"CachedSession({session.session_id}, 1 item held, ")
    await session.aclose()
    assert repr(session) == f"CachedSession({session.session_id}, closed)"
