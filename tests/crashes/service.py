"""What stands behind the emulator's sockets: the service, and which commits are still to come."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from cached_session.emulator import (
    ConversationStore,
    Fault,
    FaultKind,
    FaultPlan,
    Request,
    Response,
    Service,
    random_ids,
)

_KEY = {"authorization": "Bearer key"}


class Watched:
    """A service that knows what it made and what was put off.

    Attributes:
        made: Ids of the conversations that were made, in order.
        faults: How often each kind of fault came.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.faults: Counter[str] = Counter()
        self._service = Service(ConversationStore(new_id=random_ids()))
        self._late: list[Request] = []
        self._lock = threading.Lock()

    def handle(self, request: Request) -> Response:
        """Answers as the service does."""
        with self._lock:
            response = self._service.handle(request)
            if request.path == "/v1/conversations" and response.status == 200:
                self.made.append(response.json()["id"])
            self._late = [late for late in self._late if late is not request]
        return response

    def items(self, conversation_id: str) -> list[dict[str, Any]]:
        """What a conversation holds, oldest first."""
        with self._lock:
            return self._service.items(conversation_id)

    def make(self, texts: list[str]) -> str:
        """Makes a conversation that holds messages, and returns its id."""
        made = self.handle(Request("POST", "/v1/conversations", (), _KEY, b"{}")).json()["id"]
        for start in range(0, len(texts), 20):
            items = [{"role": "user", "content": text} for text in texts[start : start + 20]]
            body = json.dumps({"items": items}).encode()
            self.handle(Request("POST", f"/v1/conversations/{made}/items", (), _KEY, body))
        return str(made)

    def planned(self, plan: FaultPlan) -> FaultPlan:
        """The plan, with what it decides noted."""

        def decide(request: Request) -> Fault | None:
            fault = plan(request)
            if fault is not None:
                with self._lock:
                    self.faults[fault.kind] += 1
                    if fault.kind is FaultKind.LATE_COMMIT:
                        self._late.append(request)
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
