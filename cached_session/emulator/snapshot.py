"""All that a store holds, as JSON: what seeds an emulator, and what its state is kept as.

    {"conversations": [{"id": "conv_1", "items": [{"role": "user", "content": "Hello"}]}]}

One format for both, so that what was kept can be a seed. Items have the shape in which a client
sends them, or the one in which a listing shows them; the second is a case of the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .habits import Habits
from .items import Draft, draft_item
from .params import MAX_DEPTH, check_depth, check_text, finite, no_number, read_metadata
from .wire import ApiError

__all__ = ["VERSION", "Kept", "Snapshot", "SnapshotError", "parse_snapshot", "read_snapshot"]

VERSION: Final = 1
"""Of the format. A seed need not name it."""

_WHOLE: Final = ("version", "conversations", "items")
_CONVERSATION: Final = ("id", "object", "created_at", "metadata", "items")


class SnapshotError(ValueError):
    """What was given is no state of an emulator; the message says where, and why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A conversation as it is to be stored.

    Attributes:
        id: Its id; None: a new one.
        created_at: When it was made, in whole seconds since 1970; None: now.
        metadata: Its pairs.
        drafts: Its items, oldest first.
    """

    id: str | None
    created_at: int | None
    metadata: dict[str, str]
    drafts: tuple[Draft, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is to be stored.

    Attributes:
        conversations: The conversations, oldest first.
        loose: Items that no conversation lists any more.
    """

    conversations: tuple[Kept, ...] = ()
    loose: tuple[Draft, ...] = ()


def parse_snapshot(text: bytes, habits: Habits) -> Snapshot:
    """Reads a snapshot from JSON.

    Args:
        text: The JSON.
        habits: Differences from the real service. What is kept was stored with them already, so
            texts are not rewritten again, and ids stay.

    Raises:
        SnapshotError: It is not JSON, or no snapshot.
    """
    try:
        value = json.loads(text, parse_constant=no_number, parse_float=finite)
        check_depth(value)
        check_text(text, value)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SnapshotError(f"{where}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise SnapshotError("not JSON, or a number in it is none that JSON has") from None
    except ApiError:
        raise SnapshotError(
            f"nested more than {MAX_DEPTH} levels deep, or with half of a surrogate pair"
        ) from None
    return read_snapshot(value, habits)


def read_snapshot(value: object, habits: Habits) -> Snapshot:
    """Reads a snapshot from decoded JSON, see `parse_snapshot`.

    Raises:
        SnapshotError: It is no snapshot.
    """
    return _Reader(replace(habits, ids_rewritten=False, rewrites="")).read(value)


class _Reader:
    def __init__(self, habits: Habits) -> None:
        self._habits = habits
        # Where each item that has an id stands, and each conversation.
        self._items: dict[str, tuple[str, Draft]] = {}
        self._ids: dict[str, str] = {}

    def read(self, value: object) -> Snapshot:
        whole = _object(value, "the whole", _WHOLE)
        if "conversations" not in whole:
            raise SnapshotError("the whole: 'conversations' is missing")
        version = whole.get("version", VERSION)
        if version != VERSION or isinstance(version, bool):
            raise SnapshotError(f"version: must be {VERSION}, the only one that is known")
        # First those that no conversation lists: the others may refer to them.
        loose = self._drafts(whole.get("items", []), "items")
        for index, draft in enumerate(loose):
            if draft.id is None:
                raise SnapshotError(f"items[{index}]: 'id' is missing; nobody could refer to it")
        return Snapshot(
            tuple(
                self._conversation(one, f"conversations[{index}]")
                for index, one in enumerate(_list(whole["conversations"], "conversations"))
            ),
            loose,
        )

    def _conversation(self, value: object, where: str) -> Kept:
        fields = _object(value, where, _CONVERSATION)
        if fields.get("object", "conversation") != "conversation":
            raise SnapshotError(f"{where}.object: must be 'conversation'")
        identifier = fields.get("id")
        if identifier is not None:
            if not isinstance(identifier, str):
                raise SnapshotError(f"{where}.id: must be a string")
            if not identifier or "/" in identifier or not identifier.isprintable():
                raise SnapshotError(f"{where}.id: {identifier!r} cannot stand in a URL's path")
            if identifier in self._ids:
                raise SnapshotError(f"{where}.id: {self._ids[identifier]} has it, too")
            self._ids[identifier] = where
        created = fields.get("created_at")
        if created is not None and (
            not isinstance(created, int) or isinstance(created, bool) or created < 0
        ):
            raise SnapshotError(f"{where}.created_at: must be whole seconds since 1970")
        try:
            metadata = read_metadata(fields, required=False)
        except ApiError as error:
            raise SnapshotError(f"{where}: {error.message}") from None
        drafts = self._drafts(fields.get("items", []), f"{where}.items")
        return Kept(identifier, created, metadata, drafts)

    def _drafts(self, value: object, where: str) -> tuple[Draft, ...]:
        return tuple(
            self._draft(item, f"{where}[{index}]") for index, item in enumerate(_list(value, where))
        )

    def _draft(self, item: object, where: str) -> Draft:
        try:
            draft = draft_item(item, where, self._habits)
        except ApiError as error:
            raise SnapshotError(f"{where}: {error.message}") from None
        if draft.id is None:
            return draft
        place, first = self._items.get(draft.id, (where, draft))
        if first.content is None:
            raise SnapshotError(f"{where}: no item before it has the id {draft.id!r}")
        if draft.content not in (None, first.content):
            raise SnapshotError(f"{where}.id: {place} has it, too, and says something else")
        self._items[draft.id] = place, first
        return draft


def _object(value: object, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SnapshotError(f"{where}: must be an object")
    for name in value:
        if name not in known:
            raise SnapshotError(f"{where}: '{name}' is none of {', '.join(known)}")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SnapshotError(f"{where}: must be an array")
    return value
