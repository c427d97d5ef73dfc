"""Turns for whole runs with an outbox, and among the processes that share a file."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from openai import NotFoundError

from cached_session import (
    CachedSession,
    ConversationBusy,
    Outbox,
    SQLiteOutbox,
    TurnLost,
)
from cached_session.emulator import Emulator
from tests.outbox_sessions.support import Process, held, until
from tests.session.support import Elsewhere, in_threads, texts, users
from tests.session.test_turns import Holder

NewOutbox = Callable[[], SQLiteOutbox]


def lines(path: Path) -> int:
    """How many places there are in all lines of a file."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM turns").fetchone()
    return int(count)


def conversations(path: Path) -> int:
    """How many conversations a file has a record of."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM conversations").fetchone()
    return int(count)


async def busy(session: CachedSession) -> bool:
    """Whether somebody else has the turn at this moment."""
    try:
        async with session.turn(wait=0):
            return False
    except ConversationBusy:
        return True


async def test_over(outbox: Outbox, emulator: Emulator) -> None:
    """What a task of a run appends, or removes, when its turn is over is not recorded."""
    async with Process(emulator, outbox) as process:
        session = process.session(Elsewhere(emulator).conversation("before"))
        over = asyncio.Event()

        async def come_late() -> None:
            await over.wait()
            with pytest.raises(TurnLost):
                await session.add_items(users("late"))
            with pytest.raises(TurnLost):
                await session.pop_item()
            with pytest.raises(TurnLost):
                await session.clear_session()

        async with session.turn():
            task = asyncio.create_task(come_late())
            await session.add_items(users("a"))
        over.set()
        await task
        await session.add_items(users("b"))
        await session.flush()
        assert texts(await session.get_items()) == ["before", "a", "b"]
        assert texts(emulator.items(session.session_id)) == ["before", "a", "b"]


async def test_processes_take_turns(new_outbox: NewOutbox, emulator: Emulator) -> None:
    """Runs of several processes on one file do not mix, and each goes on from the one before it."""
    conversation = Elsewhere(emulator).conversation()
    processes = [Process(emulator, new_outbox()) for _ in range(3)]

    async def run(process: Process, name: str) -> None:
        session = process.session(conversation)
        async with session.turn():
            seen = texts(await session.get_items())
            for part in range(2):
                await session.add_items(users(f"{name}{part}"))
                # Of what others append in between there would be something here.
                seen.append(f"{name}{part}")
                assert texts(await session.get_items()) == seen
        await session.aclose()

    async with processes[0], processes[1], processes[2]:
        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(run(processes[number % 3], f"{number}."))
        await processes[0].session(conversation).flush()
        await processes[1].session(conversation).flush()
        await processes[2].session(conversation).flush()
    stored = texts(emulator.items(conversation))
    assert sorted(stored) == sorted(f"{run}.{part}" for run in range(9) for part in range(2))
    assert [one[:-1] for one in stored[::2]] == [one[:-1] for one in stored[1::2]]


async def test_fair_among_processes(new_outbox: NewOutbox, emulator: Emulator, path: Path) -> None:
    """A process whose tasks come all the time lets others have their turn in between."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        order: list[str] = []
        come = asyncio.Event()

        async def run(process: Process, name: str) -> None:
            session = process.session(conversation)
            async with session.turn():
                order.append(name)
                await come.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(run(one, "one"))
            await until(lambda: bool(order))
            group.create_task(run(two, "two"))
            await until(lambda: lines(path) == 2)
            for _ in range(3):
                group.create_task(run(one, "one"))
            come.set()
        assert order == ["one", "two", "one", "one", "one"]


