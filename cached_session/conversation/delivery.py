"""Putting batches on the server, each item exactly once. In the conversation's turn.

One driver for both promises, which does with a batch what the ledger allows, and
reports what came of it: in the foreground for an append that promises delivery,
and in the background, as the sender, for what the log has accepted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from openai import NotFoundError

from cached_session.conversation.listing import SLACK, relist, remove_late_copies
from cached_session.conversation.operation import Elsewhere, Operation
from cached_session.core.items import Outgoing, batches
from cached_session.core.ledger import (
    Batch,
    Create,
    Delete,
    Front,
    Ledger,
    List,
    Promise,
    Seal,
    Send,
)
from cached_session.core.outcomes import Applied, Attempt, Outcome, Refused, Unknown
from cached_session.core.unsettled import ANCHORS, Untold
from cached_session.errors import (
    AppendOutcomeUnknown,
    OutboxError,
    Reopened,
    TurnLost,
    counted,
    rewritten_or_not,
    run_is_over,
)
from cached_session.events import Reconciled
from cached_session.server.classify import is_duplicate_id
from cached_session.server.remote import PAGE
from cached_session.server.retrying import too_late

if TYPE_CHECKING:
    from cached_session.conversation.record import Record


class Delivery:
    """Puts one batch after the other on the server.

    A batch is sent; if no answer comes, what stands behind its anchor says how
    much of it landed, and only the rest is sent again.
    """

    def __init__(self, ledger: Ledger, record: Record | None, operation: Operation) -> None:
        """Prepares it.

        Args:
            ledger: The conversation's.
            record: Its part of a log, or None.
            operation: Whose requests these are.
        """
        self._ledger = ledger
        self._record = record
        self._operation = operation
        # By which others may look after what is in doubt; None: no log tells of it.
        self._log = record
        # Tells for how long the turn lasts that it belongs to; None: to none.
        self._lasts = None if operation.within is None else operation.within.lasts()
        self._promise = Promise.RECORDED
        self._total = 0
        self._landed = 0
        self._stopped = False

    @property
    def _batch(self) -> Batch:
        recorded = self._promise is Promise.RECORDED
        return self._ledger.recorded if recorded else self._ledger.own

    # An append that promises delivery

    async def anchor(self, total: int) -> None:
        """Makes sure that it is known what stands before the next batch.

        Without it, two equal messages could not be told apart after a lost
        answer. Costs one request where nothing is known.

        Args:
            total: How many items are appended.

        Raises:
            OutboxPaused: What became of a recorded batch before it cannot be found out.
        """
        ledger, record, operation = self._ledger, self._record, self._operation
        self._total, self._promise = total, Promise.DELIVERED
        try:
            if record is not None:
                if not self._landed:
                    # What is in doubt may be another process's by now, and what looks like a late
                    # copy what that one has appended.
                    await record.alone(operation)
                    self._log = record if ledger.watch.active else None
                # The listing that decides about a recorded batch decides only once.
                with contextlib.suppress(AppendOutcomeUnknown):
                    await settle(ledger, record, operation)
                record.check_not_paused()
            if ledger.known is None or ledger.watch.undecided:
                await relist(ledger, operation, ANCHORS if ledger.known is None else 1)
            try:
                await remove_late_copies(ledger, self._log, operation)
            except Reopened:
                # What was claimed is over. An append of which nothing was sent begins anew; another
                # one leaves the copies to whoever has what is in doubt now.
                if not self._landed:
                    raise
        except Exception as error:
            self._say_how_many(error)
            raise

    async def run(self, items: Sequence[Outgoing]) -> None:
        """Appends items, or raises what stopped it; see `stop`.

        Raises:
            AppendOutcomeUnknown: What became of some of them cannot be found out.
            openai.OpenAIError: The server refused, or stayed out of reach.
        """
        ledger, operation = self._ledger, self._operation
        try:
            for batch in batches(items):
                if self._stopped:
                    return
                operation.allow(sum(map(len, batch)))
                await self.anchor(self._total)
                if self._stopped:
                    return
                ledger.take_own(batch)
                await self._deliver()
        finally:
            if operation.turn is not None and operation.turn.current:
                ledger.withdraw_own()

    def stop(self) -> None:
        """Has it end with the batch that it is at: its caller has left, and wants no more of it."""
        self._stopped = True

    # What a log has accepted

    async def next_batch(self, create: Callable[[Operation], Awaitable[None]]) -> None:
        """Puts the next batch of the queue on the server, after what is in doubt was settled.

        Args:
            create: Makes the conversation, if it has only a local name.

        Raises:
            Elsewhere: Another process sends what waits.
            OutboxError: The client speaks for another account by now.
            AppendOutcomeUnknown: What became of the batch is still in doubt; or it
                cannot be found out any more, and then it is paused.
            Exception: As from `run`.
        """
        ledger, record, operation = self._ledger, self._record, self._operation
        assert record is not None  # what it has accepted is sent
        anchored = False
        check_account(ledger, record, operation)
        ledger.begin_recorded()
        while True:
            step = ledger.next(ledger.recorded, anchored=anchored)
            if isinstance(step, Create | List | Delete):
                # Open questions are for the one who sends, and nobody else. Nor may two processes
                # that share a local name make a conversation each.
                if not await record.alone(operation):
                    raise Elsewhere
                if step != ledger.next(ledger.recorded, anchored=anchored):
                    continue
            match step:
                case None:
                    return
                case Create():
                    await create(operation)
                case List(limit, anew):
                    if ledger.recorded.front is Front.DOUBT:
                        await settle(ledger, record, operation)
                    else:
                        await relist(ledger, operation, limit, anew=anew)
                        anchored = True
                case Delete():
                    await remove_late_copies(ledger, record, operation)
                case Seal():
                    await record.seal(operation)
                case Send() if not record.left():
                    # The loop stood still since it was sealed, and the log's thread let others
                    # have it; or its lease has ended.
                    ledger.begin_recorded()
                case Send(items):
                    check_account(ledger, record, operation)
                    self._total = len(items)
                    operation.allow(sum(map(len, items)))
                    await self._deliver_recorded(record)
                    return

    async def _deliver_recorded(self, record: Record) -> None:
        ledger = self._ledger
        try:
            await self._deliver()
        except AppendOutcomeUnknown as error:
            if not ledger.watch.undecided:
                await record.pause(error.reason, error)
            raise
        except (TurnLost, Elsewhere):
            raise
        except Exception:
            if not ledger.watch.undecided:
                # It was refused, or never had a connection. Whoever takes over
                # is to know, and not to take what others append meanwhile for
                # this batch, rewritten.
                await record.note()
            raise

    # One batch

    async def _deliver(self) -> None:
        outcome = await self._operation.run(self._attempt)
        if isinstance(outcome, Applied):
            await self._look_for_late_commits()
            return
        if self._batch.front is Front.DOUBT:
            try:
                await self._decide()
            except (AppendOutcomeUnknown, TurnLost):
                raise
            except Exception as error:
                self._ledger.forget()
                raise self._unknown() from error
            if not self._batch.items:
                return
        self._say_how_many(outcome.error)
        raise outcome.error

    async def _attempt(self, attempt: Attempt) -> Outcome[None]:
        ledger, operation, batch = self._ledger, self._operation, self._batch
        if batch.front is Front.DOUBT:
            try:
                await self._decide()
            except (AppendOutcomeUnknown, TurnLost):
                raise
            except Exception as error:
                return Unknown(error, retryable=False)
            if not batch.items:
                return Applied(None)
            seconds = min(attempt.seconds, operation.deadline - operation.now())
            if seconds <= 0:
                return Refused(too_late(operation.conversation_id), retryable=False)
            attempt = Attempt(seconds, attempt.number)
        if batch.front is Front.NONE:
            # One of a log was sealed by it before, and is not repeated in here: see `next_batch`.
            assert batch is ledger.own
            ledger.sealed_own()
        return await self._send(batch, attempt)

    async def _send(self, batch: Batch, attempt: Attempt) -> Outcome[None]:
        ledger, operation = self._ledger, self._operation
        left = self._lasts
        if self._promise is Promise.RECORDED:
            record = self._record
            assert record is not None  # what it has accepted is sent
            left = record.left
        if left is not None:
            # Nor may the request take longer than the claim lasts: whoever has the conversation
            # then looks for the batch; or than the turn does, in which others append then.
            attempt = Attempt(min(attempt.seconds, left()), attempt.number)
            if not attempt.seconds and self._promise is Promise.RECORDED:
                raise Elsewhere
            if not attempt.seconds:
                over = run_is_over(operation.conversation_id, "no more was sent by this call")
                return Refused(over, retryable=False)
        ledger.sending(batch)
        with in_flight(ledger, operation):
            outcome = await operation.remote.append(
                operation.conversation_id, batch.items, attempt, left=left
            )
        operation.check_turn()
        if isinstance(outcome, Applied):
            ledger.applied(batch, outcome.value, operation.remote.server.rewriting)
            self._landed += len(outcome.value)
            return Applied(None)
        if isinstance(outcome, Unknown):
            ledger.lost(expires=operation.expiry())
            return outcome
        if is_duplicate_id(outcome.error) and ledger.duplicate(batch):
            return Refused(outcome.error, retryable=True)
        ledger.refused(batch, gone=isinstance(outcome.error, NotFoundError))
        return outcome

    async def _decide(self) -> None:
        """Asks the server how much of the batch landed."""
        ledger, operation, sent = self._ledger, self._operation, len(self._batch.items)
        landed = await relist(ledger, operation, 1)
        if self._promise is Promise.RECORDED:
            _show_no_others(ledger, self._record)
        if isinstance(landed, Untold):
            ledger.forget()
            raise self._unknown(landed.item_ids)
        self._landed += landed or 0
        _tell(operation, landed or 0, sent)

    async def _look_for_late_commits(self) -> None:
        ledger = self._ledger
        if not (self._batch.resent and ledger.watch.active):
            return
        hurried = self._operation.without_retries()
        try:
            await relist(ledger, hurried, 1)
            await remove_late_copies(ledger, self._log, hurried)
            if self._record is not None and not self._record.held:
                # With the claim goes a note: whoever has the conversation next looks, too.
                await self._record.alone(hurried)
        except Exception:
            # The items are there, which was the question. The requests that are still open keep the
            # local copy in doubt, and the next read looks again.
            return

    def _say_how_many(self, error: Exception) -> None:
        if self._landed:
            total = counted(self._total)
            said = f"the first {self._landed} of {total} are on the server, the others are not"
        else:
            said = "nothing was stored"
        error.add_note(f"{self._operation.conversation_id}: {said}")

    def _unknown(self, item_ids: tuple[str, ...] = ()) -> AppendOutcomeUnknown:
        conversation_id, total = self._operation.conversation_id, self._total
        why = f"{rewritten_or_not(len(item_ids))}. " if item_ids else ""
        if self._landed:
            said = (
                f"the first {self._landed} of {counted(total)} are on the server; whether more are"
            )
        else:
            said = f"whether any of {counted(total)} is on the server"
        return AppendOutcomeUnknown(
            f"append to {conversation_id}: {said} could not be found out. {why}The next read "
            "shows it.",
            conversation_id=conversation_id,
            landed=self._landed,
            total=total,
            item_ids=item_ids,
        )


@contextlib.contextmanager
def in_flight(ledger: Ledger, operation: Operation) -> Iterator[None]:
    """Around a request that changes something, of which the ledger was told.

    Its answer is lost if the task that waits for it is torn down with its event
    loop, or is left lying by a loop that was closed.
    """
    try:
        yield
    except BaseException:
        if operation.turn is None or operation.turn.current:
            ledger.abandon(expires=operation.expiry())
        raise


def check_account(ledger: Ledger, record: Record, operation: Operation) -> None:
    """Refuses to send what was accepted under another account than the client speaks for now.

    Raises:
        OutboxError: So it is. Nothing was sent.
    """
    if not record.is_of(operation.remote.account):
        raise OutboxError(
            f"{operation.conversation_id}: {counted(len(ledger.queue))} accepted under "
            "the client's former API key, organization or project are not known to be on the "
            "server. They are kept, and not sent under the new one. Use the conversation with the "
            "former one, or give the outbox an account= if both are one account's",
            conversation_id=operation.conversation_id,
        )


async def settle(ledger: Ledger, record: Record, operation: Operation) -> None:
    """Finds out how much of a recorded batch in doubt has landed.

    Raises:
        AppendOutcomeUnknown: The server shows nothing that could tell. It is paused.
    """
    batch = ledger.recorded
    sent = len(batch.items)
    if not sent or not ledger.watch.undecided:
        return
    # The answer of the listing holds the whole batch if it has landed.
    operation.allow(sum(map(len, batch.items)))
    landed = await relist(ledger, operation, 1)
    _show_no_others(ledger, record)
    if isinstance(landed, Untold):
        why = (
            rewritten_or_not(len(landed.item_ids))
            if landed.item_ids
            else "nothing tells any more what stood before it"
        )
        error = AppendOutcomeUnknown(
            f"append to {operation.conversation_id}: whether a recorded batch of {counted(sent)} "
            f"is on the server could not be found out: {why}",
            conversation_id=operation.conversation_id,
            total=sent,
            item_ids=landed.item_ids,
        )
        # Before anybody else reads or sends: a later listing would not tell either.
        await record.pause(error.reason, error)
        raise error
    _tell(operation, landed or 0, sent)
    # Before the rest is sealed: its anchor is what has landed of this batch.
    await record.note()


def _show_no_others(ledger: Ledger, record: Record | None) -> None:
    """Shows nothing of a listing before what waits, where others may have sent that by then.

    It would stand there twice until the log is asked next.
    """
    if record is not None and not record.left():
        ledger.show_nothing()


def _tell(operation: Operation, landed: int, sent: int) -> None:
    operation.meter.reconciliations += 1
    operation.meter.tell(Reconciled(operation.conversation_id, landed, sent))


async def look_back(ledger: Ledger, record: Record, operation: Operation, *, pages: int) -> bool:
    """Has a listing show what only the answers to our own appends have shown.

    The next process looks back to the last item that a listing has shown, as
    other writers' items may stand behind that. This saves it from looking far.
    It is done while nothing waits, if it takes no more than so many pages.
    Nothing depends on it: a failure is nobody's.

    Returns:
        Whether it was done.
    """
    if not behind(ledger, record, operation, pages):
        return False
    # Of any kind: a key provider may raise whatever it likes.
    with contextlib.suppress(Exception):
        await relist(ledger, operation.without_retries(), None)
    return True


def behind(ledger: Ledger, record: Record, operation: Operation, pages: int) -> bool:
    """Whether there is something to look back for, and so many pages are enough."""
    history = ledger.known
    if history is None or ledger.local or ledger.queue or ledger.watch.active:
        return False
    if not record.is_of(operation.remote.account):
        return False
    unverified = len(history) - history.verified
    return record.keeps and PAGE - SLACK <= unverified < pages * PAGE
