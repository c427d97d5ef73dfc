"""The one thread that works on an outbox's file, and takes along whoever waits.

A commit waits for the disk. So the thread takes all works that wait, runs them
in one transaction, and wakes all callers after its one commit: no delay when
alone, groups under load, no timer.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from cached_session.core.looking import LOOK_AFTER
from cached_session.errors import OutboxError
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.log import Log
from cached_session.outbox.sqlite.file import OpenFile


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
            # The traceback refers to this frame, which would refer back to it.
            del self


class Job(NamedTuple):
    """One work, and who is told of its outcome, in the writer's thread."""

    work: Callable[[Log], Any]
    answer: Callable[[Outcome], None]


class Writer:
    """The thread and its queue.

    Refers to no outbox, so that one that is dropped can end its writer.

    Args:
        opening: Opens the file, in the thread; called again at the next work
            after it has raised an `OutboxError`.
        previous: The writer of the same outbox before this one, whose works
            come before this one's.
        holdings: The backlogs that others are kept from sending. It lets go of
            those on which nobody works here any more: nothing tells when an
            event loop is stopped, and this thread goes on.
    """

    def __init__(
        self, opening: Callable[[], OpenFile], previous: Writer | None, holdings: Holdings
    ) -> None:
        # Its `put` may be called by a finalizer at any moment, inside itself, too.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._holdings = holdings
        self._look_at = 0.0
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

    def _run(self, opening: Callable[[], OpenFile], previous: threading.Thread | None) -> None:
        if previous is not None:
            # Its end, and not `ended`: that is seen before all are told who wait for it,
            # and what closes the outbox would overtake what had let go of it before.
            previous.join()
            previous = None
        # The connection is known to this thread alone: in a forked process,
        # where the thread is not, nothing can touch or close it.
        opened: list[OpenFile] = []
        try:
            while self._turn(opening, opened):
                pass
        finally:
            for file in opened:
                file.close()
            _running.discard(self)
            self.ended.set_result(None)

    def _turn(self, opening: Callable[[], OpenFile], opened: list[OpenFile]) -> bool:
        # A method of its own, so that nothing of a group is held while the
        # thread waits for the next one.
        waiting = [self._next()]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._jobs.get_nowait())
        group = [job for job in waiting if job is not None]
        going_on = len(group) == len(waiting)
        if group:
            outcomes = _outcomes(opening, opened, [job.work for job in group])
            _answer(group, outcomes)
            # The traceback of an error leads back to this frame and those below,
            # and from here it would lead to the error again.
            outcomes.clear()
        group.clear()
        waiting.clear()
        return going_on

    def _next(self) -> Job | None:
        while self._holdings:
            left = self._look_at - time.monotonic()
            if left > 0:
                with contextlib.suppress(queue.Empty):
                    return self._jobs.get(timeout=left)
            self._look_at = time.monotonic() + LOOK_AFTER
            if self._holdings.abandoned:
                # Behind what waits: of a loop that was stopped just now, that
                # may be what claims.
                self.put(Job(self._holdings.release, self._released))
                break
        job = self._jobs.get()
        self._look_at = time.monotonic() + LOOK_AFTER
        return job

    def _released(self, outcome: Outcome) -> None:
        # Where it failed, the next look tries again.
        self._holdings.released(recorded=outcome.error is None)


_running: set[Writer] = set()


@atexit.register
def _finish() -> None:
    # Daemon threads are stopped wherever they are when the interpreter ends.
    for writer in list(_running):
        writer.finish()


def _answer(group: list[Job], outcomes: list[Outcome]) -> None:
    for job, outcome in zip(group, outcomes, strict=True):
        job.answer(outcome)


def _outcomes(
    opening: Callable[[], OpenFile], opened: list[OpenFile], works: list[Callable[[Log], Any]]
) -> list[Outcome]:
    if not opened:
        try:
            opened.append(opening())
        except Exception as error:
            return _failures(len(works), str(error), error)
    file = opened[0]
    try:
        file.check()
        return run_group(file.connection, file.log, file.explain, works)
    except BaseException as error:
        return _failures(len(works), str(file.explain(error)), error)


def _failures(count: int, message: str, cause: BaseException) -> list[Outcome]:
    # The traceback would hold the connection and all works of the group. Each
    # caller gets an exception of its own, as raising one changes it.
    cause.__traceback__ = None
    return [Outcome(None, _failure(message, cause)) for _ in range(count)]


def _failure(message: str, cause: BaseException) -> OutboxError:
    failure = OutboxError(message)
    failure.__cause__ = cause
    return failure


def run_group(
    connection: sqlite3.Connection,
    log: Log,
    explain: Callable[[sqlite3.Error], OutboxError],
    works: list[Callable[[Log], Any]],
) -> list[Outcome]:
    """Runs works in one transaction; one that raises is undone alone.

    Args:
        connection: Where no transaction is open.
        log: What the works get.
        explain: Makes of SQLite's error one for users.
        works: The works, in their order.

    Returns:
        What became of each. Errors lead to the list itself by their tracebacks:
        whoever takes them out leaves it empty.

    Raises:
        BaseException: The transaction failed, and nothing is recorded.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_attempt(connection, log, explain, work) for work in works]
        connection.execute("COMMIT")
    except BaseException:
        # Where this fails, too, SQLite has undone the transaction by itself.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _attempt(
    connection: sqlite3.Connection,
    log: Log,
    explain: Callable[[sqlite3.Error], OutboxError],
    work: Callable[[Log], Any],
) -> Outcome:
    connection.execute("SAVEPOINT work")
    try:
        value = work(log)
        connection.execute("RELEASE work")
    except BaseException as error:
        if not connection.in_transaction:
            # A full disk, for example, makes SQLite undo all of it.
            raise
        connection.execute("ROLLBACK TO work")
        connection.execute("RELEASE work")
        if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode"):
            return Outcome(None, _failure(str(explain(error)), error))
        return Outcome(None, error)
    return Outcome(value, None)
