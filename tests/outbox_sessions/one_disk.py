"""Several living processes on one outbox file and one server, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from openai import OpenAIError

from cached_session import (
    CachedSession,
    CachedSessionError,
    ConversationCache,
    DeadlineExceeded,
    OutboxError,
)
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_item_delete
from cached_session.outbox import Address
from cached_session.outbox.sqlite.file import run_group
from cached_session.outbox.sqlite.log import SQLiteLog
from tests.faults import virtual
from tests.faults.line import Line, policy
from tests.outbox_sessions.support import raised
from tests.session.support import users
from tests.simulation.outbox_disk import Delays, Disk, SimOutbox
from tests.simulation.outbox_ledger import OutboxLedger

LATE = Fault(FaultKind.LATE_COMMIT, delay=5.0)

ALL: dict[str, Any] = {"max_items": 1000, "max_window_bytes": 1 << 20}


class OneDisk:
    """A conversation, the server it is on, and the disk that all processes share.

    Attributes:
        line: The way to the server.
        conversation: The conversation.
    """

    def __init__(self, *texts: str) -> None:
        self.line = Line()
        self.conversation = self.line.conversation(*texts)
        self._disk = Disk(OutboxLedger())
        self._sessions: list[tuple[Any, CachedSession]] = []
        self._ended: list[SimOutbox] = []
        # What waits for a process that ended is referred to by nobody else.
        self._begun: list[asyncio.Future[Any]] = []

    async def end(self) -> None:
        """Closes all sessions; what a process that ended has left is ended, too."""
        self.line.heal()
        for process, session in self._sessions:
            if process in self._ended:
                continue
            with contextlib.suppress(OpenAIError, CachedSessionError, TimeoutError):
                async with asyncio.timeout(1000):
                    await session.aclose()
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        self._disk.close()

    def begin(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begins a call whose process may end before it."""
        task = asyncio.get_running_loop().create_task(call)
        self._begun.append(task)
        return task

    def ends(self, process: SimOutbox) -> None:
        """Ends a process, however it is."""
        process.crash()
        self._ended.append(process)

    def session(self, process: Any, conversation: str | None = "", **options: Any) -> CachedSession:
        """A session in a process, on the conversation if no other is named; None: a new one."""
        named = self.conversation if conversation == "" else conversation
        settings = {"cache": ConversationCache(), "retry": policy(), **options}
        client = settings.pop("client", self.line.openai)
        session = CachedSession(
            conversation_id=named, openai_client=client, outbox=process, **settings
        )
        self._sessions.append((process, session))
        return session

    def process(self, name: str, *, delay: float = 0.001) -> SimOutbox:
        """A process: its outbox on the disk, whose transactions take up to `delay` seconds."""
        return SimOutbox(self._disk, name, random.Random(1), Delays(delay, 0.0), **ALL)

    async def opened(self, *processes: SimOutbox, **options: Any) -> list[CachedSession]:
        """A session in each process, which has read the conversation."""
        sessions = [self.session(process, **options) for process in processes]
        for session in sessions:
            await session.get_items()
        return sessions

    async def kept_open(self, process: SimOutbox) -> CachedSession:
        """A session on something else: with the last session its outbox would be closed, too."""
        other = self.session(process, self.line.conversation("o"))
        await other.get_items()
        return other

    async def left_in_doubt(self, session: CachedSession) -> None:
        """An item that landed behind a lost answer: a late copy of it may still come."""
        self.line.on(is_append, LATE)
        await session.add_items(users("x"))
        await session.flush()

    async def ends_amid_a_removal(self, process: SimOutbox, session: CachedSession) -> None:
        """A process ends that has deleted one of the two items of a late copy."""
        self.line.on(is_append, LATE)
        await session.add_items(users("x", "y"))
        await session.flush()
        await asyncio.sleep(8)
        self.line.on(is_item_delete, None, FaultKind.HANG)
        removing = self.begin(session.get_items())
        await asyncio.sleep(1)
        assert self.line.texts(self.conversation) == ["a", "x", "y", "y"]
        self.ends(process)
        removing.cancel()

    async def goes_on(self, session: CachedSession) -> None:
        """Nobody keeps this process from sending."""
        await session.add_items(users("after"))
        error = await raised(session.flush(timeout=500))
        if isinstance(error, DeadlineExceeded):
            pytest.fail(f"another process holds on to it, and does nothing: {error}")
        assert error is None
        assert "after" in self.line.texts(self.conversation)

    def had_by_a_dead_process(self, *texts: str, sealed: bool = False) -> None:
        """A process has had the conversation, accepted items, perhaps sent them, and ended."""
        (address,) = self._disk.connection.execute(
            "SELECT base_url, organization, project, credentials, conversation "
            "FROM conversations WHERE conversation = ?",
            (self.conversation,),
        ).fetchall()
        data = [f'{{"role":"user","content":"{text}"}}'.encode() for text in texts]
        before = self.line.service.items(self.conversation)[-1]["id"]
        doubt = f'{{"anchors":["{before}"],"from_start":false,"sending":true,"now":0.0}}'.encode()

        def work(log: SQLiteLog) -> None:
            store, there = log.store, Address(*address)
            store.claim(there)
            through = store.accept(there, data, 1.0)[-1]
            if sealed:
                store.seal(there, through, doubt)

        dead = SQLiteLog(self._disk.store("dead", ALL["max_window_bytes"]))
        for outcome in run_group(self._disk.connection, dead, _broken, [work]):
            outcome.result()

    def pause(self, reason: str | None) -> None:
        """Pauses the conversation's backlog, or somebody decides that it goes on."""
        self._disk.connection.execute(
            "UPDATE conversations SET paused = ? WHERE conversation = ?",
            (reason, self.conversation),
        )

    def owner(self) -> str | None:
        """Who has the conversation's backlog, or had it last."""
        found = self._disk.connection.execute(
            "SELECT owner FROM conversations WHERE conversation = ?", (self.conversation,)
        )
        owner: str | None = found.fetchone()[0]
        return owner

    def sealed(self) -> int:
        """How many items may have been sent, and are not known to have landed."""
        return int(self._disk.connection.execute("SELECT SUM(sealed) FROM items").fetchone()[0])

    def noted(self) -> int:
        """Bytes that are noted of what is in doubt."""
        found = self._disk.connection.execute("SELECT SUM(LENGTH(doubt)) FROM conversations")
        return int(found.fetchone()[0] or 0)


def on_one_disk(
    *texts: str,
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Runs a test in virtual time, with a `OneDisk` whose conversation holds messages."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        async def body(**kwargs: Any) -> None:
            world = OneDisk(*texts)
            try:
                await test(world, **kwargs)
            finally:
                await world.end()

        @functools.wraps(test)
        def run(**kwargs: Any) -> None:
            virtual.run(body(**kwargs))

        # pytest asks for the rest of the arguments only.
        signature = inspect.signature(test)
        wanted = [one for name, one in signature.parameters.items() if name != "world"]
        run.__signature__ = signature.replace(parameters=wanted)  # type: ignore[attr-defined]
        return run

    return decorate


def fails(process: SimOutbox, statement: str, number: int = 1) -> Callable[[], bool]:
    """Has the transaction fail that uses a statement for the n-th time; says whether it did."""
    store: Any = process._store
    real, left = getattr(store, statement), [number]

    def fail(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OutboxError("the disk is full")
        return real(*args, **kwargs)

    setattr(store, statement, fail)
    return lambda: left[0] <= 0


def _broken(error: Exception) -> OutboxError:
    raise error  # no statement may fail here
