"""What a campaign's run is like."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from cached_session.emulator import FaultKind
from tests.clients import HttpKind

ATTEMPT = 0.3
"""Seconds that one request may take, with either kind of session."""

DEADLINE = 4.0
"""Seconds that one operation may take, and for which a late commit is watched for."""

SLACK = 2.0
"""Seconds by which a busy machine may be late."""

SPANS = {
    FaultKind.SLOW: (0.01, 0.4),
    FaultKind.LATE_COMMIT: (0.005, 0.6),
    FaultKind.REFUSED: (0.01, 0.1),
    FaultKind.RATE_LIMITED: (0.005, 0.05),
}
"""Short times, all of them below the deadline."""

Kind = Literal["cached", "sdk"]


@dataclass(frozen=True)
class Setting:
    """What one run is like; drawn from its seed.

    Attributes:
        seed: Of everything that is drawn. Real sockets add chance of their own.
        rate: Share of requests that a fault befalls.
        operations: How many operations the workers do together.
        workers: How many tasks work at the same time.
        foreign: Whether another writer is about.
        history: How many items the conversation holds at the beginning.
        kind: Which session is used.
        repeats: Whether the workers say the same words more than once.
        http: Which HTTP client the openai client has.
    """

    seed: int
    rate: float
    operations: int
    workers: int
    foreign: bool
    history: int = 0
    kind: Kind = "cached"
    repeats: bool = True
    http: HttpKind = "default"

    @classmethod
    def draw(cls, seed: int, http: HttpKind = "default") -> Setting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:setting")
        return cls(
            seed=seed,
            rate=rng.choice((0.1, 0.25, 0.4)),
            operations=rng.randint(30, 50),
            workers=rng.randint(1, 4),
            foreign=rng.random() < 0.4,
            history=rng.choice((0, 0, 130)),
            http=http,
        )

    @classmethod
    def compared(cls, seed: int, kind: Kind) -> Setting:
        """A setting in which the items of every kind of session can be counted."""
        return cls(
            seed=seed, rate=0.4, operations=40, workers=1, foreign=False, kind=kind, repeats=False
        )
