"""A standby is promoted while workers write: nothing is lost, or it is told."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import NamedTuple

import psycopg
import pytest
from openai import InternalServerError

from cached_session import OutboxPaused, PostgresOutbox, RetryPolicy
from cached_session.emulator import Emulator, Fault, FaultKind, FaultPlan, Faults
from cached_session.emulator.requests import is_append
from cached_session.emulator.wire import Request
from tests.outbox.support import accept, waiting
from tests.outbox_sessions.support import Process, held, raised, until, words
from tests.outbox_sessions.test_engine_crashes import Writer
from tests.postgres import Server, missing, server, standby
from tests.servers import eventually
from tests.session.support import Elsewhere, Gate, texts, users

pytestmark = pytest.mark.processes


@pytest.fixture
def both() -> Iterator[tuple[Server, Server]]:
    """A primary and its standby."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with server() as primary, standby(primary) as second:
        eventually(lambda: primary.ask("SELECT count(*) FROM pg_stat_replication") == 1)
        yield primary, second


def address(both: tuple[Server, Server], database: str) -> str:
    """A database of whichever of both writes."""
    one, two = both
    return (
        f"host=127.0.0.1,127.0.0.1 port={one.port},{two.port} user=owner dbname={database} "
        "target_session_attrs=read-write"
    )


