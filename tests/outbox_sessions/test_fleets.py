"""Workers of a fleet that stop, die, or lose the engine, and those who go on in their place."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import psycopg.sql
import pytest

from cached_session import CachedSession, OutboxUnavailable, PostgresOutbox, RetryPolicy
from cached_session.emulator import Emulator, Fault, FaultKind, Faults
from cached_session.emulator.requests import is_append
from cached_session.session.adoption import AGAIN_AFTER, SURE_AFTER
from tests.outbox_sessions.support import Process, batches, held, until, words
from tests.outbox_sessions.workers import BEFORE_A_POP, PATIENCE, POINTS, Setting, Worker, worker
from tests.postgres import Server
from tests.proxy import Proxy, before
from tests.session.support import Elsewhere, texts, users
from tests.takeovers import Takeovers, named

pytestmark = pytest.mark.processes

LEASE = 3.0

DEADLINE = 1.5
"""Seconds for which those who take over look for late copies."""

HURRIED = {
    "initial_delay": 0.01,
    "max_delay": 0.05,
    "attempt_timeout": 1,
    "deadline": DEADLINE,
}

SOON = 1.0
"""Seconds after the end of a lease in which somebody goes on who waits for it."""

STOPS = (LEASE / 2, LEASE + 1, LEASE + DEADLINE + 1)
"""Seconds: it has its lease yet; others look for late copies; nobody does any more."""


def setting(address: str, emulator: Emulator, **more: Any) -> Setting:
    """What a worker has here, on a conversation of its own."""
    conversation = Elsewhere(emulator).conversation("before")
    return Setting(address, emulator.base_url, conversation, HURRIED, LEASE, **more)


async def stopped(
    child: Worker, its: Setting, seconds: float, process: Process, emulator: Emulator
) -> list[str]:
    """What is on the server after a worker stood still for so long, and another one came."""
    child.begin("add_items", users("a", "b"))
    await child.says("stopped")
    over = time.monotonic() + seconds
    session = process.session(its.conversation, retry=RetryPolicy(**HURRIED))
    await session.add_items(users("c"))
    flushed = asyncio.create_task(session.flush(timeout=PATIENCE))
    long = seconds > LEASE + DEADLINE
    if long:
        await flushed
        # However late that was.
        over = max(over, time.monotonic() + DEADLINE + 1)
    await until(lambda: time.monotonic() > over)
    if long:
        # The last look for late copies: nobody removes what the worker makes from then on.
        await session.refresh()
        await session.get_items()
    child.go_on()
    if its.dies:
        await asyncio.to_thread(child.join)
    else:
        await child.result()
        await child.call("flush", timeout=PATIENCE)
        await child.close()
    await flushed
    await session.refresh()
    shown = texts(await session.get_items())
    assert shown == texts(emulator.items(its.conversation))
    return shown


async def all_stopped(
    cells: list[tuple[Setting, float]], address: str, emulator: Emulator
) -> list[list[str]]:
    """The same of several at once, each on a conversation of its own."""
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(
            Process(emulator, PostgresOutbox(address, lease=LEASE))
        )
        # One after the other: all at once, each would begin slowly.
        workers = [await stack.enter_async_context(worker(its)) for its, _ in cells]
        return await asyncio.gather(
            *(
                stopped(child, its, seconds, process, emulator)
                for child, (its, seconds) in zip(workers, cells, strict=True)
            )
        )


async def test_stopped(postgres: Server, emulator: Emulator) -> None:
    """Wherever a worker stands still, and for however long: once and in order, nothing is lost."""
    address = postgres.with_tables()
    cells = [
        (setting(address, emulator, point=point), seconds) for point in POINTS for seconds in STOPS
    ]
    found = await all_stopped(cells, address, emulator)
    shown = {
        (its.point, seconds): texts for (its, seconds), texts in zip(cells, found, strict=True)
    }
    assert shown == {cell: ["before", "a", "b", "c"] for cell in shown}


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
async def test_the_guard(guarded: bool, postgres: Server, emulator: Emulator) -> None:
    """Who does not look at its lease right before a write doubles what it can't look for again."""
    address = postgres.with_tables()
    cells = [
        (setting(address, emulator, point=point, dies=True, guarded=guarded), STOPS[-1])
        for point in ("sealed", "before the write")
    ]
    expected = ["before", "a", "b", "c", *([] if guarded else ["a", "b"])]
    assert await all_stopped(cells, address, emulator) == [expected, expected]


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
async def test_stopped_before_a_pop(guarded: bool, postgres: Server, emulator: Emulator) -> None:
    """A pop that stood still until others had the conversation takes what is the newest then.

    Who does not look at its lease takes what they still show.
    """
    address = postgres.with_tables()
    retry = {"initial_delay": 0.01, "max_delay": 0.05}
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(
            Process(emulator, PostgresOutbox(address, lease=LEASE))
        )
        for point in BEFORE_A_POP:
            its = setting(address, emulator, point=point, guarded=guarded)._replace(retry=retry)
            child = await stack.enter_async_context(worker(its))
            session = process.session(its.conversation)
            await session.add_items(users("a"))
            await session.flush()
            child.begin("pop_item")
            await child.says("stopped")
            # It is there when the lease is over.
            await session.add_items(users("b"))
            await session.flush(timeout=PATIENCE)
            child.go_on()
            popped = texts([await child.result()])
            there = texts(emulator.items(its.conversation))
            shown = words(await session.get_items())
            await child.close()
            if guarded:
                assert (popped, there, shown) == (["b"], ["before", "a"], ["before", "a"])
            else:
                assert (popped, there) == (["a"], ["before", "b"])


