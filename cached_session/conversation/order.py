"""The one order in which a conversation is worked on, and the work that is done in it.

Whatever needs the network holds the conversation's turn. Reads are done by the
caller's own task and simply stop when it is cancelled. Writes run in a task of
their own, so that a request in flight settles, in order, behind a caller who
has left.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cached_session.conversation.operation import Operation, Superseded
from cached_session.conversation.tasks import Failed, bury, ended, forsake
from cached_session.conversation.turns import Turn, Turns
from cached_session.core.ledger import Ledger

T = TypeVar("T")


class InTurn:
    """Around work that needs the turn.

    No generator: `Runner.run_sync` shuts its event loop's generators down after
    each run and goes on with the loop, which then warns of every new one.
    """

    __slots__ = ("_operation", "_order", "_turn")

    def __init__(self, order: Order, operation: Operation) -> None:
        self._order = order
        self._operation = operation

    async def __aenter__(self) -> None:
        self._turn = await self._order.enter(self._operation)

    async def __aexit__(self, *_: object) -> None:
        self._order.leave(self._turn)


class Order:
    """Who works on a conversation, one at a time, and on what.

    Attributes:
        ledger: What is known of the conversation.
        lock: The ledger's.
        turns: Who may work on it.
    """

    def __init__(self, conversation_id: str, worked: Callable[[], None]) -> None:
        """Begins with an empty ledger.

        Args:
            conversation_id: The conversation.
            worked: Called whenever somebody has worked on it; its size may have changed.
        """
        self.lock = threading.Lock()
        self.ledger = Ledger(conversation_id, self.lock)
        self.turns = Turns()
        self._worked = worked
        self._writes: set[asyncio.Task[Any]] = set()

    def turn(self, operation: Operation) -> InTurn:
        """Around work of the caller's own task that needs the turn."""
        return InTurn(self, operation)

    async def enter(self, operation: Operation) -> Turn:
        """Waits for the turn; `leave` ends it.

        Raises:
            DeadlineExceeded: It did not come in time.
            Superseded: The caller's session has left the conversation meanwhile.
        """
        turn = await self.turns.enter(operation.deadline, self.ledger.conversation_id)
        if turn.taken_over:
            self.ledger.abandon(expires=operation.expiry())
        bury(self._writes)
        if operation.superseded():
            turn.end()
            raise Superseded
        operation.turn = turn
        return turn

    def leave(self, turn: Turn) -> None:
        """Ends a turn, unless it was taken over."""
        if turn.current:
            self._worked()
            turn.end()

    async def settled(self, operation: Operation) -> None:
        """Waits for the work before this call."""
        async with self.turn(operation):
            pass

    async def written(self) -> None:
        """Waits for the writes of this event loop that are under way."""
        loop = asyncio.get_running_loop()
        writes = {write for write in self._writes if write.get_loop() is loop}
        if writes:
            await asyncio.wait(writes)

    async def write(
        self,
        operation: Operation,
        turn: Turn,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        kept: bool = False,
    ) -> T:
        """Does a write that holds the turn, to its end, whatever becomes of the caller.

        Args:
            operation: The caller's.
            turn: The turn, which ends with the work.
            work: The work.
            kept: Whether an outbox has what is written, and sees to it if this fails.
        """
        task = asyncio.get_running_loop().create_task(ended(work))
        # Whoever has the next turn settles what it leaves, whatever becomes of its loop.
        forsake(task)
        self._writes.add(task)
        # A callback, not a `finally` in the task: one that is cancelled before
        # its first step runs neither.
        task.add_done_callback(lambda task: self._written(task, turn))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._abandoned(operation, task, kept=kept))
            raise
        end = task.result()
        if isinstance(end, Failed):
            raise end.error
        return end

    def _written(self, task: asyncio.Task[Any], turn: Turn) -> None:
        self._writes.discard(task)
        self.leave(turn)

    @staticmethod
    def _abandoned(operation: Operation, task: asyncio.Task[Any], *, kept: bool) -> None:
        if not task.cancelled() and isinstance(task.result(), Failed):
            operation.abandoned(task.result().error, kept=kept)
