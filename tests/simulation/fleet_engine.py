"""The engine of a fleet: a real server, with virtual time and bad luck around each transaction.

The statements are the product's own, on a connection of its own class. The test adds what comes
between a call, its commit and its answer, and an account of every item recorded or withdrawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast
from unittest import mock

import psycopg

from cached_session import PostgresOutbox
from cached_session.outbox.log import Log
from cached_session.outbox.postgres import engine
from cached_session.outbox.postgres.lease import Lease
from cached_session.outbox.postgres.log import PostgresLog
from tests.campaigns.account import Call
from tests.campaigns.menu import CALL
from tests.simulation.fleet_setting import Fate, FleetSetting
from tests.simulation.fleet_tables import CLOCK, Tables
from tests.simulation.fleet_threads import Ended, Host, Thread, here, in_virtual_time, sleep
from tests.simulation.outbox_ledger import OutboxLedger

T = TypeVar("T")

# As of which second of the server's calendar runs begin.
_EPOCH = 1_800_000_000.0

_execute: Callable[..., Any] = psycopg.Connection.execute

# How long a row's lock is waited for on the real clock: whoever has it goes on in virtual time.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = 2"


class FleetOutbox(PostgresOutbox):
    """One process's outbox.

    Attributes:
        name: The process.
        host: The same, as far as its threads are concerned.
        token: As what it was opened last.
        call: For which append or pop the outbox's thread works now.
        process: Whose it is.
    """

    def __init__(self, fleet: Fleet, name: str, host: Host, **options: Any) -> None:
        super().__init__(fleet.tables.address, **options)
        self.fleet = fleet
        self.host = host
        self.token = self.name = name
        self.call: Call | None = None
        self.process: Any = None
        fleet.hosts.append(host)
        host.outbox = self

    async def _do(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None, *, reads: bool
    ) -> T:
        call = CALL.get()

        def called(log: Log) -> T:
            self.call = call
            return work(log)

        try:
            return await super()._do(called, applied, reads=reads)
        except Ended:
            # In a process that crashed nobody hears anything any more.
            return cast(T, await asyncio.get_running_loop().create_future())

    def _put(self, job: Any) -> None:
        Thread.host = self.host
        super()._put(job)

    def named(self, token: str) -> None:
        """Notes as what it was opened."""
        self.token = token

    def crash(self) -> None:
        """Ends it with its process."""
        # First: what it has begun may be committed all the same.
        self.fleet.ended(self)
        self.host.crash()

    end = crash


class Fleet:
    """The engine: what is committed outlives every process.

    Attributes:
        ledger: The account.
        conversation: The conversation of which account is kept.
        tables: Where all of it is.
        rate: As `FleetSetting.engine`; may be changed at any time.
        hosts: All processes that there were.
        wires: Their connections, but for those that are closed.
    """

    def __init__(self, ledger: OutboxLedger, setting: FleetSetting, tables: Tables) -> None:
        self.ledger = ledger
        self.conversation = ""
        self.tables = tables
        self.rate = setting.engine
        self._setting = setting
        self._random = random.Random(f"{setting.seed}:engine")
        self._ahead = 0.0
        self._away_until = 0.0
        self._crashes = 0
        self._tokens = itertools.count()
        self._open: dict[Wire, Callable[[], None]] = {}
        self.hosts: list[Host] = []
        self.wires: list[Wire] = []
        self._stack = contextlib.ExitStack()
        tables.empty()
        self._stack.enter_context(in_virtual_time())
        Wire.fleet = self
        for name, instead in (("_Connection", Wire), ("_cut", _cut), ("secrets", self)):
            self._stack.enter_context(mock.patch.object(engine, name, instead))
        self._connection = psycopg.connect(tables.address, autocommit=True)
        self._hand: PostgresLog | None = None

    def token_hex(self, count: int) -> str:
        """In the place of `secrets`: a name for who opens an outbox."""
        host = here()
        name = "hand" if host is None else host.outbox.name
        token = f"{name} ({next(self._tokens)})"
        if host is not None:
            host.outbox.named(token)
        return token

    def now(self) -> float:
        """When it is, by the engine's clock."""
        return _EPOCH + asyncio.get_running_loop().time() + self._ahead

    def by_hand(self, work: Callable[[Log], T]) -> T:
        """Does what `cached-session outbox` does, at once."""
        if self._hand is None:
            lease = Lease(3.0)
            made = engine.Engine(self.tables.address, "by hand", lease, 10.0, make=False)
            self._hand = PostgresLog(made, lease, 0)
        return work(self._hand)

    def waiting(self) -> set[int]:
        """The places of the rows of the conversation that the account is of."""
        found = self._connection.execute(
            "SELECT i.seq FROM cached_session.items i JOIN cached_session.conversations c "
            "ON c.number = i.conversation WHERE c.conversation = %s",
            (self.conversation,),
        ).fetchall()
        return {seq for (seq,) in found}

    def watched_elsewhere(self, token: str) -> bool:
        """Whether another owner had the conversation last: it removes late copies, or its heir."""
        found = self._connection.execute(
            "SELECT owner FROM cached_session.conversations WHERE conversation = %s",
            (self.conversation,),
        ).fetchall()
        return any(
            owner not in (None, token) and not owner.startswith("hand") for (owner,) in found
        )

    def close(self) -> None:
        """Ends it."""
        for host in self.hosts:
            host.crash()
        for wire in self.wires:
            wire.undo()
        if self._hand is not None:
            self._hand._engine._drop()
        self._connection.close()
        self._stack.close()

    # What befalls it

    def fate(self, function: str | None) -> Fate | None:
        """What becomes of a call, by chance."""
        if self._setting.only not in (None, function) or self._random.random() >= self.rate:
            return None
        fate = self._random.choice(self._setting.fates)
        if fate is Fate.JUMP:
            # Its clock, and no more.
            self._ahead += self._random.choice((-40.0, -3.0, 0.5, 3.0, 40.0))
            return None
        if fate is Fate.CRASH:
            self.crash()
        return fate

    def crash(self) -> None:
        """Undoes what is not committed, cuts all connections, and is away for a while."""
        self._crashes += 1
        for wire in [*self._open]:
            wire.undo()
        self._away_until = asyncio.get_running_loop().time() + self._random.choice(
            (0.0, 0.5, 5.0, 25.0)
        )

    @property
    def crashes(self) -> int:
        """How often it has crashed."""
        return self._crashes

    @property
    def away(self) -> bool:
        """Whether nobody reaches it."""
        return asyncio.get_running_loop().time() < self._away_until

    def nap(self) -> float:
        """For how long a process stands still."""
        lease = self._setting.lease
        return self._random.choice((lease / 2, lease + 1, lease + 100))

    def later(self, host: Host, query: Any, params: Any, call: Call | None) -> None:
        """Does a call when whoever made it has given it up, or is gone."""
        seconds = self._random.choice((0.01, 0.5, 3.0, 12.0, 40.0))
        asyncio.get_running_loop().call_later(seconds, self._late, host, query, params, call)

    def _late(self, host: Host, query: Any, params: Any, call: Call | None) -> None:
        if self.away or self._connection.closed:
            return
        if call is not None and not host.alive:
            # Nobody was told of it: it need not stand before what was appended since.
            call.worker = call
        with engine._Connection.connect(self.tables.address, autocommit=True) as connection:
            engine.hold_any_text(connection)
            connection.row_factory = psycopg.rows.namedtuple_row
            # It comes too late, or its turn is over.
            with contextlib.suppress(psycopg.Error):
                self._at_once(connection, query, params, call, self.ledger)

    # Transactions

    def began(self, wire: Wire, commit: Callable[[], None]) -> None:
        """Notes a transaction that is not committed yet, and what commits it."""
        self._open[wire] = commit

    def over(self, wire: Wire) -> None:
        """Notes that it is no more."""
        self._open.pop(wire, None)

    def ended(self, outbox: FleetOutbox) -> None:
        """The process of an outbox has ended: what it had begun is committed, or not."""
        for wire, commit in [*self._open.items()]:
            if wire.outbox is outbox:
                if self._random.random() < 0.5:
                    commit()
                else:
                    wire.undo()
        for wire in self.wires:
            if wire.outbox is outbox:
                wire.undo()
        self.wires = [wire for wire in self.wires if not wire.closed]

    def settle(self) -> None:
        """Has all transactions end, for somebody who may not wait for the locks that they have."""
        for commit in [*self._open.values()]:
            commit()

    def _at_once(self, connection: Any, query: Any, params: Any, call: Any, ledger: Any) -> Any:
        while True:
            try:
                self.begin(connection)
                rows = _execute(connection, query, params, binary=True).fetchall()
            except psycopg.errors.LockNotAvailable:
                _execute(connection, "ROLLBACK")
                self.settle()
            except psycopg.Error:
                _execute(connection, "ROLLBACK")
                raise
            else:
                _execute(connection, "COMMIT")
                self.account(query, params, rows, call)
                return rows

    def begin(self, connection: Any) -> None:
        """Begins a transaction."""
        _execute(connection, f"BEGIN; {_LOCK_TIMEOUT}; SET LOCAL {CLOCK} = '{self.now()!r}'")

    def account(self, query: str, params: Sequence[Any], rows: Any, call: Call | None) -> None:
        """Puts on the account what a call has done, when it is committed."""
        function = _function(query)
        if function not in ("accept", "withdraw") or self.conversation not in str(params[2]):
            return
        (row,) = rows
        change = None
        if function == "accept":
            if call is not None and call.ended == "raised" and call.unknown:
                call.ended = None  # so it was told
            # One that is repeated says what it did the first time.
            if call is None or call.places != tuple(row.places):
                change = self.ledger.accepted(call, row.places, params[4])
        elif row.seq is not None and (call is None or not call.removed):
            change = self.ledger.withdrawn(call, row.seq)
        if change is not None:
            # Every read of the fleet that begins now sees it.
            self.ledger.heard([change])


