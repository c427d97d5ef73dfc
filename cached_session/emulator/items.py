"""From an item as it was sent to an item as it is stored: checks and normalisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .habits import Habits
from .item_types import CONTENT_PARTS, ITEM_TYPES, MESSAGE, ROLES
from .rewriting import rewritten
from .wire import ApiError

__all__ = ["Draft", "draft_item"]

_REFERENCE: Final = "item_reference"


@dataclass(frozen=True, slots=True)
class Draft:
    """An item on its way into the store.

    Attributes:
        prefix: What a new id would begin with.
        id: Id that the client sent, or None.
        content: Normalised fields without the id; None for a reference to a stored item.
    """

    prefix: str
    id: str | None
    content: dict[str, Any] | None


def draft_item(value: object, where: str, habits: Habits) -> Draft:
    """Checks one sent item and brings it into the shape that a listing shows.

    Args:
        value: The decoded item.
        where: Its place in the request, for instance ``items[0]``, for error messages.
        habits: Differences from the real service.

    Returns:
        The draft. It shares nothing with ``value``.

    Raises:
        ApiError: 400, the item is not one that the service accepts.
    """
    if not isinstance(value, dict):
        raise _invalid_type(where, "an object", value)
    kind = value.get("type")
    if kind is None:
        # An item without a type is a message (recorded), one with only an id a reference (spec).
        kind = MESSAGE if "role" in value or "content" in value else None
        kind = _REFERENCE if kind is None and "id" in value else kind or MESSAGE
    if kind == _REFERENCE:
        identifier = value.get("id")
        if not isinstance(identifier, str) or not identifier:
            raise _missing(f"{where}.id")
        return Draft("", identifier, None)
    known = ITEM_TYPES.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise ApiError(
            400,
            f"Invalid value: '{kind}'. Supported values are: "
            + ", ".join(f"'{name}'" for name in sorted([*ITEM_TYPES, _REFERENCE]))
            + ".",
            param=f"{where}.type",
            code="invalid_value",
        )
    for name in known.required:
        if name not in value:
            raise _missing(f"{where}.{name}")
    identifier = _client_id(value, where, known.prefix, checked=known.checked, habits=habits)
    fields = {key: item for key, item in value.items() if key not in ("id", "type", "status")}
    head: dict[str, Any] = {"type": kind}
    status = value.get("status")
    if status is not None:
        head["status"] = status
    for name, default in known.defaults.items():
        if head.get(name) is None and fields.get(name) is None:
            head[name] = default
            fields.pop(name, None)
    content = copy.deepcopy(head | fields)
    if kind == MESSAGE:
        _normalise_message(content, where, habits)
    if habits.rewriting:
        for name in ("content", "summary"):
            if name in content:
                content[name] = rewritten(content[name], habits.rewriting)
    return Draft(known.prefix, identifier, content)


def _client_id(
    value: Mapping[str, Any], where: str, prefix: str, *, checked: bool, habits: Habits
) -> str | None:
    identifier = value.get("id")
    if identifier is None or habits.ids_rewritten:
        return None
    if not isinstance(identifier, str):
        raise _invalid_type(f"{where}.id", "a string", identifier)
    if not identifier or (checked and not identifier.startswith(prefix)):
        raise ApiError(
            400,
            f"Invalid '{where}.id': '{identifier}'. Expected an ID that begins with '{prefix}'.",
            param=f"{where}.id",
            code="invalid_value",
        )
    return identifier


def _normalise_message(content: dict[str, Any], where: str, habits: Habits) -> None:
    role = content["role"]
    if role not in ROLES:
        raise ApiError(
            400,
            f"Invalid value: '{role}'. Supported values are: 'assistant', 'system', 'developer', "
            "and 'user'.",
            param=f"{where}.role",
            code="invalid_value",
        )
    body = content["content"]
    if isinstance(body, str):
        if not habits.content_left_as_string:
            # Recorded for users. What assistant text becomes is not known: output_text is what
            # the service shows for text that a model wrote.
            kind = "output_text" if role == "assistant" else "input_text"
            content["content"] = [_part({"type": kind, "text": body})]
        return
    if not isinstance(body, list):
        raise _invalid_type(f"{where}.content", "one of an array of objects or string", body)
    for index, part in enumerate(body):
        spot = f"{where}.content[{index}]"
        if not isinstance(part, dict):
            raise _invalid_type(spot, "an object", part)
        if part.get("type") not in CONTENT_PARTS:
            raise ApiError(
                400,
                f"Invalid value: '{part.get('type')}'. Supported values are: "
                + ", ".join(f"'{name}'" for name in sorted(CONTENT_PARTS))
                + ".",
                param=f"{spot}.type",
                code="invalid_value",
            )
    content["content"] = [_part(part) for part in body]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Adds what a listing shows on every part of its kind.

    ``annotations`` and ``logprobs`` on output text: recorded for text that a model wrote, assumed
    for text that a client appends. ``detail`` on images: spec, a listed image always has one.
    """
    if part["type"] == "output_text":
        return {**part, "annotations": part.get("annotations") or []} | {
            "logprobs": part.get("logprobs") or []
        }
    if part["type"] == "input_image" and part.get("detail") is None:
        return {**part, "detail": "auto"}
    return part


def _missing(param: str) -> ApiError:
    return ApiError(
        400,
        f"Missing required parameter: '{param}'.",
        param=param,
        code="missing_required_parameter",
    )


def _invalid_type(param: str, expected: str, value: object) -> ApiError:
    names = {str: "a string", list: "an array", dict: "an object", bool: "a boolean"}
    got = "null" if value is None else names.get(type(value), "a number")
    return ApiError(
        400,
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )
