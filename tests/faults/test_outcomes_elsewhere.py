"""Answers that cannot be trusted, to requests other than an append, and by way of a redirect."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator.requests import is_append, is_create, is_listing
from tests.faults.line import Line, Say, is_conversation_delete, policy
from tests.session.support import users

ITEM = {"id": "msg_1", "type": "message", "role": "user", "content": []}
PAGES: dict[str, Any] = {
    "empty": b"",
    "null": None,
    "a list": [ITEM],
    "no data": {"has_more": False},
    "data null": {"data": None, "has_more": False},
    "items null": {"data": [None], "has_more": False},
    "items without id": {"data": [{"type": "message"}], "has_more": False},
    "ids are numbers": {"data": [{**ITEM, "id": 1}], "has_more": False},
    "no has_more": {"data": [ITEM]},
    "has_more a string": {"data": [ITEM], "has_more": "no"},
    "has_more null": {"data": [ITEM], "has_more": None},
}
MADE: dict[str, Any] = {
    "empty": b"",
    "null": None,
    "no id": {"object": "conversation"},
    "id a number": {"id": 7},
    "id empty": {"id": ""},
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_page_that_cannot_be_read(page: Any) -> None:
    """A page of another shape is asked for again; nothing of it is shown."""
    line = Line()
    session = line.session(line.conversation("one"))
    line.on(is_listing, Say(200, page), Say(200, page))
    assert await session.get_items() == line.service.items(session.session_id)
    assert line.asked() == ["list"] * 3


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_pages_that_stay_unreadable(page: Any) -> None:
    """Where every page is of another shape, the read ends with the client's own exception."""
    line = Line()
    session = line.session(line.conversation("one"), retry=policy(max_attempts=3))
    line.always(is_listing, Say(200, page))
    with pytest.raises(openai.APIResponseValidationError):
        await session.get_items()
    assert line.asked() == ["list"] * 3
    line.heal()
    assert len(await session.get_items()) == 1


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
async def test_a_conversation_without_an_id(made: Any) -> None:
    """An answer without a usable id makes no conversation: it is asked for again."""
    line = Line()
    session = line.session()
    line.on(is_create, Say(200, made))
    await session.add_items(users("one"))
    assert line.asked() == ["create", "create", "append"]
    assert line.texts(session.session_id) == ["one"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]"])
async def test_deletes_need_no_body(body: bytes) -> None:
    """What was deleted is deleted, even if the answer's body says nothing."""
    line = Line()
    session = line.session(line.conversation("one", "two"))
    line.on(lambda request: request.method == "DELETE", Say(200, body, commit=True))
    assert (await session.pop_item())["content"][0]["text"] == "two"  # type: ignore[index]
    assert line.texts(session.session_id) == ["one"]


async def test_a_conversation_that_is_gone() -> None:
    """After a 404 for the conversation nothing of it is served any more."""
    line = Line()
    session = line.session(line.conversation("one"))
    await session.get_items()
    line.delete(session.session_id)
    with pytest.raises(openai.NotFoundError):
        await session.add_items(users("two"))
    with pytest.raises(openai.NotFoundError):
        await session.get_items()


@pytest.mark.parametrize("status", [301, 302, 303])
@pytest.mark.parametrize("asked", [1, 2])
async def test_a_redirect_that_turns_an_append_into_a_listing(status: int, asked: int) -> None:
    """A listing is never taken for the answer to an append, though it has as many items."""
    line = Line()
    conversation = line.conversation(*(f"old {number}" for number in range(asked)))
    moved = {"location": f"http://simulated/v1/conversations/{conversation}/items"}
    line.always(is_append, Say(status, b"", moved))
    session = following(line, conversation)
    with pytest.raises(openai.OpenAIError):
        await session.add_items(users(*(f"new {number}" for number in range(asked))))
    assert await session.get_items() == line.service.items(conversation)
    assert len(line.texts(conversation)) == asked


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_the_request(status: int) -> None:
    """A redirect that keeps method and body is followed."""
    line = Line()
    conversation = line.conversation("old")
    moved = {"location": f"http://simulated/v1/conversations/{conversation}/items"}
    line.on(is_append, Say(status, b"", moved))
    session = following(line, conversation)
    await session.add_items(users("new"))
    assert line.texts(conversation) == ["old", "new"]


async def test_a_redirect_that_turns_a_clear_into_a_read() -> None:
    """A conversation is not taken for deleted because a redirect ended in a 200."""
    line = Line()
    conversation = line.conversation("old")
    moved = {"location": f"http://simulated/v1/conversations/{conversation}/items"}
    line.always(is_conversation_delete, Say(303, b"", moved))
    session = following(line, conversation)
    with pytest.raises(openai.OpenAIError):
        await session.clear_session()
    assert session.session_id == conversation


async def test_no_key_no_request() -> None:
    """Where the client itself refuses, its exception reaches the caller and nothing is sent."""
    line = Line()
    session = line.session(line.conversation("one"))
    line.openai.api_key = ""
    with pytest.raises(TypeError, match="authentication"):
        await session.add_items(users("two"))
    assert line.asked() == []


def following(line: Line, conversation: str) -> CachedSession:
    """A session whose client follows redirects, as the openai client's own HTTP client does."""
    http = httpx2.AsyncClient(transport=line, trust_env=False, follow_redirects=True)
    client = AsyncOpenAI(api_key="simulated", base_url="http://simulated/v1", http_client=http)
    client._platform = "Linux"  # otherwise it asks for it in a thread
    return CachedSession(
        conversation_id=conversation,
        openai_client=client,
        cache=ConversationCache(),
        retry=policy(max_attempts=2),
    )
