"""How numbers are said."""

from __future__ import annotations


def counted(number: int, noun: str = "item") -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
