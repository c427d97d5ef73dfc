"""What a campaign's run is like."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from cached_session.emulator import FaultKind
from tests.campaigns.plan import Plan
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


@dataclass(frozen=True, kw_only=True)
class Setting(Plan):
    """What one run is like; drawn from its seed. Real sockets add chance of their own.

    Attributes:
        kind: Which session is used.
        repeats: Whether the workers say the same words more than once.
        http: Which HTTP client the openai client has.
        upstream: Base URL of the server behind the faults; None: the emulator's own service.
    """

    world = "sockets"

    kind: Kind = "cached"
    repeats: bool = True
    http: HttpKind = "default"
    upstream: str | None = None

    @classmethod
    def draw(cls, seed: int, name: str = "sockets", **about: Any) -> Setting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:setting")
        return cls(
            name=name,
            seed=seed,
            rate=rng.choice((0.1, 0.25, 0.4)),
            operations=rng.randint(30, 50),
            workers=rng.randint(1, 4),
            foreign=rng.random() < 0.4,
            history=rng.choice((0, 0, 130)),
            **about,
        )

    @classmethod
    def compared(cls, seed: int, kind: Kind) -> Setting:
        """A setting in which the items of every kind of session can be counted."""
        name = f"compared-{kind}"
        return cls(name=name, seed=seed, rate=0.4, operations=40, kind=kind, repeats=False)
