"""What each status and each exception means for an append: the three outcomes, row by row."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2
import openai
import pytest

from cached_session import AppendOutcomeUnknown
from cached_session.emulator import FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import Fail, Line, Reaction, Say, error, notes, policy
from tests.session.support import users

ATTEMPTS = 4


@dataclass(frozen=True)
class Row:
    """One way in which a request ends.

    Attributes:
        name: Of the row.
        reaction: What happens, without the request being carried out.
        known: Whether it is certain then that nothing was done: refused, not unknown.
        again: Whether the request is repeated.
        raised: What the caller gets if it goes on like that.
        after: The same when the request was carried out, if it can have been.
    """

    name: str
    reaction: Reaction
    known: bool
    again: bool
    raised: type[Exception]
    after: Reaction | None = None

    def __str__(self) -> str:
        return self.name


def refused(status: int, raised: type[Exception], *, again: bool = False, **more: Any) -> Row:
    name = " ".join([str(status), *(str(value) for value in more.values())])
    return Row(name, error(status, **more), True, again, raised)


def unknown(status: int, raised: type[Exception], *, again: bool = True, **more: Any) -> Row:
    name = " ".join([str(status), *(str(value) for value in more.values())])
    before, after = error(status, **more), error(status, commit=True, **more)
    return Row(name, before, False, again, raised, after)


def unknown_page(status: int, raised: type[Exception], *, again: bool) -> Row:
    """A refusal that is not the service's own."""
    return Row(
        f"{status} page",
        Say(status, b"<html>"),
        False,
        again,
        raised,
        Say(status, b"<html>", commit=True),
    )


def raises(
    name: str,
    *,
    sent: bool,
    again: bool = True,
    raised: type[Exception] = openai.APIConnectionError,
) -> Row:
    after = Fail(broken(name), commit=True) if sent else None
    return Row(name, Fail(broken(name)), not sent, again, raised, after)


def broken(name: str) -> Exception:
    """An exception as httpx's own transport raises it, with its reason."""
    error: Exception = getattr(httpx2, name)("x")
    error.__cause__ = getattr(httpcore2, name, OSError)("x")
    return error


def odd(name: str, body: object, **more: Any) -> Row:
    """A 200 that cannot be read."""
    before, after = Say(200, body, **more), Say(200, body, commit=True, **more)
    return Row(f"200 {name}", before, False, True, openai.APIResponseValidationError, after)


ITEM = {"id": "msg_1", "type": "message", "role": "user", "content": []}
QUOTA = {"retry-after": "1"}
SOON = {"retry-after-ms": "10"}

REFUSALS = [
    refused(400, openai.BadRequestError),
    refused(400, openai.BadRequestError, code="conversation_locked", again=True),
    refused(400, openai.BadRequestError, code="item_already_in_conversation"),
    refused(400, openai.BadRequestError, headers={"x-should-retry": "true"}, again=True),
    refused(401, openai.AuthenticationError),
    refused(403, openai.PermissionDeniedError),
    refused(404, openai.NotFoundError),
    refused(405, openai.APIStatusError),
    refused(409, openai.ConflictError, again=True),
    refused(413, openai.APIStatusError),
    refused(422, openai.UnprocessableEntityError),
    refused(425, openai.APIStatusError, again=True),
    refused(429, openai.RateLimitError, again=True),
    refused(429, openai.RateLimitError, code="rate_limit_exceeded", again=True),
    refused(429, openai.RateLimitError, headers={"x-should-retry": "false"}),
    refused(429, openai.RateLimitError, code="billing_hard_limit_reached"),
    refused(429, openai.RateLimitError, code="project_spend_limit_exceeded"),
    refused(429, openai.RateLimitError, code="insufficient_quota"),
    refused(429, openai.RateLimitError, code="insufficient_quota", headers=QUOTA),
    refused(429, openai.RateLimitError, code="rate_limit_exceeded", headers=SOON, again=True),
    refused(429, openai.RateLimitError, headers={"retry-after": "1"}, again=True),
    raises("ConnectError", sent=False),
    raises("ConnectTimeout", sent=False, raised=openai.APITimeoutError),
    raises("PoolTimeout", sent=False, raised=openai.APITimeoutError),
    raises("ProxyError", sent=False),
    raises("UnsupportedProtocol", sent=False, again=False),
]

