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


class AsHeld(str):
    """A text that is sent as it is: what is in it has its form already."""

    __slots__ = ()


def hold_any_text(connection: psycopg.Connection[Any]) -> None:
    """Has a connection send and read all texts: two that differ are held as two that differ."""
    connection.adapters.register_dumper(str, _Dumper)
    connection.adapters.register_dumper(AsHeld, StrDumperUnknown)
    connection.adapters.register_loader("text", _Loader)


def held(text: str) -> str:
    """A text in the form in which it is held."""
    if _CANNOT.search(text):
        return _CANNOT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text


def told(text: str) -> str:
    """The text that is held in this form."""
    if "\\" in text:
        return _STANDS_FOR.sub(lambda found: chr(int(found[1], 16)), text)
    return text


class _Dumper(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(held(obj))


class _Loader(TextBinaryLoader):
    def load(self, data: Buffer) -> Any:
        text = super().load(data)
        return told(text) if isinstance(text, str) else text
