"""The sender of a backlog: a task that sends batch after batch, through anything."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Callable

from openai import APIStatusError, OpenAIError

from cached_session.classify import classify, says_gone
from cached_session.core.outcomes import Applied, Outcome, Refused, Unknown
from cached_session.core.wording import counted
from cached_session.delivering import deliver, look_back
from cached_session.errands import forsake
from cached_session.errors import (
    AppendOutcomeUnknown,
    CachedSessionError,
    DeadlineExceeded,
    OutboxError,
    TurnLost,
)
from cached_session.events import BacklogChanged, Sending, logger
from cached_session.journal import Changed, Elsewhere, Journal
from cached_session.operation import Operation, Reopened
from cached_session.outbox.told import Trouble
from cached_session.retrying import Retrier
from cached_session.turns import LOOK_AFTER

# How many batches are sent at least for each page of a look back, which costs a request.
_SELDOM = 16


class Sender:
    """Sends what a journal holds, on the loop on which it was last needed.

    Attributes:
        state: What it is doing.
        failure: Why it ended without having sent all, or None.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._context: Callable[[], Operation] | None = None
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._halted: asyncio.Task[None] | None = None
        self._process = os.getpid()
        # Sent since the last look back.
        self._batches = 0
        self.state = Sending.IDLE
        self.failure: OutboxError | None = None
        self._trouble: Exception | None = None

    def start(self, context: Callable[[], Operation] | None = None) -> None:
        """Sees to it that what waits is being sent, on the running loop if on no other.

        Args:
            context: Makes the operations from now on; None: the one given last.
        """
        with self._lock:
            journal = self._journal
            # What is held has to be let go of, also where nothing is sent.
            if not (journal.holds or (journal.waiting and journal.paused is None)):
                return
            if context is not None:
                self._context = context
            if self._context is None:
                return
            if self._task is not None:
                if not self._lost(self._task):
                    return
                forsake(self._task)
            self._process = os.getpid()
            self.failure = None
            journal.outbox.told.over(journal.address, Trouble.LEFT)
            self._task = asyncio.get_running_loop().create_task(
                self._go(self._context()), name=f"outbox of {journal.replica.conversation_id}"
            )
        if journal.waiting and journal.paused is None:
            self._change(Sending.SENDING)

    @property
    def working(self) -> bool:
        """Whether somebody is at work."""
        with self._lock:
            return self._task is not None and not self._lost(self._task)

    @property
    def trouble(self) -> Exception | None:
        """What went wrong at its last attempt, after which it tries again, or None."""
        return self._trouble if self.state is Sending.OFFLINE else None

    def _lost(self, task: asyncio.Task[None]) -> bool:
        """Whether nobody works on it any more: its loop has ended or stands still."""
        return task.done() or not task.get_loop().is_running() or self._process != os.getpid()

    def halt(self) -> None:
        """Begins no request any more. What is left stays recorded."""
        with self._lock:
            task, self._task = self._task, None
        if task is None:
            return
        if self._lost(task):
            forsake(task)
        else:
            self._halted = task
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def ended(self) -> None:
        """Waits for what was halted on the running loop; it ends at once."""
        task, self._halted = self._halted, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({task})

    async def _go(self, operation: Operation) -> None:
        me = asyncio.current_task()
        try:
            await self._run(operation)
        except (asyncio.CancelledError, GeneratorExit):
            if self._task is me:
                # Nobody has halted it: the event loop ends, or has ended.
                self._tell_of_left()
            raise

    def _tell_of_left(self) -> None:
        journal = self._journal
        lost = journal.waiting and not journal.outbox.durable and self._process == os.getpid()
        if lost and journal.outbox.told.news(journal.address, Trouble.LEFT):
            logger.warning(
                "%s: the event loop ended before %s reached the server. What waits is in a "
                "MemoryOutbox only: nothing sends it until this process uses the conversation "
                "again, and it is lost when the process ends. Await flush() before an event loop "
                "ends, or use an SQLiteOutbox.",
                journal.replica.conversation_id,
                counted(len(journal.waiting)),
            )

    async def _run(self, operation: Operation) -> None:
        journal, me = self._journal, asyncio.current_task()
        # Without end: what was accepted is sent, however long the server is away.
        retrier = Retrier(operation.policy.without_end, operation.meter)
        # Whoever appended goes on first. A loop that ends with that call would
        # otherwise be closed in the middle of a connection's beginning, of
        # which the HTTP client's layers make a warning.
        for _ in range(8):
            await asyncio.sleep(0)
        while self._task is me:
            try:
                # What is done about another process may fail like the rest.
                try:
                    if journal.outdated:
                        await journal.reload(self._operation())
                    if journal.waiting and journal.paused is None:
                        outcome = await retrier.run(
                            self._attempt,
                            deadline=math.inf,
                            conversation_id=journal.replica.conversation_id,
                        )
                        if not isinstance(outcome, Applied):
                            await self._pause(outcome.error)
                        continue
                    operation = self._operation()
                    async with journal.replica.turn(operation):
                        if await look_back(journal, operation, pages=self._batches // _SELDOM):
                            self._batches = 0
                        await journal.record(release=True)
                except Elsewhere:
                    await self._watch()
                except Changed:
                    await journal.reload(self._operation())
            except DeadlineExceeded:
                continue  # the turn did not come; whoever has it is being waited for
            except Reopened:
                continue  # it is read anew first
            except TurnLost:
                return  # somebody else went on in its place
            except OutboxError as error:
                # What cannot be sealed is not sent. The next use tries again.
                self._end(me, Sending.FAILED, error)
                if journal.outbox.told.news(journal.address, Trouble.FAILED):
                    logger.warning(
                        "%s: sending failed, %s recorded and not known to be on the server. %s. "
                        "The next use of the conversation tries again.",
                        journal.replica.conversation_id,
                        counted(len(journal.waiting)),
                        str(error).rstrip("."),
                    )
                if journal.holds:
                    # Others would wait for it as long as the outbox is open here.
                    await journal.outbox.close()
                    journal.holds = False
                return
            if self._nothing_left(me):
                return

    def _operation(self) -> Operation:
        assert self._context is not None  # `start` has seen to it
        return self._context()

    def _nothing_left(self, me: asyncio.Task[None] | None) -> bool:
        return self._end(me, Sending.IDLE if self._journal.paused is None else Sending.PAUSED)

    def _end(
        self, me: asyncio.Task[None] | None, state: Sending, error: OutboxError | None = None
    ) -> bool:
        """Notes that the sender ends; False: something waits by now, and it goes on."""
        with self._lock:
            if self._task is not me:
                return True
            # With the lock, so that whoever accepts an item now finds no sender
            # that has just decided to end.
            if state is Sending.IDLE and self._journal.waiting:
                return False
            self._task, self.failure = None, error
            operation = self._operation()
            if state is Sending.IDLE:
                # Or the last one to append would be held for ever.
                self._context = None
        self._change(state, error, operation)
        self._journal.changed.fire()
        return True

    async def _attempt(self, _: float) -> Outcome[None]:
        journal, operation = self._journal, self._operation()
        outcome: Outcome[None]
        try:
            await journal.replica.deliver(operation, lambda: deliver(journal, operation))
        except (TurnLost, Elsewhere, Changed, OutboxError):
            raise
        except AppendOutcomeUnknown as error:
            # With the anchor gone, no listing will ever tell: that is for a human.
            undecided = journal.replica.window.unsettled.undecided
            outcome = Unknown(error, retryable=undecided)
        except DeadlineExceeded as error:
            outcome = Refused(error, retryable=True)
        except (OpenAIError, CachedSessionError) as error:
            outcome = classify(error)
        except Exception as error:
            # Of a key provider, say. Nobody has refused anything.
            outcome = Unknown(error, retryable=True)
        else:
            outcome = Applied(None)
        self._trouble = None if isinstance(outcome, Applied) else outcome.error
        if isinstance(outcome, Applied):
            self._batches += 1
            if journal.outbox.told.over(journal.address, Trouble.FAILED):
                logger.info("%s: sending goes on after it had failed", operation.conversation_id)
            self._change(Sending.SENDING)
        elif outcome.retryable:
            self._change(Sending.OFFLINE, outcome.error)
        return outcome

    async def _watch(self) -> None:
        """Waits for the process that sends this backlog to be done with it, or to end."""
        self._change(Sending.ELSEWHERE)
        # Nothing tells what another process does with a file.
        while not await self._journal.done_elsewhere():  # noqa: ASYNC110 - see above
            await asyncio.sleep(LOOK_AFTER / 4)
        await self._journal.reload(self._operation())

    async def _pause(self, error: Exception) -> None:
        reason = type(error).__name__
        if isinstance(error, APIStatusError):
            # Without its message, which may quote an item.
            details = {"status": error.status_code, "code": error.code, "param": error.param}
            reason += "".join(f", {name} {value}" for name, value in details.items() if value)
        if isinstance(error, AppendOutcomeUnknown):
            reason = error.reason
        if says_gone(error):
            # The conversation is gone. Nothing of it may be shown any more.
            self._journal.show_nothing()
        await self._journal.pause(reason, error)
        self._change(Sending.PAUSED, error)

    def _change(
        self,
        state: Sending,
        error: Exception | None = None,
        operation: Operation | None = None,
    ) -> None:
        if state is not self.state:
            self.state = state
            journal, went_wrong = self._journal, None if error is None else type(error).__name__
            (operation or self._operation()).meter.tell(
                BacklogChanged(
                    journal.replica.conversation_id, state, len(journal.waiting), went_wrong
                )
            )
