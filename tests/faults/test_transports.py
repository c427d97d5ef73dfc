"""Transports that are not httpx's own: what they say of a request proves nothing."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from openai import APIConnectionError

from cached_session import CachedSession, ConversationCache, MemoryOutbox
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_item_delete
from tests.clients import Lying, OwnClient
from tests.faults.line import (
    CUT,
    LOST,
    Fail,
    Line,
    Say,
    agrees,
    is_conversation_delete,
    label,
    policy,
    words,
)
from tests.faults.test_outcomes import broken
from tests.session.support import users
from tests.simulation.network import as_httpx_own

LOSSES = [
    LOST,
    CUT,
    Fault(FaultKind.LATE_COMMIT, delay=0.05),
    Fault(FaultKind.PARTIAL_BATCH, items=1),
]


def session_on(line: Line, client: Any, conversation: str, **options: Any) -> CachedSession:
    settings = {"cache": ConversationCache(), "retry": policy(), **options}
    return CachedSession(conversation_id=conversation, openai_client=client, **settings)


@pytest.mark.parametrize("fault", LOSSES, ids=label)
@pytest.mark.parametrize("recorded", [False, True], ids=["delivered", "recorded"])
async def test_an_append_on_a_transport_that_lies(fault: Any, recorded: bool) -> None:
    """A connect timeout of a transport that nobody knows is asked about: one copy, in order."""
    line = Line()
    conversation = line.conversation("before")
    options = {"outbox": MemoryOutbox()} if recorded else {}
    session = session_on(line, line.client_over(Lying(line)), conversation, **options)
    await session.get_items()
    line.on(is_append, fault)
    await session.add_items(users("one", "two"))
    await session.flush()
    await line.past(200.0)
    await session.flush()
    assert line.texts(conversation) == ["before", "one", "two"]
    await agrees(session, line, conversation)
    await session.aclose()


@pytest.mark.parametrize("fault", [LOST, CUT], ids=label)
async def test_a_pop_that_the_transport_sends_twice(fault: Any) -> None:
    """A 404 to a delete that the transport may have repeated removes no second item."""
    line = Line()
    conversation = line.conversation("a", "b", "c")
    session = session_on(line, line.client_over(Lying(line)), conversation)
    await session.get_items()
    line.asked()
    line.on(is_item_delete, fault)
    item = await session.pop_item()
    assert words(item) == "c"
    assert line.texts(conversation) == ["a", "b"]
    assert line.asked() == ["delete item"] * 2
    await agrees(session, line, conversation)


async def test_a_clear_that_the_transport_sends_twice() -> None:
    """A clear whose first answer the transport lost has cleared, and says so."""
    line = Line()
    conversation = line.conversation("a", "b")
    session = session_on(line, line.client_over(Lying(line)), conversation)
    await session.get_items()
    line.on(is_conversation_delete, LOST)
    await session.clear_session()
    with pytest.raises(LookupError):
        line.texts(conversation)
    assert await session.get_items() == []


async def test_a_client_of_a_class_of_its_own() -> None:
    """A subclass of the client may send again by itself: its connect errors are asked about."""
    line = Line()
    conversation = line.conversation("before")
    http = httpx2.AsyncClient(transport=as_httpx_own(line), trust_env=False)
    client = OwnClient(api_key="simulated", base_url="http://simulated/v1", http_client=http)
    client._platform = "Linux"
    session = session_on(line, client, conversation)
    await session.get_items()
    line.asked()
    line.on(is_append, Fail(broken("ConnectError"), commit=True))
    await session.add_items(users("one"))
    assert line.asked() == ["append", "list"]
    assert line.texts(conversation) == ["before", "one"]


async def test_an_authentication_that_takes_two_requests() -> None:
    """Where an authentication may send twice, a connect error is asked about."""

    class Twice(httpx2.Auth):
        def auth_flow(self, request: httpx2.Request) -> Any:
            yield request
            yield request

    line = Line()
    conversation = line.conversation("before")
    client = line.client()
    client._client.auth = Twice()
    session = session_on(line, client, conversation)
    await session.get_items()
    line.on(is_append, None, Fail(broken("ConnectError")))
    await session.add_items(users("one"))
    assert line.texts(conversation) == ["before", "one"]


@pytest.mark.parametrize("status", [307, 308])
async def test_a_connect_error_behind_a_redirect(status: int) -> None:
    """No connection to where a redirect leads says nothing of the request that was redirected."""
    line = Line()
    conversation = line.conversation("before")
    client = line.client()
    client._client.follow_redirects = True
    session = session_on(line, client, conversation)
    await session.get_items()
    line.asked()
    moved = Say(status, headers={"location": "http://elsewhere/v1/conversations"}, commit=True)
    line.on(is_append, moved)
    line.on(lambda request: request.path == "/v1/conversations", Fail(broken("ConnectError")))
    await session.add_items(users("one"))
    assert line.asked() == ["append", "create", "list"]
    assert line.texts(conversation) == ["before", "one"]


async def test_an_event_hook_that_says_connect_error() -> None:
    """An error that the transport did not raise proves nothing, whatever its name."""
    line = Line()
    conversation = line.conversation("before")
    client = line.client()
    session = session_on(line, client, conversation)
    await session.get_items()

    async def hook(response: httpx2.Response) -> None:
        client._client.event_hooks = {}
        raise httpx2.ConnectError("no", request=response.request)

    client._client.event_hooks = {"response": [hook]}
    await session.add_items(users("one"))
    assert line.texts(conversation) == ["before", "one"]


async def test_no_connection_on_httpx_own_transport() -> None:
    """A caller's own client over httpx's own transport is believed: no listing, and no doubt."""
    line = Line()
    conversation = line.conversation("before")
    session = line.session(conversation)
    await session.get_items()
    line.asked()
    line.always(is_append, Fail(broken("ConnectError")))
    line.always(lambda request: request.method == "GET", Fail(broken("ConnectError")))
    with pytest.raises(APIConnectionError):
        await session.add_items(users("one"))
    assert set(line.asked()) == {"append"}
