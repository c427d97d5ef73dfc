"""An outbox file that is closed, removed or replaced under sessions that go on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cached_session import OutboxError, Sending, SQLiteOutbox
from cached_session.emulator import Emulator
from tests.outbox_sessions.support import Process, left_by_an_exception, raised, until, words
from tests.session.support import numbered, texts, users


def remove(path: Path) -> None:
    """Removes an outbox with all that belongs to it, as a careless hand does."""
    for found in path.parent.glob(f"{path.name}*"):
        os.unlink(found)


@pytest.mark.parametrize("accepted", [1, 5])
async def test_removed_while_open(
    accepted: int, path: Path, new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """After the file was removed, and closed as the error says, the session goes on with a new one.

    The new file counts its items anew: none may be taken for one of the old file's.
    """
    outbox = new_outbox()
    async with Process(emulator, outbox) as process:
        session = process.session()
        await session.add_items(numbered(0, 5))
        await session.flush()
        remove(path)
        assert isinstance(await raised(session.add_items(users("refused"))), OutboxError)
        await outbox.let_go()
        expected = [str(number) for number in range(5)]
        for number in range(5, 5 + accepted):
            await session.add_items(users(str(number)))
            expected.append(str(number))
            assert words(await session.get_items()) == expected
        await session.flush()
        assert texts(emulator.items(session.session_id)) == expected
        assert (session.stats.waiting, session.stats.sending) == (0, "idle")
        await session.aclose()


async def test_closed_while_items_wait(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """An outbox that is closed under its sessions is opened by the next call, with what waits."""
    emulator = Emulator()
    emulator.start()
    outbox = new_outbox()
    async with Process(emulator, outbox) as process:
        session = process.session()
        await session.add_items(numbered(0, 5))
        await session.flush()
        emulator.stop()
        await session.add_items(numbered(5, 30))
        await outbox.let_go()
        await session.add_items(numbered(30, 33))
        emulator.start()
        await outbox.let_go()
        await session.flush()
        assert texts(emulator.items(session.session_id)) == [str(n) for n in range(33)]
        assert await session.get_items() == emulator.items(session.session_id)
        await session.aclose()
    emulator.stop()


async def test_closed_before_the_conversation_was_made(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """A session with a local name, and nothing recorded under it, goes on after a close."""
    with Emulator() as emulator:
        emulator.stop()
        outbox = new_outbox()
        async with Process(emulator, outbox) as process:
            session = process.session()
            assert await session.get_items() == []
            await outbox.let_go()
            await session.add_items(users("a"))
            assert words(await session.get_items()) == ["a"]
            emulator.start()
            await session.flush()
            assert texts(emulator.items(session.session_id)) == ["a"]
            await session.aclose()


async def test_a_block_that_raises_after_it_was_closed(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """What is raised in an `async with` block reaches its caller; `aclose` has nothing to say."""
    outbox = new_outbox()
    async with Process(emulator, outbox) as process:

        async def block() -> None:
            async with process.session() as session:
                await session.add_items(users("a"))
                await session.flush()
                await outbox.let_go()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await block()
        async with process.session() as session:
            await session.add_items(users("b"))
            await session.flush()
            await outbox.let_go()


async def test_every_call_after_it_was_closed(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """Whichever call is the first after the outbox was closed, it does its work."""
    outbox = new_outbox()
    async with Process(emulator, outbox) as process:
        session = process.session()
        await session.add_items(users("a", "b", "c"))
        await outbox.let_go()
        assert words(await session.get_items()) == ["a", "b", "c"]
        await outbox.let_go()
        assert words([await session.pop_item()]) == ["c"]
        await outbox.let_go()
        await session.refresh()
        await outbox.let_go()
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["a", "b"]
        await outbox.let_go()
        await session.clear_session()
        await outbox.let_go()
        await session.add_items(users("d"))
        await outbox.let_go()
        await session.aclose(timeout=60)
        assert texts(emulator.items(session.session_id)) == ["d"]


@pytest.mark.parametrize("ended", ["closed", "left"])
@pytest.mark.parametrize("staleness", [None, float("inf")], ids=["checked", "never checked"])
async def test_the_server_goes_away_after_a_restart(
    ended: str, staleness: float | None, new_outbox: Callable[[], SQLiteOutbox]
) -> None:
    """After a restart, appends while the server is away leave the history readable."""
    with Emulator() as emulator:
        async with Process(emulator, new_outbox()) as before:
            session = before.session()
            await session.add_items(users("1", "2"))
            await session.flush()
            conversation = session.session_id
            await (session.aclose() if ended == "closed" else left_by_an_exception(session))
            await before.outbox.let_go()
        async with Process(emulator, new_outbox()) as after:
            session = after.session(conversation, max_staleness=staleness)
            if staleness is None:
                assert words(await session.get_items()) == ["1", "2"]
            emulator.stop()
            expected = ["1", "2"]
            for number in range(3, 9):
                await session.add_items(users(str(number)))
                expected.append(str(number))
                await until(lambda: session.stats.sending is Sending.OFFLINE)
                assert words(await session.get_items()) == expected
            emulator.start()
            await session.flush()
            assert await session.get_items() == emulator.items(conversation)
            assert texts(emulator.items(conversation)) == expected
            await session.aclose()


async def test_flush_says_what_the_sender_met(
    path: Path, new_outbox: Callable[[], SQLiteOutbox]
) -> None:
    """Where the file can't be written, `flush` says so at once, and not that time ran out."""
    with Emulator() as emulator:
        async with Process(emulator, new_outbox()) as process:
            session = process.session()
            await session.get_items()
            emulator.stop()
            await session.add_items(users("a", "b"))
            remove(path)
            emulator.start()
            async with asyncio.timeout(10):
                error = await raised(session.flush(timeout=60))
            assert type(error) is OutboxError
            assert "2 items are recorded and not known to be on the server" in str(error)
            assert "was removed or replaced" in str(error)
            assert error.conversation_id == session.session_id
            assert session.stats.sending == "failed"
            await raised(session.aclose(timeout=60))
            assert isinstance(await raised(process.outbox.aclose()), OutboxError)


FORK = """
import asyncio, os, sys
from openai import AsyncOpenAI
from cached_session import CachedSession, MemoryOutbox, SQLiteOutbox

outbox = SQLiteOutbox(sys.argv[1]) if sys.argv[1] else MemoryOutbox()
client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="any")
session = CachedSession(openai_client=client, outbox=outbox)
asyncio.run(session.add_items([{"role": "user", "content": "a"}]))
child = os.fork()
if child == 0:
    for call in (lambda: session.flush(50), lambda: session.aclose(50)):
        try:
            asyncio.run(asyncio.wait_for(call(), 20))
        except Exception as error:
            print(type(error).__name__, "forked" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""


@pytest.mark.processes
@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_fork(file: bool, path: Path) -> None:
    """In a forked child `flush` and `aclose` say at once that the outbox is the parent's.

    Nothing is sent there. The log warns of a `MemoryOutbox`, before the fork, that its items were
    left by the loop that ended.
    """
    program = subprocess.run(
        # Python warns of a fork with threads, which is what this is about.
        [sys.executable, "-W", "ignore", "-c", FORK, path if file else ""],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert program.stdout == "OutboxError True\n" * 2
    left = program.stderr.splitlines()
    assert len(left) == (0 if file else 1)
    assert all("the event loop ended before 1 item reached the server" in line for line in left)
