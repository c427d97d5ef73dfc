"""Ways in which other servers of this API differ from the real service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from .rewriting import REWRITES

__all__ = ["LARGEST_PAGE", "Habits"]

LARGEST_PAGE = 100
"""Items of a listing's page at most (spec)."""


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
        has_more_false_on_full_page: ``has_more`` is false on every page that is full, whatever
            follows.
        rewrites: How the texts of messages and summaries are stored otherwise than they were
            sent; names from ``REWRITES``, joined by commas: ``"trim"``, ``"nul,crlf"``.
        largest_page: The largest ``limit`` of a listing; a larger one is refused.

    Raises:
        ValueError: ``rewrites`` has a name that is not known, or ``largest_page`` is not
            between 1 and 100.
    """

    unknown_cursor_ignored: bool = False
    has_more_on_full_last_page: bool = False
    delete_missing_ok: bool = False
    initial_items_dropped: bool = False
    content_left_as_string: bool = False
    empty_string_for_null: bool = False
    ids_rewritten: bool = False
    has_more_false_on_full_page: bool = False
    rewrites: str = ""
    largest_page: int = LARGEST_PAGE

    def __post_init__(self) -> None:
        if unknown := sorted(self.rewriting - REWRITES.keys()):
            known = ", ".join(REWRITES)
            raise ValueError(f"rewrites: '{unknown[0]}' is not one of {known}")
        if not 1 <= self.largest_page <= LARGEST_PAGE:
            raise ValueError(f"largest_page is not between 1 and {LARGEST_PAGE}")

    @property
    def rewriting(self) -> frozenset[str]:
        """The names in ``rewrites``."""
        return frozenset(filter(None, (name.strip() for name in self.rewrites.split(","))))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Returns the name of every habit that is either on or off."""
        return tuple(entry.name for entry in fields(cls) if entry.default is False)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Habits:
        """Reads habits as the command line gives them: ``ids_rewritten``, ``rewrites=trim``.

        Raises:
            ValueError: A name is not known, or its value is not one that it takes.
        """
        values: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if name in cls.names() and not equals:
                values[name] = True
            elif name == "rewrites" and equals:
                values[name] = ",".join(filter(None, (values.get(name), value)))
            elif name == "largest_page" and value.isdecimal():
                values[name] = int(value)
            else:
                known = ", ".join((*cls.names(), "rewrites=KIND,...", "largest_page=NUMBER"))
                raise ValueError(f"'{text}' is not one of the habits: {known}")
        return cls(**values)
