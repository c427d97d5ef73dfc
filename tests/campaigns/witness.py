"""What stands behind the emulator's sockets: a witness of every commit, and a way to forward."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx2

from cached_session.emulator import Fault, FaultKind, FaultPlan, Request, Response
from tests.campaigns.account import Served, text_of
from tests.campaigns.menu import KEY

PATIENCE = 20.0
"""Seconds that a forwarded request may take. The client of a test gives up long before."""


class Handler(Protocol):
    """What the emulator asks of its service."""

    def handle(self, request: Request) -> Response: ...

    def items(self, conversation_id: str) -> list[dict[str, Any]]: ...


class Forwarding:
    """Carries every request over HTTP to another server.

    `Emulator(service=Forwarding(upstream))` is then a proxy, and every fault
    of the emulator befalls the other server's clients.

    Args:
        upstream: The other server's base URL, with the `/v1` at its end.
    """

    def __init__(self, upstream: str) -> None:
        self._host = upstream.removesuffix("/v1")
        self._client = httpx2.Client(trust_env=False, timeout=PATIENCE)

    def handle(self, request: Request) -> Response:
        """Answers what the other server answers."""
        answer = self._client.request(
            request.method,
            self._host + quote(request.path),
            params=list(request.query),
            content=request.body,
            headers=_end_to_end(request.headers),
        )
        return Response(
            answer.status_code,
            answer.content,
            {"content-type": answer.headers.get("content-type", "application/json")},
        )

    def items(self, conversation_id: str) -> list[dict[str, Any]]:
        """Everything that the other server lists, oldest first."""
        items: list[dict[str, Any]] = []
        more = True
        while more:
            query = [("order", "asc"), ("limit", "100")]
            if items:
                query.append(("after", items[-1]["id"]))
            path = f"/v1/conversations/{conversation_id}/items"
            page = self.handle(Request("GET", path, tuple(query), KEY)).json()
            items.extend(page["data"])
            more = page["has_more"] and bool(page["data"])
        return items

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in ("authorization", "content-type")
    }


class Witness:
    """A service in front of another one that notes what every change leaves behind.

    Attributes:
        account: Where each state of the watched conversation is noted, with its time.
        made: Ids of the conversations that were made, in order.
        split: Items of batches of which only a part was stored at first.
        resets: How often it was reset: nobody does that here.
    """

    resets = 0

    def __init__(self, service: Handler, account: Served | None = None) -> None:
        self.account = account or Served()
        self.made: list[str] = []
        self.split: set[str] = set()
        self._service = service
        self._watched: str | None = None
        self._late: list[Request] = []
        self._lock = threading.RLock()

    def watch(self, conversation_id: str) -> None:
        """Notes the states of this conversation from now on."""
        with self._lock:
            self._watched = conversation_id
            self._note()

    def handle(self, request: Request) -> Response:
        """Answers as the service behind does."""
        with self._lock:
            response = self._service.handle(request)
            if request.method != "GET":
                self._note()
            if request.path == "/v1/conversations" and response.status == 200:
                self.made.append(response.json()["id"])
            self._late = [late for late in self._late if late is not request]
        return response

    def handle_late(self, request: Request, resets: int) -> None:
        """Carries out a request that was held back, as the service behind does."""
        assert resets == self.resets
        self.handle(request)

    def items(self, conversation_id: str) -> list[dict[str, Any]]:
        """What the service behind holds, oldest first."""
        with self._lock:
            return self._service.items(conversation_id)

    def make(self, texts: Sequence[str]) -> str:
        """Makes a conversation that holds messages, and returns its id."""
        made = self.handle(Request("POST", "/v1/conversations", (), KEY, b"{}")).json()["id"]
        for start in range(0, len(texts), 20):
            items = [{"role": "user", "content": text} for text in texts[start : start + 20]]
            body = json.dumps({"items": items}).encode()
            self.handle(Request("POST", f"/v1/conversations/{made}/items", (), KEY, body))
        return str(made)

    def planned(self, plan: FaultPlan, told: Callable[[Fault], None]) -> FaultPlan:
        """A plan that decides as `plan` does and lets the witness know what is coming.

        Args:
            plan: The plan.
            told: Called with every fault, in the server's thread.
        """

        def decide(request: Request) -> Fault | None:
            fault = plan(request)
            if fault is not None:
                told(fault)
                if fault.kind is FaultKind.LATE_COMMIT:
                    with self._lock:
                        self._late.append(request)
                if fault.kind is FaultKind.PARTIAL_BATCH:
                    self.split.update(map(text_of, json.loads(request.body)["items"]))
            return fault

        return decide

    def settled(self) -> bool:
        """Whether no commit is outstanding that a fault put off."""
        with self._lock:
            return not self._late

    def stopped(self) -> None:
        """Notes that the server was stopped: what was put off never comes."""
        with self._lock:
            self._late.clear()

    def _note(self) -> None:
        if self._watched is not None:
            items = self._service.items(self._watched)
            listing = tuple(json.dumps(item, sort_keys=True) for item in items)
            self.account.state(time.monotonic(), listing)
