"""An outbox whose file outlives the processes of a run, with virtual time before each commit.

The statements are the product's own `Store`, on one connection in memory that
stands for the file. What the test adds is time, crashes, and an account of
every row that was recorded or taken out.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from cached_session import OutboxError
from cached_session.outbox import Address, Claim, Log, Row
from cached_session.outbox.shared import Shared
from cached_session.outbox.sqlite import schema
from cached_session.outbox.sqlite.file import run_group
from cached_session.outbox.sqlite.log import SQLiteLog
from cached_session.outbox.sqlite.store import Store
from cached_session.outbox.writer import Outcome
from tests.campaigns.account import Call, Change
from tests.campaigns.menu import CALL
from tests.simulation.outbox_ledger import OutboxLedger

if TYPE_CHECKING:
    from tests.simulation.outbox_process import Process

T = TypeVar("T")


class Delays(NamedTuple):
    """How long a transaction takes, and how often one fails.

    Attributes:
        longest: Seconds from a call to the commit, and from the commit to the answer, each.
        failures: Share of the transactions of which nothing is recorded.
    """

    longest: float
    failures: float


class Disk:
    """The file: what is committed outlives every process.

    Attributes:
        living: The tokens of the processes that live.
        conversation: The conversation of which account is kept.
    """

    def __init__(self, ledger: OutboxLedger) -> None:
        self.ledger = ledger
        self.living: set[str] = set()
        self.conversation = ""
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("PRAGMA foreign_keys = ON")
        schema.create(self.connection)
        self._hand = self.store("the hand of a human", 0)

    def store(self, token: str, max_window_bytes: int) -> WatchedStore:
        """What an owner does to the file."""
        return WatchedStore(self, token, max_window_bytes)

    def by_hand(self, work: Callable[[Log], T]) -> T:
        """Does what `cached-session outbox` does, at once."""
        hand = SQLiteLog(self._hand)
        return cast(T, run_group(self.connection, hand, _broken, [work]).pop().result())

    def waiting(self) -> set[int]:
        """The places of the rows of the conversation that the account is of."""
        found = self.connection.execute(
            "SELECT seq FROM items JOIN conversations ON number = items.conversation "
            "WHERE conversations.conversation = ?",
            (self.conversation,),
        )
        return {seq for (seq,) in found}

    def watched_elsewhere(self, token: str) -> bool:
        """Whether another owner had the conversation last: it removes late copies, or its heir."""
        found = self.connection.execute(
            "SELECT owner FROM conversations WHERE conversation = ?", (self.conversation,)
        )
        # A human looks after none.
        return any(owner not in (None, token, self._hand.token) for (owner,) in found)

    def close(self) -> None:
        """Ends it."""
        self.connection.close()


class WatchedStore(Store):
    """A store that notes which rows come and go; `Disk.ledger` is told when it is committed."""

    def __init__(self, disk: Disk, token: str, max_window_bytes: int) -> None:
        super().__init__(
            disk.connection,
            token,
            alive=disk.living.__contains__,
            others=lambda: bool(disk.living - {token}),
            max_window_bytes=max_window_bytes,
        )
        self._disk = disk
        self.noted: list[Callable[[], Change]] = []
        self.call: Call | None = None

    def accept(self, address: Address, items: Sequence[bytes], now: float) -> tuple[int, ...]:
        seqs = super().accept(address, items, now)
        call, ledger = self.call, self._disk.ledger
        if address.conversation == self._disk.conversation:
            self.noted.append(lambda: ledger.accepted(call, seqs, items))
        return seqs

    def claim(self, address: Address) -> Claim | None:
        claimed = super().claim(address)
        if claimed is Claim.TAKEN and address.conversation == self._disk.conversation:
            # Whoever has claimed reads what was done meanwhile.
            for change in self._disk.ledger.discards:
                self.noted.append(lambda change=change: change)
        return claimed

    def withdraw(self, address: Address) -> Row | None:
        row = super().withdraw(address)
        call, ledger = self.call, self._disk.ledger
        if row is not None and address.conversation == self._disk.conversation:
            seq = row.seq
            self.noted.append(lambda: ledger.withdrawn(call, seq))
        return row


class _Job(NamedTuple):
    work: Callable[[Log], Any]
    applied: Callable[[Any], None] | None
    call: Call | None
    future: asyncio.Future[Outcome]


class SimOutbox(Shared):
    """One process's outbox on the disk.

    Attributes:
        token: The process, as an owner of backlogs.

    Args:
        disk: The file that all processes share.
        token: The process, as an owner of backlogs.
        rng: Where its delays come from.
        delays: See there.
        max_items: How many items may wait in one backlog.
        max_window_bytes: What all stored windows may take.
    """

    def __init__(
        self,
        disk: Disk,
        token: str,
        rng: random.Random,
        delays: Delays,
        *,
        max_items: int,
        max_window_bytes: int,
    ) -> None:
        super().__init__(max_items, 1 << 20, None, 10.0, max_window_bytes)
        self._disk = disk
        self.token = self._name = token
        self._opened = 0
        self._random = rng
        self._delays = delays
        self._store = disk.store(token, max_window_bytes)
        self._jobs: list[_Job] = []
        self._unheard: list[Change] = []
        self._dead = False
        self._answered = 0.0
        self.failures = delays.failures
        """As in `Delays`; may be changed at any time."""
        self.process: Process | None = None
        """Whose it is."""
        disk.living.add(token)

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work` in a transaction, with those that wait for the same one.

        A caller that is cancelled hears so at once, and its work is still run.
        One in a process that crashed hears nothing any more.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if not self._dead:
            self._jobs.append(_Job(work, applied, CALL.get(), future))
            if len(self._jobs) == 1:
                loop.call_later(self._delay(), self._commit)
        return cast(T, (await future).result())

    async def let_go(self) -> None:
        """Does what it was asked before and lets go of all backlogs; goes on as another owner."""
        if self._dead:
            return
        if self._jobs:
            self._commit()
        self._disk.living.discard(self.token)
        self._opened += 1
        self.token = f"{self._name}, opened again ({self._opened})"
        self._disk.living.add(self.token)
        self._store = self._disk.store(self.token, self.max_window_bytes)

    def crash(self) -> None:
        """Ends the owner. Of the works that wait, a random beginning was committed."""
        self._dead = True
        self._disk.living.discard(self.token)
        jobs, self._jobs = self._jobs, []
        committed = jobs[: self._random.randint(0, len(jobs))]
        if committed and self._random.random() < 0.5:
            self._run(committed)
        self._disk.ledger.heard(self._unheard)

    def end(self) -> None:
        """Ends the owner, which has nothing left to do."""
        self._dead = True
        self._disk.living.discard(self.token)

    def _delay(self) -> float:
        return self._random.uniform(0.0, self._delays.longest)

    def _commit(self) -> None:
        if self._dead:
            return
        jobs, self._jobs = self._jobs, []
        if self._random.random() < self.failures:
            changes: list[Change] = []
            outcomes = [Outcome(None, OutboxError("the disk is full")) for _ in jobs]
        else:
            outcomes, changes = self._run(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                # What is committed is known at once, whoever lives to hear of it.
                if job.applied is not None and outcome.error is None:
                    job.applied(outcome.value)
        loop = asyncio.get_running_loop()
        first = loop.time() + self._delay()
        for job, outcome in zip(jobs, outcomes, strict=True):
            # One event loop hears the answers one by one, in the order of the works.
            self._answered = max(first, self._answered + 1e-6)
            loop.call_at(self._answered, self._answer, job, outcome)
        loop.call_at(self._answered, self._heard, changes)

    def _run(self, jobs: Iterable[_Job]) -> tuple[list[Outcome], list[Change]]:
        store = self._store
        works = [self._watched(job) for job in jobs]
        outcomes = run_group(self._disk.connection, SQLiteLog(store), _broken, works)
        noted, store.noted = store.noted, []
        changes = [note() for note in noted]
        self._unheard += changes
        return outcomes, changes

    def _watched(self, job: _Job) -> Callable[[Log], Any]:
        store = self._store

        def work(log: Log) -> Any:
            before, store.call = len(store.noted), job.call
            try:
                return job.work(log)
            except BaseException:
                del store.noted[before:]
                raise

        return work

    def _answer(self, job: _Job, outcome: Outcome) -> None:
        if not self._dead and not job.future.done():
            job.future.set_result(outcome)

    def _heard(self, changes: list[Change]) -> None:
        if not self._dead:
            # Where another process has recorded something before, that is read, too.
            self._disk.ledger.heard(changes, within=2.1 * self._delays.longest + 1e-3)
            self._unheard = [change for change in self._unheard if change not in changes]


def _broken(error: sqlite3.Error) -> OutboxError:
    raise error  # no statement may fail here
