"""Requests that the tests of faults put to the service."""

from __future__ import annotations

import json

from cached_session.emulator import Request

KEY = {"authorization": "Bearer key"}
ITEMS = [{"role": "user", "content": text} for text in ("a", "b", "c")]
CREATE = Request.parse("POST", "/v1/conversations", KEY)


def append_to(conversation: str) -> Request:
    body = json.dumps({"items": ITEMS}).encode()
    return Request.parse("POST", f"/v1/conversations/{conversation}/items", KEY, body)


def listing_of(conversation: str, query: str = "order=asc") -> Request:
    return Request.parse("GET", f"/v1/conversations/{conversation}/items?{query}", KEY)
