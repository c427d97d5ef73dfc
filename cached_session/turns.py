"""Turns: who may work on a conversation, one at a time, in order of arrival.

An `asyncio.Lock` belongs to one event loop. A conversation may be used from
several, one after the other or in threads, so this one does not.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from cached_session.errors import DeadlineExceeded


class _Waiter:
    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()


class Turns:
    """A first-in, first-out lock across tasks, event loops and threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._holder: asyncio.AbstractEventLoop | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody works on the conversation and nobody waits to."""
        return self._holder is None and not self._waiters

    async def enter(self, deadline: float, conversation_id: str) -> None:
        """Waits for the turn.

        Args:
            deadline: Until when to wait, on the running loop's clock.
            conversation_id: Named in the error.

        Raises:
            DeadlineExceeded: The turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._holder is None or self._holder.is_closed():
                # A loop that was closed with its tasks left lying does not
                # give the turn back; whoever comes next takes it.
                self._holder = loop
                return
            waiter = _Waiter(loop)
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter.future
        except BaseException as error:
            with self._lock:
                granted = waiter not in self._waiters
                if not granted:
                    self._waiters.remove(waiter)
            if granted:
                self.leave()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"{conversation_id}: the operations before this one took until its "
                    "deadline; nothing was sent",
                    conversation_id=conversation_id,
                ) from None
            raise

    def leave(self) -> None:
        """Gives the turn to whoever waited longest."""
        with self._lock:
            while self._waiters:
                waiter = self._waiters.popleft()
                try:
                    waiter.loop.call_soon_threadsafe(_grant, waiter.future)
                except RuntimeError:  # its loop is closed: nobody waits there any more
                    continue
                self._holder = waiter.loop
                return
            self._holder = None

    def when_idle(self, action: Callable[[], None]) -> bool:
        """Runs `action`, which must not wait, if nobody has the turn; says whether it did."""
        with self._lock:
            if not self.idle:
                return False
            action()
            return True


def _grant(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
