"""What a round is like: which processes are run, on what network, and when they are killed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from cached_session.emulator import FaultKind
from tests.campaigns.plan import Plan

ATTEMPT = 0.5
"""Seconds that one request may take."""

DEADLINE = 3.0
"""Seconds that one operation may take, and for which a late commit is watched for."""

LEASE = 3.0
"""Seconds that processes keep what they have in a database."""

SPANS = {
    FaultKind.SLOW: (0.01, 0.3),
    FaultKind.LATE_COMMIT: (0.005, 0.5),
    FaultKind.REFUSED: (0.01, 0.1),
    FaultKind.RATE_LIMITED: (0.005, 0.05),
}
"""Short times, all of them far below the deadline."""

# Asks the user to act, and pauses the backlog. Nobody is there to act.
KINDS = [kind for kind in FaultKind if kind is not FaultKind.RATE_LIMITED_QUOTA]

Mode = Literal["work", "flush", "check"]
Ending = Literal["close", "exit", "stay"]


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
        name: Tells it from the others of its round.
        seed: Of what it draws.
        mode: Appends and reads; or flushes; or flushes and shows what there is.
        operations: How many operations it makes at most.
        reads: How often it reads, for each append.
        pause: Seconds between two of its operations, on average.
        slow_disk: Whether the disk takes its time.
        ending: What it does after its calls: closes its session, exits without,
            or stays and goes on sending until it is killed.
        kill_after: Seconds from its start until it is killed; None: it is not.
        kill_at: It is killed as soon as so many events were told to its observer, or not by that.
        kill_on: It is killed at the first event of this name, or not by that.
    """

    name: str
    seed: str
    mode: Mode = "work"
    operations: int = 0
    reads: float = 0.0
    pause: float = 0.0
    slow_disk: bool = False
    ending: Ending = "close"
    kill_after: float | None = None
    kill_at: int | None = None
    kill_on: str | None = None


@dataclass(frozen=True)
class Run:
    """Processes that are started at the same moment.

    Attributes:
        works: What each does.
        away: Whether the server is away meanwhile.
    """

    works: tuple[Work, ...]
    away: bool


@dataclass(frozen=True, kw_only=True)
class Round(Plan):
    """A few runs on one file or database, and two undisturbed ones at the end.

    Real processes add chance of their own.

    Attributes:
        told: Whether a process is told the conversation's id if it is known.
        runs: The runs in which processes are killed.
        last: The ones at the end, in which the server is well.
        fleet: Whether they share a database, and not a file.
    """

    world = "processes"

    told: bool
    runs: tuple[Run, ...]
    last: tuple[Run, ...]
    fleet: bool = False

    @classmethod
    def draw(cls, seed: int) -> Round:
        """The round that belongs to a seed."""
        rng = random.Random(f"{seed}:round")
        history = rng.choice((None, 0, 3, 3, 130))
        pairs = rng.random() < 0.4
        runs = []
        for number in range(rng.randint(1, 6)):
            # Before the first item is accepted nothing says what the processes
            # would have in common.
            two = pairs and rng.random() < 0.7 and (history is not None or number > 0)
            works = tuple(_work(rng, f"{number}{letter}") for letter in ("ab" if two else "a"))
            away = rng.random() < (0.7 if history is None and number == 0 else 0.1)
            runs.append(Run(works, away))
        flush = Work("flush", f"{seed}", "flush", ending=rng.choice(("close", "exit")))
        check = Work("check", f"{seed}", "check")
        return cls(
            name="processes",
            seed=seed,
            rate=rng.choice((0.1, 0.25, 0.4)),
            weights={kind: rng.random() for kind in KINDS},
            history=history,
            told=rng.random() < 0.5,
            runs=tuple(runs),
            last=(Run((flush,), away=False), Run((check,), away=False)),
        )

    def later(self, times: float) -> Round:
        """The same, with the processes killed so many times later: they take longer to begin."""
        runs = tuple(
            replace(run, works=tuple(_later(work, times) for work in run.works))
            for run in self.runs
        )
        return replace(self, runs=runs)

    @classmethod
    def in_a_fleet(cls, seed: int) -> Round:
        """The round of a seed for processes that share a database."""
        return replace(cls.draw(seed).later(4), name="fleet", fleet=True)

    @classmethod
    def amid_removals(cls, seed: int) -> Round:
        """Processes that are killed when they have deleted the first item of a late copy."""
        rng = random.Random(f"{seed}:removals")
        works = [
            Work(
                name=f"{number}a",
                seed=f"{rng.random()}",
                operations=50,
                reads=0.5,
                pause=0.01,
                ending="exit",
                kill_after=1.0,
                kill_on="LateCopyRemoved",
            )
            for number in range(2)
        ]
        return replace(
            cls.draw(seed).with_only([FaultKind.LATE_COMMIT]),
            name="removals",
            history=3,
            runs=tuple(Run((work,), away=False) for work in works),
        )


def _later(work: Work, times: float) -> Work:
    after = work.kill_after
    return replace(work, kill_after=None if after is None else after * times)


def _work(rng: random.Random, name: str) -> Work:
    span = rng.choices(((0.0, 0.03), (0.02, 0.2), (0.1, 0.5)), (2, 5, 3))[0]
    seed = f"{rng.random()}"
    return Work(
        name=name,
        seed=seed,
        operations=rng.randint(4, 40),
        reads=rng.choice((0.1, 0.1, 0.5)),
        pause=rng.choice((0.0, 0.002, 0.01)),
        slow_disk=rng.random() < 0.4,
        ending=rng.choice(("close", "exit", "stay", "stay")),
        kill_after=rng.uniform(*span),
        kill_at=rng.randint(1, 25) if rng.random() < 0.25 else None,
        # In the middle of what is seldom begun.
        kill_on=random.Random(seed).choice(("LateCopyRemoved", "Reconciled", None, None, None)),
    )
