"""One append: batch by batch, each item exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openai import NotFoundError

from cached_session.classify import is_duplicate_id
from cached_session.core.batches import batches
from cached_session.core.items import Held, Outgoing
from cached_session.core.outcomes import Applied, Outcome, Refused, Unknown
from cached_session.core.unsettled import Untold
from cached_session.core.wording import counted, rewritten_or_not
from cached_session.errors import AppendOutcomeUnknown, TurnLost
from cached_session.events import Reconciled
from cached_session.operation import Operation
from cached_session.retrying import too_late
from cached_session.window import Window


class Append:
    """An append that holds the conversation's turn.

    A batch is sent; if no answer comes, what stands behind its anchor says how
    much of it landed, and only the rest is sent again.

    It may be told to stop, between its batches: what was sent is whole batches.
    """

    def __init__(
        self,
        window: Window,
        operation: Operation,
        items: Sequence[Outgoing],
        progress: Callable[[int], None] = lambda landed: None,
        *,
        resent: bool = False,
    ) -> None:
        """Prepares an append.

        Args:
            window: The conversation's.
            operation: The operation that it belongs to.
            items: What to append.
            progress: Told how many more items have landed, in the same step in
                which the window takes them in.
            resent: Whether an earlier send of these items may still be alive.
        """
        self._window = window
        self._operation = operation
        self._items = items
        self._progress = progress
        self._landed = 0
        self._rest: tuple[Outgoing, ...] = ()
        self._in_doubt = False
        self._resent = self._resent_before = resent
        self._reopened = False
        self._stopped = False

    async def run(self) -> None:
        """Appends all items, or raises what stopped it; see `stop`."""
        for batch in batches(self._items):
            if self._stopped:
                return
            self._rest, self._resent, self._reopened = batch, self._resent_before, False
            self._operation.allow(sum(map(len, batch)))
            await self._send_batch()

    def stop(self) -> None:
        """Has it end with the batch that it is at: its caller has left, and wants no more of it."""
        self._stopped = True

    async def anchor(self) -> None:
        """Makes sure that it is known what stands before the next batch.

        Without it, two equal messages could not be told apart after a lost
        answer. Costs one request of one item where nothing is held.
        """
        if self._window.history is None or self._window.unsettled.undecided:
            try:
                await self._window.relist(self._operation, 1)
            except Exception as error:
                self._say_how_many(error)
                raise

    async def _send_batch(self) -> None:
        await self.anchor()
        if self._stopped:
            return
        outcome = await self._operation.run(self._attempt)
        if isinstance(outcome, Applied):
            await self._look_for_late_commits()
            return
        if self._in_doubt:
            try:
                await self._reconcile()
            except (AppendOutcomeUnknown, TurnLost):
                raise
            except Exception as error:
                self._window.forget()
                raise self._unknown() from error
            if not self._rest:
                return
        self._say_how_many(outcome.error)
        raise outcome.error

    def _say_how_many(self, error: Exception) -> None:
        if self._landed:
            total = counted(len(self._items))
            said = f"the first {self._landed} of {total} are on the server, the others are not"
        else:
            said = "nothing was stored"
        error.add_note(f"{self._operation.conversation_id}: {said}")

    async def _attempt(self, seconds: float) -> Outcome[None]:
        if self._in_doubt:
            try:
                await self._reconcile()
            except (AppendOutcomeUnknown, TurnLost):
                raise
            except Exception as error:
                return Unknown(error, retryable=False)
            if not self._rest:
                return Applied(None)
            seconds = min(seconds, self._operation.deadline - self._operation.now())
            if seconds <= 0:
                return Refused(too_late(self._operation.conversation_id), retryable=False)
        with self._window.doubting(self._doubt):
            outcome = await self._operation.remote.append(
                self._operation.conversation_id, self._rest, timeout=seconds
            )
        self._operation.check_turn()
        if isinstance(outcome, Applied):
            self._applied(outcome.value)
            return Applied(None)
        if isinstance(outcome, Unknown):
            self._doubt()
        elif is_duplicate_id(outcome.error) and self._resent and not self._reopened:
            # The ids stand there already: an earlier send may have come
            # through after all. If it did not, they stood there before.
            self._in_doubt = self._reopened = True
            self._window.unsettled.reopen(self._rest)
            return Refused(outcome.error, retryable=True)
        elif isinstance(outcome.error, NotFoundError):
            # The conversation is gone. Nothing of it may be served again.
            self._window.forget()
        return outcome

    def _applied(self, held: Sequence[Held]) -> None:
        history = self._window.history
        assert history is not None  # the anchor was read before the first send
        history.append(held)
        rewriting = self._operation.remote.server.rewriting
        self._window.unsettled.acknowledged(self._rest, held, rewriting)
        self._landed += len(held)
        self._rest = ()
        self._progress(len(held))

    def _doubt(self) -> None:
        history, unsettled = self._window.history, self._window.unsettled
        assert history is not None  # the anchor was read before the first send
        self._in_doubt = self._resent = True
        unsettled.begin(history.items, complete=history.complete)
        # How long a server may take to apply a request that its client gave
        # up on is not known. As long as a whole operation may take is the
        # bound that this package keeps watch for.
        expires = self._operation.now() + self._operation.policy.deadline
        unsettled.sent(self._rest, expires=expires)

    async def _reconcile(self) -> None:
        """Asks the server how much of the batch landed."""
        operation, sent = self._operation, len(self._rest)
        landed = await self._window.relist(operation, 1)
        if isinstance(landed, Untold):
            self._window.forget()
            raise self._unknown(landed.item_ids)
        self._in_doubt = False
        self._landed += landed
        self._rest = self._rest[landed:]
        self._progress(landed)
        operation.meter.reconciliations += 1
        operation.meter.tell(Reconciled(operation.conversation_id, landed, sent))

    def _unknown(self, item_ids: tuple[str, ...] = ()) -> AppendOutcomeUnknown:
        conversation_id, total = self._operation.conversation_id, len(self._items)
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

    async def _look_for_late_commits(self) -> None:
        if not (self._resent and self._window.unsettled.active):
            return
        hurried = self._operation.without_retries()
        try:
            await self._window.relist(hurried, 1)
            await self._window.remove_late_copies(hurried)
        except Exception:
            # The items are there; that was the question. What is still open
            # keeps the local copy in doubt, and the next read looks again.
            return
