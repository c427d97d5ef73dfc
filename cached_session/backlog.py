"""A conversation whose appends go through an outbox: accept, read, pop, clear, wait.

One backlog a conversation and outbox. What is recorded, and its mirror in
memory, is the journal's; the sender puts it on the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

from openai import OpenAIError

from cached_session.barriers import Barrier
from cached_session.classify import classify
from cached_session.clearing import Clearing
from cached_session.core.items import Outgoing, copies
from cached_session.delivering import deliver, settle
from cached_session.errands import Errands
from cached_session.errors import AppendOutcomeUnknown, OutboxError, naming
from cached_session.events import Sending
from cached_session.journal import Changed, Elsewhere, Journal
from cached_session.leaving import Leaving
from cached_session.operation import Operation, Superseded
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address
from cached_session.popping import Popping
from cached_session.replica import Replica
from cached_session.room import Room
from cached_session.sending import Sender
from cached_session.users import Users

T = TypeVar("T")

# Seconds after a cancellation until the sender goes on where the call stopped.
_SOON = 0.05


class Backlog:
    """The accepted items of one conversation, and the conversation behind them.

    Attributes:
        journal: What is recorded.
        sender: Who sends it.
        barrier: Where callers wait for it.
        errands: What is done to its end, whatever becomes of the caller.
        users: Who uses it: sessions that are not closed.
    """

    def __init__(
        self,
        outbox: Outbox,
        address: Address,
        replica: Replica,
        before: Collection[Backlog] = (),
    ) -> None:
        """Makes one.

        Args:
            outbox: Where it is recorded.
            address: Under which name.
            replica: The conversation's local copy.
            before: Those that closed sessions have left, and that give way to this one.
        """
        self._before = before
        self.replica = replica
        self.journal = Journal(outbox, address, replica)
        self.journal.worker = self.sender = Sender(self.journal)
        self.barrier = Barrier(self.journal, self.sender)
        self.users = Users()
        self._room = Room(self.journal)
        self.errands = Errands()
        self._leaving = Leaving(self.journal, self.sender, self.users)
        self._clearing = Clearing(self.journal, self.barrier, self.errands)
        self._popping = Popping(self.journal, self.barrier, self.errands)

    @property
    def sending(self) -> Sending:
        """What becomes of what waits."""
        # The sender ends a moment after its last item has landed.
        if not self.journal.waiting:
            return Sending.IDLE
        return self.sender.state if self.journal.paused is None else Sending.PAUSED

    @property
    def waits(self) -> bool:
        """Whether it has a part in what a read shows."""
        # A doubt may have become another process's to look after.
        doubt = self.replica.window.unsettled.active
        return bool(self.journal.waiting) or self.journal.local or doubt

    @property
    def accepting(self) -> bool:
        """Whether items are being recorded at this moment."""
        return self._room.given

    async def append(
        self, operation: Operation, items: Sequence[Outgoing], context: Callable[[], Operation]
    ) -> None:
        """Accepts items; they are recorded when it returns.

        Args:
            operation: The call's own.
            items: The items, as they will be sent.
            context: Makes the operations that send them.

        Raises:
            OutboxPaused: The server refused what was accepted before.
            OutboxFull: The backlog stayed at its limit.
            OutboxError: They could not be recorded.
        """
        while True:
            await self.cleared(operation)
            await self.barrier.check(context)
            place = await self._room.take(items, self.sender.start)
            if self.journal.paused is None and self._clearing.idle and not operation.superseded():
                break
            place.give_back()
        # Whether items are recorded is not for a caller's cancellation to say.
        await self.errands.run(
            self._accept(items, context), place.give_back, abandoned=operation.abandoned
        )

    async def cleared(self, operation: Operation) -> None:
        """Waits for whoever is deleting the conversation.

        Raises:
            Superseded: It was deleted.
        """
        await self._clearing.over(operation)
        if operation.superseded():
            raise Superseded

    async def _accept(self, items: Sequence[Outgoing], context: Callable[[], Operation]) -> None:
        await self.journal.accept(items)
        self.sender.start(context)

    def served(self, limit: int | None, *, listing: int, since: float) -> list[Any] | None:
        """Answers a read without waiting, or returns None; arguments as in `Replica.served`."""
        journal = self.journal
        if not journal.local and not self.replica.window.checked(listing, since):
            return None
        with journal.lock:
            if not journal.local:
                return journal.waiting.view(limit)
            # Nobody else can know the conversation: the server holds nothing of it.
            newest = None if limit is None else (-limit or sys.maxsize)
            return copies([item.held for item in journal.waiting.items][newest:])

    async def read(
        self, operation: Operation, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]]:
        """Answers a read, with as few requests as it takes; arguments as in `served`."""
        journal, window = self.journal, self.replica.window
        await self._room.used(operation)
        while True:
            async with self.replica.turn(operation):
                if journal.waiting:
                    # Whoever had the turn may have left it so that no request is needed.
                    held = self.served(limit, listing=listing, since=since)
                    if held is not None:
                        return held
                claims = bool(journal.waiting) or window.unsettled.active
                alone, waited = await journal.alone(operation), bool(journal.waiting)
                listings = window.listings
                if alone:
                    await self._settle(operation)
                    missing = None if limit is None else max(1, limit - len(journal.waiting))
                    try:
                        history = await window.fresh(operation, missing, listing, since)
                        with journal.lock:
                            journal.waiting.show_behind(history if waited else None)
                            shown = journal.waiting.view(limit) if journal.waiting else None
                        # A read is not to fail for what the next process would gain by it.
                        with contextlib.suppress(OutboxError):
                            await journal.keep_window(listed=window.listings != listings)
                        if not journal.waiting:
                            # Nothing waits any more: what there is, is on the server. It
                            # was checked in this turn; there may be less of it than is wanted.
                            history = await window.fresh(operation, limit, 0, -math.inf)
                            return copies(history.tail(limit))
                        if waited and shown is not None:
                            return shown
                        # What was accepted meanwhile may stand behind another
                        # process's items, of which some were listed. And what
                        # was withdrawn meanwhile leaves room for older ones.
                        continue
                    finally:
                        if claims:
                            await self.barrier.let_go()
            # Another process is sending: what is on the server and what waits
            # cannot be told apart at this moment.
            await self.barrier.at_rest(operation)
            if journal.paused is not None:
                await self.barrier.held_elsewhere(operation)

    async def _settle(self, operation: Operation) -> None:
        """Finds out what landed; where nothing can tell, it is paused from now on.

        That is for those who append, flush or close. A read shows what there is.
        """
        with contextlib.suppress(AppendOutcomeUnknown):
            await settle(self.journal, operation)

    async def refresh(self, operation: Operation) -> None:
        """Forgets what the server has; see `Replica.refresh`."""
        if not self.journal.local:
            await self.replica.refresh(operation)
            self.journal.show_nothing()

    async def pop(
        self, operation: Operation, *, listing: int, since: float
    ) -> dict[str, Any] | None:
        """Removes the newest item, from the outbox if it was not sent, and returns it."""
        await self._room.used(operation)
        return await self._popping.run(operation, listing=listing, since=since)

    async def clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        """Drops what waits, then deletes the conversation; see `Replica.clear`."""
        await self._clearing.run(operation, deleted)

    async def flush(self, operation: Operation, context: Callable[[], Operation]) -> None:
        """Waits until nothing waits any more.

        Raises:
            OutboxPaused: The server refused a batch.
            DeadlineExceeded: It took too long; all is kept.
        """
        await self._room.used(operation)
        waiting, through = self.journal.waiting, None
        while True:
            await self.barrier.drained(operation, context)
            async with self.replica.turn(operation):
                try:
                    if await self.journal.alone(operation):
                        # Of what was accepted meanwhile a batch may be in doubt: the
                        # listing that decides about it decides only once.
                        await self._settle(operation)
                        await self.replica.look(operation)
                finally:
                    await self.barrier.let_go()
            # Items that another process had left may have been found just now.
            # What is appended from now on is not waited for.
            through = waiting.seen if through is None else through
            if not waiting or waiting.items[0].seq > through:
                return

    async def create(self, operation: Operation) -> None:
        """Creates the conversation on the server, in one attempt, if it has only a local name.

        Raises:
            openai.OpenAIError: The server refused. That it is away is no failure.
        """
        if not self.journal.local:
            return
        try:
            await self.replica.deliver(operation, lambda: deliver(self.journal, operation))
        except (Elsewhere, Changed):
            return  # another process makes it
        except OpenAIError as error:
            if not classify(error).retryable:
                raise

    async def perform(
        self,
        operation: Operation,
        work: Callable[[], Awaitable[T]],
        context: Callable[[], Operation],
        *,
        opens: bool,
    ) -> T:
        """Does a call's work; what it found, and what it holds, is the sender's afterwards.

        Args:
            operation: The call's own.
            work: What to do.
            context: Makes the operations that send.
            opens: Whether the caller's session has the outbox: it reads what is recorded first.
        """
        failure, soon = self.sender.failure, 0.0
        try:
            with naming(operation.conversation_id):
                for before in self._before:
                    await before.give_way(operation)
                self._before = ()
                if opens:
                    if left := self.errands.left:
                        # It settles before what comes after it.
                        await asyncio.wait(left)
                    await self.journal.open(operation)
                    # What another process left is its to send from now on.
                    self.sender.start(context)
                return await work()
        except asyncio.CancelledError:
            soon = _SOON
            raise
        finally:
            if soon:
                # Not at once: the loop may be ending, and would leave it lying.
                asyncio.get_running_loop().call_later(soon, self._go_on, context, failure)
            else:
                self._go_on(context, failure)
                # Where its session was closed meanwhile.
                await self._leaving.look(context())

    def _go_on(self, context: Callable[[], Operation], failure: OutboxError | None) -> None:
        # Where sending failed during the call, and not before it, the next use tries again.
        if self.journal.holds or self.sender.failure in (None, failure):
            self.sender.start(context)

    async def recorded(self, operation: Operation) -> None:
        """Waits until what was appended before this call is recorded, or is not going to be."""
        await self._room.used(operation)

    async def give_way(self, operation: Operation) -> None:
        """Leaves the conversation to another backlog; see `Leaving.give_way`."""
        await self._leaving.give_way(operation)

    async def leave(self, context: Callable[[], Operation]) -> None:
        """Notes that a session is closed; see `Leaving.begin`."""
        await self._leaving.begin(context)

    async def shut(self, deadline: float | None) -> str:
        """Ends, whoever uses it; see `Leaving.shut`."""
        return await self._leaving.shut(deadline)
