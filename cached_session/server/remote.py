"""The one module that talks to the openai client.

Every request ends in one of three outcomes: applied, refused for certain, or
unknown. Nothing here repeats a request, and once one may have left, nothing
raises but a cancellation.

The client's typed methods are not used: their request transforms cost ten
times the request itself. Its public `get`, `post` and `delete` keep its
authentication, base URL, proxies and timeouts, and the JSON is decoded once,
to what the caller gets.

A server's answers also show what it is like: how it rewrites texts, how many
items it lists in a page. Nothing of it is needed for what is right: where it is
missing, a request more is made, or an outcome stays unknown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import httpx2
import msgspec
from cachetools import LRUCache
from openai import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
)

from cached_session.core.items import Held, Outgoing, body, hold, unhold
from cached_session.core.matching import VERBATIM, Rewriting, learned, text_pairs
from cached_session.core.outcomes import Applied, Attempt, Outcome
from cached_session.events import Meter, RequestFinished
from cached_session.forks import Lock
from cached_session.server.classify import (
    Carrier,
    ClientClosed,
    as_openai_error,
    carrier,
    classify,
)
from cached_session.server.connections import (
    Account,
    Connections,
    account,
    connections,
    settings,
    writing_while,
)

# "A limit on the number of objects to be returned, between 1 and 100"; above
# is answered with HTTP 400. Source: OpenAI's OpenAPI document, recorded traffic.
PAGE = 100


class Server:
    """What is known of a server, as one account sees it.

    Attributes:
        rewriting: How it rewrites the texts that it stores.
        largest_page: How many items it lists in one page at most.
        denies_more: Whether it says on full pages that nothing follows, whatever does.
    """

    def __init__(self) -> None:
        self.rewriting: Rewriting = VERBATIM
        self.largest_page = PAGE
        self.denies_more = False

    def answered(self, sent: Sequence[Outgoing], listed: Sequence[Held]) -> None:
        """Learns from the answer to an append."""
        for item, held in zip(sent, listed, strict=True):
            # Not by `items.decode`, at a sixth of its time: of numbers, which this
            # decoder rounds where they are large, nothing is learned.
            texts = text_pairs(msgspec.json.decode(item), unhold(held))
            self.rewriting = learned(self.rewriting, texts)


_lock = Lock()
# Clients that show no account are one each.
_servers: LRUCache[Account, Server] = LRUCache(256)


def server_of(account: Account) -> Server:
    """What is known of the server of an account, the same object at every call."""
    with _lock:
        found = _servers.get(account)
        if found is None:
            found = _servers[account] = Server()
        return found


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing.

    Attributes:
        items: In the order of the listing.
        has_more: Whether the server says that more follow. Some say so on an
            exactly full last page, and some deny it on every full page.
        full: Whether it has as many items as were asked for.
    """

    items: tuple[Held, ...]
    has_more: bool
    full: bool


