"""Texts that PostgreSQL cannot hold, in a form that it can: servers may give ids that have them."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown, TextBinaryLoader

# NUL, and what is half of a character; and the backslash that then stands before them.
_CANNOT = re.compile("[\\\\\0\ud800-\udfff]")
_STANDS_FOR = re.compile(r"\\u([0-9a-f]{4})")


def hold_any_text(connection: psycopg.Connection[Any]) -> None:
    """Has a connection send and read all texts: two that differ are held as two that differ."""
    connection.adapters.register_dumper(str, _Dumper)
    connection.adapters.register_loader("text", _Loader)


class _Dumper(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        if _CANNOT.search(obj):
            obj = _CANNOT.sub(lambda found: f"\\u{ord(found[0]):04x}", obj)
        return super().dump(obj)


class _Loader(TextBinaryLoader):
    def load(self, data: Buffer) -> Any:
        text = super().load(data)
        return as_it_was(text) if isinstance(text, str) else text


def as_it_was(text: str) -> str:
    """A text of the engine's in the form that it had before it was sent."""
    if "\\" not in text:
        return text
    return _STANDS_FOR.sub(lambda found: chr(int(found[1], 16)), text)
