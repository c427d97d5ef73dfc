"""Processes that fight for turns on one conversation, and are stopped or killed in theirs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable

import psycopg
import pytest

from cached_session import PostgresOutbox
from cached_session.emulator import Emulator
from tests.campaigns.account import Violation
from tests.campaigns.plan import fresh
from tests.outbox_sessions.support import Process, until
from tests.outbox_sessions.workers import Run, Setting, Worker
from tests.postgres import Server
from tests.session.support import Elsewhere, texts

pytestmark = pytest.mark.campaign

LEASE = 3.0

TURN_ENDS = int(os.environ.get("TURN_ENDS", "2"))
"""How many turns end by a signal; each takes a lease. More by `TURN_ENDS=200`."""

RUNS = 3
"""How many runs each worker makes at least."""

PARTS = 4

NO_FENCE = """
CREATE OR REPLACE FUNCTION cached_session.check_turn(me text, ticket_of bigint) RETURNS void
LANGUAGE plpgsql AS $$ BEGIN END $$
"""


class Fight:
    """Workers on one conversation, each with one run after the other.

    Attributes:
        runs: What came of them.
        late: How many items were appended by those that had stood still for too long.
        waited: Seconds from the end of a turn by a signal until somebody else had it.
    """

    def __init__(self, its: Setting, seed: int, ends: int) -> None:
        self._its = its
        self._rng = random.Random(seed)
        # Half of each, in any order.
        self._ends = [(signal.SIGSTOP, signal.SIGKILL)[number % 2] for number in range(ends)]
        self._rng.shuffle(self._ends)
        # How many of them there are to come, or somebody has to go on after.
        self._open = ends
        self._begun = 0
        self._names = 0
        self.runs: list[Run] = []
        self.late = 0
        self.waited: list[float] = []

    async def fight(self, workers: int) -> None:
        """Has so many of them fight until enough turns have ended by a signal."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._one_after_the_other())

    async def _one_after_the_other(self) -> None:
        worker, left = Worker(self._its), RUNS
        try:
            while left > 0 or self._open:
                left -= 1
                if self._ends and self._rng.random() < 0.2:
                    how = self._ends.pop()
                    await self._end(worker, how)
                    if how == signal.SIGKILL:
                        worker.let_go()
                        worker = Worker(self._its)
                else:
                    self._begin(worker)
                    await self._has_the_turn(worker)
                    self.runs.append(await worker.result())
            await worker.close()
        finally:
            worker.let_go()

    def _begin(self, worker: Worker, at: int = -1, ends_by: int = 0) -> None:
        self._names += 1
        worker.begin("run", str(self._names), PARTS, at=at, ends_by=ends_by)

    async def _has_the_turn(self, worker: Worker) -> None:
        await worker.says("has the turn")
        self._begun += 1

    async def _end(self, worker: Worker, how: signal.Signals) -> None:
        """Has a worker get the turn, and end it by a signal; goes on when somebody else has it."""
        at = self._rng.randrange(1, PARTS)
        self._begin(worker, at, how)
        await self._has_the_turn(worker)
        (run,) = await worker.says("ends")
        begun, ended = self._begun, time.monotonic()
        await until(lambda: self._begun > begun)
        self.waited.append(time.monotonic() - ended)
        self._open -= 1
        if how == signal.SIGSTOP:
            worker.go_on()
            run = await worker.result()
            self.late += PARTS - at
        self.runs.append(run)

    def check(self, stored: list[str]) -> None:
        """Checks that the runs stand one behind the other, and that each has seen those before it.

        Raises:
            Violation: They do not, or it has not.
        """
        places = set[int]()
        for run in self.runs:
            begin, end = len(run.seen), len(run.seen) + len(run.accepted)
            if stored[:end] != run.seen + run.accepted:
                raise Violation(f"{run} and others are interleaved, or it has not seen: {stored}")
            if run.shown != [stored[: begin + n + 1] for n in range(len(run.accepted))]:
                raise Violation(f"{run} has read something else than {stored}")
            places |= {*range(begin, end)}
        if places != {*range(1, len(stored))}:
            raise Violation(f"what nobody has appended, or not as often: {stored}")


async def fought(
    address: str, emulator: Emulator, *, seed: int, ends: int, workers: int
) -> tuple[Fight, list[str]]:
    """A fight, and what is on the server after it."""
    conversation = Elsewhere(emulator).conversation("before")
    retry = {"initial_delay": 0.01, "max_delay": 0.05}
    its = Setting(address, emulator.base_url, conversation, retry, LEASE)
    fight = Fight(its, seed, ends)
    await fight.fight(workers)
    async with Process(emulator, PostgresOutbox(address, lease=LEASE)) as process:
        session = process.session(conversation)
        await session.get_items()
        await session.flush(timeout=20)
    return fight, texts(emulator.items(conversation))


async def test_fight(postgres: Server, emulator: Emulator, tell: Callable[[str], None]) -> None:
    """Runs of eight processes do not mix, also where one ends in its turn; what is late is refused.

    The turn of one that was stopped, or killed, is over with its lease.
    """
    seed = fresh("turns", tell)
    fight, stored = await fought(
        postgres.with_tables(), emulator, seed=seed, ends=TURN_ENDS, workers=8
    )
    refused = sum(len(run.refused) for run in fight.runs)
    tell(
        f"turns: {len(fight.runs)} runs, {len(fight.waited)} ended by a signal, {refused} items "
        f"refused; somebody else had the turn after {max(fight.waited):.1f} s at most"
    )
    fight.check(stored)
    assert refused == fight.late > 0
    assert max(fight.waited) < 2 * LEASE


async def test_without_the_fence(postgres: Server, emulator: Emulator) -> None:
    """Where an accept does not look whose turn it is, one that comes late stands among others."""
    address = postgres.with_tables()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(NO_FENCE)
    fight, stored = await fought(address, emulator, seed=1, ends=2, workers=3)
    with pytest.raises(Violation, match="interleaved"):
        fight.check(stored)
    assert not any(run.refused for run in fight.runs)
