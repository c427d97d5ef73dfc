"""The one thread that works on an outbox's log, and takes along whoever waits.

A commit waits for the disk, or for an engine. So the thread takes all works that
wait, has them done together where the log can do that, and wakes all callers
then: no delay when alone, groups under load, no timer.
"""

from __future__ import annotations

import abc
import asyncio
import atexit
import contextlib
import functools
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from cached_session.core.looking import LOOK_AFTER
from cached_session.errors import OutboxError, OutboxUnavailable
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.log import Log
from cached_session.outbox.shared import Shared

T = TypeVar("T")

Work = Callable[[Log], Any]

# Seconds after which `Opened.tidy` is called, also where there was no second without work.
_TIDY_BY = 60.0


class Outcome(NamedTuple):
    """What became of a work: its result, or what it raised."""

    value: Any
    error: BaseException | None

    def result(self) -> Any:
        """The result.

        Raises:
            BaseException: What the work raised, or an `OutboxError`.
        """
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            # The error's traceback refers to this frame, and `self` to the error: a circle that
            # would keep both until the garbage collector runs.
            del self


class Job(NamedTuple):
    """One work, and who is told of its outcome, in the writer's thread."""

    work: Work
    answer: Callable[[Outcome], None]
    reads: bool = False
    """Whether it changes nothing."""


class Opened(Protocol):
    """A log that is open. Belongs to the thread that opened it."""

    def run(self, works: Sequence[Work], *, reads: bool) -> Iterable[Outcome]:
        """Has works done, and says what became of each, in their order; `reads`: none writes.

        Where they are not done together, each is done when what became of it is asked for.
        Errors lead to a list itself by their tracebacks: whoever takes them out leaves it empty.
        """

    def tend(self) -> None:
        """Does what has to be done each second while something is held."""

    def tidy(self) -> None:
        """Does what can wait for a second without work, and is not to wait for ever."""

    def close(self) -> None:
        """Lets go of it."""


class Writer:
    """The thread and its queue.

    Refers to no outbox, so that one that is dropped can end its writer.

    Args:
        opening: Opens the log, in the thread; called again at the next work
            after it has raised an `OutboxError`.
        previous: The writer of the same outbox before this one, whose works
            come before this one's.
        holdings: The backlogs that others are kept from sending. It lets go of
            those on which nobody works here any more: nothing tells when an
            event loop is stopped, and this thread goes on. At its end, of all.
    """

    def __init__(
        self, opening: Callable[[], Opened], previous: Writer | None, holdings: Holdings
    ) -> None:
        # Its `put` may be called by a finalizer at any moment, inside itself, too.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._holdings = holdings
        self._look_at = 0.0
        # When `tidy` is called: after a second without work, and after a minute in any case.
        self._tidy_at = self._tidy_by = math.inf
        self.ended: Future[None] = Future()
        """Done when everything is closed."""
        # Nobody who waits for it may cancel it for the others.
        self.ended.set_running_or_notify_cancel()
        self._thread: threading.Thread = threading.Thread(
            target=self._run,
            args=(opening, None if previous is None else previous._thread),
            name="cached-session-outbox",
            daemon=True,
        )
        _running.add(self)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Has a work run after those that were put before."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Has the thread finish what waits, close everything and end; nothing is put after it."""
        self._jobs.put(None)

    def finish(self) -> None:
        """Stops the thread and waits for its end; does nothing in a process forked from its own."""
        if self._pid == os.getpid():
            self.stop()
            self._thread.join()

    def _run(self, opening: Callable[[], Opened], previous: threading.Thread | None) -> None:
        if previous is not None:
            # The thread's end, and not `ended`: that is set a moment earlier, and a second
            # `let_go` would return before those are woken who wait for the first.
            previous.join()
            previous = None
        # The connection is known to this thread alone: in a forked process,
        # where the thread is not, nothing can touch or close it.
        opened: list[Opened] = []
        try:
            while self._turn(opening, opened):
                pass
        finally:
            # First: nobody here may count on a claim that another process can have by then.
            self._holdings.end()
            for file in opened:
                file.close()
            _running.discard(self)
            self.ended.set_result(None)

    def _turn(self, opening: Callable[[], Opened], opened: list[Opened]) -> bool:
        # A method of its own, so that nothing of a group is held while the
        # thread waits for the next one.
        waiting = [self._next(opened)]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._jobs.get_nowait())
        group = [job for job in waiting if job is not None]
        going_on = len(group) == len(waiting)
        if group:
            outcomes = _outcomes(opening, opened, group)
            _answer(group, outcomes)
            # The traceback of an error leads back to this frame and those below,
            # and from here it would lead to the error again.
            if isinstance(outcomes, list):
                outcomes.clear()
        group.clear()
        waiting.clear()
        return going_on

    def _next(self, opened: list[Opened]) -> Job | None:
        while True:
            held = bool(self._holdings)
            due = min(self._look_at if held else math.inf, self._tidy_at)
            if due == math.inf:
                break
            left = due - time.monotonic()
            if left > 0:
                with contextlib.suppress(queue.Empty):
                    return self._came(self._jobs.get(timeout=left), held=held)
            now = time.monotonic()
            if self._tidy_at <= now:
                self._tidy_at = self._tidy_by = math.inf
                for log in opened:
                    log.tidy()
            if not held or now < self._look_at:
                continue
            self._look_at = now + LOOK_AFTER
            for log in opened:
                log.tend()
            if self._holdings.abandoned:
                # Behind the jobs that wait: one of them may claim what is released here, for a
                # loop that was stopped just now.
                self.put(Job(self._holdings.release, self._released))
                break
        return self._came(self._jobs.get(), held=False)

    def _came(self, job: Job | None, *, held: bool) -> Job | None:
        now = time.monotonic()
        if not held:
            self._look_at = now + LOOK_AFTER
        self._tidy_by = min(self._tidy_by, now + _TIDY_BY)
        self._tidy_at = min(now + LOOK_AFTER, self._tidy_by)
        return job

    def _released(self, outcome: Outcome) -> None:
        # If it could not be recorded, the next look tries again.
        self._holdings.released(recorded=outcome.error is None)


