"""A network without sockets: the emulator's service behind an in-memory HTTP transport.

The service and the fault plan are the emulator's own; only the five sights of
a fault are performed here, in virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import httpcore2
import httpx2
from openai import AsyncOpenAI

from cached_session.emulator import (
    ConversationStore,
    Fault,
    Habits,
    Request,
    Service,
    Sight,
    carry_out,
    seeded_ids,
)
from cached_session.emulator.visibility import as_listed

Plan = Callable[[Request], Fault | None]

_numbers = itertools.count()


def connect_error() -> httpx2.ConnectError:
    """What httpx's own transport raises where no connection comes about."""
    error = httpx2.ConnectError("connection refused")
    error.__cause__ = httpcore2.ConnectError("connection refused")
    return error


def as_httpx_own(transport: httpx2.AsyncBaseTransport) -> httpx2.AsyncHTTPTransport:
    """A transport in the shape of httpx's own, of which is known that it sends once."""
    own = httpx2.AsyncHTTPTransport(verify=False, trust_env=False)
    own.handle_async_request = transport.handle_async_request  # type: ignore[method-assign]
    return own


class Network(httpx2.AsyncBaseTransport):
    """Carries requests to one service, as badly as a plan has it.

    Attributes:
        service: Answers the requests.
        in_flight: Requests that have not ended.
        committed: Called after every request that may have changed the service.
        cut_off: Called with a request whose client was gone before it was carried out.
        trace: One line a request: time, request, fault, what the client saw.
    """

    def __init__(self, seed: int, plan: Plan, *, latency: float, habits: Habits) -> None:
        self.service = Service(ConversationStore(new_id=seeded_ids(seed)), habits=habits)
        self.plan: Plan = plan
        self.in_flight = 0
        self.trace: list[str] = []
        self.committed: Callable[[], None] = lambda: None
        self.cut_off: Callable[[Request], None] = lambda request: None
        self._latency = latency
        self._random = random.Random(f"{seed}:network")
        self._away_until = 0.0
        # What one run has learned of its server is nothing to another.
        self._key = f"simulated {next(_numbers)}"
        self._shown: dict[str, str] = {}
        # Requests that may still be carried out.
        self._undone: list[Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        loop = asyncio.get_running_loop()
        plain = Request.parse(
            request.method,
            request.url.raw_path.decode(),
            dict(request.headers),
            await request.aread(),
        )
        self.in_flight += 1
        try:
            self._undone.append(plain)
            try:
                await asyncio.sleep(self._latency * self._random.uniform(0.2, 1.0))
            except asyncio.CancelledError:
                self.cut_off(plain)
                raise
            finally:
                self._undone.remove(plain)
            if loop.time() < self._away_until:
                self._note(plain, "away", "refused")
                raise connect_error()
            fault = self.plan(plain)
            outcome = carry_out(self.service, plain, fault)
            self.committed()
            self._note(plain, None if fault is None else fault.kind, outcome.sight)
            if outcome.late is not None:
                self.later(outcome.late, plain)
            await asyncio.sleep(self._latency * self._random.uniform(0.2, 1.0))
            match outcome.sight:
                case Sight.RESET:
                    raise httpx2.ReadError("connection reset")
                case Sight.TRUNCATED:
                    raise httpx2.RemoteProtocolError("peer closed connection")
                case Sight.REFUSED:
                    self._away_until = loop.time() + outcome.delay
                    raise connect_error()
                case Sight.SILENCE:
                    await asyncio.get_running_loop().create_future()
                case Sight.ANSWER:
                    await asyncio.sleep(outcome.delay)
            assert outcome.response is not None
            return httpx2.Response(
                outcome.response.status,
                headers=dict(outcome.response.headers),
                content=outcome.response.body,
                request=request,
            )
        finally:
            self.in_flight -= 1

    def later(self, seconds: float, request: Request) -> None:
        """Carries a request out when nobody waits for its answer any more."""
        self._undone.append(request)
        asyncio.get_running_loop().call_later(seconds, self._late, request)

    def undone(self, conversation_id: str) -> bool:
        """Whether a request may still be carried out that changes a conversation."""
        return any(
            request.method != "GET" and conversation_id in request.path for request in self._undone
        )

    def _late(self, request: Request) -> None:
        self._undone.remove(request)
        self.service.handle(request)
        self._note(request, "late_commit", "applied now")
        self.committed()

    def _note(self, request: Request, fault: str | None, sight: str) -> None:
        now = asyncio.get_running_loop().time()
        query = "&".join(f"{name}={value[:16]}" for name, value in request.query)
        self.trace.append(
            f"{now:9.3f} {request.method:6} {request.path[-60:]} {query} {fault or '-'} {sight}"
        )

    def listing(self, conversation_id: str) -> tuple[str, ...]:
        """What a listing of everything would show, each item as JSON; items never change."""
        store = self.service.store
        for item_id in store.conversation(conversation_id).entries:
            if item_id not in self._shown:
                item = as_listed(store.item(conversation_id, item_id), frozenset())
                self._shown[item_id] = json.dumps(item, sort_keys=True)
        return tuple(
            self._shown[item_id] for item_id in store.conversation(conversation_id).entries
        )

    def shown(self, item_id: str) -> str | None:
        """What a listing shows or showed of an item, as JSON; None: it was never there."""
        return self._shown.get(item_id)

    def shown_item(self, item_id: str) -> dict[str, Any] | None:
        """The same, decoded."""
        shown = self._shown.get(item_id)
        return None if shown is None else json.loads(shown)

    def client(self, transport: httpx2.AsyncBaseTransport | None = None) -> AsyncOpenAI:
        """An openai client on this network, over a transport that leads to it, or directly."""
        return self.client_over(as_httpx_own(transport or self))

    def client_over(self, transport: httpx2.AsyncBaseTransport) -> AsyncOpenAI:
        """An openai client over a transport as it is: nobody knows what that one does."""
        client = AsyncOpenAI(
            api_key=self._key,
            base_url="http://simulated/v1",
            http_client=httpx2.AsyncClient(transport=transport, trust_env=False),
        )
        # The client asks for the platform in a thread, which a simulated loop has none of.
        client._platform = "Linux"
        return client
