"""One conversation: read, append, pop, clear, refresh, flush, whoever asks and wherever it is kept.

One for each conversation and account, shared by every session of the process.
Every operation raises `Superseded` if its session left the conversation while
it waited for the turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from openai import NotFoundError, OpenAIError

from cached_session.conversation.delivery import Delivery, check_account, in_flight, settle
from cached_session.conversation.listing import RESTARTS, fresh
from cached_session.conversation.operation import Elsewhere, Operation, Order, Superseded, is_gone
from cached_session.conversation.tasks import Afterwards, Errands
from cached_session.conversation.turns import Run, Turns, run_of
from cached_session.core.items import Outgoing, copies, unhold
from cached_session.core.ledger import ANY, Ledger, Trust
from cached_session.core.looking import LOOK_AFTER
from cached_session.core.outcomes import Applied, Unknown
from cached_session.core.unsettled import CONVERSATION
from cached_session.errors import (
    AppendOutcomeUnknown,
    ConversationBusy,
    DeadlineExceeded,
    Naming,
    OutboxError,
    Reopened,
    UnexpectedAnswer,
    counted,
    verb,
)
from cached_session.events import CallStarted, Sending, StaleRead, logger
from cached_session.server.classify import classify, is_away, says_gone
from cached_session.server.connections import Account

if TYPE_CHECKING:
    from cached_session.conversation.backlog import Backlog, User
    from cached_session.conversation.record import Reading, Record
    from cached_session.outbox import Outbox

T = TypeVar("T")
Key: TypeAlias = tuple[Account, str]

# Seconds after a cancellation until the sender goes on where the call stopped.
_SOON = 0.05


class Held(NamedTuple):
    """What there is of a conversation in this process; as in `Stats`.

    Attributes:
        items: Items held.
        bytes: Bytes of memory that they take.
        waiting: Items that wait in an outbox.
        waiting_bytes: Bytes of those as JSON.
        waiting_seconds: For how long the oldest of those has waited; 0 if none waits.
        sending: What becomes of those.
    """

    items: int = 0
    bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    waiting_seconds: float = 0.0
    sending: Sending = Sending.IDLE


NONE_HELD = Held()


class Conversation:
    """One conversation.

    Attributes:
        key: The account and the conversation, by which the cache knows it.
        order: Who works on it.
        ledger: What is known of it.
        backlog: What an outbox holds for it, if a session uses one.
    """

    def __init__(
        self,
        conversation_id: str,
        key: Key,
        resized: Callable[[Conversation], None],
        renamed: Callable[[Conversation, str], None],
    ) -> None:
        """Makes one of which nothing is known.

        Args:
            conversation_id: The conversation.
            key: See the class.
            resized: Called whenever its size may have changed.
            renamed: Called with the new id when the conversation gets its own.
        """
        self.key = key
        self.order: Order = Order(conversation_id, functools.partial(resized, self))
        self.ledger: Ledger = self.order.ledger
        self.backlog: Backlog | None = None
        self._renamed = renamed
        # Backlogs that closed sessions have left, and that give way to this one's.
        self._before: Collection[Backlog] = ()
        # What the last backlog knew of its log. Not the backlog itself: that refers to the outbox,
        # which is closed when nothing refers to it any more.
        self._reading: Reading | None = None
        # How many reads on end could not ask the server, and what the last of them met.
        self._outages, self._outage = 0, ""
        # Works that go on to their end when their caller is cancelled.
        self._errands = Errands()
        # The turn of whoever deletes the conversation: appends that come meanwhile wait, and are
        # for the next conversation.
        self._clearing = Turns()

    @property
    def conversation_id(self) -> str:
        """The conversation's id, or its local name."""
        return self.ledger.conversation_id

    @property
    def replaced(self) -> bool:
        """Whether another copy is the conversation's own by now."""
        return self.order.instead is not None

    @property
    def size(self) -> int:
        """Bytes of memory that the held items take."""
        return self.ledger.size

    def held(self) -> Held:
        """What there is of it here at this moment. From any thread."""
        ledger, backlog = self.ledger, self.backlog
        sending = Sending.IDLE if backlog is None else backlog.sending
        with self.order.lock:
            known, queue = ledger.known, ledger.queue
            return Held(
                0 if known is None else len(known),
                0 if known is None else known.size,
                len(queue),
                queue.size,
                0.0 if queue.oldest is None else max(0.0, time.time() - queue.oldest),
                sending,
            )

    @property
    def holds(self) -> bool:
        """Whether there is a copy, if only of an empty conversation."""
        return self.ledger.known is not None or self.size > 0

    @property
    def to_ask(self) -> bool:
        """Whether the next read has to ask the server, whatever an outbox keeps."""
        return self.order.invalid or self.ledger.refreshed

    def drop(self) -> None:
        """Forgets what is held of the server; the next read asks."""
        self.ledger.forget_all()

    def attach(self, outbox: Outbox, owner: Account, user: User | None) -> None:
        """Has an outbox take what is appended from now on: in one backlog, whoever attaches it.

        Args:
            outbox: The outbox.
            owner: Whose conversation it is.
            user: Who uses it from now on; None: a session that was closed meanwhile.

        Raises:
            OutboxError: The outbox is that of a process from which this one was forked.
            ValueError: The conversation has another outbox in this process, or
                this outbox has the conversation in another cache.
        """
        # Only now: most processes use no outbox, and need not load it.
        from cached_session.conversation.backlog import Backlog
        from cached_session.conversation.record import address_of

        # In a forked child the parent's outbox is refused first of all. If it were attached,
        # the outbox that the child makes would be refused, as a second one.
        outbox.check_process()
        name = self.conversation_id
        address = address_of(owner, name)
        with outbox.lock:
            found: Backlog | None = outbox.backlogs.get(address)
            before: list[Backlog] = []
            if found is not None and found.order is not self.order:
                if found.users:
                    raise ValueError(
                        f"cache: a session with this outbox has {name} in another cache; give all "
                        "sessions on a conversation the same one"
                    )
                # Closed sessions have left it, on a copy in another cache. It ends before this one.
                before.append(found)
                found = None
            other = self.backlog
            if other is not None and other is not found and (other.users or other.sender.working):
                if other.users or not outbox.same_as(other.record.outbox):
                    raise ValueError(
                        f"outbox: {name} has another outbox in this process; give all sessions "
                        "on a conversation the same one"
                    )
                # Likewise a backlog that another outbox on the same file has left. One that sends
                # nothing, and that only dropped sessions have used, is just replaced.
                before.append(other)
            if found is None:
                self._before = before
                found = Backlog(outbox, address, self.order, self._rename, self._part)
                if self._reading is not None:
                    found.record.go_on_from(self._reading)
            outbox.backlogs[address] = self.backlog = found
            if user is not None:
                found.users.add(user)
                found.record.come()

    def _part(self, backlog: Backlog) -> None:
        if self.backlog is backlog:
            self.backlog, self._reading = None, backlog.record.reading
            self.ledger.part()
            if self.ledger.watch.active and not backlog.record.left():
                # The log tells of it, and others may look after it by now. What looks like a late
                # copy may be what they have appended.
                self.ledger.forget_doubt()

    def _rename(self, conversation_id: str) -> Backlog | None:
        """Takes the conversation's own id; returns the backlog that it has here by that already."""
        backlog = self.backlog
        assert backlog is not None  # only an outbox gives local names
        local = self.key[1]
        self.ledger.rename(conversation_id)
        address, outbox = backlog.record.address, backlog.record.outbox
        with outbox.lock:
            other: Backlog = outbox.backlogs.setdefault(address, backlog)
            if other is not backlog:
                # A session of this process is on it by its id already: two copies would both send.
                self.order.give_up(other.order)
                outbox.backlogs[address._replace(conversation=local)] = other
        self._renamed(self, conversation_id)
        return None if other is backlog else other

    def _check_same(self, backlog: Backlog | None) -> None:
        """Raises `Superseded` if an outbox has come to it, or gone, while a call waited for a turn.

        The call begins anew: with what is recorded, or without what nobody reads any more.
        """
        if self.backlog is not backlog:
            raise Superseded

    # Reading

    @property
    def current(self) -> bool:
        """Whether what is known here counts, and is all that is recorded.

        As far as nobody else has to be asked.
        """
        if self.order.invalid:
            return False
        backlog = self.backlog
        return backlog is None or (
            backlog.record.current and not self._errands.left and not backlog.room.given
        )

    def valid(self, since: float) -> bool:
        """Whether other processes were asked, by the outbox, or have done nothing since then."""
        backlog = self.backlog
        return backlog is None or backlog.record.valid(since, Operation.now())

    async def validate(self, operation: Operation, since: float) -> None:
        """Has known here what other processes have done through the outbox until now.

        Args:
            operation: The reader's.
            since: When that must have been asked for at the earliest, on the running loop's clock.

        Raises:
            OutboxError: The outbox could not be read.
        """
        backlog = self.backlog
        if backlog is None or backlog.record.valid(since, operation.now()):
            return
        if not backlog.record.read_by(operation):
            await backlog.record.validate(operation, self.order.turn)

    @property
    def vouched_for(self) -> bool:
        """Whether an outbox is asked in the server's place for what is there."""
        return self.backlog is not None and self.backlog.record.outbox.vouches

    def view(self, limit: int | None, trust: Trust) -> list[dict[str, Any]] | None:
        """Answers a read without waiting, or returns None; see `Ledger.view`."""
        return self.ledger.view(limit, trust, idle=self.order.turns.idle)

    def go_on(self, through: Operation) -> None:
        """Sees to it that what waits is being sent, through an operation's client."""
        backlog = self.backlog
        if backlog is None or backlog.empty:
            return
        if backlog.record.only_looks_on:
            backlog.mind(through)
        else:
            backlog.sender.start(through)

    async def read(
        self, operation: Operation, limit: int | None, trust: Trust, stale: float | None = None
    ) -> list[dict[str, Any]]:
        """Answers a read of the newest `limit` items (None: all), with as few requests as it takes.

        Args:
            operation: The reader's.
            limit: How many.
            trust: For how long what is known is trusted.
            stale: Seconds for which it is trusted where the server cannot be asked, or None.

        Returns:
            The caller's own copy, oldest first.
        """
        ledger, outages = self.ledger, self._outages
        if self.backlog is not None:
            await self.backlog.room.used(operation)
        while True:
            backlog = self.backlog
            try:
                async with self.order.turn(operation):
                    self._check_same(backlog)
                    away = self._outages > outages and not ledger.checked(trust)
                    if stale is not None and away:
                        # Since this read came, another one has found that the server is away.
                        held = self._stale(operation, limit, stale)
                        if held is not None:
                            return held
                    try:
                        held = await self._ask(backlog, operation, limit, trust)
                    except OpenAIError as error:
                        if not is_away(error):
                            raise
                        self._outages, self._outage = self._outages + 1, type(error).__name__
                        held = None if stale is None else self._stale(operation, limit, stale)
                        if held is None:
                            raise
                        return held
                    self._outages = 0
                    if held is not None:
                        return held
            except Elsewhere:
                # Another process is sending, and what it has kept is not enough to tell what is
                # on the server and what waits. It may keep more soon.
                assert backlog is not None  # it was looked at
                await backlog.at_rest(operation, LOOK_AFTER / 4)
                if ledger.paused is not None:
                    await backlog.held_elsewhere(operation)

    def _stale(
        self, operation: Operation, limit: int | None, seconds: float
    ) -> list[dict[str, Any]] | None:
        """What was confirmed that long ago at most, unless it is in doubt, or None. In the turn."""
        ledger, now = self.ledger, operation.now()
        if self.order.invalid:
            return None
        held = ledger.view(limit, Trust(0, now - seconds, now), idle=True)
        if held is not None:
            operation.meter.stale += 1
            operation.meter.tell(StaleRead(self.conversation_id, ledger.age(now), self._outage))
        return held

    async def _ask(
        self, backlog: Backlog | None, operation: Operation, limit: int | None, trust: Trust
    ) -> list[dict[str, Any]] | None:
        """Reads, with the requests that it takes; None: look again. In the turn."""
        ledger = self.ledger
        if backlog is None:
            history = await fresh(ledger, None, operation, limit, trust)
            return copies(history.tail(limit))
        if ledger.queue or ledger.local:
            # Whoever had the turn before may have made a request unnecessary.
            held = self.view(limit, trust)
            if held is not None:
                return held
        return await self._read_with(backlog, operation, limit, trust)

    async def _read_with(
        self, backlog: Backlog, operation: Operation, limit: int | None, trust: Trust
    ) -> list[dict[str, Any]] | None:
        """Reads what is on the server and what waits; None: look again. In the turn.

        Raises:
            Elsewhere: Another process sends what waits.
        """
        ledger, record = self.ledger, backlog.record
        if record.outbox.vouches and ledger.evicted:
            await record.read(operation, anew=True)
        claims = bool(ledger.queue) or ledger.watch.active
        if not await record.alone(operation):
            # The window and the waiting rows were read in one transaction, so that nothing stands
            # in both.
            with self.order.lock:
                shown = ledger.queue.view(limit) if ledger.confirmed else None
            if shown is None:
                raise Elsewhere
            return shown
        # With the claim nobody else sends what waits now. Without it, others may send what is
        # recorded later.
        waited = bool(ledger.queue)
        async with Afterwards(backlog.let_go) if claims else contextlib.nullcontext():
            await self._settle(record, operation)
            listings, waiting = ledger.listings, len(ledger.queue)
            missing = None if limit is None else max(1, limit - waiting)
            history = await fresh(ledger, record, operation, missing, trust)
            # The claim may be over: the outbox was closed meanwhile, or its lease has run out.
            waited = waited and record.left() > 0
            if waited:
                ledger.show()
            else:
                ledger.show_nothing()
            with self.order.lock:
                shown = ledger.queue.view(limit) if ledger.queue else None
            # Only the next process gains by this: the read does not fail for it.
            with contextlib.suppress(OutboxError):
                await record.keep(listed=ledger.listings != listings)
            if not ledger.queue:
                # Nothing waits any more, so all items are on the server. That was checked in this
                # turn, and more of it may have to be listed.
                history = await fresh(ledger, record, operation, limit, ANY)
                return copies(history.tail(limit))
            if waited:
                # It is None where items were withdrawn meanwhile, and older ones are to be shown.
                return shown
        # Without a claim to the end, others may have sent what waits, whoever has recorded it,
        # before the server answered: it would be in the listing, and wait here, too. All is read
        # anew, with a claim.
        return await self._read_with(backlog, operation, limit, trust)

    async def _settle(self, record: Record, operation: Operation) -> None:
        """Finds out what landed; where nothing can tell, it is paused from now on.

        That is for those who append, flush or close. A read shows what there is.
        """
        with contextlib.suppress(AppendOutcomeUnknown):
            await settle(self.ledger, record, operation)

    async def refresh(self, operation: Operation) -> None:
        """Drops what is known, in its turn: a write before this call settles first."""
        if not self.ledger.local:
            async with self.order.turn(operation):
                self.ledger.refresh()

    # Appending

    async def deliver(self, operation: Operation, items: Sequence[Outgoing]) -> None:
        """Appends items, each once, in order; errors as in `CachedSession.add_items`."""
        backlog = self.backlog
        if backlog is not None:
            # What the outbox has accepted before this call comes first.
            await backlog.drained(operation)
        record = None if backlog is None else backlog.record
        delivery = Delivery(self.ledger, record, operation)
        turn = await self.order.enter(operation)
        try:
            self._check_same(backlog)
            await operation.check_run()
            # Nothing is sent yet: a caller who is cancelled here sends nothing.
            await delivery.anchor(len(items))
        except BaseException:
            self.order.leave(turn)
            raise
        try:
            await self.order.write(operation, turn, lambda: delivery.run(items))
        except asyncio.CancelledError:
            delivery.stop()
            raise

    async def accept(
        self, operation: Operation, items: Sequence[Outgoing], call: CallStarted | None
    ) -> None:
        """Accepts items; they are recorded when it returns.

        Args:
            operation: The caller's.
            items: The items.
            call: The call that they are from, if observers were told of it.

        Raises:
            OutboxPaused: The server refused what was accepted before.
            OutboxFull: The backlog stayed at its limit.
            OutboxError: They could not be recorded.
        """
        backlog = self._own_backlog()
        while True:
            await self.cleared(operation)
            await backlog.check(operation)
            place = await backlog.room.take(items, backlog.sender.start)
            cleared = self._clearing.current is None and not operation.superseded()
            if self.ledger.paused is None and cleared:
                break
            place.give_back()

        async def accept() -> None:
            operation.check_run_here()
            await backlog.record.accept(items, operation.within, call)
            backlog.sender.start(operation)

        # A caller that is cancelled does not undo the recording.
        await self._errands.run(accept(), place.give_back, abandoned=operation.abandoned)

    async def cleared(self, operation: Operation) -> None:
        """Waits for whoever is deleting the conversation.

        Raises:
            Superseded: It was deleted.
        """
        if self.backlog is None:
            await self.order.settled(operation)
        elif self._clearing.current is not None:
            turn = await self._clearing.enter(operation.deadline, operation.conversation_id)
            # All who wait go on at once: one by one, each would take the next for a deletion.
            turn.end_for_all()
        if operation.superseded():
            raise Superseded

    # Removing

    async def pop(self, operation: Operation, trust: Trust) -> dict[str, Any] | None:
        """Removes the newest item, wherever it is, and returns it; None if there is none."""
        ledger = self.ledger
        if self.backlog is not None:
            await self.backlog.room.used(operation)
        while True:
            operation.check_run_here()
            backlog = self.backlog
            if backlog is not None:
                withdrawn = await self._errands.run(
                    backlog.record.withdraw(operation.within), abandoned=operation.abandoned
                )
                if withdrawn is not None:
                    return withdrawn
                if ledger.queue:
                    backlog.record.check_not_paused()
                    await backlog.until(
                        self._differs(),
                        operation,
                        "the newest item is being sent, and that took until the deadline; it was "
                        "not removed",
                    )
                    continue
                if ledger.local:
                    # Another process may have made the conversation, and sent what waited.
                    await backlog.record.validate(operation, self.order.turn)
                    if ledger.local and not ledger.queue:
                        return None
                    continue
            record = None if backlog is None else backlog.record
            turn = await self.order.enter(operation)
            try:
                self._check_same(backlog)
                if backlog is not None and not await self._may_remove(backlog, operation):
                    # An append was accepted before the turn came.
                    self.order.leave(turn)
                    continue
                # With the claim: while that lasts, so does the run.
                await operation.check_run()
                await fresh(ledger, record, operation, 1, trust)
                await self._note_removal(record)
            except Elsewhere:
                self.order.leave(turn)
                assert backlog is not None  # another process has it
                await operation.check_run()
                await backlog.released(operation)
                continue
            except BaseException:
                self.order.leave(turn)
                raise
            remove = functools.partial(self._remove, record, operation)
            return await self.order.write(operation, turn, remove)

    def _differs(self) -> Callable[[], bool]:
        def state() -> tuple[int, int]:
            return self.ledger.queue.seen, len(self.ledger.queue)

        before = state()
        return lambda: state() != before or self.ledger.paused is not None

    async def _may_remove(self, backlog: Backlog, operation: Operation) -> bool:
        """Claims the conversation before something is removed; True if nothing waits. In the turn.

        Whoever else reads it learns by the claim that what is on the server has changed. What
        others have accepted comes with the answer to the claim.

        Raises:
            Elsewhere: Another process has it.
        """
        ledger = self.ledger
        if await backlog.record.read(operation, claim=True):
            return not ledger.queue
        if ledger.queue:
            return False
        raise Elsewhere

    async def _note_removal(self, record: Record | None) -> None:
        """Has an outbox note that the newest item is removed next, and may be gone. In the turn.

        That is for the case that this process ends then. What is kept of the conversation goes
        before, and is kept again afterwards. What has landed is put down, too: a process that
        takes over would send it again.
        """
        known = self.ledger.known
        assert known is not None  # it was listed
        if record is not None and len(known):
            await record.note(removing=known.items[-1].id)

    async def _remove(self, record: Record | None, operation: Operation) -> dict[str, Any] | None:
        """Removes and returns the newest item; None if there is none. In the turn."""
        ledger = self.ledger
        # Another round, with a new listing, whenever another writer was faster.
        for _ in range(RESTARTS):
            known = ledger.known
            assert known is not None  # it was listed
            if not len(known):
                return None
            last = known.items[-1]
            if await self._delete(operation, last.id, None if record is None else record.left):
                ledger.removed_newest()
                if record is not None:
                    # The next process must not find the item in the window. If that cannot be
                    # recorded, the caller gets the item all the same.
                    with contextlib.suppress(OutboxError):
                        await record.note(release=True)
                return unhold(last)
            ledger.forget()
            await fresh(ledger, record, operation, 1, ANY)
            await self._note_removal(record)
        raise UnexpectedAnswer(
            f"{self.conversation_id}: the newest item was gone at every attempt to remove it; "
            "nothing was removed",
            conversation_id=self.conversation_id,
        )

    async def _delete(
        self, operation: Operation, item_id: str, left: Callable[[], float] | None
    ) -> bool:
        """Deletes an item; False if somebody else had."""
        ledger = self.ledger
        ledger.removing(item_id)
        with in_flight(ledger, operation):
            outcome = await operation.delete_item(item_id, left)
        if isinstance(outcome, Unknown):
            ledger.lost(expires=operation.expiry())
            outcome.error.add_note(
                f"{self.conversation_id}: whether the item was removed is not known; "
                "the next read shows it"
            )
            raise outcome.error
        ledger.answered()
        if isinstance(outcome, Applied):
            return True
        if is_gone(outcome):
            return False
        raise outcome.error

    async def clear(self, operation: Operation) -> None:
        """Drops what waits, and deletes the conversation; its caller is on none from then on.

        Raises:
            openai.NotFoundError: Somebody else had deleted it.
        """
        backlog = self.backlog
        if backlog is None:
            await self._clear(None, operation)
            return
        turn = await self._clearing.enter(operation.deadline, operation.conversation_id)
        while not turn.current:
            # It was woken together with appends that had waited for another deletion.
            turn = await self._clearing.enter(operation.deadline, operation.conversation_id)
        try:
            while True:
                try:
                    await self._drop_and_clear(backlog, operation)
                except Reopened:
                    # It begins anew. Appends wait on: what they would record now would be dropped.
                    await backlog.record.open(operation, self.order.turn)
                    with contextlib.suppress(Reopened):
                        # Another process may be sending.
                        await backlog.released(operation)
                else:
                    break
        except asyncio.CancelledError:
            # The deletion goes on behind the caller. Appends wait until it is done: what they
            # recorded before would be lost with the conversation.
            self._errands.begin(self._cleared(backlog), turn.end)
            raise
        except BaseException:
            turn.end()
            raise
        turn.end()

    async def _cleared(self, backlog: Backlog) -> None:
        """Waits for a deletion that its caller has left."""
        await self.order.written()
        if self.ledger.known is None:
            await backlog.record.note(release=True, changes=True)

    async def _drop_and_clear(self, backlog: Backlog, operation: Operation) -> None:
        await operation.check_run()
        record = backlog.record
        if self.ledger.local:
            # As in `pop`: another process may have made the conversation, which is then deleted.
            await record.validate(operation, self.order.turn)
        dropped = await self._errands.run(
            record.drop(operation.within, sealed=False), abandoned=operation.abandoned
        )
        # What is in flight comes first: nothing may land on a conversation that is gone.
        await backlog.until(
            lambda: backlog.open,
            operation,
            "a batch is being sent, and that took until the deadline; the "
            f"{counted(dropped)} that waited behind it {verb(dropped, 'was', 'were')} dropped, and "
            "the conversation was not deleted",
        )
        dropped += await self._errands.run(
            record.drop(operation.within, sealed=True), abandoned=operation.abandoned
        )
        if self.ledger.local:
            # The sender may be making it at this moment: it has its id when the turn comes.
            async with self.order.turn(operation):
                operation.deleted()
            return
        try:
            await self._clear(backlog, operation)
        except Exception as error:
            error.add_note(
                f"{operation.conversation_id}: {counted(dropped)} that waited in the outbox "
                f"{verb(dropped, 'was', 'were')} dropped before the conversation was to be deleted"
            )
            raise
        # `Reopened`: the outbox was closed meanwhile, which has released all claims.
        with contextlib.suppress(Reopened):
            await record.note(release=True, changes=True)

    async def _clear(self, backlog: Backlog | None, operation: Operation) -> None:
        while True:
            turn = await self.order.enter(operation)
            try:
                self._check_same(backlog)
                mine = backlog is None or await backlog.record.read(operation, claim=True)
                # As before a pop.
                await operation.check_run()
                if backlog is None:
                    break
                if mine:
                    await backlog.record.note(removing=CONVERSATION)
                    break
            except BaseException:
                self.order.leave(turn)
                raise
            self.order.leave(turn)
            await backlog.released(operation)
        left = None if backlog is None else backlog.record.left
        await self.order.write(operation, turn, lambda: self._delete_all(operation, left))

    async def _delete_all(self, operation: Operation, left: Callable[[], float] | None) -> None:
        ledger = self.ledger
        ledger.clearing()
        with in_flight(ledger, operation):
            outcome = await operation.delete_conversation(left)
        applied = isinstance(outcome, Applied) or (
            # An earlier clear that was given up on came through after all.
            is_gone(outcome) and ledger.watch.may_be_cleared
        )
        if isinstance(outcome, Unknown):
            ledger.lost(expires=operation.expiry())
        else:
            ledger.answered()
        ledger.forget()
        if not isinstance(outcome, Applied) and not applied:
            raise outcome.error
        # Without waiting in between: no call may come to the deleted conversation.
        operation.deleted()

    # Runs that take turns

    @property
    def run(self) -> Run | None:
        """The run that the present task belongs to, or None."""
        return run_of(self.order.runs)

    async def begin_run(self, operation: Operation, deadline: float, wait: float) -> Run | None:
        """Waits for the turn of a whole run, and catches up with who had it before.

        Args:
            operation: The call that asks for it.
            deadline: Until when to wait, on the running loop's clock.
            wait: Seconds that this is in all, for the error.

        Returns:
            The run, which the present task then belongs to, and which `end_run` ends; None: the
            present task has begun it before.

        Raises:
            ConversationBusy: The turn did not come in time.
            TurnLost: The present task had it, and it is over.
        """
        outer = self.run
        if outer is not None and outer.mine:
            await outer.check(self.conversation_id)
            return None
        backlog = self.backlog
        outbox = None if backlog is None else backlog.record.outbox
        try:
            run = Run(await self.order.enter_run(deadline), outbox)
        except DeadlineExceeded:
            raise self._busy(wait) from None
        try:
            if backlog is not None:
                record = backlog.record
                if not await run.line_up(record.outbox, lambda: record.address, deadline):
                    raise self._busy(wait)
                # The first call in this turn reads what other processes have done in theirs. Read
                # here, it would wait for calls that are in no turn, and they for this one.
                record.turn_has_come()
            if operation.superseded() or self.replaced:
                raise Superseded
        except GeneratorExit:
            self.drop_run(run)
            raise
        except BaseException:
            await self.end_run(run)
            raise
        run.begin()
        return run

    def _busy(self, wait: float) -> ConversationBusy:
        waited = f", and had it for all of the {wait:g} s that this call waited" if wait else ""
        return ConversationBusy(
            f"{self.conversation_id}: somebody else has the conversation's turn{waited}; nothing "
            "was sent or recorded. Try again later, or wait for longer",
            conversation_id=self.conversation_id,
        )

    async def end_run(self, run: Run) -> None:
        """Gives a turn to whoever waited longest, whatever becomes of the caller.

        Raises:
            OutboxError: That could not be recorded: other processes get it when this one
                closes the outbox or ends.
        """
        if run.outbox is None or not run.here:
            # Its event loop does not run, so nothing can be waited for: a coroutine is being
            # closed, and something in it has raised another error at that.
            self.drop_run(run)
        else:
            run.leave()
            with Naming(self.conversation_id):
                await self._errands.run(_step_out(run, run.outbox), run.end, abandoned=_log_it)

    def drop_run(self, run: Run) -> None:
        """Gives a turn to whoever waited longest, without waiting for it."""
        run.leave()
        if run.outbox is None or not run.here:
            # The outbox's thread finds that the run is over, and gives its place in the line up.
            run.end()
        else:
            self._errands.begin(_step_out(run, run.outbox), run.end)

    # Waiting

    async def flush(self, operation: Operation) -> None:
        """Waits until every write before this call is on the server, and looks at what is in doubt.

        Raises:
            OutboxPaused: The server refused a batch.
            DeadlineExceeded: It took too long; all is kept.
        """
        ledger, backlog = self.ledger, self.backlog
        if backlog is None:
            async with self.order.turn(operation):
                self._check_same(None)
                await self._look(None, operation)
            return
        await backlog.room.used(operation)
        through = None
        while True:
            # If something waits, the sender releases the claim at its end, and reads what others
            # have recorded.
            waited = bool(ledger.queue)
            await backlog.drained(operation)
            let_go = functools.partial(backlog.let_go, heard=waited)
            async with self.order.turn(operation), Afterwards(let_go):
                if await backlog.record.alone(operation):
                    # A batch of what was accepted meanwhile may be in doubt. It is settled first:
                    # only one listing decides about it.
                    await self._settle(backlog.record, operation)
                    await self._look(backlog.record, operation)
            # Items that another process had left may have been found just now.
            # What is appended from now on is not waited for.
            queue = ledger.queue
            through = queue.seen if through is None else through
            if not queue or queue.entries[0].seq > through:
                return

    async def _look(self, record: Record | None, operation: Operation) -> None:
        """Checks what is still in doubt. In the turn."""
        if self.ledger.watch.active:
            try:
                await fresh(self.ledger, record, operation, 1, ANY)
            except NotFoundError as error:
                # A clear that got no answer has deleted the conversation: nothing is in doubt.
                if not (self.ledger.watch.may_be_cleared and says_gone(error)):
                    raise

    async def settled(self, operation: Operation) -> None:
        """Waits for the writes before this call."""
        await self.order.settled(operation)

    async def recorded(self, operation: Operation) -> None:
        """Waits until what was appended before this call is recorded, or is not going to be."""
        if self.backlog is not None:
            await self.backlog.room.used(operation)

    async def create(self, operation: Operation) -> None:
        """Makes the conversation, in one attempt, if it has only a local name.

        Raises:
            openai.OpenAIError: The server refused. That it is away is no failure.
        """
        backlog = self.backlog
        if backlog is None or not self.ledger.local:
            return
        once = operation.without_retries()

        async def make() -> bool:
            check_account(self.ledger, backlog.record, once)
            # With a claim: otherwise two processes that share the name would make one each.
            mine = await backlog.record.read(once, claim=True)
            if mine and self.ledger.local:
                await backlog.create(once)
            # If something waits, its sender makes the conversation, however long that takes.
            return mine or bool(self.ledger.queue)

        while self.ledger.local:
            once.turn = turn = await self.order.enter(operation)
            try:
                if await self.order.write(operation, turn, make, kept=True):
                    break
            except OpenAIError as error:
                if not classify(error).retryable:
                    raise
                break
            # Another process is making it at this moment.
            await backlog.released(operation)
        operation.conversation_id = self.conversation_id

    # Around all of it

    async def perform(
        self, operation: Operation, work: Callable[[], Awaitable[T]], *, opens: bool
    ) -> T:
        """Does a call's work; what it found, and what it holds, is the sender's afterwards.

        Args:
            operation: The call's own.
            work: What to do.
            opens: Whether the caller's session has the outbox: it reads what is recorded first.
        """
        backlog = self.backlog
        if backlog is None:
            return await work()
        failure = backlog.sender.failure
        try:
            with Naming(operation.conversation_id):
                for before in self._before:
                    await before.give_way(operation)
                self._before = ()
                # A session without the outbox reads it, too, where nobody has: its own items come
                # after those that wait.
                if opens or not backlog.record.current:
                    if left := self._errands.left:
                        # What cancelled calls have left settles before this call.
                        await asyncio.wait(left)
                    await backlog.record.open(operation, self.order.turn)
                    # This process sends what another one has left, from now on.
                    self.go_on(operation)
                found = await work()
        except asyncio.CancelledError:
            # Not at once: if the loop is ending, a sender that begins now would be left lying.
            asyncio.get_running_loop().call_later(_SOON, _go_on, backlog, operation, failure)
            raise
        except Exception:
            await self._afterwards(backlog, operation, failure)
            raise
        await self._afterwards(backlog, operation, failure)
        return found

    async def _afterwards(
        self, backlog: Backlog, operation: Operation, failure: OutboxError | None
    ) -> None:
        _go_on(backlog, operation, failure)
        # If the session was closed meanwhile, nothing else lets go of the backlog.
        await backlog.look(operation)

    def _own_backlog(self) -> Backlog:
        assert self.backlog is not None  # its session has an outbox
        return self.backlog


async def _step_out(run: Run, outbox: Outbox) -> None:
    # Only now, as in `attach`.
    from cached_session.conversation.backlog import let_go_unused

    await run.step_out(outbox)
    await let_go_unused(outbox)


def _log_it(error: Exception) -> None:
    """Tells of a turn that could not be given back behind a caller who was cancelled."""
    logger.warning("a turn was not given back to other processes: %s", error)


def _go_on(backlog: Backlog, operation: Operation, failure: OutboxError | None) -> None:
    if backlog.empty:
        return
    # Where sending failed during the call, and not before it, the next use tries again.
    if backlog.record.only_looks_on:
        backlog.mind(operation)
    elif backlog.record.held or backlog.sender.failure in (None, failure):
        backlog.sender.start(operation)
