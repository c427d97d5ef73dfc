"""A line to the emulator's service on which a test decides about each request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
import pytest

from cached_session import CachedSession, ConversationCache, RetryBudget, RetryPolicy
from cached_session.emulator import Fault, FaultKind, Habits, Request
from cached_session.emulator.faults import applies
from cached_session.emulator.requests import is_append, is_create, is_item_delete, is_listing
from tests.faults.virtual import now
from tests.session.support import KEY, users
from tests.simulation.network import Network

ENOUGH = 3000
"""Requests after which a test is taken to go on without end."""

LOST = FaultKind.RESET_AFTER_COMMIT
CUT = FaultKind.RESET_BEFORE_COMMIT

Kind: TypeAlias = Callable[[Request], bool]


@dataclass(frozen=True)
class Say:
    """An answer of the test's own making.

    Attributes:
        status: HTTP status.
        body: Bytes as they are, or a value to be sent as JSON.
        headers: Header fields.
        commit: Whether the request is carried out before.
        late: Seconds after which it is carried out, or None.
    """

    status: int
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    commit: bool = False
    late: float | None = None


@dataclass(frozen=True)
class Fail:
    """An exception of the HTTP layer; `commit` and `late` as in `Say`."""

    error: Exception
    commit: bool = False
    late: float | None = None


@dataclass(frozen=True)
class Do:
    """Something that happens at the server before the request is carried out."""

    action: Callable[[], object]
    then: Reaction | None = None


Reaction: TypeAlias = Fault | FaultKind | Say | Fail | Do


def error(status: int, code: str | None = None, *, param: str | None = None, **more: Any) -> Say:
    """A refusal in the API's own words; `more` goes to `Say`."""
    envelope = {"message": "no", "type": "invalid_request_error", "param": param, "code": code}
    return Say(status, {"error": envelope}, **more)


class _Said(Exception):
    def __init__(self, answer: Say) -> None:
        self.answer = answer


def is_conversation_delete(request: Request) -> bool:
    return request.method == "DELETE" and not is_item_delete(request)


def any_request(request: Request) -> bool:
    return True


_NAMES: dict[str, Kind] = {
    "create": is_create,
    "append": is_append,
    "list": is_listing,
    "delete item": is_item_delete,
    "delete conversation": is_conversation_delete,
}


