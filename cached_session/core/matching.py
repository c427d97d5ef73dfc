"""Whether a listed item is the one that was sent.

The server changes what it stores: it normalises content, adds fields, assigns
ids, and leaves contents out of a listing. So a listed item is compared by what
both sides show, and never by what only one of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Fields that the server sets or rewrites; they say nothing about who sent an item.
_SERVER_FIELDS = frozenset({"id", "status", "created_at", "created_by", "object"})

# Fields that the server adds to a content part, or that a listing leaves out
# (spec, `include`). Present on one side only, they do not tell items apart.
_TEXT_TYPES = frozenset({"input_text", "output_text", "text", "refusal", "summary_text"})


def same(sent: Mapping[str, Any], listed: Mapping[str, Any]) -> bool:
    """Whether `listed` can be what the server made of `sent`.

    Tool items are compared by type and `call_id`, as the service keeps one
    call apart from another by it. An item that was sent under an id of its own
    and is listed under the same id is the same, whatever it holds: an item
    shared with another conversation keeps its original content.
    """
    sent_id = sent.get("id")
    if sent_id is not None and sent_id == listed.get("id"):
        return True
    if _type(sent) == "item_reference":
        return False
    if _type(sent) != _type(listed):
        return False
    if sent.get("call_id") is not None:
        return bool(sent["call_id"] == listed.get("call_id"))
    if _type(sent) == "message":
        return sent.get("role") == listed.get("role") and _same_content(
            sent.get("content"), listed.get("content")
        )
    return _agree(sent, listed)


def _type(item: Mapping[str, Any]) -> Any:
    # An item without a type is a message (recorded).
    return item.get("type") or "message"


def _same_content(sent: Any, listed: Any) -> bool:
    sent_parts, listed_parts = _parts(sent), _parts(listed)
    return len(sent_parts) == len(listed_parts) and all(map(_same_part, sent_parts, listed_parts))


def _parts(content: Any) -> list[Any]:
    # A string and a list of one text part are the same content (recorded: the
    # service turns the one into the other; some servers do not).
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list) else []


def _same_part(sent: Any, listed: Any) -> bool:
    if not (isinstance(sent, Mapping) and isinstance(listed, Mapping)):
        return bool(sent == listed)
    sent_type, listed_type = sent.get("type"), listed.get("type")
    if sent_type in _TEXT_TYPES and listed_type in _TEXT_TYPES:
        key = "refusal" if "refusal" in sent else "text"
        return bool(sent.get(key) == listed.get(key))
    return sent_type == listed_type and _agree(sent, listed)


def _agree(sent: Any, listed: Any) -> bool:
    """Whether two values do not contradict each other in what both of them hold."""
    if isinstance(sent, Mapping) and isinstance(listed, Mapping):
        return all(
            _agree(value, listed[key])
            for key, value in sent.items()
            if key in listed
            and key not in _SERVER_FIELDS
            # null is how a server spells "left out".
            and value is not None
            and listed[key] is not None
        )
    if isinstance(sent, list) and isinstance(listed, list):
        # A listing leaves whole lists out as empty ones (logprobs, results).
        return not listed or (len(sent) == len(listed) and all(map(_agree, sent, listed)))
    return bool(sent == listed)


def longest_run(
    wanted: Sequence[Mapping[str, Any]],
    length: int,
    listed: Callable[[int], Mapping[str, Any] | None],
) -> tuple[int, int]:
    """Finds the longest beginning of `wanted` that stands together in a listing.

    Args:
        wanted: The items as they were sent.
        length: How many items the listing has.
        listed: The listed item at a position, or None where the item there is
            known to be another's and so cannot be one of these.

    Returns:
        `(start, count)`: where the run begins and how many items of `wanted`
        it holds; count 0 if there is none. Of runs of equal length, the first.
    """
    best_start, best_count = 0, 0
    for start in range(length):
        count = 0
        while count < len(wanted) and start + count < length:
            item = listed(start + count)
            if item is None or not same(wanted[count], item):
                break
            count += 1
        if count > best_count:
            best_start, best_count = start, count
    return best_start, best_count
