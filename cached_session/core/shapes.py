"""What an item will look like in a listing, as far as that is known before it was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# "status: completed is added" (recorded for messages; by the spec's types for
# these two). What a server adds to other items is not known, so it is left out.
_DONE = frozenset({"message", "function_call", "function_call_output"})

# Recorded for users; the spec's input messages have the same form for the others.
_INPUT_ROLES = frozenset({"user", "system", "developer"})


def expected(sent: Mapping[str, Any]) -> dict[str, Any]:
    """The shape in which the server will list an item, short of what only the server knows.

    That is its id above all, and the empty lists that are added to some content
    parts. An item that was sent under an id of its own keeps it here.
    """
    # An item without a type is a message (recorded), unless all it has is an id.
    kind = sent.get("type") or ("message" if "role" in sent else None)
    item = {**sent} if kind is None else {"type": kind, **sent}
    if kind in _DONE and item.get("status") is None:
        item["status"] = "completed"
    content = item.get("content")
    if kind == "message" and item.get("role") in _INPUT_ROLES and isinstance(content, str):
        item["content"] = [{"type": "input_text", "text": content}]
    return item
