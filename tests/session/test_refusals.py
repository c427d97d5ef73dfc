"""What the server refuses reaches the caller as the openai exception that it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator, Fault, FaultKind
from tests.session.support import Elsewhere, new_client, numbered, sent, texts, user, users

CALLS: dict[str, Callable[[CachedSession], Awaitable[Any]]] = {
    "get": lambda session: session.get_items(),
    "get-1": lambda session: session.get_items(1),
    "add": lambda session: session.add_items(users("x")),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
}
UNKNOWN: Any = {"type": "no such type"}
NAMED: Any = {"id": "msg_1", **user("a")}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
async def test_deleted_before_the_first_use(
    call: Callable[[CachedSession], Awaitable[Any]], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A conversation that is not there raises the 404, and no other is made in its place."""
    session = CachedSession(conversation_id="conv_gone", openai_client=client)
    for _ in range(2):
        with pytest.raises(openai.NotFoundError):
            await call(session)
    assert session.session_id == "conv_gone"
    assert "POST conversation" not in sent(emulator)


@pytest.mark.parametrize("max_staleness", [None, 0])
@every_call
async def test_deleted_meanwhile(
    call: Callable[[CachedSession], Awaitable[Any]],
    max_staleness: int | None,
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """Once the 404 was seen, nothing of the deleted conversation is served by any session."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a", "b")
    session, other = (
        CachedSession(
            conversation_id=conversation, openai_client=client, max_staleness=max_staleness
        )
        for _ in "12"
    )
    await session.get_items()
    await other.get_items()
    elsewhere.delete(conversation)
    if max_staleness is None:
        # The one who asks finds out; a read of what is held does not ask.
        assert texts(await session.get_items()) == ["a", "b"]
        with pytest.raises(openai.NotFoundError):
            await session.add_items(users("x"))
    for each in (session, other):
        with pytest.raises(openai.NotFoundError):
            await call(each)
        assert each.session_id == conversation
    assert "POST conversation" not in sent(emulator)


async def test_deleted_and_opened_anew(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A new session object on a conversation that is held, and was deleted, raises the 404."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    await CachedSession(conversation_id=conversation, openai_client=client).get_items()
    elsewhere.delete(conversation)
    session = CachedSession(conversation_id=conversation, openai_client=client)
    with pytest.raises(openai.NotFoundError):
        await session.get_items()
    assert session.stats.items == 0


async def test_refused_item(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An item that the server refuses raises its 400 and leaves nothing of the batch behind."""
    session = CachedSession(openai_client=client)
    await session.add_items(users("a"))
    with pytest.raises(openai.BadRequestError) as caught:
        await session.add_items([user("b"), UNKNOWN])
    assert caught.value.param == "items[1].type"
    assert any("nothing was stored" in note for note in caught.value.__notes__)
    assert texts(await session.get_items()) == texts(emulator.items(session.session_id)) == ["a"]


async def test_refused_batch_after_others(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A refusal in a later batch says how many items landed, and the next read shows them."""
    session = CachedSession(openai_client=client)
    items: list[Any] = [*numbered(0, 25), UNKNOWN, *numbered(26, 50)]
    with pytest.raises(openai.BadRequestError) as caught:
        await session.add_items(items)
    assert any("the first 20 of 50 items" in note for note in caught.value.__notes__)
    expected = [str(number) for number in range(20)]
    assert texts(emulator.items(session.session_id)) == expected
    sent(emulator)
    assert texts(await session.get_items()) == expected
    assert sent(emulator) == []


async def test_duplicate_id(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An id that stands in the conversation already is refused by the server, and says so."""
    session = CachedSession(openai_client=client)
    await session.add_items([NAMED])
    with pytest.raises(openai.BadRequestError) as caught:
        await session.add_items([NAMED])
    assert caught.value.code == "item_already_in_conversation"
    assert texts(await session.get_items()) == texts(emulator.items(session.session_id)) == ["a"]


async def test_duplicate_id_in_one_call(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An id that stands twice in one call is refused the second time, and replaces no text."""
    session = CachedSession(openai_client=client)
    with pytest.raises(openai.BadRequestError) as caught:
        await session.add_items([NAMED, user("b"), {"id": "msg_1", **user("c")}, user("d")])
    assert caught.value.code == "item_already_in_conversation"
    assert any("the first 2 of 4 items" in note for note in caught.value.__notes__)
    expected = ["a", "b"]
    assert texts(await session.get_items()) == texts(emulator.items(session.session_id)) == expected


@every_call
async def test_no_quota(
    call: Callable[[CachedSession], Awaitable[Any]], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A 429 that needs the user is raised after one request, and what was held stays right."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client, max_staleness=0)
    await session.get_items()
    sent(emulator)
    emulator.faults = lambda _: Fault(FaultKind.RATE_LIMITED_QUOTA)
    with pytest.raises(openai.RateLimitError):
        await call(session)
    assert len(sent(emulator)) == 1
    emulator.faults = None
    assert texts(await session.get_items()) == texts(emulator.items(conversation)) == ["a"]


async def test_refused_creation(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A refused first call leaves the session without an id, and the next call makes it."""
    session = CachedSession(openai_client=client)
    emulator.faults = lambda _: Fault(FaultKind.RATE_LIMITED_QUOTA)
    with pytest.raises(openai.RateLimitError):
        await session.add_items(users("a"))
    with pytest.raises(ValueError, match="not yet available"):
        _ = session.session_id
    emulator.faults = None
    await session.add_items(users("b"))
    assert texts(emulator.items(session.session_id)) == ["b"]


async def test_no_credentials(emulator: Emulator) -> None:
    """A client without a key for this API fails as it does by itself, and is not asked again."""
    async with new_client(emulator, api_key="", admin_api_key="admin") as client:
        session = CachedSession(conversation_id="conv_1", openai_client=client)
        with pytest.raises((openai.OpenAIError, TypeError)) as cached:
            await session.get_items()
        with pytest.raises((openai.OpenAIError, TypeError)) as plain:
            await OpenAIConversationsSession(
                conversation_id="conv_1", openai_client=client
            ).get_items()
        assert str(cached.value) == str(plain.value)
        assert len(sent(emulator)) <= 2
