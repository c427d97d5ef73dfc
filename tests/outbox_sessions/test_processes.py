"""Real processes that share one file and one conversation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cached_session import SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import Process, batches, until, words
from tests.outbox_sessions.workers import Setting, Worker, worker
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes


def setting(path: Path, emulator: Emulator, conversation: str) -> Setting:
    """What a worker has here."""
    retry = {"initial_delay": 0.01, "max_delay": 0.05}
    return Setting(str(path), emulator.base_url, conversation, retry)


async def append(child: Worker, name: str, count: int) -> None:
    """Has a worker append `count` items, and wait at times until they are on the server."""
    for number in range(count):
        await child.call("add_items", users(f"{name} {number}"))
        if number % 10 == 3:
            await child.call("flush")


def by(name: str, stored: list[str]) -> list[str]:
    return [text for text in stored if text.split()[0] == name]


async def test_two_at_once(path: Path, emulator: Emulator) -> None:
    """Two processes append to one conversation at once: everything once, each one's order kept."""
    its = setting(path, emulator, Elsewhere(emulator).conversation("start"))
    async with worker(its) as one, worker(its) as two:
        await asyncio.gather(append(one, "one", 30), append(two, "two", 30))
        await one.close()
        await two.close()
    stored = texts(emulator.items(its.conversation))
    assert len(stored) == 61
    for name in ("one", "two"):
        assert by(name, stored) == [f"{name} {number}" for number in range(30)]


async def test_beside_a_session_of_this_process(path: Path, emulator: Emulator) -> None:
    """A session here and a program there share a file: both orders kept, reads in that order."""
    its = setting(path, emulator, Elsewhere(emulator).conversation())
    async with Process(emulator, SQLiteOutbox(path)) as process, worker(its) as child:
        session = process.session(its.conversation)
        there = asyncio.create_task(append(child, "there", 40))
        for number in range(40):
            await session.add_items(users(f"here {number}"))
            shown = words(await session.get_items())
            assert by("here", shown) == [f"here {n}" for n in range(number + 1)]
        await there
        await child.close()
        await session.flush()
        stored = texts(emulator.items(its.conversation))
        for name in ("here", "there"):
            assert by(name, stored) == [f"{name} {number}" for number in range(40)]
        assert len(stored) == 80
        await session.refresh()
        assert await session.get_items() == emulator.items(its.conversation)
        await session.aclose()


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.RESET_AFTER_COMMIT], ids=str)
async def test_one_is_killed(kind: FaultKind, path: Path, emulator: Emulator) -> None:
    """What a killed process had accepted is sent by one that shares the file, each item once."""
    its = setting(path, emulator, Elsewhere(emulator).conversation("start"))
    async with worker(its) as child:
        emulator.faults = lambda request: Fault(kind) if is_append(request) else None
        for number in range(3):
            await child.call("add_items", users(f"killed {number}"))
        await until(lambda: batches(emulator) > 0)
        child.kill()
    emulator.faults = None
    async with Process(emulator, SQLiteOutbox(path)) as process:
        session = process.session(its.conversation)
        expected = ["start", "killed 0", "killed 1", "killed 2"]
        assert words(await session.get_items()) == expected
        await session.add_items(users("here"))
        await session.flush()
        assert texts(emulator.items(its.conversation)) == [*expected, "here"]
        assert await session.get_items() == emulator.items(its.conversation)
        await session.aclose()


async def test_a_flush_here_while_another_sends(path: Path, emulator: Emulator) -> None:
    """A session that looks on while another process's batch is in doubt takes nothing from it."""
    its = setting(path, emulator, Elsewhere(emulator).conversation("start"))
    async with Process(emulator, SQLiteOutbox(path)) as process:
        session = process.session(its.conversation)
        assert words(await session.get_items()) == ["start"]
        async with worker(its) as child:
            emulator.faults = lambda request: (
                Fault(FaultKind.RESET_AFTER_COMMIT) if is_append(request) else None
            )
            for number in range(3):
                await child.call("add_items", users(f"there {number}"))
            await until(lambda: batches(emulator) > 0)
            # Nothing of ours waits; none of this may touch what the other one noted.
            await session.get_items()
            await session.refresh()
            await session.flush()
            child.kill()
        emulator.faults = None
        await session.add_items(users("here"))
        await session.flush()
        stored = texts(emulator.items(its.conversation))
        assert stored == ["start", "there 0", "there 1", "there 2", "here"]
        await session.aclose()
