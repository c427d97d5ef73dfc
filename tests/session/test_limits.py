"""How many items a read returns: `limit`, the session's settings, and their order."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, RunConfig, Runner
from agents.memory import SessionSettings
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI, BadRequestError

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, numbered, sent, texts, users

BOTH = pytest.mark.parametrize("kind", [OpenAIConversationsSession, CachedSession])


@BOTH
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "abcde"), (0, ""), (1, "e"), (3, "cde"), (5, "abcde"), (50, "abcde")],
)
async def test_limit(
    kind: Any, limit: int | None, expected: str, warm: bool, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`limit` asks for that many of the newest items, oldest first, as many as there are."""
    conversation = Elsewhere(emulator).conversation(*"abcde")
    session = kind(conversation_id=conversation, openai_client=client)
    if warm:
        await session.get_items()
    assert texts(await session.get_items(limit=limit)) == list(expected)


@BOTH
@pytest.mark.parametrize(
    ("settings", "limit", "expected"),
    [
        (None, None, "abcde"),
        (SessionSettings(), None, "abcde"),
        ({}, None, "abcde"),
        (SessionSettings(limit=2), None, "de"),
        ({"limit": 2}, None, "de"),
        ({"limit": 2}, 4, "bcde"),
        ({"limit": 2}, 0, ""),
        (SessionSettings(limit=0), None, ""),
        (SessionSettings(limit=0), 1, "e"),
        (SessionSettings(limit=50), None, "abcde"),
    ],
)
async def test_settings(
    kind: Any,
    settings: Any,
    limit: int | None,
    expected: str,
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """`session_settings.limit`, from an object or a dict, counts where no limit is given."""
    conversation = Elsewhere(emulator).conversation(*"abcde")
    session = kind(conversation_id=conversation, openai_client=client, session_settings=settings)
    assert isinstance(session.session_settings, SessionSettings)
    assert texts(await session.get_items(limit)) == list(expected)


async def _theirs(session: OpenAIConversationsSession, limit: int | None) -> list[Any] | None:
    """What the SDK's session reads; None in a release whose requests the server refuses."""
    try:
        return texts(await session.get_items(limit))
    except BadRequestError:
        return None


@pytest.mark.parametrize("limit", [-1, -2, -100, -(10**30)])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_negative_limits(
    limit: int, warm: bool, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A negative limit, wherever it stands, reads the newest item, as with the SDK's session."""
    for name in (Elsewhere(emulator).conversation(*"abc"), Elsewhere(emulator).conversation()):
        newest = texts(emulator.items(name))[-1:]
        ours = CachedSession(conversation_id=name, openai_client=client, cache=ConversationCache())
        theirs = OpenAIConversationsSession(conversation_id=name, openai_client=client)
        if warm:
            await ours.get_items()
        assert texts(await ours.get_items(limit)) == newest
        assert await _theirs(theirs, limit) in (newest, None)
        for settings in (SessionSettings(limit=limit), {"limit": limit}):
            ours.session_settings = theirs.session_settings = settings
            assert texts(await ours.get_items()) == newest
            assert await _theirs(theirs, None) in (newest, None)
            assert await ours.get_items(0) == []


@pytest.mark.parametrize("limit", [-1, -5, 0, 2])
@pytest.mark.parametrize("where", ["run", "session"])
async def test_limits_of_a_run(
    limit: int, where: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A run with a limit, of its own or of its session, gives the model as many items."""
    settings = SessionSettings(limit=limit)
    model = ScriptedModel([[assistant_message("hello")]])
    session = CachedSession(
        conversation_id=Elsewhere(emulator).conversation(*"abc"),
        openai_client=client,
        session_settings=settings if where == "session" else None,
    )
    config = RunConfig(session_settings=settings if where == "run" else None)
    agent = Agent(name="assistant", model=model)
    await Runner.run(agent, "d", session=session, run_config=config)
    assert model.last_call is not None
    assert len(model.last_call.input) == {0: 0, 2: 2}.get(limit, 1) + 1


@BOTH
async def test_settings_are_replaced(kind: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Settings that are set on a session count from the next read on; None means no limit."""
    conversation = Elsewhere(emulator).conversation(*"abcde")
    session = kind(conversation_id=conversation, openai_client=client)
    session.session_settings = SessionSettings(limit=1)
    assert texts(await session.get_items()) == ["e"]
    session.session_settings = None
    assert texts(await session.get_items()) == list("abcde")


@BOTH
async def test_settings_as_a_dict_set_later(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Settings that are set on a session may be a dict there too."""
    conversation = Elsewhere(emulator).conversation(*"abcde")
    session = kind(conversation_id=conversation, openai_client=client)
    session.session_settings = {"limit": 2}
    assert texts(await session.get_items()) == ["d", "e"]


@BOTH
async def test_a_setting_does_not_limit_pop(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`pop_item` removes the newest item whatever the settings' limit is."""
    conversation = Elsewhere(emulator).conversation(*"abc")
    session = kind(
        conversation_id=conversation, openai_client=client, session_settings={"limit": 0}
    )
    assert texts([await session.pop_item()]) == ["c"]
    assert texts(emulator.items(conversation)) == ["a", "b"]


@BOTH
async def test_pop_to_the_end_and_beyond(
    kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Pops take item after item from the newest on, then return None."""
    session = kind(openai_client=client)
    await session.add_items(users("a", "b", "c"))
    popped = [await session.pop_item() for _ in range(4)]
    assert popped[3] is None
    assert texts(popped[:3]) == ["c", "b", "a"]
    assert await session.get_items() == []
    assert emulator.items(session.session_id) == []


@BOTH
@pytest.mark.parametrize("count", [1, 19, 20, 21, 40, 41, 107])
async def test_many_items(kind: Any, count: int, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Any number of items is appended in order, in requests of at most 20."""
    session = kind(openai_client=client)
    await session.add_items(numbered(0, count))
    posts = [entry.items for entry in emulator.requests if entry.path.endswith("/items")]
    assert posts == [20] * (count // 20) + ([count % 20] if count % 20 else [])
    expected = [str(number) for number in range(count)]
    assert texts(emulator.items(session.session_id)) == expected
    assert texts(await session.get_items()) == expected


@pytest.mark.parametrize("held", [0, 1, 2, 100, 250])
@pytest.mark.parametrize("wanted", [1, 100, 101, 201, 301, None])
async def test_window_grows(
    held: int, wanted: int | None, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A read of more than is held extends what is held backwards, without a gap or a copy."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(301)))
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    await session.get_items(held)
    sent(emulator)
    items = await session.get_items(wanted)
    everything = emulator.items(conversation)
    assert items == (everything if wanted is None else everything[-wanted:])
    if held and wanted is not None:
        missing = max(0, wanted - held)
        assert len(sent(emulator)) <= -(-missing // 99)


async def test_cold_read_comes_from_both_ends(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cold read of everything asks for pages of 100 from both ends, which overlap nowhere far."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(1000)))
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    assert await session.get_items() == emulator.items(conversation)
    orders = [dict(entry.query)["order"] for entry in emulator.requests]
    assert all(dict(entry.query)["limit"] == "100" for entry in emulator.requests)
    assert len(orders) <= 12
    assert min(orders.count("asc"), orders.count("desc")) >= 5
