"""How numbers are said."""

from __future__ import annotations


def counted(number: int, noun: str = "item") -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verb(number: int, one: str, more: str) -> str:
    """The form of a verb that goes with so many."""
    return one if number == 1 else more