UNKNOWN = [
    *(unknown(status, openai.APIStatusError, again=False) for status in (300, 302, 304, 307)),
    unknown(408, openai.APIStatusError),
    *(unknown(status, openai.InternalServerError) for status in (500, 501, 502, 503, 504, 529)),
    unknown(500, openai.InternalServerError, headers={"x-should-retry": "false"}, again=False),
    unknown_page(429, openai.RateLimitError, again=True),
    unknown_page(409, openai.ConflictError, again=True),
    Row("503 page", Say(503, b"<html>"), False, True, openai.InternalServerError),
    raises("ReadTimeout", sent=True, raised=openai.APITimeoutError),
    raises("WriteTimeout", sent=True, raised=openai.APITimeoutError),
    raises("ReadError", sent=True),
    raises("WriteError", sent=True),
    raises("CloseError", sent=True),
    raises("RemoteProtocolError", sent=True),
    raises("LocalProtocolError", sent=True),
    raises("TooManyRedirects", sent=True),
    raises("DecodingError", sent=True),
    Row(
        "RuntimeError",
        Fail(RuntimeError("Event loop is closed")),
        False,
        True,
        openai.APIConnectionError,
        Fail(RuntimeError("Event loop is closed"), commit=True),
    ),
    Row("no answer", FaultKind.HANG, False, True, openai.APITimeoutError),
    odd("empty", b""),
    odd("HTML", b"<html></html>", headers={"content-type": "text/html"}),
    odd("half", b'{"object": "list", "data": ['),
    odd("not UTF-8", b"\xff\xfe\x00"),
    odd("deeply nested", b"[" * 100_000),
    odd("null", None),
    odd("a number", 7),
    odd("a list", [ITEM, ITEM]),
    odd("a string", "ok"),
    odd("{}", {}),
    odd("no data", {"object": "list", "has_more": False}),
    odd("data null", {"object": "list", "data": None}),
    odd("data an object", {"object": "list", "data": {"0": ITEM, "1": ITEM}}),
    odd("items null", {"object": "list", "data": [None, None]}),
    odd("items without id", {"object": "list", "data": [{"type": "message"}] * 2}),
    odd("ids are numbers", {"object": "list", "data": [{**ITEM, "id": 1}] * 2}),
    odd("no items", {"object": "list", "data": []}),
    odd("fewer items", {"object": "list", "data": [ITEM]}),
    odd("more items", {"object": "list", "data": [ITEM, ITEM, ITEM]}),
    odd("not gzip", b"plain", headers={"content-encoding": "gzip"}),
]
UNKNOWN[-1] = Row(**{**vars(UNKNOWN[-1]), "raised": openai.APIConnectionError})


async def prepare() -> tuple[Line, Any, str]:
    line = Line()
    conversation = line.conversation("before")
    session = line.session(conversation, retry=policy(max_attempts=ATTEMPTS, attempt_timeout=1))
    await session.get_items()
    line.asked()
    return line, session, conversation


@pytest.mark.parametrize("row", REFUSALS, ids=str)
async def test_refused_once(row: Row) -> None:
    """What was refused for certain is sent again without a listing, if that may help."""
    line, session, conversation = await prepare()
    line.on(is_append, row.reaction)
    if row.again:
        await session.add_items(users("one", "two"))
        assert line.asked() == ["append", "append"]
        assert line.texts(conversation) == ["before", "one", "two"]
    else:
        with pytest.raises(row.raised) as caught:
            await session.add_items(users("one", "two"))
        assert type(caught.value).__module__.startswith("openai")
        assert "nothing was stored" in notes(caught.value)
        assert line.asked() == ["append"]
        assert line.texts(conversation) == ["before"]


@pytest.mark.parametrize("row", REFUSALS, ids=str)
async def test_refused_for_good(row: Row) -> None:
    """A refusal reaches the caller as the openai exception that it is, with nothing sent twice."""
    line, session, conversation = await prepare()
    line.always(is_append, row.reaction)
    with pytest.raises(row.raised) as caught:
        await session.add_items(users("one", "two"))
    assert line.asked() == ["append"] * (ATTEMPTS if row.again else 1)
    assert line.texts(conversation) == ["before"]
    assert "nothing was stored" in notes(caught.value)
    assert (f"given up after {ATTEMPTS} attempts" in notes(caught.value)) == row.again


