"""One conversation's part of a log: every transaction, and what it changes in the ledger.

Through here the ledger hears what other processes did. A commit is applied to it in
the thread that commits, in the order of the commits: no event loop has to live
to hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from cached_session.conversation.operation import Elsewhere, Operation, Superseded
from cached_session.conversation.tasks import Signal
from cached_session.conversation.turns import Run, Turns
from cached_session.core.history import History
from cached_session.core.items import MAX_ITEMS, Held, Outgoing, copies, hold
from cached_session.core.ledger import Ledger, Moment
from cached_session.core.queue import Entry, Queue, Row
from cached_session.errors import (
    AppendOutcomeUnknown,
    OutboxError,
    OutboxPaused,
    OutboxUnavailable,
    Reopened,
    counted,
    verb,
)
from cached_session.events import CallStarted, logger
from cached_session.outbox import Outbox
from cached_session.outbox.log import (
    Accepted,
    Epoch,
    Found,
    Kept,
    Log,
    Look,
    Noted,
    Sealed,
    Withdrawn,
    Written,
)
from cached_session.outbox.records import NAMED, Address, Namesake, StoredItem, whose
from cached_session.outbox.shared import Contents, Unreadable
from cached_session.outbox.told import Trouble
from cached_session.server.connections import Account

T = TypeVar("T")


class Reading(NamedTuple):
    """What a record knew of the log when the last session on it was closed."""

    address: Address
    contents: Contents
    epoch: Epoch | None
    version: Hashable
    keeping: Keeping


class Record:
    """What an outbox holds of one conversation.

    Attributes:
        outbox: Where it is recorded.
        address: Under which name.
        changed: Fired whenever the ledger may have changed.
    """

    def __init__(
        self,
        outbox: Outbox,
        address: Address,
        ledger: Ledger,
        lock: contextlib.AbstractContextManager[Any],
        turns: Turns,
        working: Callable[[], bool],
        take_name: Callable[[Operation], None],
        moment: Callable[[], Moment],
    ) -> None:
        """Makes one; nothing is read yet.

        Args:
            outbox: Where it is recorded.
            address: Under which name.
            ledger: What is known of the conversation.
            lock: The ledger's.
            turns: Who works on the conversation.
            working: Whether its sender does.
            take_name: Has the conversation known by the name that it has there.
            moment: Tells when it is.
        """
        self.outbox = outbox
        self.address: Address = address
        self.changed: Signal = Signal()
        self._ledger = ledger
        self._lock = lock
        self._turns = turns
        self._working = working
        self._take_name = take_name
        self._moment = moment
        self._opening = Turns()
        # The epoch in which it was read; None: it was not read yet.
        self._epoch: Epoch | None = None
        # Whether the outbox was opened anew since it was read, or a verb may or may not be done.
        self._reopened = False
        # Whether a session has come to it since it was read.
        self._come = False
        # Whether a run has got the turn since it was read: runs of other processes may have had it
        # before.
        self._turned = False
        # The record of this process that the conversation was left to, or None.
        self._instead: Record | None = None
        # How many appends of each event loop have not heard yet whether they are recorded.
        self._unheard: Counter[asyncio.AbstractEventLoop] = Counter()
        self._contents = outbox.contents
        self._keeping = Keeping(wanted=outbox.max_window_bytes > 0, stored=outbox.contents.stored)
        self._calls = Calls()
        # The version of the log's state that is known here, when the log was asked for it, and what
        # a glance had shown before that.
        self._version: Hashable = None
        self._as_of: Moment | None = None
        # The operation that has asked. Weakly: it may be done, and forgotten.
        self._asked_by: weakref.ref[Operation] | None = None
        self._glanced: Hashable = None
        # The place up to which this process sees to it that rows are sent. Rows of other processes
        # behind it are theirs to send, and are only shown here.
        self._minds = 0
        # The place up to which the log was told that items have landed.
        self._put_down = 0

    @property
    def held(self) -> bool:
        """Whether others are kept from sending."""
        return self in self.outbox.holdings

    @property
    def settled(self) -> bool:
        """Whether the log has all that is known here, and others may send."""
        ledger = self._ledger
        owes = self.held or ledger.watch.active or ledger.queue.landed != self._put_down
        return not owes and self._kept()[0] is None

    @property
    def reading(self) -> Reading | None:
        """What the next record of the conversation goes on from; None: it reads all of it."""
        ledger = self._ledger
        waits = ledger.queue or ledger.paused is not None
        if not self.outbox.stays_open or waits or not self.current or not self.settled:
            return None
        return Reading(self.address, self._contents, self._epoch, self._version, self._keeping)

    def go_on_from(self, reading: Reading) -> None:
        """Knows what a record before this one has read, as far as that is of the same log.

        What has changed since is asked for as when a session comes to a record that others use.
        """
        same = reading.address == self.address and reading.contents is self._contents
        # A queue that another outbox's record has left has the places of another log; and what
        # came to be in doubt since, this log has not been told of.
        if same and not (self._ledger.queue.seen or self._ledger.watch.active):
            _, _, self._epoch, self._version, self._keeping = reading
            self._keeping.count_anew()

    def left(self) -> float:
        """Seconds for which nobody else sends what was sealed; 0: others may, by now."""
        return self.outbox.holdings.left(self)

    @property
    def abandoned(self) -> bool:
        """Whether nobody works on it here: no sender, and nobody in the turn whose loop runs."""
        turn = self._turns.current
        return (turn is None or turn.lost) and not self._working()

    @property
    def keeps(self) -> bool:
        """Whether what is known of the conversation is kept for the next process."""
        return self.outbox.max_window_bytes > 0

    def is_of(self, client: Account) -> bool:
        """Whether a client speaks for the account that it is recorded under."""
        return speaks_for(client, self.outbox, self.address)

    @property
    def renamed(self) -> bool:
        """Whether the conversation has another name there than here: it got its own id."""
        return self.address.conversation != self._ledger.conversation_id

    @property
    def current(self) -> bool:
        """Whether all that is recorded is known here, as far as nobody else has to be asked."""
        return not (self._missed or self._outdated or self.renamed)

    @property
    def _outdated(self) -> bool:
        """Whether what was read of it may not be so any more."""
        return self._epoch is None or self._reopened or self._turned

    @property
    def _missed(self) -> bool:
        """Whether something may be recorded that is not known here.

        By another process before a session came, or for an event loop that has ended since.
        """
        ended = bool(self._unheard) and any(not loop.is_running() for loop in [*self._unheard])
        return self._come or ended

    @property
    def reopened(self) -> bool:
        """Whether the outbox was opened anew since it was read."""
        return self._reopened

    @property
    def was_read(self) -> bool:
        """Whether it was ever read here."""
        return self._epoch is not None

    @property
    def only_looks_on(self) -> bool:
        """Whether all that waits was recorded by others, and nobody here has been asked to send it.

        Who has recorded it sends it; if nobody does, whoever looks after what others have left.
        """
        with self._lock:
            entries = self._ledger.queue.entries
            return bool(entries) and entries[0].seq > self._minds and not self.held

    # Reading

    def valid(self, since: float, now: float) -> bool:
        """Whether what is known here counts as what the log says.

        Args:
            since: When it must have been asked for at the earliest.
            now: What it is now; both on the running loop's clock.
        """
        if self._as_of is None:
            return False
        if self._as_of.told(now) >= since:
            return True
        glance = self.outbox.glance()
        return glance is not None and glance == self._glanced

    def read_by(self, operation: Operation) -> bool:
        """Whether an operation was the last one that has read or validated it.

        What it knows then is what the log said after it had begun.
        """
        return self._asked_by is not None and self._asked_by() is operation

    async def validate(self, operation: Operation, in_turn: Callable[[Operation], Any]) -> None:
        """Has known here what the log says now, in one round trip if nothing has changed.

        What others have recorded and taken back is taken in at once. Where somebody else has
        had the conversation, that is done when nobody works on it here.

        Args:
            operation: The reader's.
            in_turn: Enters the conversation's turn.
        """
        if await self._validate(operation, alone=False):
            async with in_turn(operation):
                if await self._validate(operation, alone=True):
                    self._named(operation)
                    self._ledger.as_of(operation.now())
                    self._tell_of_pause()

    async def _validate(self, operation: Operation, *, alone: bool) -> bool:
        """Validates; says whether somebody else has had it. `alone`: in the turn."""
        ledger, epoch, version = self._ledger, self._known_epoch(), self._version
        now, expires = operation.now(), operation.expiry()
        begun, changed = self._begin_looking(), False
        newest = self._keeping.newest(ledger.known)

        def take_in(found: Found, *, alone: bool) -> None:
            with self._lock:
                if found.anew:
                    self._apply(found, first=False, now=now, expires=expires)
                    return
                # An operation that had the turn meanwhile may have changed the window that the
                # found one continues.
                same = not found.continued or self._keeping.newest(ledger.known) == newest
                self._take_in(found, alone=alone, window=alone and same)

        def apply(found: Found | None) -> None:
            nonlocal changed
            changed = found is not None and found.anew
            if found is None or (found.anew and not alone):
                pass  # nothing has changed, or not while somebody may work on it
            elif alone or not self._turns.when_idle(lambda: take_in(found, alone=True)):
                # Nobody may get the turn in between: what is found goes with what is known now.
                take_in(found, alone=alone)
            if alone or not changed:
                self._looked(begun, version if found is None else found.version, operation)

        def validate(log: Log) -> Found | None:
            found = log.validate(self.address, epoch, version, ledger.queue.seen, newest)
            return None if found is None else self._contents.found(found)

        await self._run(
            validate,
            apply,
            locked=False,
            reads=True,
        )
        return changed

    def _take_in(self, found: Found, *, alone: bool, window: bool) -> None:
        """Takes in what others have recorded, and read, while nobody has sent anything."""
        ledger, keeping = self._ledger, self._keeping
        known = self._shown()
        if (
            window
            and known is not None
            and not (found.held or ledger.watch.active)
            and found.window is not None
            and keeping.differs(found.newest)
            and keeping.has(known)
        ):
            # Another process has asked the server since, and has kept what it listed.
            ledger.replace(keeping.read(found, known, removed=ledger.removed))
        ledger.caught_up(found.rows, found.there, alone=alone)

    def _begin_looking(self) -> tuple[Hashable, Moment]:
        # Taken before the log is asked: the next glance then notices what is written meanwhile.
        return self.outbox.glance(), self._moment()

    def _looked(
        self, begun: tuple[Hashable, Moment], version: Hashable, operation: Operation
    ) -> None:
        self._glanced, self._as_of = begun
        self._asked_by = weakref.ref(operation)
        self._version = version

    def come(self) -> None:
        """Notes that a session has come to it, whose first call reads what others have recorded."""
        self._come = True

    def turn_has_come(self) -> None:
        """Notes that a run has the turn on it, whose first call reads what others have done."""
        self._turned = True

    def _look_again(self, others: object) -> None:
        """Has the next read look where others have recorded something, and may have brought it.

        By a local name what is known here may come once more: it has another place by now if the
        conversation got its id elsewhere, and had another record by that.
        """
        if others and self._ledger.local:
            self._as_of = None

    async def open(self, operation: Operation, in_turn: Callable[[Operation], Any]) -> None:
        """Reads what is recorded, where it was not, or somebody may have recorded more.

        Args:
            operation: The caller's.
            in_turn: Enters the conversation's turn.
        """
        if self.renamed and self._epoch is not None:
            async with in_turn(operation):
                self._named(operation)
        if self._opening.idle and not self._outdated:
            if self._missed:
                await self._catch_up()
            return
        # A caller that comes while others wait for the reading waits behind them.
        turn = await self._opening.enter(operation.deadline, operation.conversation_id)
        turned = self._turned
        try:
            if turn.current and self._outdated:
                async with in_turn(operation):
                    # Meanwhile the sender may have read it.
                    if self._outdated:
                        self._come = self._turned = False
                        await self.read(operation)
                    else:
                        await self._catch_up()
        except BaseException:
            # Otherwise the next call would be answered without what is recorded.
            self._come, self._turned = True, self._turned or turned
            turn.end()
            raise
        turn.end_for_all()

    async def _catch_up(self) -> None:
        # A session that comes from now on sets it again: more may be recorded by then than this
        # reads.
        self._come = False
        ledger, epoch = self._ledger, self._known_epoch()
        ended = [loop for loop in [*self._unheard] if not loop.is_running()]

        def apply(rows: Sequence[Row]) -> None:
            # What calls of loops that have ended had recorded was recorded before this.
            for loop in ended:
                self._unheard.pop(loop, None)
            self._look_again(rows)
            ledger.caught_up(rows)
            self._minds = ledger.queue.seen

        def catch_up(log: Log) -> tuple[Row, ...]:
            return self._contents.rows(log.catch_up(self.address, epoch, ledger.queue.seen))

        try:
            await self._run(catch_up, apply, reads=True)
        except BaseException:
            self._come = True
            raise

    async def read(self, operation: Operation, *, claim: bool = False, anew: bool = False) -> bool:
        """Reads what is recorded, all of it where somebody else has had it. In the turn.

        Args:
            operation: The one that has the turn.
            claim: Whether others are kept from sending from now on, if they do not send already.
            anew: Whether all of it is read, whoever has had it: somebody may have decided about it.

        Returns:
            Whether nobody else looks after it.
        """
        ledger, first = self._ledger, self._epoch is None
        before = None if anew or self._reopened else self._epoch
        now, expires = operation.now(), operation.expiry()
        unknown = ledger.local and ledger.known is None
        begun, known = self._begin_looking(), self._version
        if claim:
            # Now, as the caller may be cancelled before it hears of the claim.
            self._minds = ledger.queue.seen

        def read(log: Log) -> Found:
            seen = ledger.queue.seen
            found = log.open(self.address, before, seen, claim=claim, first=first)
            plain = self._contents.found(found)
            if found.window is not None and plain.window is None and found.mine:
                # The key of the window is gone. It is removed: a readable window with the same
                # items would be taken for this one, and not written.
                log.forget(found.address, found.epoch)
                plain = plain._replace(newest=None, version=None)
            return plain

        def apply(found: Found) -> None:
            # Not where a local name is looked up that this log does not know: nothing was read.
            if not (first and unknown and not found.exists):
                self._apply(found, first=first, now=now, expires=expires)
                # Otherwise others may have kept a newer window, which only the next look brings.
                if found.anew or found.version == known:
                    self._looked(begun, found.version, operation)
                self._minds = ledger.queue.seen

        found = await self._run_or_free(read, apply)
        self._tell_of(found.namesakes)
        if self._epoch is None:
            name = ledger.conversation_id
            raise OutboxError(
                f"{name} is a name that an outbox gives to a conversation before the server has "
                "made it, and this outbox does not know it. Pass the outbox that gave it",
                conversation_id=name,
            )
        self._named(operation)
        if found.anew:
            ledger.as_of(operation.now())
            self._tell_of_pause()
        return found.mine

    def _apply(self, found: Found, *, first: bool, now: float, expires: float) -> None:
        ledger = self._ledger
        self._hold(found.held)
        if not found.anew:
            ledger.caught_up(found.rows, found.there)
            self._epoch = found.epoch
            return
        if found.address != self.address and self.outbox.told.over(self.address, Trouble.PAUSED):
            # The warning counts for the name that the conversation has from now on.
            self.outbox.told.news(found.address, Trouble.PAUSED)
        self.address = found.address
        self._reopened = False
        if first and ledger.left not in (None, found.before):
            # Another process has had it since the last session on it was closed here.
            ledger.forget_doubt()
        known, kept, goes_on = ledger.known, None, False
        if found.window is not None:
            had = known is not None and self._keeping.has(known)
            kept = self._keeping.read(found, known, removed=ledger.removed)
            # If a listing has shown items here that the log does not keep, only a new listing can
            # tell whether they are still there.
            goes_on = not first and known is not None and (had or _has_all(kept, known))
        else:
            self._keeping.read_none(found.newest)
        ledger.load(
            found.rows,
            found.doubt,
            found.paused,
            kept,
            first=first,
            mine=found.mine,
            now=now,
            expires=expires,
            vouched=goes_on or self.outbox.vouches,
            doubtful=found.doubtful,
        )
        self._epoch = found.epoch

    def _named(self, operation: Operation) -> None:
        if self.renamed:
            self._take_name(operation)

    async def alone(self, operation: Operation, *, doubt: bool = False) -> bool:
        """Whether no other process sends what waits here, from now on. In the turn.

        What another process has done is read first. What is in doubt and was
        taken over by another one is that one's to look after.

        Args:
            operation: The one that has the turn.
            doubt: Whether something is known to be in doubt that is not known here.
        """
        ledger = self._ledger
        if not (ledger.queue or ledger.watch.active or doubt):
            return True
        mine = await self.read(operation, claim=True)
        if not mine and not ledger.queue:
            ledger.forget_doubt()
            return True
        return mine

    async def look(self) -> Look:
        """How it stands there: without a claim, which comes with reading it, in the turn."""
        epoch = self._known_epoch()
        return await self._run(lambda log: log.look(self.address, epoch), _nothing, reads=True)

    # Accepting and withdrawing

    async def accept(
        self, items: Sequence[Outgoing], run: Run | None, call: CallStarted | None
    ) -> None:
        """Records items behind those that wait.

        Args:
            items: The items.
            run: What they belong to, or None.
            call: The call that they are from, if observers were told of it.

        Raises:
            TurnLost: The run is over.
        """
        ledger, epoch, loop = self._ledger, self._known_epoch(), asyncio.get_running_loop()
        ticket = None if run is None else run.ticket

        def accept(log: Log) -> Accepted | None:
            recorded = [*map(self._contents.put, items)]
            found = log.accept(
                self.address, epoch, ledger.queue.seen, recorded, time.time(), ticket
            )
            if found.rows[0].seq <= ledger.queue.seen:
                # The log was set back, and what is known here is not what it says.
                self._reopened = True
                return None
            own = (row._replace(data=item) for row, item in zip(found.rows, items, strict=True))
            others = self._readable(found.others)
            return None if others is None else Accepted(tuple(own), others)

        def take_in(found: Accepted, *, idle: bool) -> None:
            with self._lock:
                self._heard(loop)
                ledger.accepted(found.rows, found.others, idle=idle)
                if call is not None:
                    self._calls.accepted(ledger.queue, found.rows, call)

        def apply(found: Accepted | None) -> None:
            if found is None:
                # The items are recorded. All is read anew first of all; if rows before them cannot
                # be read, the next use raises that.
                with self._lock:
                    self._heard(loop)
                return
            self._look_again(found.others)
            self._minds = max(self._minds, found.rows[-1].seq)
            if self._instead is not None:
                # It was left to that one meanwhile.
                self._instead._hold(True)
            # Nobody may get the turn in between: a pop would not see what reads show from now on.
            if not self._turns.when_idle(lambda: take_in(found, idle=True)):
                take_in(found, idle=False)

        with self._lock:
            self._unheard[loop] += 1
        try:
            await self._run(accept, apply, locked=False)
        except Exception as error:
            with self._lock:
                self._heard(loop)
            # The items may be recorded: the next use reads the log anew.
            self._reopened |= isinstance(error, AppendOutcomeUnknown)
            raise

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        self._unheard[loop] -= 1
        if self._unheard[loop] <= 0:
            del self._unheard[loop]

    @property
    def next_batch(self) -> tuple[int, tuple[CallStarted, ...]]:
        """How many items would be sent next, and the calls that they are from, as far as known."""
        with self._lock:
            queue = self._ledger.queue
            if not queue:
                return 0, ()
            through = queue.through()
            items = sum(entry.seq <= through for entry in queue.entries[:MAX_ITEMS])
            return items, self._calls.up_to(queue, through)

    async def withdraw(self, run: Run | None) -> dict[str, Any] | None:
        """Takes the newest item back, if it certainly was not sent, and returns it as shown.

        Raises:
            TurnLost: The run that this belongs to is over.
        """
        ledger, epoch = self._ledger, self._known_epoch()
        ticket = None if run is None else run.ticket
        if not ledger.queue:
            return None

        entry: Entry | None = None

        def withdraw(log: Log) -> Withdrawn:
            newer: tuple[Row, ...] = ()
            while True:
                seen = newer[-1].seq if newer else ledger.queue.seen
                found = log.withdraw(self.address, epoch, seen, ticket)
                if found.newer is None:
                    return Withdrawn(found.row, newer)
                # If a newer row cannot be read, this raises, and nothing is taken back.
                newer += self._contents.rows(found.newer)

        def apply(found: Withdrawn) -> None:
            nonlocal entry
            self._look_again(found.newer)
            ledger.caught_up(found.newer or ())
            if found.row is not None:
                entry = ledger.withdrawn(found.row.seq)

        row = (await self._run(withdraw, apply)).row
        if row is None:
            return None
        # The entry as this process knows it: if the cipher failed now, the item would be lost. Only
        # a row that another process has moved here from a local name has to be decrypted.
        entry = entry or Entry(row.seq, self._contents.get(row.data), row.accepted_at)
        return copies([entry.held])[0]

    def release(self, log: Log) -> None:
        """Lets other processes send. In a transaction."""
        log.release(self.address)

    async def drop(self, run: Run | None, *, sealed: bool) -> int:
        """Takes back what was not sent; with `sealed` all, and what it was paused for.

        Raises:
            TurnLost: The run that this belongs to is over.
            Reopened: With `sealed`: others have had it since. All is read anew.
        """
        ledger, epoch = self._ledger, self._known_epoch()
        ticket, landed = None if run is None else run.ticket, ledger.queue.landed

        seqs = await self._run(
            lambda log: log.drop(self.address, epoch, sealed=sealed, landed=landed, ticket=ticket),
            lambda seqs: ledger.dropped(seqs, sealed=sealed),
        )
        if sealed:
            # The person who has decided so need not be told that it goes on.
            self.outbox.told.over(self.address, Trouble.PAUSED)
        return len(seqs)

    async def forget(self) -> None:
        """Forgets what is kept of a conversation that is gone."""
        epoch = self._known_epoch()
        await self._run(
            lambda log: log.forget(self.address, epoch),
            lambda _: self._keeping.dropped(Written(None)),
        )

    # Sending. In the turn.

    async def name(self, conversation_id: str) -> str:
        """Gives the conversation its id that had only a local name; returns the one it has."""
        epoch = self._known_epoch()

        def apply(address: Address) -> None:
            self.address = address

        address = await self._run(lambda log: log.name(self.address, epoch, conversation_id), apply)
        return address.conversation

    async def seal(self, operation: Operation) -> None:
        """Seals the next batch, which may be sent from now on.

        Where somebody else has had the conversation, all of it is read instead.

        Raises:
            Elsewhere: Another process sends what waits.
        """
        ledger, epoch = self._ledger, self._known_epoch()
        history, watch = ledger.known, ledger.watch
        assert history is not None  # listed before anything is sealed
        with self._lock:
            through = ledger.queue.through()
        now, landed, expires = operation.now(), ledger.queue.landed, operation.expiry()
        doubt = watch.dump(history.items, complete=history.complete, now=now, sending=True)
        kept, written = self._kept()

        def apply(sealed: Sealed | Found | None) -> None:
            if isinstance(sealed, Found):
                self._apply(sealed, first=False, now=now, expires=expires)
            elif sealed is not None:
                self._hold(True)
                self._put_down = landed
                ledger.sealed(sealed.rows, through, self._readable(sealed.newer) or ())
                self._epoch = sealed.epoch
                written(sealed.written)

        def seal(log: Log) -> Sealed | Found | None:
            sealed = log.seal(
                self.address,
                epoch,
                ledger.queue.seen,
                through=through,
                landed=landed,
                doubt=self._contents.put(doubt),
                kept=kept,
            )
            return self._contents.found(sealed) if isinstance(sealed, Found) else sealed

        sealed = await self._run_or_free(seal, apply)
        if sealed is None:
            raise Elsewhere
        if isinstance(sealed, Found):
            self._named(operation)
            ledger.as_of(operation.now())
            self._tell_of_pause()

    async def note(
        self,
        *,
        release: bool = False,
        listed: bool = False,
        changes: bool = False,
        removing: str | None = None,
    ) -> None:
        """Puts down what has landed, and what is in doubt.

        What a process that takes over does not know to have landed, it may take for a late copy.

        Args:
            release: Whether to let other processes send.
            listed: See `Kept`.
            changes: Whether something was removed from the server: nothing is kept any more.
            removing: What is deleted next, as in `Unsettled.dump`: nothing is kept meanwhile.
        """
        if self._instead is not None:
            return
        ledger, epoch = self._ledger, self._known_epoch()
        if ledger.local and not (self.held or self.left()):
            # Another copy of this process may hold it by the conversation's id: it stays claimed.
            release = False
        history, watch, batch = ledger.known, ledger.watch, ledger.recorded.items
        landed = ledger.queue.landed
        kept, written = self._kept(listed=listed)
        if changes or removing is not None:
            kept, written = Kept(None), self._keeping.dropped
        items, complete = ([], False) if history is None else (history.items, history.complete)
        doubt: bytes | None = None
        if watch.active or removing is not None or (batch and history is not None):
            doubt = watch.dump(
                items,
                complete=complete,
                now=Operation.now(),
                sending=False,
                removing=removing,
            )

        def apply(noted: Noted) -> None:
            written(noted.written)
            self._put_down = landed
            if release:
                self._hold(False)
            newer = self._readable(noted.newer) or ()
            self._look_again(newer)
            ledger.noted(newer, unsent=noted.doubt and bool(batch))
            if noted.left is not None:
                ledger.left_as_of(noted.left)
            if noted.epoch is not None:
                self._epoch = noted.epoch

        await self._run(
            lambda log: log.note(
                self.address,
                epoch,
                ledger.queue.seen,
                landed=landed,
                doubt=None if doubt is None else self._contents.put(doubt),
                # What may have been forgotten is in doubt until the server is asked.
                undoubted=not batch and not ledger.doubtful,
                kept=kept,
                release=release,
            ),
            apply,
        )

    async def keep(self, *, listed: bool = False) -> None:
        """Keeps what is known for the next process, if it has changed; `listed`: see `Kept`."""
        if self._keeping.behind(self._shown()):
            # By a `note`, which removes the rows that have landed, too: otherwise the next process
            # would show them twice, as kept and as waiting.
            await self.note(listed=listed)

    async def pause(self, reason: str, error: Exception) -> None:
        """Notes that nothing is sent until somebody decides.

        Raises:
            Reopened: Others may have sent it by now, or taken it back. All is read anew.
        """
        if not self.left():
            self._reopened = True
            raise Reopened("the outbox was not asked in time; nothing was recorded by this call")
        # First in this process: nothing is sent also where the pause cannot be recorded.
        epoch = self._known_epoch()
        self._ledger.pause(reason, error)
        self._tell_of_pause()
        await self._run(lambda log: log.pause(self.address, epoch, reason), _nothing)

    def check_not_paused(self) -> None:
        """Raises `OutboxPaused` if nothing is sent any more."""
        ledger = self._ledger
        if ledger.paused is not None:
            raise OutboxPaused(
                self.why_paused,
                conversation_id=ledger.conversation_id,
                waiting=len(ledger.queue),
            ) from ledger.refusal

    @property
    def why_paused(self) -> str:
        """What is so while it is paused, and what somebody can do."""
        ledger = self._ledger
        return (
            f"{ledger.conversation_id}: {_why(ledger.paused or '')} ({ledger.paused}); "
            f"{counted(len(ledger.queue))} kept in the outbox and not sent. {self.outbox.advice}"
        )

    @property
    def recorded(self) -> str:
        """How many items are recorded, in words."""
        waiting = len(self._ledger.queue)
        return f"{counted(waiting)} {verb(waiting, 'is', 'are')} recorded"

    def why_failed(self, error: OutboxError) -> str:
        """What is so after the sender has failed with an error, which says what somebody can do."""
        said = "what waits is not sent"
        # Rows that cannot be decrypted are not in the queue, so they are not counted.
        if not isinstance(error, Unreadable):
            said = f"sending failed, {self.recorded} and not known to be on the server"
        return f"{self._ledger.conversation_id}: {said}. {str(error).rstrip('.')}"

    # How

    async def _run(
        self,
        verb: Callable[[Log], T],
        apply: Callable[[T], None],
        *,
        locked: bool = True,
        reads: bool = False,
    ) -> T:
        """Does a transaction; `apply` changes the ledger when it is committed, with its lock.

        Not `locked`: it takes the lock itself, behind that of the turns. `reads`: nothing is
        written.
        """

        def applied(value: T) -> None:
            if not reads:
                # The version that was read tells nothing any more: another process may undo what
                # this verb has done, and the log would then be as it was when it was read.
                self._version = None
            with self._lock if locked else contextlib.nullcontext():
                apply(value)
            self.changed.fire()

        if self._instead is not None:
            raise Superseded
        do = self.outbox.consult if reads else self.outbox.transact
        try:
            return await do(verb, applied)
        except (Reopened, OutboxUnavailable):
            # Of an engine that went away it is not known whether the verb was done.
            self._reopened = True
            raise

    def _readable(self, rows: tuple[Row, ...]) -> tuple[Row, ...] | None:
        """Rows of others that came with what is recorded already; None: they cannot be read.

        Then all is read anew before anything else is done, and whoever does so hears why.
        """
        try:
            return self._contents.rows(rows)
        except Unreadable:
            self._reopened = True
            return None

    async def _run_or_free(self, verb: Callable[[Log], T], apply: Callable[[T], None]) -> T:
        """Runs what may claim the conversation; if it is unreadable, leaves it to others."""
        try:
            return await self._run(verb, apply)
        except Unreadable:
            await self._run(lambda log: log.release(self.address), lambda _: self._hold(False))
            raise

    def _known_epoch(self) -> Epoch:
        epoch = self._epoch
        assert epoch is not None  # it was read first
        return epoch

    def _hold(self, held: bool) -> None:
        (self.outbox.holdings.add if held else self.outbox.holdings.discard)(self)

    def join(self, other: Record) -> None:
        """Leaves all to another record of the conversation here, whose sender hears of it."""
        self._instead = other
        if self.held or self._ledger.queue:
            other._hold(True)
        # A run that goes on with the other copy has to see what the run before it did there.
        other.turn_has_come()
        self._hold(False)

    def _shown(self) -> History | None:
        # Not while late copies stand in it: if this process ends before it has removed them, others
        # would show some that are gone, and others that are still there.
        return None if self._ledger.watch.extra else self._ledger.known

    def _kept(
        self, *, listed: bool = False
    ) -> tuple[Kept | None, Callable[[Written | None], None]]:
        ledger = self._ledger
        kept, stored = self._keeping.kept(
            self._shown(), (ledger.queue.landed, ledger.removed), listed=listed
        )

        def told(written: Written | None) -> None:
            if written is None and kept is not None and self.held:
                self._keeping.refused()
            stored(written)

        return kept, told

    def _tell_of_pause(self) -> None:
        """Logs that it is paused, or is no longer, if that is news."""
        ledger, told = self._ledger, self.outbox.told
        if ledger.paused is None:
            if told.over(self.address, Trouble.PAUSED):
                logger.info(
                    "%s: the backlog is not paused any more; it is sent from here on: %s",
                    ledger.conversation_id,
                    counted(len(ledger.queue)),
                )
        elif told.news(self.address, Trouble.PAUSED):
            logger.warning("%s", self.why_paused)

    def _tell_of(self, namesakes: Sequence[Namesake]) -> None:
        """Warns once of what waits under another key: it is not sent from here."""
        if not namesakes or not self.outbox.told.news(self.address, Trouble.ANOTHER_ACCOUNTS):
            return
        for number, address, items in namesakes:
            logger.warning(
                "%s: backlog %d of %r holds %s that another account (%s) accepted. None of that "
                "is known to be on the server; it is not shown here, and not sent under this "
                "account. %s.",
                self._ledger.conversation_id,
                number,
                self.outbox,
                counted(items),
                whose(address),
                self.outbox.how_to_move(number),
            )


class Calls:
    """From which calls of this process what waits is. For those who want to know what led to what.

    Its methods are called with the ledger's lock.
    """

    def __init__(self) -> None:
        # Each with the first and the last place of what it has appended, in order.
        self._calls: deque[tuple[int, int, CallStarted]] = deque()

    def accepted(self, queue: Queue, rows: Sequence[Row], call: CallStarted) -> None:
        """Notes what a call has accepted, which stands at the end of the queue by now."""
        first = rows[0].seq
        newest = next((one.seq for one in reversed(queue.entries) if one.seq < first), 0)
        # The items of these calls were withdrawn.
        while self._calls and self._calls[-1][0] > newest:
            self._calls.pop()
        self._calls.append((first, rows[-1].seq, call))
        self._forget_before(queue)

    def up_to(self, queue: Queue, through: int) -> tuple[CallStarted, ...]:
        """The calls of which something waits up to a place, oldest first."""
        self._forget_before(queue)
        return tuple(call for first, _, call in self._calls if first <= through)

    def _forget_before(self, queue: Queue) -> None:
        while self._calls and (not queue or self._calls[0][1] < queue.entries[0].seq):
            self._calls.popleft()


class Keeping:
    """What of a conversation the log keeps for the next process."""

    def __init__(self, *, wanted: bool, stored: Callable[[Held], StoredItem]) -> None:
        """`wanted` says whether the log keeps anything at all; `stored`, how: see `Kept`."""
        self._wanted = wanted
        self._stored = stored
        # The history that is kept, its revision, its length, and how much of it is verified.
        # Weakly: what the cache drops must not stay in memory for this.
        self._state: tuple[weakref.ref[History], int, int, int] | None = None
        # The place and the id of the newest item that is kept. Where the log has another place or
        # id, another process has written the window.
        self._newest: tuple[int, str] | None = None
        # When the window was written: up to which place items had landed, and how many items had
        # been removed from the server.
        self._known = (0, 0)
        # Whether another process has kept items that are not known here. Until this one has listed
        # the conversation, too, it keeps nothing.
        self._refused = False

    def dropped(self, written: Written | None) -> None:
        """Notes that nothing is kept, if that is so."""
        if written is not None:
            self._state, self._newest = None, None

    def refused(self) -> None:
        """Notes that the log keeps what another process has listed, and not what is known here."""
        self._refused = True

    def count_anew(self) -> None:
        """Notes that what lands is counted from the beginning again, by a new queue."""
        self._known = (0, self._known[1])

    def behind(self, history: History | None) -> bool:
        """Whether the log does not keep what is known."""
        return self._wanted and history is not None and _state(history) != self._state

    def kept(
        self, history: History | None, known: tuple[int, int], *, listed: bool
    ) -> tuple[Kept | None, Callable[[Written | None], None]]:
        """What is to be kept, and what to call when that is committed.

        Only what was appended is written, where that is all that has changed. Where it is not
        known what stands on the server now, what is kept goes: it lacks what has landed since, or
        holds what was removed, and no check looks so far back.
        """
        if self._refused and not listed:
            history = None
        if history is None:
            if not self._wanted or known == self._known:
                return None, _nothing

            def dropped(written: Written | None) -> None:
                if written is not None:
                    self._state, self._newest, self._known = None, None, known

            return Kept(None), dropped
        if not self.behind(history):
            return None, _nothing
        before, state = self._state, _state(history)
        kept = Kept(
            history.items[:],
            history.complete,
            len(history) - history.verified,
            before[2] if before is not None and before[:2] == state[:2] else None,
            self._newest,
            listed,
            self._stored,
        )

        def stored(written: Written | None) -> None:
            if written is not None:
                self._state, self._newest, self._known = state, written.newest, known
                self._refused = False

        return kept, stored

    def has(self, history: History) -> bool:
        """Whether the log keeps all of a history, as far as it was read or written here."""
        return _state(history) == self._state

    def differs(self, newest: tuple[int, str] | None) -> bool:
        """Whether somebody else has written what is kept, by the newest item of it."""
        return newest != self._newest

    def newest(self, history: History | None) -> tuple[int, str] | None:
        """The newest item that is kept, if all of a history is."""
        return self._newest if history is not None and self.has(history) else None

    def read(self, found: Found, known: History | None, *, removed: int) -> History:
        """The history that the log keeps; what is known goes on with what was added to it."""
        stored = found.window
        assert stored is not None  # there is one
        self._newest, self._known, self._refused = found.newest, (0, removed), False
        items = [hold(json.loads(item.data)) for item in stored.items]
        complete = stored.complete
        if found.continued:
            assert known is not None  # it goes on from that
            items, complete = [*known.items, *items], known.complete
        history = History(items, complete=complete)
        history.verified = max(0, len(history) - stored.unverified)
        self._state = _state(history)
        return history

    def read_none(self, newest: tuple[int, str] | None) -> None:
        """Notes that the log keeps nothing."""
        self._state, self._newest, self._refused = None, newest, False


def _state(history: History) -> tuple[weakref.ref[History], int, int, int]:
    return weakref.ref(history), history.revision, len(history), history.verified


def _has_all(kept: History, known: History) -> bool:
    """Whether all that is known is kept, as far back as that goes."""
    ids = {item.id for item in kept.items}
    items = known.items
    if kept.items and not kept.complete:
        # What stands before the kept part is not compared: it is as it was.
        first = kept.items[0].id
        places = [place for place, item in enumerate(items) if item.id == first]
        items = items[places[0] :] if places else items
    return all(item.id in ids for item in items)


def _nothing(_: object) -> None:
    """Nothing is to be done when it is committed."""


def _why(reason: str) -> str:
    """What a pause is about, by the reason that is recorded."""
    if reason.startswith(AppendOutcomeUnknown.__name__):
        why = "whether a recorded batch is on the server cannot be found out"
        if reason.endswith("other texts"):
            why += (
                ": items of the same types and roles with other texts stand where it would, which "
                "are that batch, rewritten by the server, or another writer's"
            )
        return why
    if ", status " in reason:
        return "the server refused a recorded batch"
    return "a recorded batch could not be sent"


def address_of(owner: Account, conversation: str) -> Address:
    """Under which name an outbox has a conversation of an account.

    A base URL may carry a password, or a key in its query. What an outbox
    records holds neither; they go into the digest.
    """
    base_url = _plain(owner.base_url)
    credentials = owner.credentials if owner.fixed else ""
    if credentials and base_url != owner.base_url:
        told = f"{credentials} {owner.base_url}".encode()
        credentials = hashlib.blake2b(told, digest_size=16).hexdigest()
    return Address(
        base_url, owner.organization or "", owner.project or "", credentials, conversation
    )


def owner_of(outbox: Outbox, client: Account) -> Account:
    """Whose a client's conversations are: the account that the outbox names, or the client's own.

    A base URL's password and query may change with the key.
    """
    if outbox.account is None:
        return client
    return client._replace(
        base_url=_plain(client.base_url), credentials=NAMED + outbox.account, fixed=True
    )


def _plain(base_url: str) -> str:
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def speaks_for(client: Account, outbox: Outbox, address: Address) -> bool:
    """Whether a client may send what an outbox has under an address."""
    return address_of(owner_of(outbox, client), address.conversation) == address
