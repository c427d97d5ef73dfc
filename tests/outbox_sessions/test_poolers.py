"""Workers that come to their engine through pgbouncer, in transaction mode."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from cached_session import OutboxError, PostgresOutbox
from cached_session.emulator import Emulator
from tests.campaigns.plan import fresh
from tests.outbox.support import accept, waiting
from tests.outbox_sessions.support import Process, raised, words
from tests.pgbouncer import Pooler
from tests.postgres import Server
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes


@pytest.fixture
def address(postgres: Server, pgbouncer: Pooler) -> str:
    """A database of the test's own, by way of pgbouncer."""
    return pgbouncer.address(postgres.with_tables())


async def test_workers(address: str, emulator: Emulator) -> None:
    """Six workers on two connections to the engine: each read shows what was done before it."""
    conversation = Elsewhere(emulator).conversation()
    workers = [Process(emulator, PostgresOutbox(address)) for _ in range(6)]
    sessions = [worker.session(conversation) for worker in workers]
    for session in sessions:
        await session.get_items()

    async def work(number: int) -> None:
        mine: list[str] = []
        for each in range(10):
            mine.append(f"{number}.{each}")
            await sessions[number].add_items(users(mine[-1]))
            shown = words(await sessions[number - 1].get_items())
            assert [text for text in shown if text.startswith(f"{number}.")] == mine

    await asyncio.gather(*map(work, range(6)))
    for session in sessions:
        await session.flush()
    found = texts(emulator.items(conversation))
    assert sorted(found) == sorted(f"{number}.{each}" for number in range(6) for each in range(10))
    for session, worker in zip(sessions, workers, strict=True):
        assert words(await session.get_items()) == found
        await session.aclose()
        await worker.outbox.aclose()
        await worker.client.close()


async def test_turns(address: str, emulator: Emulator) -> None:
    """Turns are taken one after the other through it."""
    conversation = Elsewhere(emulator).conversation()
    async with (
        Process(emulator, PostgresOutbox(address)) as one,
        Process(emulator, PostgresOutbox(address)) as two,
    ):

        async def run(process: Process, name: str) -> None:
            session = process.session(conversation)
            for _ in range(3):
                async with session.turn(wait=30):
                    await session.add_items(users(name))
                    await session.add_items(users(name))
            await session.flush()
            await session.aclose()

        await asyncio.gather(run(one, "a"), run(two, "b"))
    found = texts(emulator.items(conversation))
    assert sorted(found) == ["a"] * 6 + ["b"] * 6
    assert all(found[place] == found[place + 1] for place in range(0, 12, 2))


async def test_makes_the_tables(postgres: Server, pgbouncer: Pooler) -> None:
    """The tables are made through it, once, by several who come at the same moment."""
    address = pgbouncer.address(postgres.new_database())
    outboxes = [PostgresOutbox(address) for _ in range(4)]
    await asyncio.gather(*(outbox.transact(accept(b"1")) for outbox in outboxes))
    assert await outboxes[0].transact(waiting) == [b"1"] * 4
    for outbox in outboxes:
        await outbox.let_go()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_isolation(level: str, postgres: Server, pgbouncer: Pooler) -> None:
    """A database that isolates transactions more loses nothing through it either."""
    direct = postgres.with_tables()
    name = direct.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    outboxes = [PostgresOutbox(pgbouncer.address(direct)) for _ in range(2)]
    items = [b"%d" % number for number in range(60)]
    await asyncio.gather(
        *(outboxes[number % 2].transact(accept(item)) for number, item in enumerate(items))
    )
    assert sorted(await outboxes[0].transact(waiting)) == sorted(items)
    for outbox in outboxes:
        await outbox.let_go()


async def test_options_are_refused(address: str) -> None:
    """What it refuses at the start of a connection is told, and nothing was recorded."""
    outbox = PostgresOutbox(f"{address} options='-c statement_timeout=1000'")
    error = await raised(outbox.transact(accept(b"1")))
    assert isinstance(error, OutboxError)
    assert "unsupported startup parameter" in str(error)
    assert "nothing was recorded" in str(error)
    await outbox.let_go()


async def test_restarted(
    address: str, pgbouncer: Pooler, emulator: Emulator, tell: Callable[[str], None]
) -> None:
    """It is killed and started again while a worker writes: nothing is lost, doubled, untrue."""
    rng = random.Random(fresh("pgbouncer restarted", tell))
    conversation = Elsewhere(emulator).conversation()
    expected: list[str] = []
    async with Process(emulator, PostgresOutbox(address)) as process:
        session = process.session(conversation)
        await session.get_items()
        over = asyncio.Event()

        async def write() -> None:
            while not over.is_set():
                text = str(len(expected))
                error = await raised(session.add_items(users(text)))
                if error is None:
                    expected.append(text)
                else:
                    # No more is lost than what was never taken.
                    assert "nothing was recorded" in str(error), error

        writing = asyncio.create_task(write())
        for _ in range(5):
            wanted = len(expected) + rng.randint(1, 20)
            while len(expected) < wanted:
                assert not writing.done()
                await asyncio.sleep(0.001)
            await asyncio.to_thread(pgbouncer.stop)
            await asyncio.to_thread(pgbouncer.start)
        over.set()
        await writing
        await session.flush(timeout=20)
        assert words(await session.get_items()) == expected
    assert texts(emulator.items(conversation)) == expected
