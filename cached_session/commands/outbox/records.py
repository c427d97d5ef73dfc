"""What an outbox holds of a backlog, and how it is said: no content and no key."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from cached_session.outbox import LOCAL, Address, BacklogSummary


class Stop(Exception):
    """The command cannot do what it was asked; its text says why."""


def overview(summary: BacklogSummary) -> tuple[str, ...]:
    """A backlog's line in a list."""
    return (
        str(summary.number),
        conversation(summary.address),
        str(summary.items),
        str(summary.size),
        "-" if summary.oldest is None else age(summary.oldest),
        state(summary),
    )


def state_and_error(summary: BacklogSummary) -> tuple[str, str]:
    """Its state in a word or two, and what keeps it from being sent."""
    if summary.paused is not None:
        return "paused", visible(summary.paused)
    return state(summary).removesuffix(" by a living process"), "-"


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """A table's lines, one column below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (zip(line, widths, strict=True) for line in lines)
    return ["  ".join(f"{cell:{width}}" for cell, width in row).rstrip() for row in rows]


def facts(summary: BacklogSummary) -> dict[str, Any]:
    """The same for a program; times are seconds since the epoch."""
    address = summary.address
    return {
        "number": summary.number,
        "conversation": address.conversation,
        "created": not address.conversation.startswith(LOCAL),
        "base_url": server(address.base_url),
        "organization": address.organization or None,
        "project": address.project or None,
        "items": summary.items,
        "bytes": summary.size,
        "sealed": summary.sealed,
        "oldest": summary.oldest,
        "paused": summary.paused,
        "sent_by_a_living_process": summary.owned,
        "window_bytes": summary.window,
    }


def fitting(lines: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """A table's lines, its conversations and then its last column cut so that none is wider."""
    kept = [list(line) for line in lines]
    for column, least in ((1, 16), (len(lines[0]) - 1, 8)):
        widths = [max(map(len, cells)) for cells in zip(*kept, strict=True)]
        over = sum(widths) + 2 * (len(widths) - 1) - width
        room = max(least, widths[column] - max(0, over))
        for line in kept:
            cell = line[column]
            if len(cell) > room:
                # Both ends of an id tell it apart, and can be searched for.
                half = (room - 3) // 2
                line[column] = f"{cell[: room - 3 - half]}...{cell[-half:]}"
    return [tuple(line) for line in kept]


def conversation(address: Address) -> str:
    """Which conversation a backlog is for."""
    created = not address.conversation.startswith(LOCAL)
    return visible(address.conversation) + ("" if created else " (not created yet)")


def key(address: Address) -> str:
    """With which key a backlog was recorded: enough to tell a few of them apart."""
    if address.account is not None:
        return f"any of the account {address.account!r}"
    return f"digest {address.credentials[:8]}..." if address.credentials else "not fixed"


def state(summary: BacklogSummary) -> str:
    """Whether what waits is being sent."""
    if summary.paused is not None:
        return visible(f"paused: {summary.paused}")
    if not summary.items:
        return "nothing waits"
    return "being sent by a living process" if summary.owned else "waiting"


def server(base_url: str) -> str:
    """A base URL without what it may hold of credentials."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def age(moment: float) -> str:
    """How long ago a moment was. One that is still to come, by a clock set back, was just now."""
    seconds = max(0, int(time.time() - moment))
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def moment(moment: float) -> str:
    """A moment, seconds since the epoch, as a date and a time."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def word(value: Any) -> str:
    """A type or a role; an item may hold anything in its place."""
    return value if isinstance(value, str) and re.fullmatch(r"[a-z_]{1,40}", value) else "-"


def visible(text: str) -> str:
    """Text for a terminal; what would control it is written as in JSON."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