class Wire(engine._Connection):
    """A process's connection to the engine."""

    fleet: Fleet

    outbox: FleetOutbox | None = None
    _born = 0

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Any:
        host, fleet = here(), cls.fleet
        if host is not None:
            sleep(host.delay())
            if not host.alive:
                raise Ended
            if fleet.away:
                raise psycopg.OperationalError("connection refused")
        connection = super().connect(conninfo, **options)
        fleet.wires.append(connection)
        connection._born = fleet.crashes
        connection.outbox = None if host is None else host.outbox
        return connection

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        host, fleet = here(), self.fleet
        if host is None:
            return _Rows(fleet._at_once(self, query, params, None, None))
        assert self.outbox is not None
        call, fate = self.outbox.call, fleet.fate(_function(query))
        sleep(host.delay())
        if fate is Fate.LATE:
            fleet.later(host, query, params, call)
        if fate in (Fate.LATE, Fate.LOST, Fate.CRASH) or self._cut_off:
            raise self._lost()
        rows = self._transaction(host, query, params, call)
        if fate is Fate.SLEEP:
            host.asleep_until = asyncio.get_running_loop().time() + fleet.nap()
        sleep(host.delay())
        if fate is Fate.UNANSWERED or self._cut_off:
            raise self._lost()
        return _Rows(rows)

    def _transaction(self, host: Host, query: Any, params: Any, call: Call | None) -> Any:
        """Does a call; between it and its commit, others go on."""
        fleet, execute = self.fleet, super().execute
        while True:
            try:
                fleet.begin(self)
                rows = execute(query, params, binary=True).fetchall()
                break
            except psycopg.errors.LockNotAvailable:
                execute("ROLLBACK")
                sleep(host.delay() + 0.001)
                if self._cut_off:
                    raise self._lost() from None
            except psycopg.Error as error:
                if not self.closed:
                    execute("ROLLBACK")
                    sleep(host.delay())
                raise error from None
        committed = False

        def commit() -> None:
            nonlocal committed
            if not committed:
                committed = True
                execute("COMMIT")
                fleet.over(self)
                fleet.account(query, params, rows, call)

        fleet.began(self, commit)
        try:
            sleep(host.delay())
            if self._cut_off and not committed:
                raise self._lost()
            commit()
        finally:
            fleet.over(self)
        return rows

    @property
    def _cut_off(self) -> bool:
        return self.closed or self._born != self.fleet.crashes or self.fleet.away

    def undo(self) -> None:
        """Ends it, with what is not committed."""
        self.fleet.over(self)
        if not self.closed:
            # The server sees the end of a connection a moment later, on the real clock. Others
            # would find its locks until then.
            with contextlib.suppress(psycopg.Error):
                _execute(self, "ROLLBACK")
        self.close()

    def _lost(self) -> psycopg.OperationalError:
        self.undo()
        return psycopg.OperationalError("the connection is lost")


class _Rows:
    """An answer, as a cursor has it."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def fetchall(self) -> Any:
        return self._rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None


def _function(query: str) -> str | None:
    found = re.search(r"cached_session\.(\w+)\(", query)
    return None if found is None else found[1]


def _cut(connection: Wire) -> bool:
    return bool(connection._cut_off)
