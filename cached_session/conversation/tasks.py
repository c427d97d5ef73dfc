"""Tasks that outlive their callers, and waiting for what another task, loop or thread does."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cached_session.core.looking import LOOK_AFTER

T = TypeVar("T")


def _nothing() -> None:
    """What follows most errands."""


class Errands:
    """The works that somebody has under way."""

    def __init__(self) -> None:
        # The event loop itself holds its tasks weakly.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._left: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        work: Coroutine[Any, Any, T],
        then: Callable[[], None] = _nothing,
        *,
        abandoned: Callable[[Exception], None],
    ) -> T:
        """Does a work and returns what it returns; a caller who is cancelled leaves it behind.

        Args:
            work: The work.
            then: Called when it has ended, however it ended.
            abandoned: Called with its error if it fails behind such a caller.
        """
        task = self._begin(work, then)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            task.add_done_callback(lambda task: _retrieve(task, abandoned))
            raise
        return task.result()

    def begin(
        self, work: Coroutine[Any, Any, T], then: Callable[[], None] = _nothing
    ) -> asyncio.Task[T]:
        """Begins a work that nobody need wait for; see `run`."""
        task = self._begin(work, then)
        task.add_done_callback(_retrieve)
        return task

    @property
    def left(self) -> set[asyncio.Task[Any]]:
        """What callers of this event loop have left and is still being done."""
        if not self._left:
            return set()
        bury(self._tasks)
        bury(self._left)
        loop = asyncio.get_running_loop()
        return {task for task in self._left if task.get_loop() is loop}

    async def end(self, deadline: float, changed: Signal) -> None:
        """Waits until all have ended, on whichever event loop; at the deadline they are cancelled.

        Args:
            deadline: On the running loop's clock.
            changed: Fired when an errand has ended.
        """
        if not await changed.until(self._over, deadline, _nothing):
            for task in list(self._tasks):
                cancel(task)
            await changed.until(self._over, math.inf, _nothing)

    def _over(self) -> bool:
        return all(lost(task) for task in list(self._tasks))

    def _begin(self, work: Coroutine[Any, Any, T], then: Callable[[], None]) -> asyncio.Task[T]:
        bury(self._tasks)
        bury(self._left)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: then())
        task.add_done_callback(self._tasks.discard)
        return task


class Afterwards:
    """Around work behind which something is waited for, however the work ends.

    Not where its coroutine is closed, since its event loop was left lying: then
    nobody runs what could be waited for. Whoever comes next finds that nobody
    works any more.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        """Prepares it.

        Args:
            work: What comes after.
        """
        self._work = work

    async def __aenter__(self) -> None:
        """Begins."""

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Does what comes after."""
        if kind is not GeneratorExit:
            await self._work()


@dataclass(frozen=True, slots=True)
class Failed:
    """How a work ended that raised `error`."""

    error: Exception


async def ended(work: Callable[[], Coroutine[Any, Any, T]]) -> T | Failed:
    """What a work comes to.

    Its error is a value: whoever was to retrieve it may be on a loop that stands
    still, and asyncio logs what nobody has retrieved.
    """
    try:
        return await work()
    except Exception as error:
        return Failed(error)


def _retrieve(task: asyncio.Task[Any], failed: Callable[[Exception], None] | None = None) -> None:
    """Takes the error, of which asyncio would warn if nobody waits for it."""
    error = None if task.cancelled() else task.exception()
    if failed is not None and isinstance(error, Exception):
        failed(error)


def bury(tasks: set[asyncio.Task[Any]]) -> None:
    """Drops the tasks of event loops that were closed: they never end, and hold their loop.

    Nothing tells when a loop is closed, so whoever keeps tasks does this when it takes in another.
    """
    for task in [task for task in list(tasks) if task.get_loop().is_closed()]:
        forsake(task)
        tasks.discard(task)


def forsake(task: asyncio.Task[Any]) -> None:
    """Notes that somebody else goes on with what a task did, whose event loop stands still.

    So it is with the loop of `Runner.run_sync` after each run. If the loop never
    runs again asyncio logs at the end that the task was destroyed while it was
    pending. That would be a false alarm, and there is no public way to say so.
    """
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio does in `gather`


def lost(task: asyncio.Task[Any]) -> bool:
    """Whether nobody works on a task any more: it is done, or its event loop does not run."""
    return task.done() or not task.get_loop().is_running()


def cancel(task: asyncio.Task[Any]) -> None:
    """Has a task end, on whichever event loop it is."""
    if lost(task):
        forsake(task)
        return
    with contextlib.suppress(RuntimeError):  # its loop was closed just now
        task.get_loop().call_soon_threadsafe(task.cancel)


class Signal:
    """Wakes whoever waits, on whichever event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def fire(self) -> None:
        """Makes everybody who waits look at their condition."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # its loop is closed: nobody waits there any more
                continue

    async def until(
        self, condition: Callable[[], bool], deadline: float, look: Callable[[], None]
    ) -> bool:
        """Waits until a condition holds.

        Args:
            condition: Looked at whenever the signal is fired.
            deadline: Until when, on the running loop's clock.
            look: Called before each wait, at least every `LOOK_AFTER` seconds:
                nothing tells when another event loop was stopped.

        Returns:
            Whether it holds; False: the deadline has passed.
        """
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            with self._lock:
                for closed in [one for one, at in self._waiting.items() if at.is_closed()]:
                    del self._waiting[closed]
                self._waiting[future] = loop
            try:
                if condition():
                    return True
                left = deadline - loop.time()
                if left <= 0:
                    return False
                look()
                await asyncio.wait({future}, timeout=min(left, LOOK_AFTER))
            finally:
                with self._lock:
                    self._waiting.pop(future, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
