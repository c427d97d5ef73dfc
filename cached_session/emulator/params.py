"""Reading and checking what a request carries: query parameters and JSON bodies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .habits import LARGEST_PAGE, Habits
from .items import Draft, draft_item
from .visibility import INCLUDABLE
from .wire import ApiError, Request

__all__ = [
    "MAX_BODY",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "Listing",
    "check_depth",
    "check_text",
    "finite",
    "no_number",
    "read_body",
    "read_include",
    "read_items",
    "read_listing",
    "read_metadata",
]

MAX_ITEMS: Final = 20
"""Items that one request may carry (spec, recorded)."""

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of a request body that are read (what the service reads at most is not known)."""

MAX_DEPTH: Final = 100
"""How deep the values of a body may be nested; what handles them is recursive."""

_DEFAULT_LIMIT: Final = 20
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512


@dataclass(frozen=True, slots=True)
class Listing:
    """The parameters of a listing.

    Attributes:
        limit: Items a page, 1 to 100, 20 by default (spec).
        descending: Newest first, the default (spec).
        after: Id of the item after which the page begins, or None.
        include: Fields to bring back that a listing leaves out.
    """

    limit: int
    descending: bool
    after: str | None
    include: frozenset[str]


def read_listing(request: Request, largest: int = LARGEST_PAGE) -> Listing:
    """Reads the parameters of a listing.

    Args:
        request: The request.
        largest: The largest page that is allowed.

    Raises:
        ApiError: 400, a parameter has a value that is not allowed.
    """
    order = request.parameter("order")
    if order not in (None, "asc", "desc"):
        raise _invalid_value(order, "'asc' and 'desc'", "order")
    return Listing(
        limit=_read_limit(request.parameter("limit"), largest),
        descending=order != "asc",
        after=request.parameter("after"),
        include=read_include(request),
    )


def _read_limit(text: str | None, largest: int) -> int:
    if text is None:
        return min(_DEFAULT_LIMIT, largest)
    try:
        limit = int(text)
    except ValueError:
        raise ApiError(
            400,
            f"Invalid type for 'limit': expected an integer, but got '{text}' instead.",
            param="limit",
            code="invalid_type",
        ) from None
    if limit < 1:
        raise ApiError(
            400,
            f"Invalid 'limit': integer below minimum value. Expected a value >= 1, but got "
            f"{limit} instead.",
            param="limit",
            code="integer_below_min_value",
        )
    if limit > largest:
        raise ApiError(
            400,
            f"Invalid 'limit': integer above maximum value. Expected a value <= {largest}, "
            f"but got {limit} instead.",
            param="limit",
            code="integer_above_max_value",
        )
    return limit


def read_include(request: Request) -> frozenset[str]:
    """Reads ``include``; the openai client sends it as ``include[]``, others as ``include``.

    Raises:
        ApiError: 400, a value is not known.
    """
    values = frozenset(value for key, value in request.query if key in ("include", "include[]"))
    for value in sorted(values - INCLUDABLE):
        known = ", ".join(f"'{name}'" for name in sorted(INCLUDABLE))
        raise _invalid_value(value, known, "include")
    return values


def read_body(request: Request) -> dict[str, Any]:
    """Reads the JSON object of a request; no body at all reads as an empty object.

    Raises:
        ApiError: 400, the body is not JSON, is nested too deeply, or is not an object.
    """
    if not request.body.strip():
        return {}
    try:
        value = json.loads(request.body, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError):
        raise _not_json() from None
    if not isinstance(value, dict):
        raise ApiError(400, "The JSON body of your request has to be an object.")
    check_depth(value)
    check_text(request.body, value)
    return value


def no_number(name: str) -> float:
    """Refuses NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(name)


def finite(text: str) -> float:
    """Reads a number, and refuses one that is too large for Python to write again."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is too large would be listed as one that is none")
    return number


def check_depth(value: object) -> None:
    """Refuses what is nested too deeply.

    Raises:
        ApiError: 400, it is.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ApiError(
        400, f"The JSON body of your request is nested more than {MAX_DEPTH} levels deep."
    )


def check_text(body: bytes, value: object) -> None:
    r"""Refuses half of a surrogate pair.

    An escape such as ``"\ud83d"`` is JSON by its grammar, and no Unicode text: an
    answer that holds it could not be written as UTF-8, nor could any later listing.

    Raises:
        ApiError: 400, there is one.
    """
    # Nothing else brings one in, and most bodies hold no such escape.
    if b"\\ud" not in body.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _not_json() from None


def _not_json() -> ApiError:
    return ApiError(400, "We could not parse the JSON body of your request.")


def read_items(body: dict[str, Any], habits: Habits, *, required: bool) -> tuple[Draft, ...]:
    """Reads the items of a request.

    Args:
        body: The decoded body.
        habits: Differences from the real service.
        required: Whether there has to be at least one, as there has to in an append.

    Raises:
        ApiError: 400, too many items or none, or one that is not acceptable.
    """
    items = body.get("items")
    if items is None and not required:
        return ()
    if "items" not in body:
        raise ApiError(
            400,
            "Missing required parameter: 'items'.",
            param="items",
            code="missing_required_parameter",
        )
    if not isinstance(items, list):
        raise ApiError(
            400,
            "Invalid type for 'items': expected an array of objects.",
            param="items",
            code="invalid_type",
        )
    if required and not items:
        raise ApiError(
            400,
            "Invalid 'items': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead.",
            param="items",
            code="empty_array",
        )
    if len(items) > MAX_ITEMS:
        raise ApiError(
            400,
            f"Invalid 'items': array too long. Expected an array with maximum length {MAX_ITEMS}, "
            f"but got an array with length {len(items)} instead.",
            param="items",
            code="array_above_max_length",
        )
    return tuple(draft_item(item, f"items[{index}]", habits) for index, item in enumerate(items))


def read_metadata(body: Mapping[str, Any], *, required: bool) -> dict[str, str]:
    """Reads the metadata of a conversation: at most 16 pairs of strings (spec).

    Raises:
        ApiError: 400, it is missing where it is required, or not allowed.
    """
    if required and "metadata" not in body:
        raise ApiError(
            400,
            "Missing required parameter: 'metadata'.",
            param="metadata",
            code="missing_required_parameter",
        )
    metadata = body.get("metadata")
    if metadata is None and not required:
        return {}
    if not isinstance(metadata, dict):
        raise _bad_metadata("expected an object of strings", "invalid_type")
    if len(metadata) > _MAX_PAIRS:
        raise _bad_metadata(f"more than {_MAX_PAIRS} pairs", "object_above_max_properties")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _bad_metadata("expected strings as values", "invalid_type")
        if len(key) > _MAX_KEY:
            raise _bad_metadata(
                f"a key is longer than {_MAX_KEY} characters", "property_name_above_max_length"
            )
        if len(value) > _MAX_VALUE:
            raise _bad_metadata(
                f"a value is longer than {_MAX_VALUE} characters", "string_above_max_length"
            )
    return metadata


def _bad_metadata(reason: str, code: str) -> ApiError:
    return ApiError(400, f"Invalid 'metadata': {reason}.", param="metadata", code=code)


def _invalid_value(value: object, known: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"Invalid value: '{value}'. Supported values are: {known}.",
        param=param,
        code="invalid_value",
    )
