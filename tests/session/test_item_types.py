"""A read equals the SDK session's read, key for key, over items of every type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI
from openai.types.conversations.message import Content
from openai.types.responses.response_input_content_param import ResponseInputContentParam

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.emulator.samples import INPUT_TYPES, LISTED_TYPES, OUTPUT_TYPES, members, sample
from tests.session.support import users

# The SDK's own session, for outputs that are lists, as its own types allow.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")


def _sendable(annotation: Any, *, whole: bool) -> dict[str, Any]:
    item: dict[str, Any] = sample(annotation, whole=whole)
    item.pop("id", None)
    if item.get("role") == "unknown":
        item["role"] = "developer" if item["type"] == "additional_tools" else "user"
    return item


def _everything() -> list[dict[str, Any]]:
    """One item or more of every type, with the fields that are required and with all."""
    types = [kind for kind in INPUT_TYPES if kind.__name__ != "ItemReference"]
    items = [_sendable(kind, whole=whole) for kind in types for whole in (False, True)]
    items += [_sendable(kind, whole=True) for kind in {*OUTPUT_TYPES, *LISTED_TYPES}]
    for role, union in (("user", ResponseInputContentParam), ("assistant", Content)):
        parts = [sample(kind, whole=True) for kind in members(union)]
        items += [{"type": "message", "role": role, "content": [part]} for part in parts]
        items.append({"type": "message", "role": role, "content": parts})
        items.append({"role": role, "content": "a string"})
    return items


def _wire_names(value: Any) -> Any:
    """The value with the wire's name in the place of a name that Python has to avoid.

    The one difference: the typed dump of the SDK's session says `async_` where the server, and so
    a cached read, says `async`.
    """
    if isinstance(value, dict):
        return {
            "async" if name == "async_" else name: _wire_names(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_wire_names(inner) for inner in value]
    return value


@pytest.mark.parametrize("filled", ["by listing", "by append"])
async def test_reads_are_equal(filled: str, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Both sessions read the same, whether a listing or an append's answer filled the copy."""
    items: list[Any] = _everything()
    assert len(items) > 100
    session = CachedSession(openai_client=client, cache=ConversationCache())
    await session.add_items(items)
    plain = OpenAIConversationsSession(conversation_id=session.session_id, openai_client=client)
    if filled == "by listing":
        await session.refresh()
    expected = [_wire_names(item) for item in await plain.get_items()]
    actual = await session.get_items()
    assert actual == expected == emulator.items(session.session_id)
    # Byte for byte, the order of keys included: the model's prompt cache depends on it.
    assert json.dumps(actual) == json.dumps(emulator.items(session.session_id))
    for limit in (1, 7, 100):
        limited = [_wire_names(item) for item in await plain.get_items(limit)]
        assert await session.get_items(limit) == limited


async def test_appends_are_equal(emulator: Emulator, client: AsyncOpenAI) -> None:
    """What both sessions append is stored alike, ids aside."""
    items: list[Any] = _everything()
    stored = []
    for kind in (OpenAIConversationsSession, CachedSession):
        session = kind(openai_client=client)
        await session.add_items(items)
        listed = emulator.items(session.session_id)
        stored.append([{**item, "id": None} for item in listed])
    assert stored[0] == stored[1]


async def test_alias_keeps_the_wire_s_name(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A field whose name Python reserves is read under the wire's name."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "async": True}
    item: Any = {"type": "tool_search_output", "call_id": "call_1", "tools": [tool]}
    session = CachedSession(openai_client=client)
    await session.add_items([item])
    for _ in range(2):
        (read,) = await session.get_items()
        assert dict(read)["tools"] == [tool]
        await session.refresh()


async def test_models_are_appended_as_the_client_sends_them(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Pydantic models, as the openai package gives them, are stored as with the SDK's session."""
    source = OpenAIConversationsSession(openai_client=client)
    await source.add_items(users("a", "b"))
    page = await client.conversations.items.list(source.session_id)
    models: list[Any] = [
        model.model_copy(update={"id": f"msg_copy_{number}"})
        for number, model in enumerate(page.data)
    ]
    stored = []
    for kind in (OpenAIConversationsSession, CachedSession):
        session = kind(openai_client=client)
        await session.add_items(models)
        stored.append(emulator.items(session.session_id))
    assert stored[0] == stored[1]
    assert [item["id"] for item in stored[1]] == ["msg_copy_0", "msg_copy_1"]
