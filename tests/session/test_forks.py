"""A process that was forked: it is another process, whatever it has inherited."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cached_session
from cached_session.emulator import Emulator
from tests.session.support import PATIENCE, Elsewhere, sent, texts

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there"),
]

BEGIN = """
import asyncio, json, os, sys, threading
from openai import AsyncOpenAI
from cached_session import CachedSession, MemoryOutbox, SQLiteOutbox

settings = json.loads(sys.argv[1])
client = AsyncOpenAI(base_url=settings["base_url"], api_key="key", max_retries=0)
conversation = settings["conversation"]
path = settings["path"]


def say(**what):
    print(json.dumps(what), flush=True)


def text(items):
    return [item["content"][0]["text"] for item in items]


def forked(work):
    # The test goes on while the parent waits for its child.
    say(about="to fork")
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        try:
            work()
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    say(about="to go on")
    sys.stdin.readline()

"""


class Program:
    """A program that forks; what it says, line by line.

    One that says nothing for long, or is stuck, is killed, and the test fails.
    """

    def __init__(self, emulator: Emulator, tmp_path: Path, program: str, **settings: Any) -> None:
        self.conversation = Elsewhere(emulator).conversation("a")
        told = {
            "base_url": emulator.base_url,
            "conversation": self.conversation,
            "path": str(tmp_path / "outbox.db"),
            **settings,
        }
        self._process = subprocess.Popen(
            # Python warns of a fork with threads, which is what some of this is about.
            [sys.executable, "-W", "ignore", "-c", BEGIN + program, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until_fork(self) -> list[Any]:
        """What it says until it is about to fork."""
        return self._until("to fork")

    def fork(self) -> list[Any]:
        """Lets it fork; what the child says until it has ended."""
        self._go_on()
        return self._until("to go on")

    def end(self) -> list[Any]:
        """Lets the parent go on; what that one says until it ends."""
        self._go_on()
        return self._until(None)

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _until(self, about: str | None) -> list[Any]:
        said: list[Any] = []
        for line in iter(self._line, ""):
            if json.loads(line) == {"about": about}:
                return said
            said.append(json.loads(line))
        errors = self._end()
        assert (about, errors) == (None, ""), f"it said {said} and ended"
        return said

    def _line(self) -> str:
        assert self._process.stdout is not None
        stuck = threading.Timer(30, self._kill)
        stuck.start()
        try:
            return self._process.stdout.readline()
        finally:
            stuck.cancel()

    def _kill(self) -> None:
        # With its child, which has the same pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> str:
        _, errors = self._process.communicate(timeout=30)
        return errors if self._process.returncode in (0, None) else f"killed or failed: {errors}"


READS = """
loop = asyncio.new_event_loop()
session = CachedSession(conversation_id=conversation, openai_client=client)
say(parent=text(loop.run_until_complete(session.get_items())))


def run(call):
    # `Runner.run_sync` goes on with the parent's loop.
    return loop.run_until_complete(call) if settings["same_loop"] else asyncio.run(call)


def work():
    connects = []
    sys.addaudithook(lambda name, _: name == "socket.connect" and connects.append(name))
    say(child=text(run(session.get_items())), again=text(run(session.get_items())))
    run(session.add_items([{"role": "user", "content": "c"}]))
    other = CachedSession(conversation_id=conversation, openai_client=client)
    say(child=text(run(other.get_items())), connected=bool(connects))


forked(work)
say(parent=text(loop.run_until_complete(session.get_items())))
fresh = CachedSession(conversation_id=conversation, openai_client=client)
say(parent=text(loop.run_until_complete(fresh.get_items())))
loop.run_until_complete(session.aclose())
loop.run_until_complete(fresh.aclose())
loop.close()
"""


@pytest.mark.parametrize("same_loop", [False, True], ids=["new loop", "same loop"])
def test_the_first_read_of_a_child_asks(
    same_loop: bool, emulator: Emulator, tmp_path: Path
) -> None:
    """A child's first read asks, over a connection of its own; the parent goes on as before."""
    program = Program(emulator, tmp_path, READS, same_loop=same_loop)
    assert program.until_fork() == [{"parent": ["a"]}]
    Elsewhere(emulator).append(program.conversation, "b")
    sent(emulator)
    assert program.fork() == [
        {"child": ["a", "b"], "again": ["a", "b"]},
        {"child": ["a", "b", "c"], "connected": True},
    ]
    assert program.end() == [
        # What it has checked, the parent trusts as ever; a new session of it asks.
        {"parent": ["a"]},
        {"parent": ["a", "b", "c"]},
    ]
    assert sent(emulator).count("POST items") == 1
    assert texts(emulator.items(program.conversation)) == ["a", "b", "c"]


