"""Local names, ids that come later, and who else may have made the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    OutboxError,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_create
from tests.faults.line import CUT, Line, policy
from tests.outbox_sessions.support import (
    Process,
    in_virtual_time,
    left_by_an_exception,
    raised,
    words,
)
from tests.session.support import new_client, texts, users


def local_name(session: CachedSession) -> str:
    """The name of a conversation that the server has not made yet, as it is shown to users."""
    return repr(session).removeprefix("CachedSession(").partition(",")[0]


async def test_a_second_session_by_the_local_name(outbox: Outbox) -> None:
    """The local name leads to the conversation beside the session that made it, at any time."""
    with Emulator() as emulator:
        emulator.stop()
        async with Process(emulator, outbox) as process:
            first = process.session()
            await first.add_items(users("a"))
            name = local_name(first)
            assert name.startswith("local-")
            early = process.session(name)
            await early.add_items(users("b"))
            emulator.start()
            await first.flush()
            late = process.session(name)
            await late.add_items(users("c"))
            for session in (first, early, late):
                assert words(await session.get_items()) == ["a", "b", "c"]
                await session.flush()
                assert session.session_id == first.session_id
            assert texts(emulator.items(first.session_id)) == ["a", "b", "c"]
            for session in (late, early, first):
                await session.aclose()


async def test_the_local_name_is_there_to_be_stored(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """`local_name` opens a conversation begun offline in another process, and goes with its id."""
    with Emulator() as emulator:
        async with Process(emulator, new_outbox()) as process:
            session = process.session()
            assert session.local_name is None
            emulator.stop()
            await session.add_items(users("a"))
            name = session.local_name
            assert name is not None
            with pytest.raises(ValueError, match=name):
                assert session.session_id
            await left_by_an_exception(session)
        for text, stored in (("b", ["a", "b"]), ("c", ["a", "b", "c"])):
            async with Process(emulator, new_outbox()) as process:
                session = process.session(name)
                assert session.local_name == name
                await session.add_items(users(text))
                if text == "b":
                    emulator.start()
                await session.flush()
                assert session.local_name is None
                assert texts(emulator.items(session.session_id)) == stored
                await session.aclose()


async def test_without_an_outbox_there_is_no_local_name(client: AsyncOpenAI) -> None:
    """`local_name` is None where nothing is recorded, before the first use and after it."""
    session = CachedSession(openai_client=client)
    assert session.local_name is None
    await session.get_items()
    assert session.local_name is None


async def test_a_local_name_that_nobody_knows(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A mistyped local name, or the wrong outbox, is refused, and makes no new conversation."""
    async with Process(emulator, new_outbox()) as process:
        session = process.session("local-deadbeef")
        for call in (session.get_items, lambda: session.add_items(users("a")), session.pop_item):
            error = await raised(call())
            assert type(error) is OutboxError
            assert "local-deadbeef" in str(error)
            assert error.conversation_id == "local-deadbeef"
        await raised(session.aclose())
    assert emulator.requests == []


async def test_a_local_name_without_an_outbox(emulator: Emulator) -> None:
    """Without an outbox a local name is refused by the constructor."""
    async with new_client(emulator) as client:
        with pytest.raises(ValueError, match="conversation_id: local-1 is a name"):
            CachedSession(conversation_id="local-1", openai_client=client)


@in_virtual_time
async def test_the_wrapped_session_is_faster() -> None:
    """Where the wrapped session made a conversation first, what waits goes there, behind it."""
    line = Line()
    wrapped = OpenAIConversationsSession(openai_client=line.openai)
    session = CachedSession(
        wrapped, outbox=MemoryOutbox(), cache=ConversationCache(), retry=policy()
    )
    line.always(is_create, CUT)
    await session.add_items(users("waits"))
    assert local_name(session).startswith("local-")
    line.heal()
    await wrapped.add_items(users("direct"))
    await session.flush()
    assert session.session_id == wrapped.session_id
    assert line.texts(session.session_id) == ["direct", "waits"]
    assert await session.get_items() == await wrapped.get_items()
    await session.aclose()


@pytest.mark.parametrize("first", ["ours", "the wrapped session's"])
@in_virtual_time
async def test_both_are_made_at_once(first: str) -> None:
    """Where both sessions make a conversation at the same moment, all of it ends up in one."""
    line = Line(latency=1.0)
    wrapped = OpenAIConversationsSession(openai_client=line.openai)
    session = CachedSession(
        wrapped, outbox=MemoryOutbox(), cache=ConversationCache(), retry=policy()
    )
    line.always(is_create, CUT)
    await session.add_items(users("waits"))
    line.heal()
    if first == "ours":
        while not line.in_flight:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    await wrapped.add_items(users("direct"))
    await session.flush()
    assert session.session_id == wrapped.session_id
    assert sorted(line.texts(session.session_id)) == ["direct", "waits"]
    assert await session.get_items() == await wrapped.get_items()
    await session.aclose()