@pytest.mark.parametrize("row", UNKNOWN, ids=str)
async def test_unknown_and_not_applied(row: Row) -> None:
    """An unknown outcome is asked about before anything is sent again."""
    line, session, conversation = await prepare()
    line.on(is_append, row.reaction)
    if row.again:
        await session.add_items(users("one", "two"))
        # The last one looks whether the first send came late.
        assert line.asked() == ["append", "list", "append", "list"]
        assert line.texts(conversation) == ["before", "one", "two"]
    else:
        with pytest.raises(row.raised) as caught:
            await session.add_items(users("one", "two"))
        assert "nothing was stored" in notes(caught.value)
        assert line.asked() == ["append", "list"]
        assert line.texts(conversation) == ["before"]
    assert len(await session.get_items()) == len(line.texts(conversation))


@pytest.mark.parametrize("row", [row for row in UNKNOWN if row.after], ids=str)
async def test_unknown_and_applied(row: Row) -> None:
    """What was applied without an answer is found there and not sent again."""
    line, session, conversation = await prepare()
    line.on(is_append, row.after)
    await session.add_items(users("one", "two"))
    assert line.asked() == ["append", "list"]
    assert line.texts(conversation) == ["before", "one", "two"]
    assert await session.get_items() == line.service.items(conversation)
    assert session.stats.reconciliations == 1


@pytest.mark.parametrize("row", UNKNOWN, ids=str)
async def test_unknown_for_good(row: Row) -> None:
    """An outcome that stays unknown is asked about after the last attempt, too."""
    line, session, conversation = await prepare()
    line.always(is_append, row.reaction)
    with pytest.raises(row.raised) as caught:
        await session.add_items(users("one", "two"))
    assert line.asked() == ["append", "list"] * (ATTEMPTS if row.again else 1)
    assert line.texts(conversation) == ["before"]
    assert "nothing was stored" in notes(caught.value)


@pytest.mark.parametrize("row", [*REFUSALS, *UNKNOWN], ids=str)
async def test_the_server_cannot_be_asked(row: Row) -> None:
    """Without an answer to the question what landed, a refusal stays one and doubt stays doubt."""
    line, session, conversation = await prepare()
    line.always(is_append, row.reaction)
    line.always(lambda request: request.method == "GET", error(503))
    with pytest.raises(row.raised if row.known else AppendOutcomeUnknown) as caught:
        await session.add_items(users("one", "two"))
    if not row.known:
        assert isinstance(caught.value, AppendOutcomeUnknown)
        assert (caught.value.landed, caught.value.total) == (0, 2)
        assert caught.value.conversation_id == conversation
    line.heal()
    assert await session.get_items() == line.service.items(conversation)


@pytest.mark.parametrize("field", ["object", "first_id", "last_id", "has_more"])
async def test_fields_of_the_answer_that_nobody_needs(field: str) -> None:
    """An append's answer that holds the items is an answer, whatever else it leaves out."""
    line, session, conversation = await prepare()
    listed = {**ITEM, "id": "msg_new", "content": [{"type": "input_text", "text": "one"}]}
    envelope = {"object": "list", "data": [listed], "first_id": "", "last_id": "", "has_more": True}
    del envelope[field]
    line.on(is_append, Say(200, envelope, commit=True))
    await session.add_items(users("one"))
    assert line.asked() == ["append"]
    assert line.texts(conversation) == ["before", "one"]


async def test_a_programming_error_below() -> None:
    """An exception that nobody expects leaves the outcome unknown, and is not repeated."""
    line, session, conversation = await prepare()
    # The client takes it for a broken connection; so the caller sees one, with its cause.
    line.on(is_append, *[Fail(ZeroDivisionError(), commit=True)])
    await session.add_items(users("one"))
    assert line.texts(conversation) == ["before", "one"]
    assert line.asked() == ["append", "list"]


async def test_at_most_one_request_at_a_time() -> None:
    """Appends from many tasks under a lost answer stand whole and in order of arrival."""
    line, session, conversation = await prepare()
    line.on(is_append, None, FaultKind.RESET_AFTER_COMMIT, FaultKind.RESET_BEFORE_COMMIT)
    await asyncio.gather(*(session.add_items(users(f"{n}a", f"{n}b")) for n in range(4)))
    expected = [f"{number}{half}" for number in range(4) for half in "ab"]
    assert line.texts(conversation) == ["before", *expected]
