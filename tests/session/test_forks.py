"""A process that was forked: it is another process, whatever it has inherited."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, sent, texts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")

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

"""


class Program:
    """A program that forks; what it says, line by line.

    A program that is stuck is killed after a while, and the test fails.
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
        )

    def until_fork(self) -> list[Any]:
        """What it says until it is about to fork."""
        said: list[Any] = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if json.loads(line) == {"about": "to fork"}:
                return said
            said.append(json.loads(line))
        pytest.fail(f"it ended: {self._process.communicate()[1]}")

    def end(self) -> list[Any]:
        """Lets it fork; what both processes say from then on."""
        try:
            said, errors = self._process.communicate("\n", timeout=30)
        except subprocess.TimeoutExpired:
            pytest.fail("a process waits for something that does not come")
        finally:
            self._process.kill()
            self._process.communicate()
        assert errors == ""
        return [json.loads(line) for line in said.splitlines()]


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
    assert program.end() == [
        {"child": ["a", "b"], "again": ["a", "b"]},
        {"child": ["a", "b", "c"], "connected": True},
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


def test_a_child_opens_the_file_of_an_outbox_for_itself(
    emulator: Emulator, tmp_path: Path
) -> None:
    """With an inherited outbox every call says so; with one of its own a child reads and writes."""
    program = Program(emulator, tmp_path, OUTBOX)
    assert program.until_fork() == [{"parent": ["a"]}]
    Elsewhere(emulator).append(program.conversation, "b")
    assert program.end() == [
        {"child": "OutboxError", "forked": True},
        {"child": "OutboxError", "forked": True},
        {"child": ["a", "b"]},
        {"child": ["a", "b", "c"]},
        {"parent": ["a", "b", "c", "d"]},
    ]


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
    assert program.end() == [{"child": ["a"]}, {"child": ["a", "c"]}]


TURNS = """
session = CachedSession(conversation_id=conversation, openai_client=client)
new = CachedSession(openai_client=client)
asyncio.run(session.get_items())
sent = threading.Event()


class Held:
    # Nothing of the parent's is answered until the child has ended.
    def __enter__(self):
        self.go_on = threading.Event()
        return self

    async def hold(self, request):
        sent.set()
        await asyncio.to_thread(self.go_on.wait)
"""
