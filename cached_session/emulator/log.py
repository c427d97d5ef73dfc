"""The log of requests: what came, what was decided, what was answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .faults import Fault, FaultKind
from .outcomes import Outcome
from .requests import conversation_of, is_listing, items_in
from .wire import Request

__all__ = ["LoggedRequest", "RequestLog"]


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request in the log, noted when it was carried out, before the client sees an answer.

    Attributes:
        method: HTTP method.
        path: Path without the query.
        query: Query pairs.
        status: HTTP status sent, or None where no answer was sent.
        fault: Kind of the fault that befell it, or None.
        conversation_id: Conversation named in the path, or None.
        items: How many items it sent, or for a listing how many it was answered with.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    status: int | None
    fault: FaultKind | None
    conversation_id: str | None
    items: int

    @classmethod
    def of(cls, request: Request, fault: Fault | None, outcome: Outcome) -> LoggedRequest:
        """Makes the entry of a request."""
        if is_listing(request):
            items = 0 if outcome.response is None else items_in(outcome.response.body, "data")
        else:
            items = items_in(request.body)
        return cls(
            method=request.method,
            path=request.path,
            query=request.query,
            status=outcome.status,
            fault=None if fault is None else fault.kind,
            conversation_id=conversation_of(request),
            items=items,
        )

    def __str__(self) -> str:
        query = "&".join(f"{key}={value}" for key, value in self.query)
        target = f"{self.path}?{query}" if query else self.path
        answer = "no answer" if self.status is None else str(self.status)
        fault = "" if self.fault is None else f"  [{self.fault}]"
        return f"{self.method:6} {target} -> {answer}, items: {self.items}{fault}"


class RequestLog:
    """A list of requests that several threads may read and write."""

    def __init__(self, on_request: Callable[[LoggedRequest], None] | None = None) -> None:
        """Creates an empty log.

        Args:
            on_request: Called with each new entry, in the thread that serves the request.
        """
        self._entries: list[LoggedRequest] = []
        self._lock = threading.Lock()
        self._on_request = on_request

    def add(self, entry: LoggedRequest) -> None:
        """Appends an entry."""
        with self._lock:
            self._entries.append(entry)
        if self._on_request is not None:
            self._on_request(entry)

    def snapshot(self) -> list[LoggedRequest]:
        """Returns the entries so far, oldest first."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Forgets every entry."""
        with self._lock:
            self._entries.clear()
