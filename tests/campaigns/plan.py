"""What a run is like, drawn from its seed; how seeds are found, told, and named when one fails."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from cached_session.emulator import FaultKind, Faults

LOST_ANSWERS = (
    FaultKind.LATE_COMMIT,
    FaultKind.RESET_AFTER_COMMIT,
    FaultKind.RESET_BEFORE_COMMIT,
)
"""What leaves open what became of a request."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run is like in any world.

    Attributes:
        name: By which the command knows plans like it.
        seed: Of everything that is drawn.
        rate: Share of requests that a fault befalls.
        weights: How often each kind of fault comes; None: as drawn.
        operations: How many operations the workers do together.
        workers: How many tasks work at the same time.
        foreign: Whether another writer is about.
        history: How many items the conversation holds at the start; None: there is none yet.
        world: The world it is for: "virtual", "fleet", "sockets" or "processes".
        exact: Whether its seed decides all of a run; otherwise time has its say.
    """

    world: ClassVar[str]
    exact: ClassVar[bool] = False

    name: str
    seed: int
    rate: float
    weights: Mapping[FaultKind, float] | None = None
    operations: int = 0
    workers: int = 1
    foreign: bool = False
    history: int | None = 0

    @classmethod
    def draw(cls, seed: int) -> Self:
        """The plan that belongs to a seed."""
        raise NotImplementedError

    @classmethod
    def losing_answers(cls, seed: int) -> Self:
        """A plan with many faults that leave open what became of a request."""
        return cls.draw(seed).with_only(LOST_ANSWERS)

    def with_only(self, kinds: Iterable[FaultKind]) -> Self:
        """The same plan with many faults, all of these kinds."""
        weights = dict.fromkeys(kinds, 1.0)
        name = f"{self.name} --only {','.join(weights)}"
        return replace(self, name=name, rate=0.4, weights=weights)

    def rng(self, name: str) -> random.Random:
        """What draws one part of the run."""
        return random.Random(f"{self.seed}:{name}")

    def faults(self, spans: Mapping[FaultKind, tuple[float, float]] | None = None) -> Faults:
        """Which requests meet which faults."""
        rng = self.rng("faults")
        weights = self.weights or {kind: rng.random() for kind in FaultKind}
        scale = self.rate / sum(weights.values())
        rates = {kind: weight * scale for kind, weight in weights.items()}
        return Faults(self.seed, rates, spans=spans or {})


class Failure(AssertionError):
    """A seed in which a promise was not kept, with the command that replays it."""

    def __init__(
        self, plan: Plan, error: BaseException, trace: Sequence[str], more: str = ""
    ) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        timing = "" if plan.exact else " (the same plan, other timing)"
        super().__init__(
            f"seed {plan.seed}: {error}\nreplay{timing}: python -m tests.campaigns {plan.name} "
            f"--start {plan.seed} --seeds 1 --trace{more}"
        )
        self.seed = plan.seed
        self.trace = trace


def fresh(name: str, tell: Callable[[str], None]) -> int:
    """The first of seeds that no run had before, which is told."""
    start = secrets.randbelow(1 << 40)
    tell(f"{name}, seeds from {start}")
    return start


def summary(tally: Mapping[str, int]) -> str:
    """What happened, in a few words."""
    faults = sum(count for name, count in tally.items() if name.startswith("fault "))
    return (
        f"{tally['seeds']} seeds, {tally['operations']} operations, {tally['requests']} requests, "
        f"{faults} faults"
    )
