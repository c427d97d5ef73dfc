"""Turns: who may work on a conversation, one at a time, in order of arrival.

An `asyncio.Lock` belongs to one event loop. A conversation may be used from
several, one after the other or in threads, so this one does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable

from cached_session.core.looking import LOOK_AFTER
from cached_session.errors import DeadlineExceeded


class Turn:
    """One caller's turn. Ends once; a second end, or a late one, does nothing.

    Attributes:
        taken_over: Whether the one who had it before was lost with its event
            loop and never gave it back.
    """

    __slots__ = ("_loop", "_process", "_turns", "taken_over")

    def __init__(self, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self._turns = turns
        # Weakly: an operation refers to its turn, and may be kept for what is sent later.
        self._loop = weakref.ref(loop)
        self._process = os.getpid()
        self.taken_over = False

    @property
    def lost(self) -> bool:
        """Whether nobody works on it: its loop was closed or stopped with the task left lying.

        Asked from another loop. A stopped loop may run on later; whoever finds
        then that the turn is no longer theirs stops there. In a process that
        was forked meanwhile, the holder is in the parent.
        """
        loop = self._loop()
        return loop is None or not loop.is_running() or self._process != os.getpid()

    @property
    def here(self) -> bool:
        """Whether the running event loop is its own."""
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    @property
    def current(self) -> bool:
        """Whether it has not ended, and nobody took it over."""
        return self._turns.current is self

    def of(self, turns: Turns) -> bool:
        """Whether it is one of these."""
        return self._turns is turns

    def end(self) -> None:
        """Gives the turn to whoever waited longest."""
        self._turns.leave(self)

    def end_for_all(self) -> None:
        """Lets all who wait go on at once, in order of arrival, with a turn that has ended.

        For whoever did what they all waited for. One by one, each would cost a
        round of the event loop.
        """
        self._turns.leave(self, everyone=True)


class _Waiter:
    __slots__ = ("future", "loop", "process", "turn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.process = os.getpid()
        self.future: asyncio.Future[None] = loop.create_future()
        self.turn: Turn | None = None


class Turns:
    """A first-in, first-out lock across tasks, event loops and threads."""

    def __init__(self) -> None:
        # One that its thread may take again: in any of the steps that it guards the collector may
        # close a coroutine that a closed event loop has left lying in a turn, which then ends here.
        self._lock = threading.RLock()
        # Lists: an empty deque takes 760 bytes, in each conversation that is held.
        self._waiters: list[_Waiter] = []
        # Told to go on by `end_for_all`. Whoever comes before they have done so waits behind them.
        self._going_on: list[_Waiter] = []
        self._one_was_lost = False
        self.current: Turn | None = None
        """Whose turn it is."""

    @property
    def idle(self) -> bool:
        """Whether nobody works on the conversation and nobody waits to."""
        return self.current is None and not self._waiters and not self._going_on

    async def enter(self, deadline: float, conversation_id: str) -> Turn:
        """Waits for the turn.

        Args:
            deadline: Until when to wait, on the running loop's clock.
            conversation_id: Named in the error.

        Raises:
            DeadlineExceeded: The turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self.current is None and not self._going_on:
                    self.current = Turn(self, loop)
                    return self._begun(self.current)
                waiter = _Waiter(loop)
                self._waiters.append(waiter)
                self._look_after()
            try:
                turn = await self._wait(waiter, deadline)
            except asyncio.CancelledError:
                self._withdraw(waiter)
                raise
            with self._lock:
                if turn is not None and turn.current:
                    return self._begun(turn)
                if turn is not None and self._gone_on(waiter):
                    return turn
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"{conversation_id}: the operations before this one took until its "
                    "deadline; nothing was sent",
                    conversation_id=conversation_id,
                )

    async def _wait(self, waiter: _Waiter, deadline: float) -> Turn | None:
        """Waits until the turn is granted, lost by its holder, or the deadline has passed."""
        while True:
            left = deadline - waiter.loop.time()
            if left <= 0 and waiter.turn is None:
                self._withdraw(waiter)
                return None
            if left <= 0:
                return waiter.turn  # whoever had it was lost, just now
            await asyncio.wait({waiter.future}, timeout=min(left, LOOK_AFTER))
            if waiter.future.done():
                return waiter.turn
            with self._lock:
                self._look_after()

    def _look_after(self) -> None:
        """Passes on a turn that its holder has lost."""
        for waiter in list(self._going_on):
            if not waiter.loop.is_running() or waiter.process != os.getpid():
                self._gone_on(waiter)
        if self.current is not None and self.current.lost:
            self._one_was_lost = True
            self._pass_on()

    def _begun(self, turn: Turn) -> Turn:
        turn.taken_over, self._one_was_lost = self._one_was_lost, False
        return turn

    def _pass_on(self) -> None:
        """Gives the turn to whoever waited longest, on a loop that runs."""
        self.current = None
        while self._waiters and self.current is None:
            waiter = self._waiters.pop(0)
            if waiter.process != os.getpid():
                continue  # it waits in the process that this one was forked from
            if waiter.loop.is_running():
                # Before the other thread is told: it may be done with its
                # turn by the time this one goes on.
                self.current = waiter.turn = Turn(self, waiter.loop)
            # Who waits on a stopped loop is told to ask again when it runs on.
            try:
                waiter.loop.call_soon_threadsafe(_grant, waiter.future)
            except RuntimeError:  # its loop is closed: nobody waits there any more
                self.current = None

    def _go_on(self) -> None:
        """Lets everybody go on who waits on a loop that runs."""
        self.current = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.process != os.getpid() or not waiter.loop.is_running():
                self._waiters.append(waiter)
                continue
            waiter.turn = Turn(self, waiter.loop)
            with contextlib.suppress(RuntimeError):  # its loop was closed just now
                waiter.loop.call_soon_threadsafe(_grant, waiter.future)
                self._going_on.append(waiter)
        if not self._going_on:
            self._pass_on()

    def _gone_on(self, waiter: _Waiter) -> bool:
        """Notes that a waiter has gone on; says whether it was told to."""
        if waiter not in self._going_on:
            return False
        self._going_on.remove(waiter)
        if not self._going_on and self.current is None:
            self._pass_on()
        return True

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._gone_on(waiter)
        if waiter.turn is not None:
            waiter.turn.end()

    def leave(self, turn: Turn, *, everyone: bool = False) -> None:
        """Ends `turn`, if it is the current one; see `Turn`."""
        with self._lock:
            if self.current is turn:
                (self._go_on if everyone else self._pass_on)()

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
