"""Workers of a fleet that stop, die, or lose the engine, and those who go on in their place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cached_session import PostgresOutbox, RetryPolicy
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import Process, until, words
from tests.outbox_sessions.test_processes import line
from tests.postgres import Server
from tests.proxy import Proxy, before
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes

LEASE = 3.0

HURRIED = RetryPolicy(initial_delay=0.01, max_delay=0.05, attempt_timeout=1, deadline=1.5)

PROGRAM = """
import asyncio, math, os, signal, sys
from openai import AsyncOpenAI
from cached_session import CachedSession, PostgresOutbox, RetryPolicy
from cached_session.conversation.record import Record
from cached_session.server import connections, remote

address, base_url, conversation, point, guard = sys.argv[1:]

if guard == "unguarded":
    connections.check_may_be_written = lambda: None
    Record.left = property(lambda self: math.inf)

def stop():
    print("stopped", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

def before(owner, name, *, when=lambda: True):
    there, met = getattr(owner, name), []
    def stopping(*arguments, **more):
        if when() and not met:
            met.append(1)
            stop()
        return there(*arguments, **more)
    setattr(owner, name, stopping)

async def main():
    client = AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0)
    session = CachedSession(
        conversation_id=conversation,
        openai_client=client,
        retry=RetryPolicy(initial_delay=0.01, max_delay=0.05, attempt_timeout=1, deadline=2),
        outbox=PostgresOutbox(address, lease=3),
    )
    sending = []
    append = remote.Remote.append
    async def appending(self, *arguments, **more):
        if point == "sealed":
            stop()
        sending.append(1)
        done = await append(self, *arguments, **more)
        if point == "last write":
            # It cannot look any more what it has done.
            print("flushed", flush=True)
            os._exit(0)
        return done
    remote.Remote.append = appending
    if point in ("before the write", "last write"):
        # Between the look before the write and the request that httpx makes.
        before(remote.Remote, "_request", when=lambda: bool(sending))
    if point == "landed":
        before(Record, "note", when=lambda: bool(sending))
    await session.get_items()
    print("ready", flush=True)
    sys.stdin.readline()
    await session.add_items([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    await session.flush(timeout=60)
    print("flushed", flush=True)
    await session.aclose(timeout=20)
    await client.close()

asyncio.run(main())
"""


@contextmanager
def worker(
    address: str, emulator: Emulator, conversation: str, point: str, guard: str = "guarded"
) -> Iterator[subprocess.Popen[str]]:
    """A worker that appends two items when it is told to, and stops itself at a point."""
    arguments = [address, emulator.base_url, conversation, point, guard]
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


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


async def stopped(
    address: str, emulator: Emulator, point: str, guard: str = "guarded"
) -> list[str]:
    """What is on the server after a worker stood still for long, and another one took over."""
    conversation = Elsewhere(emulator).conversation("before")
    with worker(address, emulator, conversation, point, guard) as child:
        go(child)
        assert line(child) == "stopped"
        async with Process(emulator, PostgresOutbox(address, lease=LEASE)) as process:
            session = process.session(conversation, retry=HURRIED)
            await session.add_items(users("c"))
            await session.flush(timeout=20)
            over = time.monotonic() + HURRIED.deadline + 1
            await until(lambda: time.monotonic() > over)
            # The last look for late copies: nobody removes what the worker makes from then on.
            await session.refresh()
            await session.get_items()
            os.kill(child.pid, signal.SIGCONT)
            assert line(child) == "flushed"
            child.wait(30)
            await session.refresh()
            shown = texts(await session.get_items())
    assert shown == texts(emulator.items(conversation))
    return shown


@pytest.mark.parametrize("point", ["sealed", "before the write", "landed"])
async def test_stopped(point: str, postgres: Server, emulator: Emulator) -> None:
    """A worker that stood still for longer than its lease sends nothing that others have sent."""
    shown = await stopped(postgres.with_tables(), emulator, point)
    assert shown == ["before", "a", "b", "c"]


@pytest.mark.parametrize(
    ("guard", "expected"),
    [("guarded", ["before", "a", "b", "c"]), ("unguarded", ["before", "a", "b", "c", "a", "b"])],
)
async def test_the_guard(
    guard: str, expected: list[str], postgres: Server, emulator: Emulator
) -> None:
    """One that ends with that write has doubled it, if it did not look at its lease before it."""
    shown = await stopped(postgres.with_tables(), emulator, "last write", guard)
    assert shown == expected


async def test_killed(postgres: Server, emulator: Emulator, tell: Callable[[str], None]) -> None:
    """What a killed worker had begun is sent by another one a lease later, and a second at most."""
    address, conversation = postgres.with_tables(), Elsewhere(emulator).conversation("before")
    with worker(address, emulator, conversation, "sealed") as child:
        go(child)
        assert line(child) == "stopped"
        child.kill()
        child.wait()
    killed = time.monotonic()
    async with Process(emulator, PostgresOutbox(address, lease=LEASE)) as process:
        session = process.session(conversation)
        assert words(await session.get_items()) == ["before", "a", "b"]
        await session.flush()
    took = time.monotonic() - killed
    tell(f"takeover after a kill: {took:.1f} s")
    assert texts(emulator.items(conversation)) == ["before", "a", "b"]
    assert took < LEASE + 1


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
            await until(lambda: bool(emulator.requests))
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


async def until_tried(proxy: Proxy) -> None:
    """Waits until somebody has knocked in vain a few times."""
    knocked = proxy.turned_away
    await until(lambda: proxy.turned_away > knocked + 3)
