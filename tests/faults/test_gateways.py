"""Refusals of somebody in between, who may have passed the request on before."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from cached_session import MemoryOutbox, OutboxPaused
from cached_session.emulator.requests import is_append, is_item_delete
from tests.faults.line import (
    Say,
    agrees,
    any_request,
    is_conversation_delete,
    notes,
    opened,
    words,
)
from tests.session.support import users

PAGE = b"<html><body>Forbidden by policy</body></html>"
ANSWERS = [
    pytest.param(403, PAGE, openai.PermissionDeniedError, id="a firewall"),
    pytest.param(400, {"detail": "bad"}, openai.BadRequestError, id="a proxy on FastAPI"),
    pytest.param(413, b"<h1>413 Request Entity Too Large</h1>", openai.APIStatusError, id="nginx"),
    pytest.param(404, {"detail": "Not Found"}, openai.NotFoundError, id="another path"),
    pytest.param(400, {"message": "no", "type": "t"}, openai.BadRequestError, id="no envelope"),
    pytest.param(400, {"error": "no"}, openai.BadRequestError, id="a text for an error"),
]


@pytest.mark.parametrize(("status", "body", "raised"), ANSWERS)
async def test_an_append_that_came_through(status: int, body: object, raised: Any) -> None:
    """What stands there after a gateway's refusal was appended: the call returns, reads show it."""
    line, session, conversation = await opened("before")
    line.on(is_append, Say(status, body, commit=True))
    await session.add_items(users("one", "two"))
    assert line.asked() == ["append", "list"]
    assert line.texts(conversation) == ["before", "one", "two"]
    await agrees(session, line, conversation)


@pytest.mark.parametrize(("status", "body", "raised"), ANSWERS)
async def test_an_append_that_did_not(status: int, body: object, raised: Any) -> None:
    """Where nothing landed, the caller gets the refusal, and the copy is right."""
    line, session, conversation = await opened("before")
    line.on(is_append, Say(status, body))
    with pytest.raises(raised) as caught:
        await session.add_items(users("one", "two"))
    assert "nothing was stored" in notes(caught.value)
    assert line.asked() == ["append", "list"]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("commit", [True, False], ids=["came through", "did not"])
@pytest.mark.parametrize(("status", "body", "raised"), ANSWERS)
async def test_a_pop(status: int, body: object, raised: Any, commit: bool) -> None:
    """After a gateway's refusal of a pop the next read asks, and shows what is there."""
    line, session, conversation = await opened("a", "b")
    line.on(is_item_delete, Say(status, body, commit=commit))
    with pytest.raises(raised):
        await session.pop_item()
    assert line.texts(conversation) == (["a"] if commit else ["a", "b"])
    await agrees(session, line, conversation)
    assert words(await session.pop_item()) == ("a" if commit else "b")


@pytest.mark.parametrize("commit", [True, False], ids=["came through", "did not"])
@pytest.mark.parametrize(("status", "body", "raised"), ANSWERS)
async def test_a_clear(status: int, body: object, raised: Any, commit: bool) -> None:
    """After a gateway's refusal of a clear nothing that is held is served; a second one settles."""
    line, session, conversation = await opened("a", "b")
    line.on(is_conversation_delete, Say(status, body, commit=commit))
    with pytest.raises(raised):
        await session.clear_session()
    if commit:
        with pytest.raises(openai.NotFoundError):
            await session.get_items()
    else:
        await agrees(session, line, conversation)
    await session.clear_session()
    assert await session.get_items() == []


async def test_a_wrong_base_url() -> None:
    """Where every path is a gateway's 404, each call makes few requests and raises it."""
    line, session, conversation = await opened("a")
    await session.refresh()
    line.always(any_request, Say(404, PAGE))
    for call in (session.get_items(), session.add_items(users("b")), session.pop_item()):
        with pytest.raises(openai.NotFoundError):
            await call
    assert line.asked() == ["list"] * 3
    assert line.texts(conversation) == ["a"]


async def test_a_wrong_base_url_and_an_outbox() -> None:
    """An outbox stops at a gateway's 404, keeps what is recorded, and does not ask without end."""
    line, session, conversation = await opened("a", outbox=MemoryOutbox())
    line.always(any_request, Say(404, PAGE))
    await session.add_items(users("b"))
    with pytest.raises(OutboxPaused):
        await session.flush()
    assert len(line.asked()) < 6
    line.heal()
    assert line.texts(conversation) == ["a"]
    with pytest.raises(OutboxPaused) as caught:
        await session.aclose(timeout=60)
    assert caught.value.waiting == 1


async def test_an_outbox_behind_a_gateway() -> None:
    """A recorded batch that a gateway refused and passed on is found there, once."""
    line, session, conversation = await opened("a", outbox=MemoryOutbox())
    line.on(is_append, Say(403, PAGE, commit=True))
    await session.add_items(users("b"))
    await session.add_items(users("c"))
    await session.flush()
    assert line.texts(conversation) == ["a", "b", "c"]
    await agrees(session, line, conversation)
    await session.aclose()
