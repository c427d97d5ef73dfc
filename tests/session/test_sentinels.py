"""The openai client's marks for "not given" in items, which the SDK's session leaves out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from agents import OpenAIConversationsSession
from openai import NOT_GIVEN, AsyncOpenAI, not_given, omit

from cached_session import CachedSession, MemoryOutbox, Outbox
from cached_session.emulator import Emulator
from tests.session.support import sent, texts, user

MARKS = pytest.mark.parametrize("mark", [omit, NOT_GIVEN, not_given], ids=["omit", "N_G", "n_g"])


def _items(mark: Any) -> list[Any]:
    """Items with a mark at each depth at which the client looks."""
    return [
        {"type": mark, "role": "user", "content": "a", "status": mark},
        {"role": "user", "content": "b", "unknown": mark},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "c", "unknown": mark, "detail": mark}],
        },
        {"role": "user", "content": ({"type": "input_text", "text": "d", "prompt": mark},)},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "e",
                    "logprobs": mark,
                    "annotations": [
                        {"type": "file_citation", "file_id": "f", "index": 0, "filename": mark}
                    ],
                }
            ],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": mark},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "f", "unknown": mark}],
        },
        OrderedDict(role="user", content="g", type=mark),
        MappingProxyType({"role": "user", "content": "h", "type": mark}),
    ]


def _without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "id"} for item in items]


@MARKS
@pytest.mark.parametrize("new_outbox", [lambda: None, MemoryOutbox], ids=["without", "with outbox"])
async def test_marks_are_left_out(
    mark: Any,
    new_outbox: Callable[[], Outbox | None],
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """What the SDK's session leaves out of an item, this one does; the caller's item stays."""
    theirs = OpenAIConversationsSession(openai_client=client)
    await theirs.add_items(_items(mark))
    given = _items(mark)
    async with CachedSession(openai_client=client, outbox=new_outbox()) as session:
        await session.add_items(given)
        assert given == _items(mark)
        await session.flush()
        stored = emulator.items(session.session_id)
        assert _without_ids(stored) == _without_ids(emulator.items(theirs.session_id))
        assert await session.get_items() == stored


@MARKS
async def test_nested_where_the_client_knows_no_type(
    mark: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """In an object that no type describes a mark is left out, too."""
    session = CachedSession(openai_client=client)
    odd = {**user("a"), "unknown": {"a": mark, "b": [{"c": mark, "d": 1}, [{}]]}}
    await session.add_items([odd])
    (read,) = await session.get_items()
    assert texts([read]) == ["a"]
    assert dict(read)["unknown"] == {"b": [{"d": 1}, [{}]]}


@MARKS
@pytest.mark.parametrize("kind", [OpenAIConversationsSession, CachedSession])
async def test_marks_that_are_no_field(
    mark: Any, kind: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A mark in a list, or in place of an item, is refused, and nothing is appended."""
    session = kind(openai_client=client)
    await session.get_items()
    sent(emulator)
    for items in (
        [mark],
        [{"role": "user", "content": [mark]}],
        [{"role": "user", "content": "a", "type": mark}, {"role": "user", "content": [mark]}],
    ):
        with pytest.raises(TypeError):
            await session.add_items(items)
    assert sent(emulator) == []


async def test_the_error_names_the_type(client: AsyncOpenAI) -> None:
    """The error for such a mark names the item and the mark's type."""
    session = CachedSession(openai_client=client)
    items: list[Any] = [user("a"), {"role": "user", "type": omit, "content": [omit]}]
    with pytest.raises(TypeError, match=r"items\[1\] .*Omit"):
        await session.add_items(items)


async def test_other_refusals_stay(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An item with a mark that JSON cannot carry otherwise is refused as any other."""
    session = CachedSession(openai_client=client)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    cycle: Any = {"role": "user", "type": omit}
    cycle["content"] = [cycle]
    for content in (float("nan"), "\ud800", deep, cycle):
        items: list[Any] = [{"role": "user", "type": omit, "content": content}]
        with pytest.raises(ValueError, match=r"items\[0\]"):
            await session.add_items(items)
    assert sent(emulator) == []


@pytest.mark.parametrize("mark", [omit, NOT_GIVEN])
async def test_only_marks_are_left_out(mark: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """None, empty and false values beside a mark are sent."""
    session = CachedSession(openai_client=client)
    odd = {**user("a"), "n": None, "f": False, "z": 0, "e": "", "l": [], "d": {}, "m": mark}
    await session.add_items([odd])
    (read,) = await session.get_items()
    kept = {key: value for key, value in dict(read).items() if key in odd}
    assert kept.keys() == odd.keys() - {"m"}
    assert [kept[key] for key in "nfzeld"] == [None, False, 0, "", [], {}]
