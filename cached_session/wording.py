"""How numbers are said."""

from __future__ import annotations


def counted(number: int, noun: str = "item") -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verb(number: int, one: str, more: str) -> str:
    """The form of a verb that goes with so many."""
    return one if number == 1 else more


def rewritten_or_not(count: int) -> str:
    """What stands on the server where a lost batch would."""
    return (
        f"{counted(count)} of the same types and roles with other texts "
        f"{verb(count, 'stands', 'stand')} where it would: this append, rewritten by the server, "
        "or another writer's"
    )