_running: set[Writer] = set()


@atexit.register
def _finish() -> None:
    # Daemon threads are stopped wherever they are when the interpreter ends.
    for writer in list(_running):
        writer.finish()


def _answer(group: list[Job], outcomes: Iterable[Outcome]) -> None:
    for job, outcome in zip(group, outcomes, strict=True):
        job.answer(outcome)


def _outcomes(
    opening: Callable[[], Opened], opened: list[Opened], group: list[Job]
) -> Iterable[Outcome]:
    if not opened:
        try:
            opened.append(opening())
        except Exception as error:
            return failures(len(group), str(error), error)
    return opened[0].run([job.work for job in group], reads=all(job.reads for job in group))


def failures(count: int, message: str, cause: BaseException) -> list[Outcome]:
    """What became of works that failed for one cause."""
    # The traceback would hold the connection and all works of the group. Each
    # caller gets an exception of its own, as raising one changes it.
    cause.__traceback__ = None
    return [Outcome(None, failure(message, cause)) for _ in range(count)]


def failure(message: str, cause: BaseException) -> OutboxError:
    """An error for one caller; whether what failed comes back by itself is told by its class."""
    kind = OutboxUnavailable if isinstance(cause, OutboxUnavailable) else OutboxError
    error = kind(message)
    error.__cause__ = cause
    return error


class Threaded(Shared):
    """An outbox on whose log one thread works."""

    def __init__(self, *limits: Any) -> None:
        """`limits` as for `Shared`; nothing is opened yet."""
        super().__init__(*limits)
        # Guards the change from one writer to the next, so that no work is
        # given to one that ends.
        self._gate = threading.Lock()
        self._writer: Writer | None = None
        self._previous: Writer | None = None

    @property
    @abc.abstractmethod
    def _opening(self) -> Callable[[], Opened]:
        """Opens the log. Refers to no outbox: one that is dropped ends its writer."""

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Has `work` done in the outbox's thread, after the works before it.

        When this returns, what the work did is recorded. A caller that is
        cancelled hears so at once, and its work is still done.

        Args:
            work: Called once. If it raises, what it did is undone, and the
                caller gets its exception.
            applied: See `Outbox.transact`. Called in the outbox's thread.

        Raises:
            OutboxError: The log could not be read or written, and nothing of
                the work is recorded; or the process was forked after the
                outbox was made.
        """
        return await self._do(work, applied, reads=False)

    async def consult(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Has `work` done, which changes nothing, as `transact` does; see `Outbox.consult`."""
        return await self._do(work, applied, reads=True)

    async def _do(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None, *, reads: bool
    ) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._put(Job(work, functools.partial(_tell, loop, future, applied), reads))
        try:
            return cast(T, (await future).result())
        finally:
            # An error's traceback refers to this frame, and the future to the error.
            del future

    def _open(self) -> None:
        """Opens the log now, and not at its first use; waits for it.

        Raises:
            OutboxError: It cannot be opened.
        """
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

    async def let_go(self) -> None:
        """Does what it was asked before, and lets go of the log.

        The next use opens what is there then. This is called when no session
        and no sender uses it any more. In a process that was forked after the
        outbox was made it does nothing.
        """
        if not self.ours:
            # What is open belongs to the parent.
            return
        self._stop()
        if self._previous is not None:
            await asyncio.wrap_future(self._previous.ended)

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
    """A work that shows whether the log can be opened."""


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
            # An error of this package: it is raised to the caller. The thread goes on, as others
            # need it.
            outcome = Outcome(None, error)
    # On a loop that is closed nobody waits any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, future, outcome)


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    # The caller may have been cancelled. The outcome is a plain result of the
    # future, also where it is an error: nobody is warned of one not fetched.
    if not future.done():
        future.set_result(outcome)
