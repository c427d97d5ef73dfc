"""When a conversation is made, and what its id is, as with the SDK's session."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from tests.session.support import Elsewhere, sent, texts, users

BOTH = pytest.mark.parametrize("kind", [OpenAIConversationsSession, CachedSession])
"""For behaviour that the SDK's session and this one have in common."""


def test_it_is_the_sdk_session() -> None:
    """The session is a subclass, which is what the Runner looks for."""
    assert issubclass(CachedSession, OpenAIConversationsSession)


@BOTH
async def test_making_a_session_sends_nothing(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A new session has no id yet and sends no request."""
    session = kind(openai_client=client)
    with pytest.raises(ValueError, match="not yet available"):
        _ = session.session_id
    assert sent(emulator) == []


@BOTH
async def test_reading_makes_the_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The id is there when the first `get_items` returns, and the conversation is empty."""
    session = kind(openai_client=client)
    assert await session.get_items() == []
    assert emulator.items(session.session_id) == []


@BOTH
async def test_reading_nothing_makes_the_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`get_items(limit=0)` makes the conversation and lists nothing."""
    session = kind(openai_client=client)
    assert await session.get_items(limit=0) == []
    assert sent(emulator) == ["POST conversation"]
    assert emulator.items(session.session_id) == []


@BOTH
async def test_adding_makes_the_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The first `add_items` makes the conversation and appends to it."""
    session = kind(openai_client=client)
    await session.add_items(users("a", "b"))
    assert sent(emulator) == ["POST conversation", "POST items"]
    assert texts(emulator.items(session.session_id)) == ["a", "b"]


@BOTH
async def test_popping_makes_the_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The first `pop_item` makes the conversation and finds nothing in it."""
    session = kind(openai_client=client)
    assert await session.pop_item() is None
    assert emulator.items(session.session_id) == []


@BOTH
async def test_adding_nothing_sends_nothing(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`add_items([])` sends no request and makes no conversation."""
    session = kind(openai_client=client)
    await session.add_items([])
    assert sent(emulator) == []
    with pytest.raises(ValueError, match="not yet available"):
        _ = session.session_id


@BOTH
async def test_adding_nothing_to_a_conversation_sends_nothing(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`add_items([])` on an existing conversation sends no request either."""
    conversation = Elsewhere(emulator).conversation("a")
    await kind(conversation_id=conversation, openai_client=client).add_items([])
    assert sent(emulator) == []


@BOTH
async def test_first_calls_race(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """First calls that race make one conversation, and all of them use it."""
    session = kind(openai_client=client)
    await asyncio.gather(
        session.get_items(),
        session.add_items(users("a")),
        session.get_items(limit=3),
        session.add_items(users("b")),
        session.get_items(limit=0),
    )
    assert sent(emulator).count("POST conversation") == 1
    assert sorted(texts(emulator.items(session.session_id))) == ["a", "b"]


@BOTH
async def test_given_id_is_used(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A session with an id reads that conversation, and has the id from the start."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = kind(conversation_id=conversation, openai_client=client)
    assert session.session_id == conversation
    assert texts(await session.get_items()) == ["a", "b"]


@BOTH
async def test_set_before_first_use(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """An id that is set before first use is used, and none is made."""
    session = kind(openai_client=client)
    session.session_id = Elsewhere(emulator).conversation("a")
    assert texts(await session.get_items()) == ["a"]
    assert "POST conversation" not in sent(emulator)


@BOTH
async def test_set_after_use(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """An id that is set later moves the session: reads, appends and pops go there."""
    elsewhere = Elsewhere(emulator)
    first, second = elsewhere.conversation("a"), elsewhere.conversation("b")
    session = kind(conversation_id=first, openai_client=client)
    assert texts(await session.get_items()) == ["a"]
    session.session_id = second
    assert session.session_id == second
    assert texts(await session.get_items()) == ["b"]
    await session.add_items(users("c"))
    assert texts(emulator.items(second)) == ["b", "c"]
    session.session_id = first
    assert texts([await session.pop_item()]) == ["a"]
    assert await session.get_items() == []
    assert texts(emulator.items(second)) == ["b", "c"]


@BOTH
async def test_clear_before_first_use(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """`clear_session` before first use sends nothing."""
    await kind(openai_client=client).clear_session()
    assert sent(emulator) == []


@BOTH
async def test_clear_deletes_the_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`clear_session` deletes the conversation in one request, and the id is gone."""
    session = kind(openai_client=client)
    await session.add_items(users("a"))
    conversation = session.session_id
    sent(emulator)
    await session.clear_session()
    assert sent(emulator) == ["DELETE conversation"]
    with pytest.raises(LookupError):
        emulator.items(conversation)
    with pytest.raises(ValueError, match="not yet available"):
        _ = session.session_id


@BOTH
async def test_use_after_clear(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """After `clear_session` the next use makes a new, empty conversation."""
    session = kind(openai_client=client)
    await session.add_items(users("a"))
    before = session.session_id
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items(users("b"))
    assert session.session_id != before
    assert texts(await session.get_items()) == ["b"]
    assert texts(emulator.items(session.session_id)) == ["b"]


@BOTH
async def test_clear_twice(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A second `clear_session` finds nothing to clear and sends nothing."""
    session = kind(openai_client=client)
    await session.get_items()
    await session.clear_session()
    sent(emulator)
    await session.clear_session()
    assert sent(emulator) == []


@BOTH
async def test_failed_clear_keeps_the_id(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A `clear_session` that the server refuses keeps the id and every item."""
    session = kind(openai_client=client)
    await session.add_items(users("a"))
    conversation = session.session_id
    emulator.faults = _refuse_deletes
    with pytest.raises(openai.RateLimitError):
        await session.clear_session()
    assert session.session_id == conversation
    emulator.faults = None
    assert texts(await session.get_items()) == ["a"]
    await session.clear_session()
    with pytest.raises(LookupError):
        emulator.items(conversation)


def _refuse_deletes(request: Request) -> Fault | None:
    return Fault(FaultKind.RATE_LIMITED_QUOTA) if request.method == "DELETE" else None


@BOTH
async def test_clear_of_a_deleted_conversation(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Clearing a conversation that somebody deleted raises the 404 and keeps the id."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    session = kind(conversation_id=conversation, openai_client=client)
    await session.get_items()
    elsewhere.delete(conversation)
    with pytest.raises(openai.NotFoundError):
        await session.clear_session()
    assert session.session_id == conversation


async def test_other_sessions_see_a_clear(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Another session on a cleared conversation gets the 404, not the old items."""
    one = CachedSession(openai_client=client)
    await one.add_items(users("a"))
    two = CachedSession(conversation_id=one.session_id, openai_client=client)
    assert texts(await two.get_items()) == ["a"]
    await one.clear_session()
    with pytest.raises(openai.NotFoundError):
        await two.get_items()


async def test_default_client(
    emulator: Emulator, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a client, the SDK's way to make one is used, as by the SDK's session."""
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    async with CachedSession() as session:
        await session.add_items(users("a"))
        assert texts(emulator.items(session.session_id)) == ["a"]
