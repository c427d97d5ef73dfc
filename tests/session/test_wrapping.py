"""A CachedSession around the SDK's session: one conversation, one id, whoever makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import OpenAIConversationsSession
from agents.memory import SessionSettings
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client, sent, texts, user, users

FIRST_CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "get": lambda session: session.get_items(),
    "get-0": lambda session: session.get_items(0),
    "add": lambda session: session.add_items([user("a")]),
    "pop": lambda session: session.pop_item(),
}
every_first_call = pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS.keys())


@every_first_call
async def test_wrapper_creates(
    call: Callable[[Any], Awaitable[Any]], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A conversation that the wrapper makes is the wrapped session's too."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    await call(session)
    assert wrapped.session_id == session.session_id
    assert sent(emulator).count("POST conversation") == 1
    assert await wrapped.get_items() == await session.get_items()


@every_first_call
async def test_wrapped_creates(
    call: Callable[[Any], Awaitable[Any]], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A conversation that the wrapped session makes is the wrapper's too."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    await call(wrapped)
    assert session.session_id == wrapped.session_id
    assert await session.get_items() == await wrapped.get_items()
    assert sent(emulator).count("POST conversation") == 1


@pytest.mark.parametrize("wrapper_first", [False, True], ids=["wrapped first", "wrapper first"])
@every_first_call
async def test_first_calls_race(
    call: Callable[[Any], Awaitable[Any]],
    wrapper_first: bool,
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """First calls to the wrapper and to the wrapped session at once end on one conversation."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    order = [session, wrapped] if wrapper_first else [wrapped, session]
    await asyncio.gather(*(call(each) for each in order))
    # Each may make one; the other one then stays empty, and nobody uses it.
    assert sent(emulator).count("POST conversation") <= 2
    assert wrapped.session_id == session.session_id
    await session.refresh()
    assert await session.get_items() == emulator.items(session.session_id)


async def test_two_wrappers_race(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Two wrappers of one session make one conversation between them."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    one, two = CachedSession(wrapped), CachedSession(wrapped)
    await asyncio.gather(one.add_items(users("a")), two.add_items(users("b")), one.get_items())
    assert one.session_id == two.session_id == wrapped.session_id
    assert sorted(texts(await one.get_items())) == ["a", "b"]
    assert await one.get_items() == await two.get_items() == emulator.items(one.session_id)


async def test_no_id_on_either_side(client: AsyncOpenAI) -> None:
    """Before first use neither has an id, and both say so in the same way."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    for session in (wrapped, CachedSession(wrapped)):
        with pytest.raises(ValueError, match="not yet available"):
            _ = session.session_id


async def test_known_id_is_taken_over(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The wrapped session's id is the wrapper's from the start."""
    conversation = Elsewhere(emulator).conversation("a")
    wrapped = OpenAIConversationsSession(conversation_id=conversation, openai_client=client)
    session = CachedSession(wrapped)
    assert session.session_id == conversation
    assert texts(await session.get_items()) == ["a"]
    assert texts(await session.get_items()) == ["a"]
    assert sent(emulator) == ["GET items"]


@pytest.mark.parametrize("on_wrapper", [False, True], ids=["on wrapped", "on wrapper"])
async def test_setting_the_id(on_wrapper: bool, emulator: Emulator, client: AsyncOpenAI) -> None:
    """An id that is set on either of the two moves both."""
    elsewhere = Elsewhere(emulator)
    first, second = elsewhere.conversation("a"), elsewhere.conversation("b")
    wrapped = OpenAIConversationsSession(conversation_id=first, openai_client=client)
    session = CachedSession(wrapped)
    assert texts(await session.get_items()) == ["a"]
    (session if on_wrapper else wrapped).session_id = second
    assert session.session_id == wrapped.session_id == second
    assert texts(await session.get_items()) == texts(await wrapped.get_items()) == ["b"]


@pytest.mark.parametrize("by_wrapper", [False, True], ids=["by wrapped", "by wrapper"])
async def test_clearing(by_wrapper: bool, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A clear of either of the two clears both, and the next use makes one conversation."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    await session.add_items(users("a"))
    before = session.session_id
    await (session if by_wrapper else wrapped).clear_session()
    for either in (session, wrapped):
        with pytest.raises(ValueError, match="not yet available"):
            _ = either.session_id
    await session.add_items(users("b"))
    assert session.session_id == wrapped.session_id != before
    assert texts(await session.get_items()) == texts(await wrapped.get_items()) == ["b"]
    with pytest.raises(LookupError):
        emulator.items(before)


async def test_refresh_shows_the_wrapped_session_s_writes(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """What the wrapped session appends behind the wrapper's back is there after a refresh."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    await session.add_items(users("a"))
    assert texts(await session.get_items()) == ["a"]
    await wrapped.add_items(users("b"))
    await session.refresh()
    assert texts(await session.get_items()) == ["a", "b"]


async def test_settings_are_taken_over(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The wrapped session's settings count where the wrapper is given none of its own."""
    conversation = Elsewhere(emulator).conversation("a", "b", "c")
    wrapped = OpenAIConversationsSession(
        conversation_id=conversation,
        openai_client=client,
        session_settings=SessionSettings(limit=1),
    )
    assert texts(await CachedSession(wrapped).get_items()) == ["c"]
    own = CachedSession(wrapped, session_settings={"limit": 2})
    assert texts(await own.get_items()) == ["b", "c"]
    assert texts(await wrapped.get_items()) == ["c"]


async def test_client_is_taken_over(emulator: Emulator) -> None:
    """The wrapper asks the server and the account that the wrapped session's client speaks for."""
    async with new_client(emulator, api_key="one") as one, new_client(emulator, "two") as two:
        conversation = Elsewhere(emulator).conversation("a")
        for client in (one, two):
            wrapped = OpenAIConversationsSession(conversation_id=conversation, openai_client=client)
            session = CachedSession(wrapped)
            sent(emulator)
            assert texts(await session.get_items()) == ["a"]
            # A cold read: the first account's copy is not the second's.
            (listing,) = emulator.requests
            assert dict(listing.query)["limit"] == "100"


async def test_wrapping_a_wrapper(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A CachedSession can be wrapped as well; all three have one conversation."""
    inner = OpenAIConversationsSession(openai_client=client)
    middle = CachedSession(inner)
    outer = CachedSession(middle, max_staleness=0)
    await asyncio.gather(outer.add_items(users("a")), middle.get_items(), inner.get_items())
    assert outer.session_id == middle.session_id == inner.session_id
    assert texts(await outer.get_items()) == ["a"]
    await outer.clear_session()
    for session in (outer, middle, inner):
        with pytest.raises(ValueError, match="not yet available"):
            _ = session.session_id


async def test_what_comes_from_the_wrapped_session(client: AsyncOpenAI) -> None:
    """An id beside a session to wrap contradicts it, and the error names it."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    with pytest.raises(ValueError, match="conversation_id"):
        CachedSession(wrapped, conversation_id="conv_1")
