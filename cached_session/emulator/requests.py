"""What a request asks for, read off it without answering it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from .wire import Request

__all__ = [
    "conversation_of",
    "first_items",
    "is_append",
    "is_change",
    "is_conversation_delete",
    "is_create",
    "is_item_delete",
    "is_listing",
    "items_in",
]


def _below(request: Request) -> tuple[str, ...]:
    segments = request.segments() or ()
    return segments[1:] if segments[:1] == ("conversations",) else ()


def is_create(request: Request) -> bool:
    """Tells whether the request makes a conversation."""
    return request.method == "POST" and request.segments() == ("conversations",)


def is_append(request: Request) -> bool:
    """Tells whether the request appends items."""
    return request.method == "POST" and _below(request)[1:] == ("items",)


def is_listing(request: Request) -> bool:
    """Tells whether the request lists items."""
    return request.method == "GET" and _below(request)[1:] == ("items",)


def is_item_delete(request: Request) -> bool:
    """Tells whether the request deletes one item."""
    below = _below(request)
    return request.method == "DELETE" and len(below) == 3 and below[1] == "items"


def is_conversation_delete(request: Request) -> bool:
    """Tells whether the request deletes a conversation."""
    return request.method == "DELETE" and len(_below(request)) == 1


def is_change(request: Request) -> bool:
    """Tells whether the request asks for a change of any kind."""
    return request.method in ("POST", "DELETE")


def conversation_of(request: Request) -> str | None:
    """Returns the id of the conversation in the path, or None."""
    below = _below(request)
    return below[0] if below else None


def items_in(body: bytes, key: str = "items") -> int:
    """Returns how many entries a JSON body holds under a key; 0 where it holds no such list."""
    entries = _entries(body, key)
    return 0 if entries is None else len(entries)


def first_items(request: Request, count: int) -> Request:
    """Returns an append with its first items only; other requests as they are."""
    entries = _entries(request.body, "items")
    if entries is None:
        return request
    return replace(request, body=json.dumps({"items": entries[:count]}).encode())


def _entries(body: bytes, key: str) -> list[Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    entries = value.get(key) if isinstance(value, dict) else None
    return entries if isinstance(entries, list) else None
