"""Real processes that share one file and one conversation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached_session import SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import Process, words
from tests.servers import eventually
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes

PROGRAM = """
import asyncio, sys
from openai import AsyncOpenAI
from cached_session import CachedSession, RetryPolicy, SQLiteOutbox

path, base_url, conversation, name, count = sys.argv[1:]

async def main():
    client = AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0)
    session = CachedSession(
        conversation_id=conversation,
        openai_client=client,
        retry=RetryPolicy(initial_delay=0.01, max_delay=0.05),
        outbox=SQLiteOutbox(path),
    )
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        await session.add_items([{"role": "user", "content": f"{name} {number}"}])
        if number % 10 == 3:
            await session.flush()
    print("accepted", flush=True)
    if await asyncio.to_thread(sys.stdin.readline) == "close\\n":
        # Long enough to see it all arrive, whichever of the processes sends it.
        await session.aclose(timeout=60)
        await client.close()

asyncio.run(main())
"""


@contextmanager
def program(
    path: Path, emulator: Emulator, conversation: str, name: str, count: int
) -> Iterator[subprocess.Popen[str]]:
    """A program that appends `count` items when it is told to, and then waits for a word."""
    arguments = [str(path), emulator.base_url, conversation, name, str(count)]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert line(child) == "ready"
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    found = child.stdout.readline().strip()
    if not found:
        assert child.stderr is not None
        pytest.fail(child.stderr.read())
    return found


def say(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()


def ends_quietly(child: subprocess.Popen[str]) -> None:
    """Closes a program; it must end well and say nothing."""
    say(child, "close")
    output, complaints = child.communicate(timeout=60)
    assert (child.returncode, output, complaints) == (0, "", "")


def by(name: str, stored: list[str]) -> list[str]:
    return [text for text in stored if text.split()[0] == name]


def test_two_at_once(path: Path, emulator: Emulator) -> None:
    """Two processes append to one conversation at once: everything once, each one's order kept."""
    conversation = Elsewhere(emulator).conversation("start")
    with (
        program(path, emulator, conversation, "one", 30) as one,
        program(path, emulator, conversation, "two", 30) as two,
    ):
        for child in (one, two):
            say(child, "go")
        for child in (one, two):
            assert line(child) == "accepted"
            ends_quietly(child)
    stored = texts(emulator.items(conversation))
    assert len(stored) == 61
    for name in ("one", "two"):
        assert by(name, stored) == [f"{name} {number}" for number in range(30)]


def test_beside_a_session_of_this_process(path: Path, emulator: Emulator) -> None:
    """A session here and a program there share a file: both orders kept, reads in that order."""
    conversation = Elsewhere(emulator).conversation()

    async def here() -> None:
        async with Process(emulator, SQLiteOutbox(path)) as process:
            session = process.session(conversation)
            with program(path, emulator, conversation, "there", 40) as child:
                say(child, "go")
                for number in range(40):
                    await session.add_items(users(f"here {number}"))
                    shown = words(await session.get_items())
                    assert by("here", shown) == [f"here {n}" for n in range(number + 1)]
                assert await asyncio.to_thread(line, child) == "accepted"
                await asyncio.to_thread(ends_quietly, child)
            await session.flush()
            stored = texts(emulator.items(conversation))
            for name in ("here", "there"):
                assert by(name, stored) == [f"{name} {number}" for number in range(40)]
            assert len(stored) == 80
            await session.refresh()
            assert await session.get_items() == emulator.items(conversation)
            await session.aclose()

    asyncio.run(here())


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.RESET_AFTER_COMMIT], ids=str)
def test_one_is_killed(kind: FaultKind, path: Path, emulator: Emulator) -> None:
    """What a killed process had accepted is sent by one that shares the file, each item once."""
    conversation = Elsewhere(emulator).conversation("start")
    with program(path, emulator, conversation, "killed", 3) as child:
        emulator.faults = lambda request: Fault(kind) if is_append(request) else None
        say(child, "go")
        assert line(child) == "accepted"
        eventually(lambda: any(is_append_entry(entry) for entry in emulator.requests))
        child.kill()
        child.wait()
    emulator.faults = None

    async def here() -> None:
        async with Process(emulator, SQLiteOutbox(path)) as process:
            session = process.session(conversation)
            expected = ["start", "killed 0", "killed 1", "killed 2"]
            assert words(await session.get_items()) == expected
            await session.add_items(users("here"))
            await session.flush()
            assert texts(emulator.items(conversation)) == [*expected, "here"]
            assert await session.get_items() == emulator.items(conversation)
            await session.aclose()

    asyncio.run(here())


def is_append_entry(entry: object) -> bool:
    return getattr(entry, "method", "") == "POST" and getattr(entry, "path", "").endswith("/items")


def test_a_flush_here_while_another_sends(path: Path, emulator: Emulator) -> None:
    """A session that looks on while another process's batch is in doubt takes nothing from it."""
    conversation = Elsewhere(emulator).conversation("start")

    async def here() -> None:
        async with Process(emulator, SQLiteOutbox(path)) as process:
            session = process.session(conversation)
            assert words(await session.get_items()) == ["start"]
            with program(path, emulator, conversation, "there", 3) as child:
                emulator.faults = lambda request: (
                    Fault(FaultKind.RESET_AFTER_COMMIT) if is_append(request) else None
                )
                say(child, "go")
                assert await asyncio.to_thread(line, child) == "accepted"
                await asyncio.to_thread(
                    eventually, lambda: any(map(is_append_entry, emulator.requests))
                )
                # Nothing of ours waits; none of this may touch what the other one noted.
                await session.get_items()
                await session.refresh()
                await session.flush()
                child.kill()
                child.wait()
            emulator.faults = None
            await session.add_items(users("here"))
            await session.flush()
            stored = texts(emulator.items(conversation))
            assert stored == ["start", "there 0", "there 1", "there 2", "here"]
            await session.aclose()

    asyncio.run(here())
