"""A standby is promoted while workers write: nothing is lost, or it is told."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from cached_session import PostgresOutbox
from cached_session.emulator import Emulator
from tests.outbox.support import accept, waiting
from tests.outbox_sessions.support import Process, until
from tests.outbox_sessions.test_engine_crashes import Writer
from tests.postgres import Server, missing, server, standby
from tests.servers import eventually
from tests.session.support import Elsewhere, texts

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
    database = primary.with_tables().rpartition("/")[2]
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.execute("SELECT pg_reload_conf()")
    eventually(lambda: primary.ask("SELECT max(sync_state) FROM pg_stat_replication") == "sync")
    conversation = Elsewhere(emulator).conversation()
    over = asyncio.Event()
    async with (
        Process(emulator, PostgresOutbox(address(both, database), lease=5)) as one,
        Process(emulator, PostgresOutbox(address(both, database), lease=5)) as two,
    ):
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


async def test_asynchronous(both: tuple[Server, Server], caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose confirmed call is not known to the promoted standby says so, once."""
    caplog.set_level(logging.WARNING, "cached_session")
    primary, second = both
    database = primary.with_tables().rpartition("/")[2]
    outbox = PostgresOutbox(address(both, database))
    try:
        await outbox.transact(accept(b"passed on"))
        written = primary.ask("SELECT pg_current_wal_lsn()::text")
        eventually(lambda: second.ask(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"))
        # It gets no more from now on.
        second.execute("ALTER SYSTEM SET primary_conninfo = ''")
        second.execute("SELECT pg_reload_conf()")
        eventually(lambda: primary.ask("SELECT count(*) FROM pg_stat_replication") == 0)
        await outbox.transact(accept(b"lost"))
        primary.stop(signal.SIGQUIT)
        second.promote()
        for _ in range(2):
            assert await outbox.transact(waiting) == [b"passed on"]
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 1
        assert "has lost calls that it had confirmed" in warnings[0]
    finally:
        await outbox.let_go()
