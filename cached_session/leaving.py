"""The end of a backlog: what waits is sent first, whoever has left, and then all is let go of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from cached_session.delivering import behind, look_back
from cached_session.errands import Errands
from cached_session.errors import CachedSessionError, naming
from cached_session.events import Sending
from cached_session.journal import Journal
from cached_session.operation import Operation, Reopened
from cached_session.outbox import Outbox
from cached_session.sending import Sender
from cached_session.users import Users

# At most so many pages of a listing are asked for when a conversation is left.
_PAGES = 10


class Leaving:
    """The end of one backlog.

    Args:
        journal: What is recorded.
        sender: Who sends it.
        users: The open sessions that use it.
    """

    def __init__(self, journal: Journal, sender: Sender, users: Users) -> None:
        self._journal = journal
        self._sender = sender
        self._users = users
        # What goes on behind those who have left.
        self._endings = Errands()
        sender.then = self.look

    async def begin(self, context: Callable[[], Operation]) -> None:
        """Notes that a session is closed. Waits for the file, and not for the server.

        Args:
            context: Makes the operations that send what the session has left.

        Raises:
            OutboxError: It could not be recorded that nothing is held here.
        """
        journal, sender = self._journal, self._sender
        sender.start(context)
        if self._users or (journal.waiting and journal.paused is None):
            return  # who sends what waits looks again at its end
        await sender.stop()
        operation = context()
        if journal.replica.turns.idle and not behind(journal, operation, _PAGES):
            await self._end(operation)
        else:
            self._endings.begin(self._end(operation), journal.changed.fire)

    async def look(self, operation: Operation) -> None:
        """Lets go of all, if nobody uses it. What is recorded stays, whatever goes wrong."""
        if not self._users and not self._sender.working:
            with contextlib.suppress(CachedSessionError):
                await self._end(operation)

    async def _end(self, operation: Operation) -> None:
        outbox, journal, replica = self._journal.outbox, self._journal, self._journal.replica
        try:
            async with replica.turn(operation):
                if self._users or self._sender.working:
                    return  # somebody has come meanwhile
                # The next process need not look far back then.
                await look_back(journal, operation, pages=_PAGES)
                # Where the outbox was closed meanwhile, nothing is held of it any more.
                with naming(operation.conversation_id), contextlib.suppress(Reopened):
                    await journal.record(release=True)
                self._part()
        except BaseException:
            # Others would wait for what it could not let go of. Whoever still
            # uses the outbox here opens it again.
            await outbox.let_go()
            raise
        await let_go_unused(outbox)

    def _part(self) -> None:
        """Parts the backlog from its conversation's copy."""
        journal, replica = self._journal, self._journal.replica
        # Somebody may have come just now, too: with a second backlog beside
        # this one, both would send.
        with journal.outbox.lock:
            backlog = replica.backlog
            if backlog is not None and backlog.journal is journal and not self._users:
                replica.backlog = replica.window.recording = None

    async def give_way(self, operation: Operation) -> None:
        """Leaves what waits to another backlog of the same conversation, which nobody uses here.

        What is in flight settles first: two would send the same.
        """
        await self._sender.halt(operation.deadline)
        async with self._journal.replica.turn(operation):
            with contextlib.suppress(Reopened):
                await self._journal.record(release=True)
        await let_go_unused(self._journal.outbox)

    async def shut(self, deadline: float | None) -> str:
        """Sends what there is time for, and ends. A request that is in flight then is cut off.

        Args:
            deadline: Until when, on the running loop's clock; None: there is no time.

        Returns:
            Why something is left, if anything is.
        """
        journal, sender, endings = self._journal, self._sender, self._endings
        until = Operation.now() if deadline is None else deadline
        if deadline is not None:
            sender.start()
            await journal.changed.until(lambda: not sender.busy, until, sender.start)
        why, operation = self._why(), sender.operation
        await sender.halt(Operation.now())
        await endings.end(until, journal.changed.until)
        if operation is not None and journal.holds and journal.replica.turns.idle:
            # Or the next process would have to find out what has landed.
            with contextlib.suppress(CachedSessionError):
                async with journal.replica.turn(operation):
                    await journal.record(release=True)
        return why

    def _why(self) -> str:
        journal, sender = self._journal, self._sender
        if journal.paused is not None:
            return f"paused: {journal.paused}"
        if sender.failure is not None:
            return f"the outbox could not be written: {sender.failure}"
        if sender.trouble is not None:
            return f"the server could not be reached: {type(sender.trouble).__name__}"
        if sender.state is Sending.ELSEWHERE:
            return "another process sends it"
        return "there was no time to send it"


async def let_go_unused(outbox: Outbox) -> None:
    """Lets go of an outbox's file, if no session and no sender uses it."""
    with outbox.lock:
        backlogs = list(outbox.backlogs.values())
    if not outbox.users and not any(backlog.sender.working for backlog in backlogs):
        await outbox.let_go()
