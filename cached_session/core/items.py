"""Items as this package holds them: as sent, one by one and in batches, and as listed.

Both are kept as bytes. What is held can then not be changed by anyone, a read
hands out a new copy by decoding, and a held item costs little more memory than
its JSON text.
"""

from __future__ import annotations

import json
import marshal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

# What one held item costs beside its two buffers: the tuple and its slot in
# the list. Measured, not guessed, so that the cache's byte count stays honest.
_PER_ITEM = sys.getsizeof((None, None)) + 8


class Held(NamedTuple):
    """One item in the shape in which the server lists it.

    Attributes:
        id: The server's id of the item.
        data: The item, encoded by `hold`.
    """

    id: str
    data: bytes

    @property
    def size(self) -> int:
        """Bytes of memory that holding this item takes."""
        return sys.getsizeof(self.data) + sys.getsizeof(self.id) + _PER_ITEM


def hold(item: dict[str, Any]) -> Held:
    """Encodes a listed item; `item` must be decoded JSON with a string `id`."""
    return Held(item["id"], encode(item))


def encode(item: dict[str, Any]) -> bytes:
    """Encodes decoded JSON; `copies` decodes it."""
    # msgspec's MessagePack rather than JSON, marshal or pickle: it shares the
    # strings of keys among items, and so decodes in two thirds of marshal's
    # time and in a third of what a structural copy in Python takes. The bytes
    # never leave this process.
    try:
        data = _encode_held(item)
    except (OverflowError, UnicodeEncodeError, RecursionError):
        # What JSON can carry and MessagePack cannot: integers above 64 bits,
        # lone surrogates; and what is nested too deeply for a recursive decoder.
        data = _encode_held(msgspec.msgpack.Ext(_MARSHAL, marshal.dumps(item)))
    # A copy: the encoder's own bytes keep the memory of its larger buffer.
    return bytes(memoryview(data))


def unhold(held: Held) -> dict[str, Any]:
    """Decodes a held item into a dict that belongs to the caller."""
    item: dict[str, Any] = _decode_held(held.data)
    return item


def copies(items: Sequence[Held]) -> list[dict[str, Any]]:
    """Decodes items into a list that belongs to the caller, all the way down."""
    decode_held = _decode_held
    return [decode_held(data) for _, data in items]


# The extension type under which an item stands that only marshal can hold.
_MARSHAL = 1


def _decode_extension(code: int, data: memoryview) -> Any:
    assert code == _MARSHAL  # nothing else is encoded here
    return marshal.loads(data)


_encode_held = msgspec.msgpack.Encoder().encode
_decode_held = msgspec.msgpack.Decoder(ext_hook=_decode_extension).decode


# An item as it goes over the wire: UTF-8 JSON, fixed when it was accepted.
Outgoing: TypeAlias = bytes


@runtime_checkable
class Model(Protocol):
    """What a pydantic model offers and is used here; the core imports no pydantic."""

    def model_dump(self, *, mode: str, exclude_unset: bool, by_alias: bool) -> Any:
        """Dumps the model to JSON types."""


def decode(item: Outgoing) -> dict[str, Any]:
    """An accepted item as the server will read it."""
    decoded: dict[str, Any] = json.loads(item)
    return decoded


def accept(
    items: object, *, argument: str = "items", omitted: tuple[type, ...] = ()
) -> list[Outgoing]:
    """Takes an own copy of what a caller wants to append.

    Args:
        items: A list or tuple of dicts or pydantic models (dumped as the
            openai client dumps them: JSON mode, fields that were set, wire
            names).
        argument: The name that errors use for `items`.
        omitted: Types whose instances, as the value of a field, stand for a
            field that is not there. In a list they have no meaning, and no
            JSON form.

    Returns:
        One entry an item, in order, independent of `items`.

    Raises:
        TypeError: `items` is no list, an item is no object, or holds
            something that JSON has no form for.
        ValueError: An item holds NaN or infinity, an integer that Python does
            not write, text that UTF-8 cannot carry, or contains itself.
    """
    if not isinstance(items, list | tuple):
        raise TypeError(f"{argument} must be a list of items, not {type(items).__name__}")
    return [_encode(item, f"{argument}[{index}]", omitted) for index, item in enumerate(items)]


