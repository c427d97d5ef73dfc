"""What a listing leaves out of an item, and what ``include`` brings back (spec)."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

__all__ = ["INCLUDABLE", "as_listed"]

_Item = dict[str, Any]


def _without(value: Any, *names: str) -> Any:
    """Returns an object without some of its fields, anything else as it is."""
    if isinstance(value, dict) and any(name in value for name in names):
        return {key: item for key, item in value.items() if key not in names}
    return value


def _without_image_urls(item: _Item) -> _Item:
    return _with_parts(item, "input_image", lambda part: _without(part, "image_url"))


def _without_logprobs(item: _Item) -> _Item:
    # A listing that did not ask for them shows an empty list (recorded).
    return _with_parts(item, "output_text", lambda part: {**part, "logprobs": []})


def _with_parts(item: _Item, kind: str, change: Callable[[_Item], _Item]) -> _Item:
    parts = item["content"]
    if not isinstance(parts, list) or all(part["type"] != kind for part in parts):
        return item
    return {
        **item,
        "content": [change(part) if part["type"] == kind else part for part in parts],
    }


def _without_encrypted_content(item: _Item) -> _Item:
    shown: _Item = _without(item, "encrypted_content")
    return shown


def _without_screenshot(item: _Item) -> _Item:
    return {**item, "output": _without(item["output"], "image_url")}


def _without_results(item: _Item) -> _Item:
    return {**item, "results": None} if item.get("results") is not None else item


def _without_outputs(item: _Item) -> _Item:
    return {**item, "outputs": None}


def _without_sources(item: _Item) -> _Item:
    return {**item, "action": _without(item["action"], "sources")}


def _as_it_is(item: _Item) -> _Item:
    """For an ``include`` value that is known and concerns no stored field."""
    return item


# The spec says what is left out, not whether the field is then missing or null. Fields that the
# output types require are null here, the others are missing.
_RULES: Final[tuple[tuple[str, str, Callable[[_Item], _Item]], ...]] = (
    ("message", "message.input_image.image_url", _without_image_urls),
    ("message", "message.output_text.logprobs", _without_logprobs),
    ("reasoning", "reasoning.encrypted_content", _without_encrypted_content),
    ("computer_call_output", "computer_call_output.output.image_url", _without_screenshot),
    ("file_search_call", "file_search_call.results", _without_results),
    ("code_interpreter_call", "code_interpreter_call.outputs", _without_outputs),
    ("web_search_call", "web_search_call.action.sources", _without_sources),
    ("web_search_call", "web_search_call.results", _as_it_is),
)

INCLUDABLE: Final = frozenset(name for _, name, _ in _RULES)
"""Values that ``include`` takes (spec)."""


def as_listed(item: _Item, include: Set[str]) -> _Item:
    """Returns an item as a listing shows it.

    Args:
        item: The stored item; it is not changed, and the answer may share parts with it.
        include: Values of the ``include`` parameter.
    """
    for kind, name, leave_out in _RULES:
        if kind == item["type"] and name not in include:
            item = leave_out(item)
    return item