OUTBOX = """
session = CachedSession(
    conversation_id=conversation, openai_client=client, outbox=SQLiteOutbox(path)
)


async def begin():
    say(parent=text(await session.get_items()))
    await session.flush()


async def inherited():
    for call in (session.get_items, lambda: session.add_items([{"role": "user", "content": "c"}])):
        try:
            await call()
        except Exception as error:
            say(child=type(error).__name__, forked="forked" in str(error))


async def own():
    async with CachedSession(
        conversation_id=conversation, openai_client=client, outbox=SQLiteOutbox(path)
    ) as session:
        say(child=text(await session.get_items()))
        await session.add_items([{"role": "user", "content": "c"}])
        await session.flush()
        say(child=text(await session.get_items()))


def work():
    asyncio.run(inherited())
    asyncio.run(own())


async def end():
    await session.add_items([{"role": "user", "content": "d"}])
    await session.flush()
    await session.refresh()
    say(parent=text(await session.get_items()))
    await session.aclose()


asyncio.run(begin())
forked(work)
asyncio.run(end())
"""


def test_a_child_opens_the_file_of_an_outbox_for_itself(emulator: Emulator, tmp_path: Path) -> None:
    """With an inherited outbox every call says so; with one of its own a child reads and writes."""
    program = Program(emulator, tmp_path, OUTBOX)
    assert program.until_fork() == [{"parent": ["a"]}]
    Elsewhere(emulator).append(program.conversation, "b")
    assert program.fork() == [
        {"child": "OutboxError", "forked": True},
        {"child": "OutboxError", "forked": True},
        {"child": ["a", "b"]},
        {"child": ["a", "b", "c"]},
    ]
    assert program.end() == [{"parent": ["a", "b", "c", "d"]}]


LOCKS = """
class Slow(str):
    # An id that takes its time where it is looked up.
    def __hash__(self):
        reached.set()
        go_on.wait()
        return super().__hash__()


reached, go_on = threading.Event(), threading.Event()
session = CachedSession(conversation_id=conversation, openai_client=client)
asyncio.run(session.get_items())


def elsewhere():
    other = CachedSession(conversation_id=Slow(conversation), openai_client=client)
    asyncio.run(other.get_items())


def work():
    say(child=text(asyncio.run(session.get_items())))
    other = CachedSession(conversation_id=conversation, openai_client=client)
    asyncio.run(other.add_items([{"role": "user", "content": "c"}]))
    say(child=text(asyncio.run(other.get_items())))


thread = threading.Thread(target=elsewhere)
thread.start()
reached.wait()
forked(work)
go_on.set()
thread.join()
"""


def test_no_lock_of_the_parent_is_stuck(emulator: Emulator, tmp_path: Path) -> None:
    """What another thread of the parent was in the middle of at the fork holds no child up."""
    program = Program(emulator, tmp_path, LOCKS)
    assert program.until_fork() == []
    assert program.fork() == [{"child": ["a"]}, {"child": ["a", "c"]}]
    assert program.end() == []


def test_no_module_has_a_lock_of_the_parent() -> None:
    """No module of the package keeps a plain lock, which a fork may leave taken for good."""
    plain = (type(threading.Lock()), type(threading.RLock()))
    for found in pkgutil.walk_packages(cached_session.__path__, "cached_session."):
        if not found.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(found.name)).items():
                assert not isinstance(value, plain), f"{found.name}.{name}"


IN_FLIGHT = """
session = CachedSession(conversation_id=conversation, openai_client=client)
new = CachedSession(openai_client=client)
asyncio.run(session.get_items())


async def calls():
    await asyncio.gather(session.add_items([{"role": "user", "content": "b"}]), new.get_items())


def work():
    say(child=text(asyncio.run(session.get_items())))
    asyncio.run(session.add_items([{"role": "user", "content": "c"}]))
    asyncio.run(new.add_items([{"role": "user", "content": "d"}]))
    say(child=text(asyncio.run(new.get_items())), made=new.session_id)
    # As the end of a process would do.
    import gc

    gc.collect()


thread = threading.Thread(target=lambda: asyncio.run(calls()))
thread.start()
forked(work)
thread.join()
asyncio.run(session.refresh())
say(parent=text(asyncio.run(session.get_items())), made=new.session_id)
"""


def test_what_the_parent_has_in_flight(tmp_path: Path) -> None:
    """A child waits for no request of the parent's, and disturbs none; each lands once."""
    gate = FirstTwo()
    with Emulator(latency=1.0, sleep=gate.sleep) as emulator:
        program = Program(emulator, tmp_path, IN_FLIGHT)
        assert program.until_fork() == []
        assert gate.both.wait(PATIENCE)
        first, second = program.fork()
        assert first == {"child": ["a"]}
        assert second["child"] == ["d"]
        gate.open()
        [last] = program.end()
        assert last["parent"] == ["a", "c", "b"]
        assert last["made"] != second["made"]
        assert sent(emulator).count("POST conversation") == 2


class FirstTwo:
    """Holds two requests, the second and third of all, until it is opened."""

    def __init__(self) -> None:
        self.both = threading.Event()
        self._waits = 0
        self._opened = threading.Event()

    async def sleep(self, _seconds: float) -> None:
        # Each request waits before it is carried out, and after that.
        self._waits += 1
        number = self._waits
        if number == 4:
            self.both.set()
        if number in (3, 4):
            await asyncio.to_thread(self._opened.wait, PATIENCE)

    def open(self) -> None:
        self._opened.set()
