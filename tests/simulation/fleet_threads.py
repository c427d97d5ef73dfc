"""The threads of outboxes, in virtual time: each is a coroutine of the one real thread.

The product's own `Writer` runs in them. It waits for its queue, sleeps, and reads clocks by what is
put in the place of its modules here.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from greenlet import getcurrent, greenlet

from cached_session.outbox import writer
from cached_session.outbox.postgres import engine, lease
from cached_session.outbox.postgres import outbox as postgres


class Ended(BaseException):
    """The process of a thread has crashed."""


class Host:
    """Whose threads they are: what goes with a process when it crashes.

    Attributes:
        alive: Whether it has not crashed.
        asleep_until: When it goes on, if it stands still, on the loop's clock.
        rng: Where its delays come from.
        longest: Seconds from a call until its thread hears of it, at most.
        outbox: Whose threads they are.
    """

    def __init__(self, rng: random.Random, longest: float) -> None:
        self.alive = True
        self.asleep_until = 0.0
        self.rng = rng
        self.longest = longest
        self.outbox: Any = None
        self._threads: list[Thread] = []

    def delay(self) -> float:
        """Seconds, by chance, that something takes."""
        return self.rng.uniform(0.0, self.longest)

    def crash(self) -> None:
        """Ends all that runs in it, wherever that is."""
        self.alive = False
        for thread in self._threads:
            thread.end()

    def began(self, thread: Thread) -> None:
        """Notes a thread of it."""
        self._threads.append(thread)


class Thread:
    """In the place of `threading.Thread`, as far as `Writer` uses it."""

    # Whose the next one is.
    host: Host | None = None

    def __init__(
        self, *, target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool
    ) -> None:
        assert Thread.host is not None  # an outbox of the simulation begins it
        self._of = Thread.host
        self._main = _Coroutine(lambda: target(*args), self._of)
        self._of.began(self)

    def start(self) -> None:
        """Begins it, a moment later."""
        _wake_in(self._of.delay(), self._main)

    def join(self) -> None:
        """Waits for its end, in another thread."""
        while not self._main.dead:
            sleep(0.01)

    def end(self) -> None:
        """Ends it by an error where it waits."""
        if self._main and not self._main.dead:
            with contextlib.suppress(Ended):
                self._main.throw(Ended)


class _Coroutine(greenlet):
    def __init__(self, run: Callable[[], None], host: Host) -> None:
        super().__init__(run)
        self.host = host
        # Counts what it has waited for: who comes late wakes nobody.
        self.waits = 0


def here() -> Host | None:
    """Whose thread this is; None: the event loop's."""
    current = getcurrent()
    return current.host if isinstance(current, _Coroutine) else None


def sleep(seconds: float) -> None:
    """Lets others go on for so long.

    Raises:
        Ended: Meanwhile the process has crashed.
    """
    current = getcurrent()
    assert isinstance(current, _Coroutine)  # nobody else may wait
    if not current.host.alive:
        raise Ended
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    _wait(current, seconds)
    while loop.time() < max(end, current.host.asleep_until):
        _wait(current, max(end, current.host.asleep_until) - loop.time())


def _wait(current: _Coroutine, seconds: float | None) -> None:
    if seconds is not None:
        _wake_in(seconds, current)
    current.parent.switch()
    current.waits += 1
    if not current.host.alive:
        raise Ended


def _wake_in(seconds: float, coroutine: _Coroutine) -> None:
    asyncio.get_running_loop().call_later(seconds, _wake, coroutine, coroutine.waits)


def _wake(coroutine: _Coroutine, waits: int) -> None:
    if coroutine.waits == waits and coroutine.host.alive and not coroutine.dead:
        # It may notice by itself that its process has crashed.
        with contextlib.suppress(Ended):
            coroutine.switch()


class Queue:
    """In the place of `queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: _Coroutine | None = None

    def put(self, item: Any) -> None:
        """As that one's; whoever waits for it hears so a moment later."""
        self._items.append(item)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            _wake_in(waiting.host.delay(), waiting)

    def get(self, timeout: float | None = None) -> Any:
        """As that one's."""
        current = getcurrent()
        assert isinstance(current, _Coroutine)
        if not current.host.alive:
            raise Ended
        if not self._items:
            self._waiting = current
            try:
                _wait(current, timeout)
            finally:
                self._waiting = None
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        """As that one's."""
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class Clock:
    """In the place of `time`."""

    sleep = staticmethod(sleep)

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()

    @staticmethod
    def clock_gettime(clock: int) -> float:
        return asyncio.get_running_loop().time()


class _Threading:
    Thread = Thread
    Lock = staticmethod(threading.Lock)


class _Queues:
    SimpleQueue = Queue
    Empty = queue.Empty


@contextlib.contextmanager
def in_virtual_time() -> Iterator[None]:
    """Outboxes in PostgreSQL that are made in here live in the loop's time."""
    with contextlib.ExitStack() as stack:
        for module, name, instead in (
            (writer, "threading", _Threading),
            (writer, "queue", _Queues),
            (writer, "time", Clock),
            (engine, "time", Clock),
            (lease, "time", Clock),
            (postgres, "time", Clock),
        ):
            stack.enter_context(mock.patch.object(module, name, instead))
        try:
            yield
        finally:
            # Nobody may wait for them when the interpreter ends: their loop is gone.
            writer._running.clear()
