"""The operations on one conversation: through which client, until when, and in which order.

Whatever needs the network holds the conversation's turn. Reads are done by the
caller's own task and simply stop when it is cancelled. Writes run in a task of
their own, so that a request in flight settles, in order, behind a caller who
has left.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

from openai import NotFoundError

from cached_session.conversation.tasks import Failed, bury, ended, forsake
from cached_session.conversation.turns import Run, Turn, Turns
from cached_session.core.ledger import Ledger
from cached_session.core.outcomes import Applied, Attempt, Outcome, Refused, Unknown
from cached_session.errors import AppendOutcomeUnknown, Reopened, TurnLost
from cached_session.events import AbandonedWriteFailed, Meter
from cached_session.server.classify import smaller_page
from cached_session.server.connections import NotOurs
from cached_session.server.remote import Page, Remote
from cached_session.server.retrying import Retrier, RetryPolicy

T = TypeVar("T")


class Superseded(Exception):
    """While an operation waited for its turn, its session went to another conversation."""


class Elsewhere(Exception):
    """Another living process sends what waits."""


class Caller(Protocol):
    """The session that began an operation.

    Attributes:
        conversation_id: The conversation that it is on by now; None: on none.
    """

    conversation_id: str | None


class Operation:
    """Requests of one operation, repeated under one policy until one deadline.

    It has a caller, whose session may go to another conversation meanwhile; or none, and
    goes on whatever a session does.

    Attributes:
        remote: Where the requests go.
        policy: How they are repeated.
        meter: Who counts them.
        conversation_id: The conversation.
        deadline: When the operation ends, on the running loop's clock.
        turn: The turn that it works in, once it has one.
        within: The run of several operations that it belongs to, or None.
        transfer: Seconds that each of its requests gets on top, for a large batch.
        before: How many attempts at the same were made before it.
    """

    def __init__(
        self,
        remote: Remote,
        policy: RetryPolicy,
        meter: Meter,
        conversation_id: str,
        deadline: float,
        caller: Caller | None = None,
    ) -> None:
        self.remote = remote
        self.policy = policy
        self.meter = meter
        self.conversation_id = conversation_id
        self._retrier = Retrier(policy, meter)
        self.deadline: float = deadline
        self._caller = caller
        # The name by which its caller knew the conversation when this began.
        self._begun_on = conversation_id
        self.turn: Turn | None = None
        self.within: Run | None = None
        self.transfer: float = 0.0
        self.before = 0

    @staticmethod
    def now() -> float:
        """The running loop's clock, seconds."""
        return asyncio.get_running_loop().time()

    def expiry(self) -> float:
        """Until when a request that nobody hears the end of may still be applied.

        On the running loop's clock; where none runs, as when a task is torn that a closed loop
        has left, as late as it can be on that of the operation's.
        """
        try:
            return self.now() + self.policy.deadline
        except RuntimeError:
            return self.deadline + self.policy.deadline

    def without_retries(self) -> Operation:
        """The same operation, with one attempt at each request."""
        hurried = copy.copy(self)
        hurried.policy = dataclasses.replace(self.policy, max_attempts=1)
        hurried._retrier = Retrier(hurried.policy, self.meter)
        return hurried

    def superseded(self) -> bool:
        """Whether its caller has gone to another conversation."""
        return self._caller is not None and self._caller.conversation_id != self._begun_on

    def deleted(self) -> None:
        """Takes its caller off the conversation, which was deleted just now."""
        if self._caller is not None and not self.superseded():
            self._caller.conversation_id = None

    def allow(self, size: int) -> None:
        """Gives the time that a batch of so many bytes may take, for its way there or back.

        The listing that looks for the batch after a lost answer gets it, too.
        """
        self.transfer = size / self.policy.slowest_rate
        self.deadline += self.transfer

    def renewed(self, conversation_id: str) -> Operation:
        """One that begins now, through the same client, whatever the caller does meanwhile."""
        deadline = self.now() + self.policy.deadline
        return Operation(self.remote, self.policy, self.meter, conversation_id, deadline)

    def abandoned(self, error: Exception, *, kept: bool = False) -> None:
        """Tells of a write that failed behind a caller who was cancelled.

        Args:
            error: What went wrong.
            kept: Whether an outbox has it, and sees to it.
        """
        item_ids = error.item_ids if isinstance(error, AppendOutcomeUnknown) else ()
        event = AbandonedWriteFailed(self.conversation_id, type(error).__name__, item_ids)
        self.meter.tell(event, quietly=kept)

    async def run(self, attempt: Callable[[Attempt], Awaitable[Outcome[T]]]) -> Outcome[T]:
        """Repeats an attempt; see `Retrier.run`."""

        async def in_turn(this: Attempt) -> Outcome[T]:
            self.check_turn()
            outcome = await attempt(Attempt(this.seconds, self.before + this.number))
            self.check_turn()
            return outcome

        return await self._retrier.run(
            in_turn,
            deadline=self.deadline,
            conversation_id=self.conversation_id,
            transfer=self.transfer,
        )

    def check_turn(self) -> None:
        """Raises `TurnLost` if another operation has taken this one's turn over."""
        if self.turn is not None and not self.turn.current:
            raise TurnLost(
                f"{self.conversation_id}: the event loop was stopped during this operation, and "
                "another one went on; what this one had sent is not known",
                conversation_id=self.conversation_id,
            )

    def check_run_here(self) -> None:
        """Raises `TurnLost` if the run is over, in this process, that it belongs to."""
        if self.within is not None:
            self.within.check_here(self.conversation_id)

    async def check_run(self) -> None:
        """Raises `TurnLost` if the run is over that it belongs to, here or in the outbox's log.

        Raises:
            OutboxError: Whether it is could not be read.
        """
        if self.within is not None:
            await self.within.check(self.conversation_id)

    async def list_items(
        self, order: Literal["asc", "desc"], *, limit: int, after: str | None = None
    ) -> Page:
        """Lists one page of `limit` items, or as many as the server has in one.

        Raises the error of the last attempt.
        """
        server, refusal = self.remote.server, None
        size = min(limit, server.largest_page)
        while True:

            async def attempt(this: Attempt, size: int = size) -> Outcome[Page]:
                return await self.remote.list_items(
                    self.conversation_id, this, order=order, limit=size, after=after
                )

            outcome = await self.run(attempt)
            if isinstance(outcome, Applied):
                if refusal is not None:
                    server.largest_page = min(size, server.largest_page)
                return outcome.value
            smaller = smaller_page(outcome.error, size)
            if smaller is None:
                raise refusal or outcome.error
            refusal, size = refusal or outcome.error, smaller

    async def delete_item(
        self, item_id: str, left: Callable[[], float] | None = None
    ) -> Outcome[None]:
        """Deletes an item. Refused with a 404: somebody else had removed it before.

        Where the transport may have sent the delete twice by itself, a 404 is
        the answer to the second one, and what was wanted is so.

        Args:
            item_id: The item.
            left: Tells for how many seconds nobody else has the conversation; None: nobody may.
                Refused with `Reopened`: that is over, and nothing was sent.
        """
        return await self._delete(
            functools.partial(self.remote.delete_item, self.conversation_id, item_id, left=left),
            left,
        )

    async def delete_conversation(self, left: Callable[[], float] | None = None) -> Outcome[None]:
        """Deletes the conversation. Refused with a 404: somebody else had deleted it before.

        `left` is as in `delete_item`.
        """
        return await self._delete(
            functools.partial(self.remote.delete_conversation, self.conversation_id, left=left),
            left,
        )

    async def _delete(
        self,
        send: Callable[[Attempt], Awaitable[Outcome[None]]],
        left: Callable[[], float] | None,
    ) -> Outcome[None]:
        lost: Exception | None = None

        def too_late() -> Outcome[None]:
            return self._not_ours() if lost is None else Unknown(lost, retryable=False)

        async def attempt(this: Attempt) -> Outcome[None]:
            nonlocal lost
            if left is not None:
                # Nor may it take longer than the claim lasts: others may have it then.
                this = this._replace(seconds=min(this.seconds, left()))
            if not this.seconds:
                return too_late()
            outcome = await send(this)
            if not isinstance(outcome, Applied) and NotOurs in _kinds(outcome.error):
                # A request without a body is written in one piece: nothing of it was sent.
                return too_late()
            if is_gone(outcome) and (lost or not self.remote.sends_once):
                # An earlier request of this operation has removed it, of which the answer was lost:
                # here, or unseen in a transport that repeats by itself.
                return Applied(None)
            if isinstance(outcome, Unknown):
                lost = outcome.error
            if lost and isinstance(outcome, Refused):
                # This one was refused; the one before may still be applied.
                return Unknown(outcome.error, outcome.retryable, outcome.delay)
            return outcome

        outcome = await self.run(attempt)
        if lost and isinstance(outcome, Refused):
            # The deadline passed before another attempt.
            return Unknown(outcome.error, outcome.retryable, outcome.delay)
        return outcome

    def _not_ours(self) -> Refused:
        error = Reopened(
            f"{self.conversation_id}: the outbox was not asked in time, and others may have the "
            "conversation by now; this request was not sent"
        )
        return Refused(error, retryable=False)