async def test_synchronous(
    both: tuple[Server, Server], emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """What was accepted is sent once by way of the promoted standby, and nobody is warned."""
    primary, second = both
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.execute("SELECT pg_reload_conf()")
    eventually(lambda: primary.ask("SELECT max(sync_state) FROM pg_stat_replication") == "sync")
    conversation = Elsewhere(emulator).conversation()
    over = asyncio.Event()
    async with processes(both, emulator) as (one, two):
        writers = [
            Writer(process.session(conversation), name)
            for name, process in (("a", one), ("b", two))
        ]
        writing = [asyncio.create_task(writer.write(over)) for writer in writers]

        async def accepted(more: int) -> None:
            wanted = [Counter(writer.told.values())["accepted"] + more for writer in writers]
            await until(
                lambda: all(
                    Counter(writer.told.values())["accepted"] >= count
                    for writer, count in zip(writers, wanted, strict=True)
                )
            )

        await accepted(10)
        await asyncio.to_thread(primary.stop, signal.SIGQUIT)
        await asyncio.to_thread(second.promote)
        await accepted(10)
        over.set()
        await asyncio.gather(*writing)
        for writer in writers:
            await writer.session.flush(timeout=30)
            await writer.session.aclose()
    found = texts(emulator.items(conversation))
    assert not [wrong for writer in writers for wrong in writer.untrue(found)]
    assert "has lost calls" not in caplog.text


def is_passed_on(both: tuple[Server, Server]) -> None:
    """Waits until the standby has all that the primary has confirmed, which gets no more then."""
    primary, second = both
    written = primary.ask("SELECT pg_current_wal_lsn()::text")
    eventually(lambda: second.ask(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"))
    second.execute("ALTER SYSTEM SET primary_conninfo = ''")
    second.execute("SELECT pg_reload_conf()")
    eventually(lambda: primary.ask("SELECT count(*) FROM pg_stat_replication") == 0)


def fails_over(both: tuple[Server, Server]) -> None:
    """Ends the primary, and has the standby take its place."""
    primary, second = both
    primary.stop(signal.SIGQUIT)
    second.promote()


@asynccontextmanager
async def processes(
    both: tuple[Server, Server], emulator: Emulator
) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes of a fleet on the servers."""
    place = address(both, both[0].with_tables().rpartition("/")[2])
    async with (
        Process(emulator, PostgresOutbox(place, lease=5)) as one,
        Process(emulator, PostgresOutbox(place, lease=5)) as two,
    ):
        yield one, two


class Stage(Enum):
    """What the standby knows last of what was appended to a conversation."""

    NOTHING = auto()
    """It has never heard of it."""
    ELSEWHERE = auto()
    """Likewise: another writer has appended it, and a read has shown it."""
    ACCEPTED = auto()
    """That it was accepted."""
    IN_DOUBT = auto()
    """The same, and that a request before it may still be carried out."""
    SENDING = auto()
    """That a first batch was sealed, and that the rest was accepted behind it."""


class Forgotten(NamedTuple):
    """A conversation of which a promoted standby has forgotten what was done last.

    Attributes:
        stage: What it knows.
        count: How many items were appended.
        sent: How many requests of them the server has carried out; None: all.
        same: Whether the process that has appended them goes on, or another one.
        call: What that one calls first. A "failing pop" meets a server that is away.
    """

    stage: Stage
    count: int
    sent: int | None
    same: bool
    call: str


class Course:
    """What becomes of one."""

    def __init__(self, case: Forgotten, emulator: Emulator, fleet: tuple[Process, ...]) -> None:
        self.case = case
        self.conversation = Elsewhere(emulator).conversation("before")
        self.expected = ["before"]
        self._emulator = emulator
        self._fleet = fleet
        self.writing, self.reading = (one.session(self.conversation) for one in fleet)

    async def begin(self) -> None:
        """Both processes read it."""
        if self.case.stage is Stage.IN_DOUBT:
            reset = Faults.script([FaultKind.RESET_BEFORE_COMMIT], only=is_append)
            self._emulator.faults = reset
            await self.writing.add_items(users("reset"))
            await self.writing.flush()
            self.expected.append("reset")
        for session in (self.writing, self.reading):
            assert words(await session.get_items()) == self.expected

    async def append(self, gate: Gate) -> None:
        """The items are appended; what the standby is to know, while the gate is closed."""
        new = [str(number) for number in range(self.case.count)]
        self.expected += new
        if self.case.stage is Stage.ELSEWHERE:
            Elsewhere(self._emulator).append(self.conversation, *new)
            await self.writing.refresh()
            assert words(await self.writing.get_items()) == self.expected
        elif self.case.stage is Stage.SENDING:
            await self.writing.add_items(users(new[0]))
            await gate.arrived()
            await self.writing.add_items(users(*new[1:]))
        elif self.case.stage is Stage.NOTHING:
            await self.writing.add_items(users(*new))
        else:
            # Nothing is sealed while a read waits for the server.
            await self.writing.refresh()
            reading = asyncio.create_task(self.writing.get_items())
            await gate.arrived()
            await self.writing.add_items(users(*new))
            self.read = reading

    async def go_on(self) -> str | None:
        """What is wrong after the promotion, if anything is."""
        session = self.writing if self.case.same else self.reading
        if self.case.call == "add_items":
            await session.add_items(users("after"))
            self.expected.append("after")
        elif self.case.call == "pop_item":
            popped = words([await session.pop_item()])
            if popped != [self.expected.pop()]:
                return f"{self.case}: popped {popped}"
        elif self.case.call == "get_items":
            shown = words(await session.get_items())
            if shown != self.expected:
                return f"{self.case}: shown first {shown}"
        else:
            self._emulator.faults = lambda _: Fault(FaultKind.ERROR_BEFORE_COMMIT)
            popping = self._fleet[not self.case.same].session(
                self.conversation, retry=RetryPolicy(max_attempts=1)
            )
            assert isinstance(await raised(popping.pop_item()), InternalServerError)
            await popping.aclose()
            self._emulator.faults = None
        await session.flush(timeout=30)
        stored = texts(self._emulator.items(self.conversation))
        if stored != self.expected:
            return f"{self.case}: stored {stored}"
        new = [process.session(self.conversation) for process in self._fleet]
        for session in (*new, self.writing, self.reading):
            shown = words(await session.get_items())
            if shown != self.expected:
                return f"{self.case}: shown {shown}"
        return None


CALLS = ("add_items", "pop_item", "get_items")
WHO = (True, False)
FORGOTTEN = [
    Forgotten(*case)
    for case in (
        *itertools.product(Stage, (2,), (None,), WHO, CALLS),
        *itertools.product(Stage, (70,), (None,), WHO, CALLS[:1]),
        *itertools.product((Stage.ACCEPTED, Stage.SENDING), (70,), (0, 1), WHO, CALLS[:2]),
        *itertools.product((Stage.NOTHING,), (2,), (None,), WHO, ("failing pop",)),
    )
]


async def test_forgotten(both: tuple[Server, Server]) -> None:
    """What a promoted standby has forgotten is found on the server: nothing is sent again.

    Neither is anything shown without it, by no process: what the engine keeps is not believed
    until the server was asked. What is not found there is sent. The engine gives places to other
    items that it had given before.
    """
    with held() as (emulator, gate):
        async with processes(both, emulator) as fleet:
            courses = [Course(case, emulator, fleet) for case in FORGOTTEN]
            for course in courses:
                await course.begin()
            emulator.faults = refusing({c.conversation: c.case.sent for c in courses})
            gate.hold()
            unknown = (Stage.NOTHING, Stage.ELSEWHERE)
            for course in courses:
                if course.case.stage not in unknown:
                    await course.append(gate)
            await asyncio.to_thread(is_passed_on, both)
            gate.open()
            for course in courses:
                if course.case.stage in unknown:
                    await course.append(gate)
                if course.case.stage in (Stage.ACCEPTED, Stage.IN_DOUBT):
                    await course.read
            for course in courses:
                if course.case.sent is None:
                    await course.writing.flush(timeout=30)
                    assert texts(emulator.items(course.conversation)) == course.expected
                for session in (course.writing, course.reading):
                    assert words(await session.get_items()) == course.expected
            await asyncio.to_thread(fails_over, both)
            emulator.faults = None
            wrong = [await course.go_on() for course in courses]
            assert [one for one in wrong if one is not None] == []


def refusing(after: dict[str, int | None]) -> FaultPlan:
    """A server that carries out so many appends to a conversation, and tells others to wait."""
    left = {conversation: count for conversation, count in after.items() if count is not None}

    def decide(request: Request) -> Fault | None:
        conversation = request.path.split("/")[-2]
        if not is_append(request) or conversation not in left:
            return None
        left[conversation] -= 1
        return Fault(FaultKind.RATE_LIMITED) if left[conversation] < 0 else None

    return decide


async def test_promoted_in_the_middle(both: tuple[Server, Server]) -> None:
    """Whatever is going on when a standby is promoted, each item is stored once, and shown.

    A request is out, and its answer comes afterwards; a reader knows what the standby knows; what
    waits is for a conversation that is not made yet. For one that nobody has ever listed, a person
    is to decide: nothing tells whether what waits was sent.
    """
    with held() as (emulator, gate):
        answered, read, unread = (Elsewhere(emulator).conversation("before") for _ in range(3))

        def away(request: Request) -> Fault | None:
            if request.path.endswith("/conversations") or unread in request.path:
                return Fault(FaultKind.ERROR_BEFORE_COMMIT)
            if is_append(request) and answered in request.path and b"late" in request.body:
                gate.hold()
            return None

        async with processes(both, emulator) as (one, two):
            first, second = one.session(answered), two.session(answered)
            writer, reader = one.session(read), two.session(read)
            for session in (first, second, writer, reader):
                await session.get_items()
            await first.add_items(users("more"))
            await first.flush()
            emulator.faults = away
            waiting, local = one.session(unread), one.session()
            await waiting.add_items(users("new"))
            await local.add_items(users("new"))
            assert local.local_name is not None
            await first.refresh()
            gate.hold()
            reading = asyncio.create_task(first.get_items())
            await gate.arrived()
            await first.add_items(users("late"))
            await asyncio.to_thread(is_passed_on, both)
            gate.open()
            await reading
            await until(lambda: texts(emulator.items(answered))[-1] == "late")
            gate.hold(skip=10_000)  # all but the answer, which is at the gate
            await writer.add_items(users("x"))
            await writer.flush()
            await asyncio.to_thread(fails_over, both)
            emulator.faults = None
            gate.open()
            assert words(await reader.get_items()) == ["before", "x"]
            await first.flush(timeout=30)
            await second.add_items(users("after"))
            for session in (second, local):
                await session.flush(timeout=30)
            with pytest.raises(OutboxPaused, match="cannot be found out"):
                await waiting.flush(timeout=30)
            assert texts(emulator.items(answered)) == ["before", "more", "late", "after"]
            assert texts(emulator.items(unread)) == ["before"]
            assert texts(emulator.items(local.session_id)) == ["new"]
            for session in (first, second):
                assert await session.get_items() == emulator.items(answered)


async def test_a_place_that_is_another_items(postgres: Server, emulator: Emulator) -> None:
    """A promoted standby keeps another item in the place of the newest one that a worker knows."""
    place = postgres.with_tables()
    conversation = Elsewhere(emulator).conversation("a", "b")
    async with Process(emulator, PostgresOutbox(place)) as process:
        session = process.session(conversation)
        assert words(await session.get_items()) == ["a", "b"]
        Elsewhere(emulator).append(conversation, "c")
        with psycopg.connect(place, autocommit=True) as connection:
            for item, back in zip(emulator.items(conversation)[:0:-1], (0, 1), strict=True):
                connection.execute(
                    "UPDATE cached_session.window_items SET id = %s, data = %s "
                    "WHERE seq = (SELECT max(seq) - %s FROM cached_session.window_items)",
                    (item["id"], json.dumps(item).encode(), back),
                )
            connection.execute(
                "UPDATE cached_session.conversations "
                "SET claims = claims + (1::bigint << 32), window_complete = false"
            )
        assert words(await session.get_items(2)) == ["b", "c"]
        assert session.stats.requests == 1


async def test_asynchronous(both: tuple[Server, Server], caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose confirmed call is not known to the promoted standby says so, once."""
    caplog.set_level(logging.WARNING, "cached_session")
    database = both[0].with_tables().rpartition("/")[2]
    outbox = PostgresOutbox(address(both, database))
    try:
        await outbox.transact(accept(b"passed on"))
        is_passed_on(both)
        await outbox.transact(accept(b"lost"))
        fails_over(both)
        for _ in range(2):
            assert await outbox.transact(waiting) == [b"passed on"]
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 1
        assert "has lost calls that it had confirmed" in warnings[0]
    finally:
        await outbox.let_go()
