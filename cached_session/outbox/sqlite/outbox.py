"""An outbox in a file, which survives the process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

from cached_session.outbox.log import Log
from cached_session.outbox.shared import MIB, Shared
from cached_session.outbox.sqlite.file import OpenFile
from cached_session.outbox.sqlite.writer import Job, Outcome, Writer

T = TypeVar("T")


class SQLiteOutbox(Shared):
    """A durable outbox: what it has recorded survives the process and the machine's power.

    Safe to use from several threads, event loops and processes. After a fork,
    the child makes one of its own.

    While a session uses it, what others have left in the file is sent, too, of
    whichever conversation: backlogs of the same account whose owner is gone.

    Args:
        path: The file, on a local disk; made if it is missing, for its owner
            alone to read and write. Files beside it, whose names begin with
            its name, belong to it.
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long; None: never.
        max_wait: Seconds that a call waits for room at most.
        max_window_bytes: Bytes for the stored windows of all conversations
            together; those written least recently go first. 0: none is written;
            those that the file holds stay, and are not kept up to date.
        account: A name for the account that all who use the outbox belong to,
            such as "prod". Clients with different keys then have one backlog,
            and one copy, of a conversation. None: each key has its own.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
        OutboxError: The file cannot be used; says why, and what to do.
    """

    # Seconds to wait for another process's transaction.
    _busy_timeout = 10.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_items: int = 100_000,
        max_bytes: int = 256 * MIB,
        max_age: float | None = None,
        max_wait: float = 10.0,
        max_window_bytes: int = 64 * MIB,
        account: str | None = None,
    ) -> None:
        super().__init__(max_items, max_bytes, max_age, max_wait, max_window_bytes, account)
        self._path = _absolute(path)
        self._opening = functools.partial(
            OpenFile,
            self._path,
            busy_timeout=self._busy_timeout,
            max_window_bytes=max_window_bytes,
        )
        # Guards the change from one writer to the next, so that no work is
        # given to one that ends.
        self._gate = threading.Lock()
        self._writer: Writer | None = None
        self._previous: Writer | None = None
        opened: Future[Outcome] = Future()
        self._put(Job(_nothing, opened.set_result))
        try:
            opened.result().result()
        except BaseException:
            self._stop()
            raise
        finally:
            # As in `transact`.
            del opened

    def how_to_move(self, number: int) -> str:
        """What somebody can do about a backlog of another account, as a sentence."""
        command = f"`cached-session outbox move {shlex.quote(self._path)} {number}"
        if self.account is not None:
            how = f"{command} --account {shlex.quote(self.account)}`"
        else:
            how = (
                f"{command}` with the present key in OPENAI_API_KEY; or give the outbox an "
                "account=, for keys that are one account's"
            )
        return (
            "To have it sent before what is appended from now on, close the programs that use "
            f"that one, and move it: {how}"
        )

    def same_as(self, other: object) -> bool:
        """Whether both record in the same file."""
        return isinstance(other, SQLiteOutbox) and other._path == self._path

    @property
    def path(self) -> Path:
        """The file, absolute and without symbolic links."""
        return Path(self._path)

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work` in a transaction, in the outbox's thread, after the works before it.

        When this returns, what the work did is on the disk. A caller that is
        cancelled hears so at once, and its work is still run.

        Args:
            work: Called once. If it raises, what it did is undone, and the
                caller gets its exception.
            applied: See `Outbox.transact`. Called in the outbox's thread.

        Raises:
            OutboxError: The file could not be read or written, and nothing of
                the work is recorded; or the process was forked after the
                outbox was made.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._put(Job(work, functools.partial(_tell, loop, future, applied)))
        try:
            return cast(T, (await future).result())
        finally:
            # An error's traceback refers to this frame, and the future to the error.
            del future

    async def let_go(self) -> None:
        """Does what it was asked before, and lets go of the file.

        The next use opens the file that is there then, or makes one. This is
        called when no session and no sender uses it any more. In a process that
        was forked after the outbox was made it does nothing.
        """
        if not self.ours:
            # What is open belongs to the parent.
            return
        self._stop()
        if self._previous is not None:
            await asyncio.wrap_future(self._previous.ended)

    def __repr__(self) -> str:
        return f"SQLiteOutbox({self._path!r})"

    def _put(self, job: Job) -> None:
        self.check_process()
        with self._gate:
            if self._writer is None:
                self._writer = Writer(self._opening, self._previous, self.holdings)
                self._finalizer = weakref.finalize(self, self._writer.stop)
            self._writer.put(job)

    def _stop(self) -> None:
        with self._gate:
            if self._writer is not None:
                self._finalizer.detach()
                self._writer.stop()
                self._previous, self._writer = self._writer, None


def _nothing(log: Log) -> None:
    """The first work, which shows whether the file can be opened."""


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Outcome],
    applied: Callable[[Any], None] | None,
    outcome: Outcome,
) -> None:
    if applied is not None and outcome.error is None:
        try:
            applied(outcome.value)
        except Exception as error:
            # An error of this package: the caller's, and not the thread's, which others need.
            outcome = Outcome(None, error)
    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, future, outcome)


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    # The caller may have been cancelled. The outcome is a plain result of the
    # future, also where it is an error: nobody is warned of one not fetched.
    if not future.done():
        future.set_result(outcome)


def _absolute(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, not {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError("path must be made of str, not bytes")
    if name == ":memory:":
        raise ValueError("path must name a file; for an outbox in memory there is MemoryOutbox")
    if not name or "\0" in name:
        raise ValueError("path must name a file")
    return os.path.realpath(name)