KILLED = 6
"""Workers whose conversation somebody opens again, and as many whose nobody does."""


async def test_killed(postgres: Server, emulator: Emulator, tell: Callable[[str], None]) -> None:
    """What killed workers had is sent a lease later where it is opened, and all else a sweep later.

    Whoever opens it sees it at once.
    """
    address = postgres.with_tables()
    takeovers = Takeovers(address)
    async with AsyncExitStack() as stack:
        settings = [setting(address, emulator, point="sealed") for _ in range(2 * KILLED)]
        workers = [await stack.enter_async_context(worker(its)) for its in settings]
        for child in workers:
            child.begin("add_items", users("a", "b"))
            await child.says("stopped")
        for child in workers:
            child.kill()
        killed = time.monotonic()
        conversations = [its.conversation for its in settings]
        # Those whose leases last longest.
        opened = set(conversations[KILLED:])
        process = await stack.enter_async_context(
            Process(emulator, PostgresOutbox(named(address, "here"), lease=LEASE))
        )
        # What brings it to the others is any use of the outbox.
        sessions = [process.session(Elsewhere(emulator).conversation("before"))]
        sessions += [process.session(conversation) for conversation in opened]
        asked = dict.fromkeys(conversations, time.time())

        async def use(session: CachedSession) -> None:
            had = ["before", "a", "b"] if session.session_id in opened else ["before"]
            assert words(await session.get_items()) == had
            await session.add_items(users("c"))
            asked[session.session_id] = time.time()

        await asyncio.gather(*map(use, sessions))
        for session in sessions:
            await session.flush(timeout=PATIENCE)
        sent = time.monotonic() - killed
        await until(
            lambda: all(
                texts(emulator.items(its.conversation))[:3] == ["before", "a", "b"]
                for its in settings
            )
        )
        swept = time.monotonic() - killed
    for conversation in conversations:
        more = ["c"] if conversation in opened else []
        assert texts(emulator.items(conversation)) == ["before", "a", "b", *more]
    # A machine that is short of time begins to wait when some leases are over.
    found = {
        one.conversation: one.taken - max(one.ran_out, asked[one.conversation])
        for one in takeovers.news()
    }
    assert {*found} == {*conversations}
    late = [max(found[one] for one in some) for some in (opened, {*conversations} - opened)]
    tell(
        f"takeovers after kills: sent after {sent:.1f} s, {late[0]:.2f} s after the lease at most; "
        f"what nobody opens after {swept:.1f} s, {late[1]:.2f} s after the lease at most"
    )
    assert late[0] <= SOON
    assert late[1] <= AGAIN_AFTER + SURE_AFTER


SET_BACK = """
UPDATE cached_session.owners SET until = until - interval '25 hours';
UPDATE cached_session.conversations SET touched = touched - interval '25 hours'
"""


def rows(address: str) -> dict[str, int]:
    """How many there are of what workers leave behind."""
    with psycopg.connect(address) as connection:
        found = {
            table: connection.execute(
                psycopg.sql.SQL("SELECT count(*) FROM cached_session.{}").format(
                    psycopg.sql.Identifier(table)
                )
            ).fetchone()
            for table in ("owners", "turns", "conversations")
        }
    return {table: row[0] for table, row in found.items() if row}