async def test_reads_what_was_done_before(new_outbox: NewOutbox) -> None:
    """The turn comes with all that another process did in its own: what landed, and what waits."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("before")
        async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
            first, second = one.session(conversation), two.session(conversation)
            async with second.turn():
                assert texts(await second.get_items()) == ["before"]
            async with first.turn():
                await first.add_items(users("landed"))
                await first.flush()
            async with second.turn():
                assert texts(await second.get_items()) == ["before", "landed"]
                await second.add_items(users("of the second"))
                await second.flush()
            gate.hold()
            async with first.turn():
                await first.add_items(users("waits"))
                await gate.arrived()
            async with second.turn():
                reading = asyncio.create_task(second.get_items())
                await second.add_items(users("behind it"))
                gate.open()
                shown = texts(await reading)
                assert shown[:4] == ["before", "landed", "of the second", "waits"]
                expected = ["before", "landed", "of the second", "waits", "behind it"]
                assert texts(await second.get_items()) == expected
            await second.flush()
            assert texts(emulator.items(conversation)) == expected


async def test_gives_up(new_outbox: NewOutbox, emulator: Emulator, path: Path) -> None:
    """Who gives up, or is cancelled, leaves nothing behind in the file, and nobody waits for it."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        async with Holder(one.session(conversation)).holding():
            assert await busy(two.session(conversation))
            assert lines(path) == 1
            waiting = asyncio.create_task(two.session(conversation).turn().__aenter__())
            await until(lambda: lines(path) == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert lines(path) == 1
        assert not await busy(two.session(conversation))
    assert (lines(path), conversations(path)) == (0, 0)


async def late(session: CachedSession) -> None:
    """All that may change something, where the turn is another process's by now: nothing does."""
    with pytest.raises(TurnLost):
        await session.add_items(users("late"))
    with pytest.raises(TurnLost):
        await session.pop_item()
    with pytest.raises(TurnLost):
        await session.clear_session()


async def test_the_outbox_is_closed(new_outbox: NewOutbox, emulator: Emulator) -> None:
    """Closing the outbox ends its turns: others get them, and what comes late changes nothing."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        first, second = one.session(conversation), two.session(conversation)
        async with first.turn():
            await first.add_items(users("a"))
            assert await asyncio.create_task(busy(second))
            await one.outbox.aclose(timeout=20)
            async with second.turn(wait=20):
                await second.add_items(users("b"))
                await second.flush()
                await asyncio.create_task(late(first))
                await late(first)
                with pytest.raises(TurnLost):
                    await first.turn(wait=0).__aenter__()
        await second.flush()
        assert texts(emulator.items(conversation)) == ["a", "b"]


async def test_beside_a_call_in_no_turn(new_outbox: NewOutbox) -> None:
    """A call that belongs to no turn, and that the server keeps waiting, keeps nobody from one."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("before")
        async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
            session = one.session(conversation)
            gate.hold()
            reading = asyncio.create_task(session.get_items())
            await gate.arrived()
            assert not await busy(session)
            assert not await busy(two.session(conversation))
            gate.open()
            assert texts(await reading) == ["before"]


@pytest.mark.parametrize("call", ["pop", "clear"])
async def test_hears_of_removals(call: str, new_outbox: NewOutbox, emulator: Emulator) -> None:
    """The turn comes with what another process has removed in its own."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        first, second = one.session(conversation), two.session(conversation)
        for session in (first, second):
            async with session.turn():
                assert texts(await session.get_items()) == ["a", "b"]
        async with first.turn():
            if call == "pop":
                assert await first.pop_item() is not None
            else:
                await first.clear_session()
        async with second.turn():
            if call == "pop":
                assert texts(await second.get_items()) == ["a"]
            else:
                with pytest.raises(NotFoundError):
                    await second.get_items()


async def test_its_last_session_is_closed(new_outbox: NewOutbox, emulator: Emulator) -> None:
    """A turn is kept when the last session on the outbox is closed; its end closes the file."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as one, Process(emulator, new_outbox()) as two:
        session = one.session(conversation)
        async with session.turn():
            await session.aclose()
            assert await asyncio.create_task(busy(two.session(conversation)))
            async with one.session(conversation) as again:
                await again.add_items(users("a"))
                await again.flush()
        assert not await busy(two.session(conversation))
        assert texts(emulator.items(conversation)) == ["a"]


def test_a_loop_that_stands_still(new_outbox: NewOutbox, emulator: Emulator, path: Path) -> None:
    """A process whose event loop was stopped in its turn keeps no other one waiting."""
    conversation = Elsewhere(emulator).conversation()
    first, taken = asyncio.new_event_loop(), asyncio.Event()
    one = Process(emulator, new_outbox())
    session = one.session(conversation)

    async def begin() -> None:
        async with session.turn():
            await session.add_items(users("a"))
            await session.flush()
            first.stop()
            await asyncio.sleep(0)
            await late(session)
            taken.set()
        await session.aclose()
        await one.outbox.aclose()
        await one.client.close()

    run = first.create_task(begin())
    first.run_forever()

    def go_on() -> None:
        async def main() -> None:
            async with Process(emulator, new_outbox()) as two:
                other = two.session(conversation)
                async with other.turn(wait=20):
                    await other.add_items(users("b"))
                    await asyncio.to_thread(first.run_until_complete, run)
                await other.flush()

        asyncio.run(main())

    in_threads(go_on)
    assert taken.is_set()
    assert texts(emulator.items(conversation)) == ["a", "b"]
    first.run_until_complete(first.shutdown_asyncgens())
    first.run_until_complete(first.shutdown_default_executor())
    first.close()


HOLDER = """
import asyncio, sys
from cached_session import CachedSession, SQLiteOutbox
from openai import AsyncOpenAI

async def main(base_url, conversation, path):
    client = AsyncOpenAI(base_url=base_url, api_key="key")
    outbox = SQLiteOutbox(path)
    session = CachedSession(conversation_id=conversation, openai_client=client, outbox=outbox)
    async with session.turn():
        await session.add_items([{"role": "user", "content": "of the dead"}])
        print("taken", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.processes
async def test_a_process_that_was_killed(
    new_outbox: NewOutbox, emulator: Emulator, path: Path
) -> None:
    """The turn of a process that was killed is free at once, and what it accepted is kept."""
    conversation = Elsewhere(emulator).conversation()
    command = [sys.executable, "-c", HOLDER, emulator.base_url, conversation, str(path)]
    holder = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"taken\n"
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        assert await busy(session)
        holder.kill()
        await holder.wait()
        async with session.turn(wait=20):
            assert texts(await session.get_items()) == ["of the dead"]
            await session.add_items(users("of the living"))
        await session.flush()
    assert texts(emulator.items(conversation)) == ["of the dead", "of the living"]
    assert lines(path) == 0