def _encode(item: object, name: str, omitted: tuple[type, ...]) -> Outgoing:
    plain = item
    if not isinstance(item, dict):
        if not isinstance(item, Mapping | Model):
            raise TypeError(f"{name} must be a dict, not {type(item).__name__}")
        plain = dict(item) if isinstance(item, Mapping) else item
    try:
        try:
            text = _dump(plain)
        except _NoJSONForm as error:
            # Only now: nearly every item is without, and looking costs as much as the dump.
            if not isinstance(error.value, omitted):
                raise
            text = _dump(_without(plain, omitted))
    except (TypeError, ValueError, RecursionError) as error:
        # The cause is left out: its text may quote the item's content.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be sent as JSON: {_reason(error)}") from None
    if not text.startswith(b"{"):
        raise TypeError(f"{name} must be an object, and its model dumps to something else")
    return text


def _dump(value: object) -> bytes:
    return _encode_json(value).encode()


def _without(value: object, omitted: tuple[type, ...]) -> object:
    """A value without the fields, at any depth, whose value is of one of these types."""
    if isinstance(value, Mapping):
        return {
            key: _without(inner, omitted)
            for key, inner in value.items()
            if not isinstance(inner, omitted)
        }
    if isinstance(value, list | tuple):
        return [_without(inner, omitted) for inner in value]
    return value


def _plain(value: object) -> object:
    if isinstance(value, Model):
        return value.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if isinstance(value, Mapping):
        return dict(value)
    # The client's own encoder takes dates in this form.
    isoformat = getattr(value, "isoformat", None)
    if callable(isoformat):
        return isoformat()
    raise _NoJSONForm(value)


# `json.dumps` would make an encoder at each call.
_encode_json = json.JSONEncoder(
    default=_plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False
).encode


class _NoJSONForm(TypeError):
    """A value cannot be sent; the text names its type only."""

    def __init__(self, value: object) -> None:
        super().__init__(f"a value of type {type(value).__name__} has no JSON form")
        self.value = value


def _reason(error: Exception) -> str:
    if isinstance(error, _NoJSONForm):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return "it has text that UTF-8 cannot encode (a lone surrogate)"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValueError):
        # Python itself refuses to write integers of more digits.
        if "integer string conversion" in str(error):
            return "it has an integer of more than 4300 digits"
        return "it contains itself, or a number that is NaN or infinite"
    return "a key is not a string"


def body(items: Iterable[Outgoing]) -> bytes:
    """The request body of an append."""
    return b'{"items":[' + b",".join(items) + b"]}"


# "You may add up to 20 items at a time"; more is answered with HTTP 400.
# Source: OpenAI's OpenAPI document, recorded traffic.
MAX_ITEMS = 20

# No limit on the body is published. A bound keeps one attempt short enough for
# its timeout on a slow line; a larger item still travels, alone.
MAX_BYTES = 1 << 20


def batches(items: Sequence[Outgoing]) -> Iterator[tuple[Outgoing, ...]]:
    """Cuts items into batches of at most `MAX_ITEMS` items and `MAX_BYTES` bytes, in order.

    Nothing is added to a batch or taken from it once it was sent, or a lost
    answer could not be compared with what the server has.

    No batch has two items of one id: the server would store the first one twice, and say nothing
    of the second. In a batch of its own the second one is refused.
    """
    batch: list[Outgoing] = []
    size, ids = 0, set[str]()
    for item in items:
        item_id = _id(item)
        full = len(batch) == MAX_ITEMS or size + len(item) > MAX_BYTES or item_id in ids
        if batch and full:
            yield tuple(batch)
            batch, size, ids = [], 0, set()
        batch.append(item)
        size += len(item)
        if item_id is not None:
            ids.add(item_id)
    if batch:
        yield tuple(batch)


def _id(item: Outgoing) -> str | None:
    """The id that an item was given by its caller, or None."""
    # Most user messages have none, which is seen without decoding them.
    found = decode(item).get("id") if b'"id":' in item else None
    return found if isinstance(found, str) else None
