"""Waiting for what an outbox holds of a conversation, or hearing why it does not go."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from cached_session.core.wording import counted, verb
from cached_session.errors import DeadlineExceeded, OutboxError, OutboxPaused
from cached_session.journal import Journal
from cached_session.operation import Operation
from cached_session.sending import Sender
from cached_session.turns import LOOK_AFTER


class Barrier:
    """Where callers wait until a backlog has come to something."""

    def __init__(self, journal: Journal, sender: Sender) -> None:
        self._journal = journal
        self._sender = sender

    @property
    def open(self) -> bool:
        """Whether nothing waits that would be sent."""
        return not self._journal.waiting or self._journal.paused is not None

    async def let_go(self) -> None:
        """Lets others send, where nothing waits here that would be sent. In the turn."""
        if self.open:
            await self._journal.record(release=True)

    async def drained(self, operation: Operation, context: Callable[[], Operation]) -> None:
        """Waits until nothing waits any more.

        Args:
            operation: The call's own.
            context: Makes the operations that send what waits.

        Raises:
            OutboxPaused: It is not sent until somebody decides.
            OutboxError: The sender could not write what it does.
            DeadlineExceeded: It took too long; all is kept.
        """
        await self.check(context)
        self._sender.start(context)
        await self.at_rest(operation)
        self.raise_if_paused()

    async def at_rest(self, operation: Operation) -> None:
        """Waits until nothing waits any more, or nothing is sent."""
        await self.until(lambda: self.open, operation, "the server did not take all of it in time")

    async def until(
        self, condition: Callable[[], bool], operation: Operation, otherwise: str
    ) -> None:
        """Waits until the journal has come to something.

        Raises:
            OutboxError: The sender could not write what it does.
            DeadlineExceeded: It took too long; says `otherwise`.
        """
        sender = self._sender
        # What waits may have been found here just now, and nobody sends it yet.
        look = functools.partial(self._start, operation)
        look()
        came = await self._journal.changed.until(
            lambda: condition() or sender.failure is not None, operation.deadline, look
        )
        if not came:
            raise self._too_late(operation, otherwise) from sender.trouble
        failure = sender.failure
        if failure is not None and not condition():
            raise OutboxError(
                f"{operation.conversation_id}: {self._recorded} and "
                f"not known to be on the server; sending them failed. {failure}",
                conversation_id=operation.conversation_id,
            ) from failure

    async def held_elsewhere(self, operation: Operation) -> None:
        """Waits a little for another process that holds on to what is paused."""
        if operation.now() >= operation.deadline:
            raise self._too_late(operation, "another process holds on to it")
        await asyncio.sleep(LOOK_AFTER / 4)
        if await self._journal.resumed():
            await self._journal.reload(operation)
            self._start(operation)

    async def check(self, context: Callable[[], Operation]) -> None:
        """Raises `OutboxPaused` if nothing is sent any more, and nobody has decided since."""
        if self._journal.paused is not None and await self._journal.resumed():
            await self._journal.reload(context())
            self._sender.start(context)
        self.raise_if_paused()

    def raise_if_paused(self) -> None:
        """Raises `OutboxPaused` if nothing is sent any more."""
        journal, name = self._journal, self._journal.replica.conversation_id
        if journal.paused is None:
            return
        raise OutboxPaused(
            journal.why_paused,
            conversation_id=name,
            waiting=len(journal.waiting),
        ) from journal.refusal

    def _start(self, operation: Operation) -> None:
        # Its name when it is sent: it may get its id in between.
        self._sender.start(lambda: operation.renewed(self._journal.replica.conversation_id))

    @property
    def _recorded(self) -> str:
        waiting = len(self._journal.waiting)
        return f"{counted(waiting)} {verb(waiting, 'is', 'are')} recorded"

    def _too_late(self, operation: Operation, why: str) -> DeadlineExceeded:
        trouble = self._sender.trouble
        met = "" if trouble is None else f", {type(trouble).__name__}"
        return DeadlineExceeded(
            f"{operation.conversation_id}: {why}. {self._recorded} "
            f"in the outbox and not known to be on the server (sending: {self._sender.state}{met})",
            conversation_id=operation.conversation_id,
        )
