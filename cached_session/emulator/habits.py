"""Ways in which other servers of this API differ from the real service."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Habits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Differences seen in other servers of this API, all off by default.

    Attributes:
        unknown_cursor_ignored: A listing with an unknown ``after`` starts again at page one.
        has_more_on_full_last_page: ``has_more`` is true on a last page that is exactly full.
        delete_missing_ok: Deleting an item that is not there answers 200.
        initial_items_dropped: Items sent with a new conversation are dropped without a word.
        content_left_as_string: String content of a message stays a string.
        empty_string_for_null: The ids of an empty listing are ``""`` in place of null.
        ids_rewritten: Item ids that the client sent are replaced by new ones.
    """

    unknown_cursor_ignored: bool = False
    has_more_on_full_last_page: bool = False
    delete_missing_ok: bool = False
    initial_items_dropped: bool = False
    content_left_as_string: bool = False
    empty_string_for_null: bool = False
    ids_rewritten: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Returns the name of every habit."""
        return tuple(entry.name for entry in fields(cls))
