"""What an item will look like in a listing, as far as that is known before it was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# "status: completed is added" (recorded for messages; by the spec's types for
# these two). What a server adds to other items is not known, so it is left out.
_DONE = frozenset({"message", "function_call", "function_call_output"})

# Recorded for users; the spec's input messages have the same form for the others.
_INPUT_ROLES = frozenset({"user", "system", "developer"})

# What a listing leaves out unless it is asked to include it (by the spec), and
# this package's do not ask: of which type of item, in which field, of which
# type of content part, what.
_LEFT_OUT = (
    ("message", "content", "input_image", "image_url"),
    ("reasoning", None, None, "encrypted_content"),
    ("computer_call_output", "output", None, "image_url"),
    ("web_search_call", "action", None, "sources"),
)
# Required fields, which are null in its place.
_NULL = (("file_search_call", "results"), ("code_interpreter_call", "outputs"))


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
    for where, field, part, name in _LEFT_OUT:
        if where != kind:
            continue
        if field is None:
            item.pop(name, None)
        elif field in item:
            item[field] = _without(item[field], part, name)
    for where, name in _NULL:
        if where == kind and name in item:
            item[name] = None
    return item


def _without(value: Any, part: str | None, name: str) -> Any:
    """A field's value without what stands in it, or in its parts of one type, under a name."""
    if isinstance(value, list):
        return [_without(each, part, name) for each in value]
    if not isinstance(value, Mapping) or (part is not None and value.get("type") != part):
        return value
    return {key: inner for key, inner in value.items() if key != name}