class Line(Network):
    """A network on which nothing goes wrong but what a test asks for.

    Attributes:
        sent: What was asked for, request by request.
        times: When, on the loop's clock.
        requests: The requests themselves.
    """

    def __init__(self, *, latency: float = 0.0, habits: Habits | None = None) -> None:
        super().__init__(1, self._decide, latency=latency, habits=habits or Habits())
        self.sent: list[str] = []
        self.times: list[float] = []
        self.requests: list[Request] = []
        self._scripts: list[tuple[Kind, Iterable[Reaction | None]]] = []
        self.openai = self.client()

    def on(self, kind: Kind, *reactions: Reaction | None) -> None:
        """Decides about the next requests of a kind; then nothing goes wrong any more.

        A fault that its request cannot suffer leaves that request alone.
        """
        self._scripts.append((kind, iter(reactions)))

    def always(self, kind: Kind, reaction: Reaction) -> None:
        """Decides about every request of a kind, until `heal`."""
        self._scripts.append((kind, iter(lambda: reaction, None)))

    def heal(self) -> None:
        """Lets every request through from now on."""
        self._scripts.clear()

    def session(self, conversation_id: str | None = None, **options: Any) -> CachedSession:
        """A session on this line, with a copy of its own unless a cache is given."""
        settings = {"cache": ConversationCache(), "retry": policy(), **options}
        return CachedSession(conversation_id=conversation_id, openai_client=self.openai, **settings)

    def conversation(self, *texts: str) -> str:
        """Makes a conversation, past the line."""
        made = self.call("POST", "/v1/conversations")
        if texts:
            self.append(made["id"], *texts)
        return str(made["id"])

    def append(self, conversation: str, *texts: str) -> None:
        """Another writer appends, past the line."""
        self.call("POST", f"/v1/conversations/{conversation}/items", {"items": users(*texts)})

    def remove(self, conversation: str, *texts: str) -> None:
        """Another writer removes items, past the line."""
        for item in self.service.items(conversation):
            if words(item) in texts:
                self.call("DELETE", f"/v1/conversations/{conversation}/items/{item['id']}")

    def delete(self, conversation: str) -> None:
        """Another writer deletes the conversation, past the line."""
        self.call("DELETE", f"/v1/conversations/{conversation}")

    def texts(self, conversation: str) -> list[str]:
        """What is on the server."""
        return [words(item) for item in self.service.items(conversation)]

    async def past(self, when: float) -> None:
        """Waits until just after a moment, on the loop's clock."""
        await asyncio.sleep(max(0.0, when - now()) + 0.001)

    def asked(self) -> list[str]:
        """What was asked for since the last call."""
        sent, self.sent = self.sent, []
        self.times, self.requests = [], []
        return sent

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()  # of a request that was redirected, nothing is read yet
        plain = Request.parse(
            request.method, request.url.raw_path.decode(), dict(request.headers), body
        )
        self.sent.append(next(name for name, kind in _NAMES.items() if kind(plain)))
        self.times.append(now())
        self.requests.append(plain)
        if len(self.sent) > ENOUGH:
            pytest.fail("there is no end of requests")
        try:
            async with asyncio.timeout(request.extensions["timeout"]["read"]):
                return await super().handle_async_request(request)
        except TimeoutError as over:
            raise httpx2.ReadTimeout("no answer in time") from over
        except _Said as said:
            answer = said.answer.body
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            return httpx2.Response(
                said.answer.status, headers=said.answer.headers, content=content, request=request
            )

    def _decide(self, request: Request) -> Fault | None:
        for kind, reactions in self._scripts:
            if kind(request):
                return self._react(request, next(iter(reactions), None))
        return None

    def _react(self, request: Request, reaction: Reaction | None) -> Fault | None:
        if isinstance(reaction, Do):
            reaction.action()
            return self._react(request, reaction.then)
        if isinstance(reaction, Say | Fail):
            if reaction.commit:
                self.service.handle(request)
            if reaction.late is not None:
                asyncio.get_running_loop().call_later(reaction.late, self.service.handle, request)
            raise _Said(reaction) if isinstance(reaction, Say) else reaction.error
        fault = Fault(reaction) if isinstance(reaction, FaultKind) else reaction
        return fault if fault is not None and applies(fault.kind, request) else None

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Another writer makes a request, past the line."""
        content = json.dumps({} if body is None else body).encode()
        response = self.service.handle(Request.parse(method, path, KEY, content))
        assert response.status == 200, response.body
        return response.json()


def policy(**options: Any) -> RetryPolicy:
    """A policy without chance: each wait is the shortest that may be drawn."""
    settings = {"random": lambda: 0.0, "budget": RetryBudget(1000, 1000), **options}
    return RetryPolicy(**settings)


def words(item: Any) -> str:
    """What a test knows an item by: its text, or its type and call."""
    if "content" not in item or item.get("type") == "reasoning":
        return f"{item['type']} {item.get('call_id', item.get('id'))}"
    content = item["content"]
    return content if isinstance(content, str) else str(content[0].get("text", "picture"))


def notes(error: BaseException) -> str:
    """An exception's notes, as one text."""
    return "\n".join(getattr(error, "__notes__", ()))


async def opened(*texts: str, **options: Any) -> tuple[Line, Any, str]:
    """A line, a session that has read its conversation, and the conversation."""
    line = Line()
    conversation = line.conversation(*texts)
    session = line.session(conversation, **options)
    await session.get_items()
    line.asked()
    return line, session, conversation


async def agrees(session: Any, line: Line, conversation: str) -> None:
    """The next read shows what the server has."""
    assert await session.get_items() == line.service.items(conversation)


def label(value: Any) -> str:
    """A short name of a fault, an operation or an answer, for the name of a test."""
    if isinstance(value, Fault):
        return f"{value.kind} {'silent ' * value.silent}{value.delay:g}/{value.items}"
    if isinstance(value, Say):
        return str(value.status)
    return getattr(value, "__name__", None) or str(value)