async def test_what_killed_workers_leave(postgres: Server, emulator: Emulator) -> None:
    """A day after a worker was killed in its turn, nothing of it and of its place is left.

    Its conversation goes with what is kept of it, when its time has come.
    """
    address = postgres.with_tables()
    its = setting(address, emulator)
    async with worker(its) as child:
        await child.call("add_items", users("a"))
        await child.call("flush")
        child.begin("run", "b", 1, at=0, ends_by=signal.SIGKILL)
        await child.says("ends")
        child.join()
    assert rows(address) == {"owners": 1, "turns": 1, "conversations": 1}
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(SET_BACK)
    for keep_for, conversations in ((30 * 86_400, 1), (86_400, 0)):
        outbox = PostgresOutbox(address, keep_for=keep_for)
        await outbox.transact(lambda log: log.summaries())
        # It has claimed nothing, so it has no row.
        left = {"owners": 0, "turns": 0, "conversations": conversations}
        await until(lambda: rows(address) == left)  # noqa: B023 - it is called in here
        await outbox.let_go()
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("DELETE FROM cached_session.owners")


async def test_cut_off(postgres: Server, emulator: Emulator) -> None:
    """An owner that cannot reach the engine begins no request after its lease."""
    address, conversation = postgres.with_tables(), Elsewhere(emulator).conversation("before")
    with before(postgres.port) as proxy:
        place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
        async with Process(emulator, PostgresOutbox(place, lease=LEASE)) as process:
            session = process.session(conversation)
            await session.get_items()
            emulator.faults = lambda request: (
                Fault(FaultKind.REFUSED) if is_append(request) else None
            )
            await session.add_items(users("a"))
            await until(lambda: batches(emulator) > 0)
            begun = time.monotonic()
            proxy.leave()
            async with Process(emulator, PostgresOutbox(address, lease=LEASE)) as other:
                second = other.session(conversation)
                await until(lambda: time.monotonic() > begun + LEASE)
                emulator.faults = None
                await second.add_items(users("b"))
                await second.flush()
                emulator.clear_log()
                await until_tried(proxy)
                assert not emulator.requests
                proxy.come_back()
                await session.flush()
    assert texts(emulator.items(conversation)) == ["before", "a", "b"]


async def test_late_copies_that_are_another_ones_to_remove(postgres: Server) -> None:
    """Whoever has lost the engine for longer than its lease removes nothing that it finds then.

    What looks like a copy that came late may be what another worker has appended meanwhile.
    """
    address = postgres.with_tables()
    with held() as (emulator, gate), before(postgres.port) as proxy:
        conversation = Elsewhere(emulator).conversation("before")
        place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
        async with Process(emulator, PostgresOutbox(place, lease=LEASE)) as process:
            session = process.session(conversation)
            await session.get_items()
            reset = [FaultKind.RESET_BEFORE_COMMIT]
            emulator.faults = Faults.script(reset, only=is_append)
            await session.add_items(users("yes"))
            await session.flush()
            gate.hold()
            flushing = asyncio.create_task(session.flush())
            await gate.arrived()
            begun = time.monotonic()
            proxy.leave()
            async with Process(emulator, PostgresOutbox(address, lease=LEASE)) as other:
                await until(lambda: time.monotonic() > begun + LEASE)
                gate.hold(skip=1_000)  # all but the listing, which is at the gate
                second = other.session(conversation)
                await second.add_items(users("yes"))
                await second.flush()
                proxy.come_back()
                await until_reached(process.outbox)
                gate.open()
                await flushing
                assert words(await session.get_items()) == ["before", "yes", "yes"]
    assert texts(emulator.items(conversation)) == ["before", "yes", "yes"]


async def until_reached(outbox: PostgresOutbox) -> None:
    """Waits until an outbox reaches its engine."""

    async def reached() -> bool:
        with contextlib.suppress(OutboxUnavailable):
            await outbox.consult(lambda log: log.summaries())
            return True
        return False

    async with asyncio.timeout(20):
        while not await reached():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)


async def until_tried(proxy: Proxy) -> None:
    """Waits until somebody has knocked in vain a few times."""
    knocked = proxy.turned_away
    await until(lambda: proxy.turned_away > knocked + 3)