class Remote:
    """The Conversations API through one openai client, counted by one session."""

    def __init__(self, client: AsyncOpenAI, meter: Meter) -> None:
        self._client = client
        self._meter = meter
        self._connections: Connections = connections(client)
        self._settings: tuple[object, ...] = ()
        self._server = Server()

    @property
    def server(self) -> Server:
        """What is known of the server that the client's requests go to."""
        # A client's key and base URL may be changed at any time.
        if self._settings != (now := settings(self._client)):
            self._settings, self._server = now, server_of(account(self._client))
        return self._server

    @property
    def sends_once(self) -> bool:
        """Whether no request is sent twice behind our back."""
        return carrier(self._client) is Carrier.HTTPX

    @property
    def account(self) -> Account:
        """The account for which the next request will speak."""
        return account(self._client)

    async def create(self, attempt: Attempt) -> Outcome[str]:
        """Makes a conversation, without items: some servers drop initial ones silently."""

        return await self._request("create", None, "post", "", _id, attempt, content=b"{}")

    async def list_items(
        self,
        conversation_id: str,
        attempt: Attempt,
        *,
        order: Literal["asc", "desc"],
        limit: int,
        after: str | None = None,
    ) -> Outcome[Page]:
        """Lists one page, from the item behind `after` on (exclusive, in both orders)."""
        query: dict[str, object] = {"order": order, "limit": limit}
        if after is not None:
            query["after"] = after

        def parse(answer: Any) -> Page:
            items = _items(answer)
            return Page(items, _expect(answer["has_more"], bool), full=len(items) >= limit)

        return await self._request(
            "list", conversation_id, "get", "/items", parse, attempt, query=query
        )

    async def append(
        self,
        conversation_id: str,
        items: Sequence[Outgoing],
        attempt: Attempt,
        *,
        left: Callable[[], float] | None = None,
    ) -> Outcome[tuple[Held, ...]]:
        """Appends one batch; the answer holds the items as a listing will show them.

        Args:
            conversation_id: The conversation.
            items: The batch.
            attempt: Which attempt it is, and the seconds that it may take.
            left: Tells for how many seconds the items are this process's to send. Nothing is
                written when that is 0, however long the process stood still before; on a
                connection of the caller's own client, only if nobody has looked then. None: they
                always are.
        """

        def parse(answer: Any) -> tuple[Held, ...]:
            held = _items(answer)
            if len(held) != len(items):
                raise ValueError
            return held

        outcome = await self._request(
            "append",
            conversation_id,
            "post",
            "/items",
            parse,
            attempt,
            content=body(items),
            left=left,
        )
        if isinstance(outcome, Applied):
            self.server.answered(items, outcome.value)
        return outcome

    async def delete_item(
        self,
        conversation_id: str,
        item_id: str,
        attempt: Attempt,
        *,
        left: Callable[[], float] | None = None,
    ) -> Outcome[None]:
        """Deletes one item; the answer's body is the conversation and of no use here.

        `left` is as for an append.
        """
        path = f"/items/{_segment(item_id)}"
        return await self._request(
            "delete item", conversation_id, "delete", path, _ignore, attempt, left=left
        )

    async def delete_conversation(
        self,
        conversation_id: str,
        attempt: Attempt,
        *,
        left: Callable[[], float] | None = None,
    ) -> Outcome[None]:
        """Deletes the conversation, and with it every item at once; `left` is as for an append."""
        return await self._request(
            "delete conversation", conversation_id, "delete", "", _ignore, attempt, left=left
        )

    async def _request(
        self,
        operation: str,
        conversation_id: str | None,
        method: Literal["get", "post", "delete"],
        path: str,
        parse: Any,
        attempt: Attempt,
        *,
        query: dict[str, object] | None = None,
        content: bytes | None = None,
        left: Callable[[], float] | None = None,
    ) -> Outcome[Any]:
        clock = asyncio.get_running_loop().time
        started = clock()
        self._meter.requests += 1
        root = "/conversations"
        if conversation_id is not None:
            root = f"{root}/{_segment(conversation_id)}"
        outcome: Outcome[Any]
        response: httpx2.Response | None = None
        # Outside of what may have sent something: a failure here sent nothing.
        pool = self._connections.pool(self._client)
        try:
            # The client's timeouts bound each phase; a server that sends a
            # byte now and then would outlive them all.
            if pool.client.is_closed():
                raise ClientClosed(method, f"{self._client.base_url}{root[1:]}{path}")
            async with asyncio.timeout(attempt.seconds):
                with writing_while(left):
                    response = await self._send(
                        pool.client, method, root + path, attempt.seconds, query, content
                    )
        except Exception as error:
            seen = as_openai_error(error, method, f"{self._client.base_url}{root[1:]}{path}")
            if isinstance(seen, APIConnectionError) and not isinstance(seen, ClientClosed):
                # Not the whole URL: it may hold a user, a password or an id.
                late = isinstance(seen, APITimeoutError)
                said = "no answer in time from" if late else "no answer from"
                seen.add_note(f"{said} {self._client.base_url.netloc.decode('ascii')}")
            outcome = classify(seen, carrier(pool.client))
            if isinstance(seen, APIStatusError):
                response = seen.response
        else:
            outcome = _understand(response, method, parse)
        if self._meter.listening:
            went_wrong = None if isinstance(outcome, Applied) else type(outcome.error).__name__
            self._meter.tell(
                RequestFinished(
                    operation,
                    conversation_id,
                    type(outcome).__name__.lower(),
                    clock() - started,
                    went_wrong,
                    attempt.number,
                    None if response is None else response.status_code,
                    None if response is None else response.headers.get("x-request-id"),
                )
            )
        return outcome

    async def _send(
        self,
        client: AsyncOpenAI,
        method: Literal["get", "post", "delete"],
        path: str,
        timeout: float,
        query: dict[str, object] | None,
        content: bytes | None,
    ) -> httpx2.Response:
        options: Any = {
            # Two retry loops double each other's work, and only ours knows
            # the three outcomes.
            "max_retries": 0,
            "timeout": _phases(self._client.timeout, timeout),
            "security": {"bearer_auth": True},
        }
        if query is not None:
            options["params"] = query
        if method == "get":
            return await client.get(path, cast_to=httpx2.Response, options=options)
        if method == "delete":
            return await client.delete(path, cast_to=httpx2.Response, options=options)
        return await client.post(path, cast_to=httpx2.Response, content=content, options=options)


def _segment(value: str) -> str:
    return quote(value, safe="")


def _phases(own: Any, timeout: float) -> httpx2.Timeout:
    """The client's own timeouts, each cut to what is left for this attempt (seconds)."""
    if own is None or isinstance(own, int | float):
        return httpx2.Timeout(timeout if own is None else min(own, timeout))
    return httpx2.Timeout(
        **{
            phase: timeout if (value := getattr(own, phase)) is None else min(value, timeout)
            for phase in ("connect", "read", "write", "pool")
        }
    )


def _understand(response: httpx2.Response, method: str, parse: Any) -> Outcome[Any]:
    """Reads a 2xx answer. One that cannot be read says nothing about what was done."""
    if response.request.method != method.upper():
        # A 301, 302 or 303 turns a POST or DELETE into a GET, whose answer
        # looks like that of an append.
        moved = APIResponseValidationError(
            response, None, message="the request was redirected and became a GET; check base_url"
        )
        return classify(moved)
    try:
        return Applied(parse(json.loads(response.content)))
    except (ValueError, TypeError, KeyError, LookupError, RecursionError):
        # The cause is left out: its text may quote the answer's content.
        error = APIResponseValidationError(
            response, None, message="the answer is not what the Conversations API sends"
        )
        return classify(error)


def _id(answer: Any) -> Any:
    if not _expect(answer["id"], str):
        raise ValueError
    return answer["id"]


def _items(answer: Any) -> tuple[Held, ...]:
    return tuple(map(_item, _expect(answer["data"], list)))


def _item(item: Any) -> Held:
    _id(_expect(item, dict))
    return hold(item)


def _ignore(_: Any) -> None:
    return None


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
