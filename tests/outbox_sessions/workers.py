"""Processes with a session each: they do what they are told, and can be stopped and killed."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    PostgresOutbox,
    RetryPolicy,
    SQLiteOutbox,
    TurnLost,
    fernet_cipher,
)
from cached_session.conversation.record import Record
from cached_session.server import connections, remote, sockets
from tests.session.support import clean_environment, texts, users

# Each begins as a process does that was just started, without loading everything anew.
_CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
_CONTEXT.set_forkserver_preload([__name__])

PATIENCE = 60.0
"""Seconds after which a test gives up on a worker."""

POINTS = ("accepted", "sealed", "before the write", "written", "answered", "landed")
"""Where a worker stops itself: behind the step, with its first batch."""

BEFORE_A_POP = ("deciding", "before the write")
"""Where a worker stops itself before its first pop from the server has left it."""


class Setting(NamedTuple):
    """What a worker has.

    Attributes:
        place: The outbox: a file, or the address of a database.
        base_url: The server.
        conversation: The conversation.
        retry: Arguments of its `RetryPolicy`.
        lease: Of an outbox in a database.
        point: Where it stops itself, one of `POINTS`, or nowhere.
        dies: Whether it ends as soon as its batch was answered.
        guarded: Whether it looks at its lease right before it writes.
        keys: Of the cipher of its outbox; none: it has none.
    """

    place: str
    base_url: str
    conversation: str
    retry: dict[str, Any]
    lease: float = 3.0
    point: str = ""
    dies: bool = False
    guarded: bool = True
    keys: tuple[bytes, ...] = ()


class Run(NamedTuple):
    """What came of a run.

    Attributes:
        seen: What its first read has shown.
        accepted: What was accepted.
        refused: What was not, as its turn was over.
        shown: What its other reads have shown, each behind an append that was accepted.
    """

    seen: list[str]
    accepted: list[str]
    refused: list[str]
    shown: list[list[str]]


class Worker:
    """One such process, as its test sees it."""

    def __init__(self, setting: Setting) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("processes are forked here")
        self._pipe, theirs = _CONTEXT.Pipe()
        self._printed, printing = _CONTEXT.Pipe(duplex=False)
        self._heard: list[tuple[Any, ...]] = []
        self._process = _CONTEXT.Process(
            target=_live, args=(setting, theirs, printing), daemon=True
        )
        self._process.start()
        # Or its end would not be seen.
        theirs.close()
        printing.close()

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Has it call a method of its session; returns what that returns."""
        self.begin(name, *arguments, **options)
        return await self.result()

    async def run(self, name: str, parts: int, **options: Any) -> Run:
        """Has it append some items in one turn; see `_Life.run`."""
        run: Run = await self.call("run", name, parts, **options)
        return run

    def begin(self, name: str, *arguments: Any, **options: Any) -> None:
        """Has it call a method of its session, and waits for nothing."""
        self._pipe.send((name, arguments, options))

    async def result(self) -> Any:
        """What the first call that was begun has returned."""
        (value,) = await self.says("returned")
        return value

    async def says(self, kind: str) -> tuple[Any, ...]:
        """Waits until it says something of this kind; returns that."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for said in self._heard:
                    if said[0] == kind:
                        self._heard.remove(said)
                        return said[1:]
                # Nobody announces it on every system.
                while not self._pipe.poll():  # noqa: ASYNC110 - so
                    await asyncio.sleep(0.002)
                try:
                    self._heard.append(self._pipe.recv())
                except (EOFError, ConnectionResetError):
                    pytest.fail(f"it has ended, and {kind!r} was not said: {self._output()}")
                if self._heard[-1][0] == "raised":
                    pytest.fail(self._heard[-1][1])

    def go_on(self) -> None:
        """Has it go on, where it has stopped itself."""
        assert self._process.pid is not None  # it was started
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kills it."""
        self._process.kill()
        self.join()

    def join(self) -> None:
        """Waits for its end."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None

    async def close(self) -> None:
        """Has it close its session; it must end well and say nothing."""
        await self.call("aclose", timeout=PATIENCE)
        await asyncio.to_thread(self.join)
        assert (self._process.exitcode, self._output()) == (0, "")

    def _output(self) -> str:
        """What it has printed until its end."""
        parts = iter(functools.partial(os.read, self._printed.fileno(), 1 << 16), b"")
        return b"".join(parts).decode()

    def let_go(self) -> None:
        """Ends what is left of it."""
        self.kill()
        self._pipe.close()
        self._printed.close()


@asynccontextmanager
async def worker(setting: Setting) -> AsyncIterator[Worker]:
    """A worker whose session has read its conversation."""
    made = Worker(setting)
    try:
        await made.call("get_items")
        yield made
    finally:
        made.let_go()


# In the process


def _live(setting: Setting, pipe: Connection, printing: Connection) -> None:
    for descriptor in (1, 2):
        os.dup2(printing.fileno(), descriptor)
    warnings.simplefilter("error")
    clean_environment(pytest.MonkeyPatch())
    if setting.point:
        _stop_at(setting.point, functools.partial(_stop, pipe), dies=setting.dies)
    if not setting.guarded:
        connections.check_may_be_written = _nothing
        Record.left = lambda self: float("inf")  # type: ignore[method-assign]
    asyncio.run(_Life(setting, pipe).run_all())


class _Life:
    """What it does, from its start to its end."""

    def __init__(self, setting: Setting, pipe: Connection) -> None:
        self._setting = setting
        self._pipe = pipe

    async def run_all(self) -> None:
        """Does what it is told, until it is told to close."""
        place, name = self._setting.place, ""
        cipher = fernet_cipher(*self._setting.keys) if self._setting.keys else None
        outbox: PostgresOutbox | SQLiteOutbox = (
            PostgresOutbox(place, lease=self._setting.lease, cipher=cipher)
            if place.startswith("postgresql://")
            else SQLiteOutbox(place, cipher=cipher)
        )
        async with AsyncOpenAI(
            base_url=self._setting.base_url, api_key="key", max_retries=0
        ) as client:
            self._session = CachedSession(
                conversation_id=self._setting.conversation,
                openai_client=client,
                retry=RetryPolicy(**self._setting.retry),
                outbox=outbox,
            )
            while name != "aclose":
                name, arguments, options = await asyncio.to_thread(self._pipe.recv)
                call: Callable[..., Any] = (
                    self.run if name == "run" else getattr(self._session, name)
                )
                try:
                    self._pipe.send(("returned", await call(*arguments, **options)))
                except Exception:
                    self._pipe.send(("raised", traceback.format_exc()))

    async def run(
        self, name: str, parts: int, *, wait: float = PATIENCE, at: int = -1, ends_by: int = 0
    ) -> Run:
        """Appends `<name>.0`, `<name>.1` ... in one turn, with a read behind each.

        Args:
            name: Its name.
            parts: How many items.
            wait: Seconds that it waits for its turn.
            at: Before which of them the process stops, or ends.
            ends_by: By which signal.
        """
        session, run = self._session, Run([], [], [], [])
        async with session.turn(wait=wait):
            self._pipe.send(("has the turn",))
            run.seen.extend(texts(await session.get_items()))
            for number in range(parts):
                if number == at:
                    self._pipe.send(("ends", run))
                    os.kill(os.getpid(), ends_by)
                text = f"{name}.{number}"
                try:
                    await session.add_items(users(text))
                except TurnLost:
                    run.refused.append(text)
                else:
                    run.accepted.append(text)
                    run.shown.append(texts(await session.get_items()))
        return run


def _stop(pipe: Connection) -> None:
    pipe.send(("stopped",))
    os.kill(os.getpid(), signal.SIGSTOP)


def _stop_at(point: str, stop: Callable[[], None], *, dies: bool) -> None:
    """Has this process stop itself, once, at a point of the way of its first batch or pop."""
    appending: list[object] = []
    append, delete = remote.Remote.append, remote.Remote.delete_item

    async def append_noted(self: Any, *arguments: Any, **options: Any) -> Any:
        if point == "sealed":
            once()
        appending.append(self)
        done = await append(self, *arguments, **options)
        if dies:
            # It cannot look any more what it has done.
            os._exit(0)
        if point == "answered":
            once()
        return done

    async def delete_noted(self: Any, *arguments: Any, **options: Any) -> Any:
        if point == "deciding":
            once()
        appending.append(self)
        return await delete(self, *arguments, **options)

    def once() -> None:
        nonlocal stop
        there, stop = stop, _nothing
        there()

    def before(owner: Any, name: str) -> None:
        there = getattr(owner, name)

        def stopping(*arguments: Any, **options: Any) -> Any:
            if appending:
                once()
            return there(*arguments, **options)

        setattr(owner, name, stopping)

    remote.Remote.append = append_noted  # type: ignore[method-assign]
    remote.Remote.delete_item = delete_noted  # type: ignore[method-assign]
    if point == "accepted":
        accept = Record.accept

        async def accepting(self: Any, *arguments: Any, **options: Any) -> None:
            await accept(self, *arguments, **options)
            once()

        Record.accept = accepting  # type: ignore[method-assign]
    elif point == "before the write":
        before(sockets._Wire, "write")
    elif point == "written":
        before(sockets._Wire, "read")
    elif point == "landed":
        before(Record, "note")


def _nothing() -> None:
    """Nothing is done here."""
