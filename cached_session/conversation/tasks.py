"""Work that is done to its end, whatever becomes of the caller who began it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Until: TypeAlias = Callable[[Callable[[], bool], float, Callable[[], None]], Awaitable[bool]]


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

    async def end(self, deadline: float, until: Until) -> None:
        """Waits until all have ended, on whichever event loop; at the deadline they are cancelled.

        Args:
            deadline: On the running loop's clock.
            until: Waits for a condition, and looks at it when an errand has ended.
        """
        if not await until(self._over, deadline, _nothing):
            for task in list(self._tasks):
                cancel(task)
            await until(self._over, math.inf, _nothing)

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
