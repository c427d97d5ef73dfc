"""Deleting a conversation together with what an outbox holds for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cached_session.barriers import Barrier
from cached_session.core.wording import counted, verb
from cached_session.errands import Errands
from cached_session.journal import Journal
from cached_session.operation import Operation
from cached_session.turns import Turns


class Clearing:
    """The deletions of one conversation; what comes meanwhile is for the next conversation."""

    def __init__(self, journal: Journal, barrier: Barrier, errands: Errands) -> None:
        self._journal = journal
        self._barrier = barrier
        self._errands = errands
        self._turns = Turns()

    @property
    def idle(self) -> bool:
        """Whether nobody is deleting."""
        return self._turns.idle

    async def over(self, operation: Operation) -> None:
        """Waits until nobody is deleting."""
        if not self._turns.idle:
            turn = await self._turns.enter(operation.deadline, operation.conversation_id)
            turn.end()

    async def run(self, operation: Operation, deleted: Callable[[], None]) -> None:
        """Drops what waits, then deletes the conversation; see `Replica.clear`."""
        turn = await self._turns.enter(operation.deadline, operation.conversation_id)
        try:
            await self._clear(operation, deleted)
        except asyncio.CancelledError:
            # What is accepted until the deletion is done would be lost with it.
            self._errands.begin(self._cleared(), turn.end)
            raise
        except BaseException:
            turn.end()
            raise
        turn.end()

    async def _cleared(self) -> None:
        """Waits for a deletion that its caller has left."""
        replica = self._journal.replica
        await replica.written()
        if replica.window.history is None:
            await self._journal.forget_window()

    async def _clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        journal, replica = self._journal, self._journal.replica
        dropped = await self._errands.run(journal.drop(sealed=False), abandoned=operation.abandoned)
        # What is in flight comes first: nothing may land on a conversation that is gone.
        await self._barrier.until(
            lambda: self._barrier.open,
            operation,
            "a batch is being sent, and that took until the deadline; the "
            f"{counted(dropped)} that waited behind it {verb(dropped, 'was', 'were')} dropped, and "
            "the conversation was not deleted",
        )
        dropped += await self._errands.run(journal.drop(sealed=True), abandoned=operation.abandoned)
        if journal.local:
            # It may be created at this moment; then it is known by its id afterwards.
            async with replica.turn(operation):
                deleted()
            return
        try:
            await replica.clear(operation, deleted)
        except Exception as error:
            error.add_note(
                f"{operation.conversation_id}: {counted(dropped)} that waited in the outbox "
                f"{verb(dropped, 'was', 'were')} dropped before the conversation was to be deleted"
            )
            raise
        await journal.forget_window()
