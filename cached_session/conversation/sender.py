"""The driver in the background: a task that sends batch after batch, through anything."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from openai import APIStatusError, OpenAIError

from cached_session.conversation.delivery import Delivery, look_back
from cached_session.conversation.operation import Elsewhere, Operation, Order, Superseded
from cached_session.conversation.record import Record
from cached_session.conversation.tasks import cancel, forsake, lost
from cached_session.core.looking import LOOK_AFTER
from cached_session.core.outcomes import Applied, Attempt, Outcome, Refused, Unknown
from cached_session.errors import (
    AppendOutcomeUnknown,
    CachedSessionError,
    DeadlineExceeded,
    OutboxError,
    OutboxUnavailable,
    Reopened,
    TurnLost,
    counted,
)
from cached_session.events import BacklogChanged, SendFinished, Sending, SendStarted, logger
from cached_session.outbox.told import Trouble
from cached_session.server.classify import classify, says_gone
from cached_session.server.retrying import Retrier

# How many batches are sent at least for each page of a look back, which costs a request.
_SELDOM = 16


class Sender:
    """Sends what the log has accepted, on the loop on which it was last needed.

    Attributes:
        state: What it is doing.
        failure: Why it ended without having sent all, or None.
        then: What it does when it has ended, with an operation of its own.
        instead: Who sends in its place for good: of another copy of the conversation; or None.
    """

    def __init__(
        self, order: Order, create: Callable[[Operation], Coroutine[Any, Any, None]]
    ) -> None:
        """Makes one, which does nothing yet.

        Args:
            order: The conversation's.
            create: Makes the conversation, if it has only a local name.
        """
        self._order = order
        self._ledger = order.ledger
        self._create = create
        # Through whose client it sends.
        self._through: Operation | None = None
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        # The task that has a request in flight for it.
        self._flying: asyncio.Task[Any] | None = None
        # Whether it is releasing its claim, which it does last of all.
        self._letting_go = False
        self._process = os.getpid()
        # How many batches were sent since the last look back.
        self._batches = 0
        self.state: Sending = Sending.IDLE
        self.failure: OutboxError | None = None
        self.instead: Sender | None = None
        self._trouble: Exception | None = None
        self.then: Callable[[Operation], Coroutine[Any, Any, None]] = _nothing
        self._ended: Operation | None = None
        # The task of a sender that has ended, while it does what comes after that.
        self._last: asyncio.Task[Any] | None = None

    def use(self, record: Record) -> None:
        """Notes in which log it is accepted."""
        self._record = record

    def start(self, through: Operation | None = None) -> None:
        """Sees to it that what waits is being sent, on the running loop if on no other.

        Args:
            through: Whose client to use from now on; None: that of the last one given.
        """
        if self.instead is not None:
            self.instead.start(through)
            return
        with self._lock:
            ledger, record = self._ledger, self._record
            if self._task is not None and self._task.get_loop().is_closed():
                self._task = None
            # Also where there is nothing to be sent, but a claim to be released: other processes
            # wait for it.
            if not (record.held or ledger.waits):
                return
            if through is not None:
                self._through = through
            if self._through is None:
                return
            if self._task is not None and not self._lost(self._task):
                return
            self._process = os.getpid()
            self.failure = None
            record.outbox.told.over(record.address, Trouble.LEFT)
            # In an empty context: it sends for all callers, each of which has variables of its own.
            # Not by `context=`, which a loop's task factory need not know.
            self._task = contextvars.Context().run(
                asyncio.get_running_loop().create_task,
                self._go(self._operation()),
                name=f"outbox of {ledger.conversation_id}",
            )
            self._task.add_done_callback(self._over)
            # Its loop may end at any moment, or be ending: a call that is cancelled
            # then begins it when all other tasks have been cancelled. Whoever uses
            # the conversation next goes on.
            forsake(self._task)
        if ledger.waits:
            self._change(Sending.SENDING)

    def leave_to(self, other: Sender) -> None:
        """Has another one send in its place, for good."""
        with self._lock:
            self.instead, task, self._task = other, self._task, None
        # If the sender itself has found the other copy, it ends with what it is doing.
        if task is not None and asyncio.current_task() not in (task, self._flying):
            cancel(task)

    @property
    def working(self) -> bool:
        """Whether somebody is at work."""
        with self._lock:
            return self._task is not None and not self._lost(self._task)

    @property
    def busy(self) -> bool:
        """Whether somebody is at work, or does what comes after it."""
        return self.working or (self._last is not None and not self._lost(self._last))

    @property
    def settling(self) -> bool:
        """Whether a request is in flight that it has begun, if it was stopped since, too."""
        flying = self._flying
        return flying is not None and not self._lost(flying)

    @property
    def trouble(self) -> Exception | None:
        """What went wrong at its last attempt, after which it tries again, or None."""
        return self._trouble if self.state is Sending.OFFLINE else None

    def _lost(self, task: asyncio.Task[Any]) -> bool:
        """Whether nobody works on it any more: its loop has ended or stands still."""
        return lost(task) or self._process != os.getpid()

    @property
    def operation(self) -> Operation | None:
        """A new operation that sends what waits; None: nobody has said through which client."""
        return None if self._through is None else self._operation()

    async def stop(self) -> None:
        """Begins no request any more. One that is in flight settles; what is left stays recorded.

        Waits for the file at most.
        """
        with self._lock:
            task, self._task = self._task, None
        if task is not None:
            if not self._letting_go:
                cancel(task)
            await self._until_over(task, math.inf)

    async def halt(self, deadline: float) -> None:
        """Stops, and waits for a request that is in flight.

        Args:
            deadline: How long, on the running loop's clock; then it is cut off.
        """
        await self.stop()
        flying = self._flying
        if flying is not None and not await self._until_over(flying, deadline):
            cancel(flying)
            await self._until_over(flying, math.inf)
        if self._last is not None:
            cancel(self._last)
            await self._until_over(self._last, math.inf)

    async def _until_over(self, task: asyncio.Task[Any], deadline: float) -> bool:
        """Waits until nobody works on a task any more; says whether that is so."""
        return await self._record.changed.until(lambda: self._lost(task), deadline, _no_look)

    def _over(self, task: asyncio.Task[Any]) -> None:
        """Told that a task of its own is done."""
        if self._flying is task:
            self._flying = None
        if self._last is task:
            self._last = None
        self._record.changed.fire()

    async def _go(self, operation: Operation) -> None:
        me = asyncio.current_task()
        try:
            await self._run(operation)
        except (asyncio.CancelledError, GeneratorExit):
            if self._task is me:
                # It was cancelled, and not by `stop` or `halt`: the event loop ends.
                self._tell_of_left()
            raise
        ended, self._ended = self._ended, None
        if ended is not None:
            # In this task: a loop that ends waits for its tasks, and not for one begun meanwhile.
            self._last = me
            await self.then(ended)

    def _tell_of_left(self) -> None:
        record, waiting = self._record, len(self._ledger.queue)
        lost_with_us = waiting and not record.outbox.durable and record.outbox.ours
        if lost_with_us and record.outbox.told.news(record.address, Trouble.LEFT):
            logger.warning(
                "%s: the event loop ended before %s reached the server. What waits is in a "
                "MemoryOutbox only: nothing sends it until this process uses the conversation "
                "again, and it is lost when the process ends. Await flush() before an event loop "
                "ends, or use an SQLiteOutbox.",
                self._ledger.conversation_id,
                counted(waiting),
            )

    async def _run(self, operation: Operation) -> None:
        ledger, record, me = self._ledger, self._record, asyncio.current_task()
        retrier = Retrier(operation.policy, operation.meter)
        # How often the log could not be reached in a row.
        away = 0
        # Whoever appended goes on first. A loop that ends with that call would
        # otherwise be closed in the middle of a connection's beginning, of
        # which the HTTP client's layers make a warning.
        for _ in range(8):
            await asyncio.sleep(0)
        while self._task is me:
            try:
                # Looking at what another process does may fail as sending does.
                try:
                    if record.reopened or not record.was_read:
                        await self._read_anew()
                    if ledger.waits:
                        outcome = await retrier.run(
                            self._attempt,
                            deadline=None,  # however long the server is away
                            conversation_id=ledger.conversation_id,
                        )
                        away = 0
                        if not isinstance(outcome, Applied) and self._task is me:
                            await self._pause(outcome.error)
                        continue
                    operation = self._operation()
                    async with self._order.turn(operation):
                        pages = self._batches // _SELDOM
                        if await look_back(ledger, record, operation, pages=pages):
                            self._batches = 0
                        await self._let_go()
                except Elsewhere:
                    await self._watch()
            except DeadlineExceeded:
                continue  # the turn did not come; whoever has it is being waited for
            except Reopened:
                continue  # it is read anew first
            except OutboxUnavailable as error:
                # Nothing can be sealed while the log is away. It comes back.
                self._trouble = error
                self._change(Sending.OFFLINE, error)
                away += 1
                await asyncio.sleep(retrier.delay(away))
                continue
            except (TurnLost, Superseded):
                return  # somebody else goes on in its place
            except OutboxError as error:
                # What cannot be sealed is not sent. The next use tries again.
                self._end(me, Sending.FAILED, error)
                if record.outbox.told.news(record.address, Trouble.FAILED):
                    tries_again = "The next use of the conversation tries again."
                    logger.warning("%s. %s", record.why_failed(error), tries_again)
                if record.held:
                    # Other processes would wait for the claim as long as the outbox is open here.
                    await record.outbox.let_go()
                return
            if self._nothing_left(me):
                return

    async def _read_anew(self) -> None:
        operation = self._operation()
        async with self._order.turn(operation):
            # A claim that it had is kept: it is released at the end, also where nothing waits.
            await self._record.read(operation, claim=self._record.held)

    async def _let_go(self) -> None:
        if self._record.settled:
            return  # somebody who waited for it was quicker
        self._letting_go = True
        try:
            await self._record.note(release=True)
        finally:
            self._letting_go = False

    async def _deliver(self, operation: Operation, attempt: int) -> None:
        self._flying = flying = asyncio.current_task()
        assert flying is not None  # a coroutine runs in one
        flying.add_done_callback(self._over)
        once = operation.without_retries()
        once.before = attempt - 1
        with self._told(once, attempt):
            await Delivery(self._ledger, self._record, once).next_batch(self._create)

    @contextlib.contextmanager
    def _told(self, operation: Operation, attempt: int) -> Iterator[None]:
        """Around an attempt at a batch: tells observers of its beginning and its end."""
        ledger, meter = self._ledger, operation.meter
        items, calls = self._record.next_batch if meter.listening else (0, ())
        if not items:
            yield
            return
        clock, delivered = asyncio.get_running_loop().time, ledger.delivered
        begun, went_wrong = clock(), None
        started = SendStarted(ledger.conversation_id, items, attempt, calls)
        heard = meter.tell(started)
        try:
            yield
        except BaseException as error:
            went_wrong = type(error).__name__
            raise
        finally:
            landed = ledger.delivered - delivered
            seconds = clock() - begun
            meter.tell(
                SendFinished(started, ledger.conversation_id, seconds, landed, went_wrong),
                heard=heard,
            )

    def _operation(self) -> Operation:
        assert self._through is not None  # `start` has seen to it
        # By the present name: the conversation may have got its id since.
        return self._through.renewed(self._ledger.conversation_id)

    def _nothing_left(self, me: asyncio.Task[None] | None) -> bool:
        return self._end(me, Sending.IDLE if self._ledger.paused is None else Sending.PAUSED)

    def _end(
        self, me: asyncio.Task[None] | None, state: Sending, error: OutboxError | None = None
    ) -> bool:
        """Notes that the sender ends; False: something waits by now, and it goes on."""
        with self._lock:
            if self._task is not me:
                return True
            # With the lock, so that whoever accepts an item now finds no sender
            # that has just decided to end.
            if state is Sending.IDLE and self._ledger.queue:
                return False
            self._task, self.failure = None, error
            operation = self._operation()
            if state is Sending.IDLE:
                # Otherwise the client of the last call would stay in memory for ever.
                self._through = None
        self._change(state, error, operation)
        self._record.changed.fire()
        self._ended = operation
        return True

    async def _attempt(self, attempt: Attempt) -> Outcome[None]:
        operation, told = self._operation(), self._record.outbox.told
        outcome: Outcome[None]
        try:
            turn = await self._order.enter(operation)
            await self._order.write(
                operation, turn, lambda: self._deliver(operation, attempt.number), kept=True
            )
        except OutboxUnavailable as error:
            # The log comes back, as the server does.
            outcome = Unknown(error, retryable=True)
        except (TurnLost, Superseded, Elsewhere, OutboxError):
            raise
        except AppendOutcomeUnknown as error:
            # If the anchor is gone, no listing will ever tell: a person has to decide.
            undecided = self._ledger.watch.undecided
            outcome = Unknown(error, retryable=undecided)
        except DeadlineExceeded as error:
            outcome = Refused(error, retryable=True)
        except (OpenAIError, CachedSessionError) as error:
            outcome = classify(error)
        except Exception as error:
            # An error of a key provider, say: nobody has refused the batch.
            outcome = Unknown(error, retryable=True)
        else:
            outcome = Applied(None)
        self._trouble = None if isinstance(outcome, Applied) else outcome.error
        if isinstance(outcome, Applied):
            self._batches += 1
            if told.over(self._record.address, Trouble.FAILED):
                logger.info("%s: sending goes on after it had failed", operation.conversation_id)
            self._change(Sending.SENDING)
        elif outcome.retryable:
            self._change(Sending.OFFLINE, outcome.error)
        return outcome

    async def _watch(self) -> None:
        """Waits for the process that sends this backlog to be done with it, or to end."""
        self._change(Sending.ELSEWHERE)
        # Nothing tells what another process does with a file.
        while (look := await self._record.look()).elsewhere and look.waits:  # noqa: ASYNC110 - so
            await asyncio.sleep(LOOK_AFTER / 4)
        await self._read_anew()

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
            self._ledger.show_nothing()
            await self._record.forget()
        await self._record.pause(reason, error)
        self._change(Sending.PAUSED, error)

    def _change(
        self,
        state: Sending,
        error: Exception | None = None,
        operation: Operation | None = None,
    ) -> None:
        if state is not self.state:
            self.state = state
            ledger, went_wrong = self._ledger, None if error is None else type(error).__name__
            through = operation or self._through
            assert through is not None  # as in `_operation`
            through.meter.tell(
                BacklogChanged(ledger.conversation_id, state, len(ledger.queue), went_wrong)
            )


async def _nothing(_: Operation) -> None:
    """What follows where nothing else does."""


def _no_look() -> None:
    """Nothing is to be done while a task ends."""
