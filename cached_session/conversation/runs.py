"""Runs: turns that last for several operations, as long as an agent's run does."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from cached_session.conversation.turns import Turn, Turns
from cached_session.errors import OutboxError, run_is_over

if TYPE_CHECKING:
    from cached_session.outbox import Outbox
    from cached_session.outbox.log import Log, Ticket
    from cached_session.outbox.records import Address

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
        self.given_back = False
        self._turn = turn
        # Weakly: the outbox has it until its thread has found that the loop was closed.
        self._task = weakref.ref(task) if (task := asyncio.current_task()) else None

    @property
    def current(self) -> bool:
        """Whether it was not given back, and nobody in this process took it over."""
        return self._turn.current

    @property
    def abandoned(self) -> bool:
        """Whether nobody goes on with it: its event loop was closed or stopped, or it is over."""
        return self._turn.lost or not self.current

    @property
    def mine(self) -> bool:
        """Whether the present task has taken it."""
        return self._task is not None and self._task() is asyncio.current_task()

    @property
    def here(self) -> bool:
        """Whether the running event loop is its own."""
        return self._turn.here

    def of(self, turns: Turns) -> bool:
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
            # Here, and not when it is committed: whoever gives it up meanwhile, in the same
            # transaction, has to find it.
            self.ticket = log.line_up(address(), self.ticket)
            return self.ticket.first

        # The file stays open, or others would take it for that of a process that has ended.
        outbox.users.add(self)
        # It is given up if the event loop stands still: others would wait for ever.
        outbox.holdings.add(self)
        while True:
            before = self.ticket
            try:
                if await outbox.transact(line_up):
                    return True
            except OutboxError:
                # Its number may be another one's by then.
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


def run_of(turns: Turns) -> Run | None:
    """The run that the present task belongs to, on the conversation on which these are the turns.

    Returns:
        The run, which may be over; or None.
    """
    return next((run for run in reversed(_runs.get()) if run.of(turns) and _counts(run)), None)


def _counts(run: Run) -> bool:
    # A task is in no run any more that it had itself, and that was given back elsewhere: by a
    # generator that another task has closed, say.
    return not (run.mine and run.given_back)
