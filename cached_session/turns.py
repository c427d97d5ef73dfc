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


class Turn:
    """One caller's turn. Ends once; a second end, or a late one, does nothing.

    Attributes:
        taken_over: Whether the one who had it before was lost with its event
            loop and never gave it back.
    """

    __slots__ = ("_loop", "_turns", "taken_over")

    def __init__(
        self, turns: Turns, loop: asyncio.AbstractEventLoop, *, taken_over: bool = False
    ) -> None:
        self._turns = turns
        self._loop = loop
        self.taken_over = taken_over

    @property
    def lost(self) -> bool:
        """Whether nobody can end it any more: its loop was closed with its tasks left lying."""
        return self._loop.is_closed()

    @property
    def current(self) -> bool:
        """Whether it has not ended, and nobody took it over."""
        return self._turns.current is self

    def end(self) -> None:
        """Gives the turn to whoever waited longest."""
        self._turns.leave(self)


class _Waiter:
    __slots__ = ("future", "loop", "turn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.turn: Turn | None = None


class Turns:
    """A first-in, first-out lock across tasks, event loops and threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self.current: Turn | None = None
        """Whose turn it is."""

    @property
    def idle(self) -> bool:
        """Whether nobody works on the conversation and nobody waits to."""
        return self.current is None and not self._waiters

    async def enter(self, deadline: float, conversation_id: str) -> Turn:
        """Waits for the turn.

        Args:
            deadline: Until when to wait, on the running loop's clock.
            conversation_id: Named in the error.

        Raises:
            DeadlineExceeded: The turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self.current is None or self.current.lost:
                turn = Turn(self, loop, taken_over=self.current is not None)
                self.current = turn
                return turn
            waiter = _Waiter(loop)
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter.future
        except BaseException as error:
            with self._lock:
                if waiter.turn is None:
                    self._waiters.remove(waiter)
            if waiter.turn is not None:
                waiter.turn.end()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"{conversation_id}: the operations before this one took until its "
                    "deadline; nothing was sent",
                    conversation_id=conversation_id,
                ) from None
            raise
        assert waiter.turn is not None  # that is what was waited for
        return waiter.turn

    def leave(self, turn: Turn) -> None:
        """Ends `turn`, if it is the current one."""
        with self._lock:
            if self.current is not turn:
                return
            while self._waiters:
                waiter = self._waiters.popleft()
                # Before the other thread is told: it may be done with its
                # turn by the time this one goes on.
                self.current = waiter.turn = Turn(self, waiter.loop)
                try:
                    waiter.loop.call_soon_threadsafe(_grant, waiter.future)
                except RuntimeError:  # its loop is closed: nobody waits there any more
                    continue
                return
            self.current = None

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
