"""One append or pop of a run with the outbox, and one step of what must then be true."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field


def now() -> float:
    """The virtual time."""
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Change:
    """One step of the ideal sequence.

    Attributes:
        at: When it was committed.
        heard: Since when every read of its process must show it.
    """

    at: float
    heard: float = math.inf


@dataclass(eq=False)
class Call:
    """One append or pop: what it was to do, and what it did.

    Attributes:
        kind: "append" or "pop".
        worker: Who made it.
        process: The number of the process it was made in.
        started: When.
        texts: What it appends.
        places: Under which places that was recorded.
        change: What became of the ideal sequence by that.
        removed: Texts and ids (None: from the outbox) of what it removed.
        ended: "returned" or "raised"; None: it goes on, was cancelled, or its process crashed.
        ended_at: When.
    """

    kind: str
    worker: int
    process: int
    started: float
    texts: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    change: Change | None = None
    removed: list[tuple[str, str | None]] = field(default_factory=list)
    ended: str | None = None
    ended_at: float = math.inf

    def end(self, how: str) -> None:
        """Notes how it ended."""
        self.ended, self.ended_at = how, now()
