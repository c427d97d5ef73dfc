"""What a run with the outbox is like."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.simulation.outbox_disk import Delays
from tests.simulation.world import Setting


@dataclass(frozen=True, kw_only=True)
class OutboxSetting(Setting):
    """What one run is like beyond its `Setting`; drawn from its seed.

    Attributes:
        processes: How many live at the same time.
        crashes: How many crash or are restarted in all.
        lifetime: Seconds that one lives, on average, while crashes are left.
        delays: What the disk is like.
        max_items: How many items may wait.
        max_window_bytes: What the stored windows may take.
    """

    processes: int
    crashes: int
    lifetime: float
    delays: Delays
    max_items: int
    max_window_bytes: int

    @classmethod
    def draw(cls, seed: int) -> OutboxSetting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:outbox setting")
        return cls(
            **{**vars(Setting.draw(seed)), "name": "outbox"},
            processes=rng.choice((1, 1, 1, 2)),
            crashes=rng.choice((0, 1, 2, 3, 5, 8)),
            lifetime=rng.choice((0.3, 1.0, 3.0, 10.0)),
            delays=Delays(rng.choice((0.0, 0.002, 0.02, 0.2)), rng.choice((0.0, 0.0, 0.0, 0.03))),
            max_items=rng.choice((100_000, 100_000, 40)),
            max_window_bytes=rng.choice((0, 2000, 64 << 20)),
        )

    @classmethod
    def crowded(cls, seed: int) -> OutboxSetting:
        """Many workers in one process, on a slow disk: all have to wait for each other."""
        return replace(
            cls.draw(seed),
            name="crowded",
            rate=0.05,
            operations=100,
            workers=8,
            foreign=False,
            history=0,
            processes=1,
            crashes=0,
            delays=Delays(0.2, 0.0),
        )

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong but crashes: no call may fail."""
        return self.rate == 0 and self.delays.failures == 0
