"""Whether two loops came to the same, ids aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cached_session.commands.demo.loop import LoopResult


def histories_differ(one: LoopResult, other: LoopResult) -> str | None:
    """Says where the two server histories differ, or None."""
    return _first_difference("item", one.history, other.history)


def inputs_differ(one: LoopResult, other: LoopResult) -> str | None:
    """Says where what the model was given differs, or None."""
    for call, (left, right) in enumerate(zip(one.inputs, other.inputs, strict=False), start=1):
        difference = _first_difference("item", left, right)
        if difference is not None:
            return f"call {call}, {difference}"
    if len(one.inputs) != len(other.inputs):
        return f"{len(one.inputs)} calls against {len(other.inputs)}"
    return None


def _first_difference(what: str, left: Sequence[Any], right: Sequence[Any]) -> str | None:
    for position, (one, other) in enumerate(zip(left, right, strict=False), start=1):
        if _without_id(one) != _without_id(other):
            return f"{what} {position} of {len(left)}: {_kind(one)} against {_kind(other)}"
    if len(left) != len(right):
        return f"{len(left)} {what}s against {len(right)}"
    return None


def _without_id(item: Any) -> Any:
    # The server gives each stored item an id of its own; `call_id` is content.
    if isinstance(item, Mapping):
        return {key: value for key, value in item.items() if key != "id"}
    return item


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, Mapping) else type(item).__name__
    return f"a {kind}"
