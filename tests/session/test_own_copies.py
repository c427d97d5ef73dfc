"""What a read returns and what an append was given belong to the caller."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, texts


def _spoil(value: Any) -> None:
    """Changes everything that can be changed in place, all the way down."""
    if isinstance(value, dict):
        for inner in list(value.values()):
            _spoil(inner)
        value.clear()
        value["spoilt"] = True
    elif isinstance(value, list):
        for inner in list(value):
            _spoil(inner)
        value[:] = ["spoilt"]


def _nested() -> list[Any]:
    text = {"type": "input_text", "text": "what is this?"}
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    return [
        {"role": "user", "content": [text, image]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": [dict(text)]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
    ]


@pytest.mark.parametrize("limit", [None, 2])
async def test_changing_what_was_read(
    limit: int | None, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Changing what a read returned, all the way down, changes no later read of any session."""
    session = CachedSession(openai_client=client)
    await session.add_items(_nested())
    other = CachedSession(conversation_id=session.session_id, openai_client=client)
    before = json.dumps(await session.get_items(limit))
    for reader in (session, other, session):
        items = await reader.get_items(limit)
        assert json.dumps(items) == before
        _spoil(items)
    assert json.dumps(await session.get_items(limit)) == before


async def test_reads_share_nothing(client: AsyncOpenAI) -> None:
    """Two reads at once return two copies."""
    session = CachedSession(openai_client=client)
    await session.add_items(_nested())
    one, two = await asyncio.gather(session.get_items(), session.get_items())
    before = json.dumps(two)
    _spoil(one)
    assert json.dumps(two) == before


async def test_changing_a_cold_read(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The read that filled the copy shares nothing with it either."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    _spoil(await session.get_items())
    assert texts(await session.get_items()) == ["a", "b"]


async def test_changing_what_was_popped(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Changing a popped item changes nothing here."""
    session = CachedSession(openai_client=client)
    await session.add_items(_nested())
    _spoil(await session.pop_item())
    assert await session.get_items() == emulator.items(session.session_id)


async def test_changing_what_was_added(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Items may be changed once `add_items` has returned, and their list too."""
    session = CachedSession(openai_client=client)
    items = _nested()
    await session.add_items(items)
    before = json.dumps(await session.get_items())
    _spoil(items)
    assert json.dumps(await session.get_items()) == before
    await session.refresh()
    assert json.dumps(await session.get_items()) == before


async def test_changing_what_is_being_added(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Items are copied before the call first waits: changing them meanwhile changes nothing."""
    expected = CachedSession(openai_client=client)
    await expected.add_items(_nested())
    session = CachedSession(openai_client=client)
    items = _nested()
    adding = asyncio.create_task(session.add_items(items))
    await asyncio.sleep(0)
    _spoil(items)
    await adding
    stored, wanted = (
        [{**item, "id": None} for item in emulator.items(each.session_id)]
        for each in (session, expected)
    )
    assert stored == wanted


async def test_adding_does_not_change_the_items(client: AsyncOpenAI) -> None:
    """`add_items` leaves its argument as it was."""
    session = CachedSession(openai_client=client)
    items = _nested()
    before = json.dumps(items)
    await session.add_items(items)
    assert json.dumps(items) == before
