"""Turns: who may work on a conversation, one at a time, in order of arrival.

An `asyncio.Lock` belongs to one event loop. A conversation may be used from
several, one after the other or in threads, so this one does not.

A turn is for one operation. A run is one that lasts for several, as long as an
agent's run does; in an outbox's log the processes stand in line for it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import TYPE_CHECKING

from cached_session.core.looking import LOOK_AFTER
from cached_session.errors import DeadlineExceeded, OutboxError, run_is_over

if TYPE_CHECKING:
    from cached_session.outbox import Outbox
    from cached_session.outbox.log import Log, Ticket
    from cached_session.outbox.records import Address


class Turn:
    """One caller's turn. Ends once; a second end, or a late one, does nothing.

    Attributes:
        taken_over: Whether the one who had it before was lost with its event
            loop and never gave it back.
    """

    __slots__ = ("_loop", "_process", "_turns", "taken_over")

    def __init__(self, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self._turns = turns
        # Weakly: the sender may keep the operation that this turn was for, after the loop's end.
        self._loop = weakref.ref(loop)
        self._process = os.getpid()
        self.taken_over: bool = False

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

    def of(self, turns: Collection[Turns]) -> bool:
        """Whether it is one of these."""
        return self._turns in turns

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
        # Reentrant: while a thread holds it, the garbage collector may close a coroutine that a
        # closed event loop has left lying in a turn, and that turn then ends in this thread.
        self._lock = threading.RLock()
        # Lists: an empty deque takes 760 bytes, in each conversation that is held.
        self._waiters: list[_Waiter] = []
        # Those whom `end_for_all` has told to go on. Until they have, new callers wait behind them.
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
                    "deadline; nothing was sent for this one",
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
                # Set before the other thread is told: that may have ended its turn by the time this
                # thread goes on.
                self.current = waiter.turn = Turn(self, waiter.loop)
            # A waiter on a stopped loop is told so when the loop runs on, and asks again.
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


# Seconds between two looks at a line in which other processes stand.
_LOOK_AGAIN = 0.05

# The runs that the present task, or the one that made it, belongs to: of one
# conversation the newest counts.
_runs: ContextVar[tuple[Run, ...]] = ContextVar("cached_session_runs", default=())


class Run:
    """A turn on a conversation that the task which took it keeps until it gives it back.

    What that task does on the conversation belongs to the run, and so does what
    the tasks do that it makes: the Runner saves a streamed run's items in one.

    Attributes:
        outbox: In whose log other processes wait for it, too; None: in none, or it is over.
        ticket: The place in that line, or None.
        given_back: Whether it has ended as it should.
    """

    def __init__(self, turn: Turn, outbox: Outbox | None) -> None:
        """Begins with the turn of this process, for the present task."""
        self.outbox = outbox
        self.ticket: Ticket | None = None
        self.given_back: bool = False
        self._turn = turn
        # Weakly: the outbox refers to the run until its thread finds that the loop was closed.
        self._task = weakref.ref(task) if (task := asyncio.current_task()) else None

    @property
    def current(self) -> bool:
        """Whether it was not given back, and nobody in this process took it over."""
        return self._turn.current

    @property
    def abandoned(self) -> bool:
        """Whether nobody goes on with it: its event loop was closed or stopped, or it is over."""
        return self._turn.lost or not self.current

    def lasts(self) -> Callable[[], float]:
        """Tells for how many seconds the present task's call has it; 0: others may have it."""
        mine = self.mine

        def left() -> float:
            if not self.current:
                # As in `_counts`: then the call belongs to no turn.
                return math.inf if mine and self.given_back else 0.0
            outbox = self.outbox
            return math.inf if outbox is None else outbox.holdings.left(self)

        return left

    @property
    def mine(self) -> bool:
        """Whether the present task has taken it."""
        return self._task is not None and self._task() is asyncio.current_task()

    @property
    def here(self) -> bool:
        """Whether the running event loop is its own."""
        return self._turn.here

    def of(self, turns: Collection[Turns]) -> bool:
        """Whether it is of the conversation on which these are the turns."""
        return self._turn.of(turns)

    def check_here(self, conversation_id: str) -> None:
        """Refuses what belongs to it, where it is over in this process.

        Raises:
            TurnLost: It is over.
        """
        if not self.current:
            raise run_is_over(conversation_id)

    async def check(self, conversation_id: str) -> None:
        """Refuses what belongs to it, where it is over, here or in the log.

        Raises:
            TurnLost: It is over.
            OutboxError: The log could not be read.
        """
        self.check_here(conversation_id)
        outbox, ticket = self.outbox, self.ticket
        if outbox is None or ticket is None:
            return
        if not await outbox.consult(lambda log: log.has_turn(ticket)):
            raise run_is_over(conversation_id)

    # The line of the processes

    async def line_up(
        self, outbox: Outbox, address: Callable[[], Address], deadline: float
    ) -> bool:
        """Waits for the turn among the processes that share the log.

        Args:
            outbox: Its own.
            address: Tells where the conversation is recorded.
            deadline: Until when, on the running loop's clock.

        Returns:
            Whether it came in time.

        Raises:
            OutboxError: The log could not be written.
        """
        now = asyncio.get_running_loop().time

        def line_up(log: Log) -> bool:
            # Set here, and not when it is committed: a work of the same transaction may give the
            # place in the line up, and has to find it.
            self.ticket = log.line_up(address(), self.ticket)
            # The outbox's thread gives the place up if the event loop stands still: otherwise
            # others would wait for ever.
            outbox.holdings.add(self)
            return self.ticket.first

        # The file stays open, or others would take it for that of a process that has ended.
        outbox.users.add(self)
        while True:
            before = self.ticket
            try:
                if await outbox.transact(line_up):
                    return True
            except OutboxError:
                # The number that was just set was not committed: another ticket may get it.
                self.ticket = before
                raise
            left = deadline - now()
            if left <= 0:
                return False
            # Nothing tells what another process does to a file.
            await asyncio.sleep(min(left, _LOOK_AGAIN))

    async def step_out(self, outbox: Outbox) -> None:
        """Gives the turn to the process that waited longest.

        Raises:
            OutboxError: The log could not be written.
        """
        outbox.users.discard(self)
        await outbox.transact(self.release, lambda _: outbox.holdings.discard(self))

    def release(self, log: Log) -> None:
        """Gives the place in the line up. In a transaction."""
        if self.ticket is not None:
            log.step_out(self.ticket)

    # The line of this process, and what belongs to it

    def begin(self) -> None:
        """Has the present task, and those that it makes, belong to it."""
        _runs.set((*filter(_counts, _runs.get()), self))

    def leave(self) -> None:
        """Has the present task belong to it no more."""
        _runs.set(tuple(run for run in _runs.get() if run is not self))

    def end(self) -> None:
        """Gives the turn to whoever waited longest in this process."""
        self.given_back, self.outbox = True, None
        self._turn.end()


def run_of(turns: Collection[Turns]) -> Run | None:
    """The run that the present task belongs to, on the conversation on which these are the turns.

    Returns:
        The run, which may be over; or None.
    """
    return next((run for run in reversed(_runs.get()) if run.of(turns) and _counts(run)), None)


def _counts(run: Run) -> bool:
    # The task had this run itself, and another one has given it back: one that has closed a
    # generator of this task, say.
    return not (run.mine and run.given_back)