def _kinds(error: BaseException) -> tuple[type, type]:
    # Some releases of the client wrap what a transport raises.
    return type(error), type(error.__cause__)


def is_gone(outcome: Outcome[None]) -> bool:
    """Whether the answer to a delete was that there is nothing to delete."""
    return isinstance(outcome, Refused) and isinstance(outcome.error, NotFoundError)


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
        runs: Who has it for several operations: here, and on copies that were given up for it.
        instead: The copy of the conversation that this one was given up for, or None.
        invalid: Whether what is known is not to be served any more.
    """

    def __init__(self, conversation_id: str, worked: Callable[[], None]) -> None:
        """Begins with an empty ledger.

        Args:
            conversation_id: The conversation.
            worked: Called whenever somebody has worked on it; its size may have changed.
        """
        self.lock: threading.Lock = threading.Lock()
        self.ledger: Ledger = Ledger(conversation_id, self.lock)
        self.turns: Turns = Turns()
        self.runs: list[Turns] = [Turns()]
        self.instead: Order | None = None
        self.invalid: bool = False
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
        self._forget_invalid()
        bury(self._writes)
        if operation.superseded():
            turn.end()
            raise Superseded
        operation.turn = turn
        return turn

    def give_up(self, other: Order) -> None:
        """Gives this copy up for another one, on which whoever has a run on this one goes on."""
        self.instead = other
        # Also where nobody has one: what comes late of a run that is over is refused there, too.
        other.runs += self.runs

    async def enter_run(self, deadline: float) -> Turn:
        """Waits for the turn of a whole run, also behind those on copies that were given up for it.

        Args:
            deadline: Until when, on the running loop's clock.

        Raises:
            DeadlineExceeded: It did not come in time.
        """
        turn = await self.runs[0].enter(deadline, self.ledger.conversation_id)
        try:
            # Not over a part of the list: another copy may be given up for this one meanwhile.
            for runs in self.runs:
                if runs is not self.runs[0]:
                    (await runs.enter(deadline, self.ledger.conversation_id)).end()
        except BaseException:
            turn.end()
            raise
        return turn

    def leave(self, turn: Turn) -> None:
        """Ends a turn, unless it was taken over."""
        if turn.current:
            self._worked()
            turn.end()

    def invalidate(self) -> None:
        """Has what is known forgotten, and the server asked: now, or behind who works on it.

        From any thread. No read that begins after it is answered from what was known before.
        """
        self.invalid = True
        self.turns.when_idle(self._forget_invalid)

    def _forget_invalid(self) -> None:
        if self.invalid:
            self.invalid = False
            # The server does not know a conversation that has only a local name.
            if not self.ledger.local:
                self.ledger.refresh()

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
        # If its loop ends first, whoever has the next turn settles what the write has left.
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
