"""What a run of a fleet is like."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum, auto

from tests.simulation.outbox_disk import Delays
from tests.simulation.outbox_setting import OutboxSetting


class Fate(Enum):
    """What becomes of a call to the engine that nothing good comes of."""

    LOST = auto()
    """It does not arrive."""
    UNANSWERED = auto()
    """It is done, and its answer is lost."""
    LATE = auto()
    """It is taken for lost, and done later."""
    SLEEP = auto()
    """Whoever called stands still when it is done, longer than others wait for it."""
    CRASH = auto()
    """The engine crashes: what is not committed is undone, and nobody reaches it for a while."""
    JUMP = auto()
    """The engine's clock jumps, forth or back."""


@dataclass(frozen=True, kw_only=True)
class FleetSetting(OutboxSetting):
    """What one run is like beyond its `OutboxSetting`; drawn from its seed.

    Attributes:
        lease: Seconds for which an owner keeps what it has claimed.
        engine: Share of the calls to the engine that nothing good comes of.
        fates: What becomes of those.
        only: Of which calls nothing good comes; None: of any.
        parting: How often a worker closes all its sessions after an operation.
    """

    world = "fleet"

    lease: float
    engine: float
    fates: tuple[Fate, ...]
    only: str | None = None
    parting: float = 0.0

    @classmethod
    def draw(cls, seed: int) -> FleetSetting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:fleet setting")
        return cls(
            **{
                **vars(OutboxSetting.draw(seed)),
                "name": "virtual-fleet",
                # What others write is seen when OpenAI is asked, and not before.
                "foreign": False,
                "processes": rng.choice((1, 2, 2, 3)),
                "max_window_bytes": rng.choice((0, 2000, 64 << 20)),
            },
            lease=rng.choice((3.0, 5.0, 30.0)),
            engine=rng.choice((0.0, 0.01, 0.03, 0.1)),
            fates=tuple(rng.sample([*Fate], rng.randint(1, len(Fate)))),
        )

    @classmethod
    def with_fates(cls, seed: int, *fates: Fate) -> FleetSetting:
        """Several processes, and many calls of which this becomes."""
        return replace(cls.draw(seed), processes=2, engine=0.15, fates=fates, max_items=100_000)

    @classmethod
    def asleep(cls, seed: int) -> FleetSetting:
        """Owners that stand still."""
        return replace(cls.with_fates(seed, Fate.SLEEP), name="asleep")

    @classmethod
    def asleep_before_a_send(cls, seed: int) -> FleetSetting:
        """Owners that stand still between the record of a batch and its request."""
        return replace(
            cls.asleep(seed),
            name="asleep-before-a-send",
            rate=0.0,
            workers=1,
            crashes=0,
            history=0,
            delays=Delays(0.002, 0.0),
            lease=3.0,
            engine=0.5,
            only="seal",
        )

    @classmethod
    def unanswered(cls, seed: int) -> FleetSetting:
        """Answers that are lost, and calls that come late."""
        return replace(cls.with_fates(seed, Fate.UNANSWERED, Fate.LATE), name="unanswered")

    @classmethod
    def web(cls, seed: int) -> FleetSetting:
        """Sessions that live for a request or two, one after the other in each process."""
        few = random.Random(f"{seed}:web").choice((0.0, 0.02))
        return replace(cls.draw(seed), name="web-fleet", workers=1, engine=few, parting=0.6)

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong but crashes: no call may fail."""
        return super().calm and self.engine == 0
