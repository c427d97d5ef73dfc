"""What one conversation holds, what is accepted for it, and what is to be done next.

Everything that is known of one conversation is here, and nobody else writes it.
Nothing here waits. The driver asks `next` what is to be done for the recorded
batch, does that (a request, a transaction), and reports what came of it. An own
batch takes the same way, without the steps of a log. Where a batch stands that
may be on its way is told by a table; an event that the table does not have is
an error, not a wrong state.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol, TypeAlias

from cached_session.core.history import History
from cached_session.core.items import Held, Outgoing, copies
from cached_session.core.matching import Rewriting
from cached_session.core.queue import Entry, Queue, Row
from cached_session.core.unsettled import ANCHORS, CONVERSATION, Unsettled, Untold

LOCAL = "local-"
"""What the name of a conversation begins with that the server has not created yet.

The service's ids begin with "conv_".
"""


class Promise(Enum):
    """What an append is worth to its caller when it returns."""

    DELIVERED = auto()
    """The server has it."""
    RECORDED = auto()
    """The log has it."""


class Front(Enum):
    """Where a batch stands that is the next to be sent."""

    NONE = auto()
    """The log says of no batch that it may be on its way: it is to be sealed, or sealed anew."""
    SEALED = auto()
    """It says so, with what stands before the batch; no request is out."""
    FLYING = auto()
    """A request is out."""
    DOUBT = auto()
    """An answer is missing; a listing decides."""
    STUCK = auto()
    """It was refused for good, or nothing will ever tell what became of it."""


class Event(Enum):
    """What happens to such a batch."""

    SEAL = auto()
    """It was sealed, with what stands before it."""
    SEND = auto()
    """Its request is about to be written."""
    APPLIED = auto()
    """The server has it, and says so."""
    REFUSED = auto()
    """The server has not taken it, for certain."""
    NOTE = auto()
    """The log says now that no request of it is out, but for those that it names."""
    LOST = auto()
    """Nobody will hear an answer: there was none, or the caller's event loop or process ended."""
    DUPLICATE = auto()
    """Its ids stand there already, and an earlier request of it may be why."""
    ALL = auto()
    """A listing shows all of it."""
    REST = auto()
    """A listing shows none of it, or its first items."""
    UNTOLD = auto()
    """A listing cannot tell, and no other one will."""
    FINAL = auto()
    """Repeating does not help; somebody has to decide."""
    WITHDRAW = auto()
    """It is not wanted any more."""


TRANSITIONS: dict[Front, dict[Event, Front]] = {
    Front.NONE: {
        Event.SEAL: Front.SEALED,
        Event.NOTE: Front.NONE,
        Event.FINAL: Front.STUCK,
        Event.WITHDRAW: Front.NONE,
    },
    Front.SEALED: {
        Event.SEND: Front.FLYING,
        Event.NOTE: Front.NONE,
        Event.FINAL: Front.STUCK,
        Event.WITHDRAW: Front.NONE,
    },
    Front.FLYING: {
        Event.APPLIED: Front.NONE,
        Event.REFUSED: Front.SEALED,
        Event.LOST: Front.DOUBT,
        Event.DUPLICATE: Front.DOUBT,
    },
    Front.DOUBT: {
        Event.ALL: Front.NONE,
        # The rest is sealed anew before it is sent: a process that takes over reads from the seal
        # what may be on its way.
        Event.REST: Front.NONE,
        Event.UNTOLD: Front.STUCK,
        Event.NOTE: Front.DOUBT,
        Event.FINAL: Front.STUCK,
        Event.WITHDRAW: Front.NONE,
    },
    Front.STUCK: {
        # A listing for a read changes nothing here: a person has to decide about a stuck batch.
        Event.ALL: Front.STUCK,
        Event.REST: Front.STUCK,
        Event.UNTOLD: Front.STUCK,
        Event.NOTE: Front.STUCK,
        Event.FINAL: Front.STUCK,
        Event.WITHDRAW: Front.NONE,
    },
}
"""Which state follows. A process that takes over reads where the batch of another one stands: in
doubt, if it may have been sent. So it is after somebody's decision about one that is stuck."""


class ImpossibleEvent(AssertionError):
    """An event that cannot happen in this state: an error of this package."""


class Batch:
    """A batch that is the next to be sent, of one promise.

    Attributes:
        promise: What is promised of it.
        front: Where it stands.
        items: What is not known to have landed of it.
    """

    def __init__(self, promise: Promise) -> None:
        self.promise = promise
        self.front: Front = Front.NONE
        self.items: tuple[Outgoing, ...] = ()
        # Whether an earlier request of these items may still be alive, and whether a sign that one
        # of them came through was followed already.
        self.resent = False
        self.reopened = False

    def fire(self, event: Event) -> None:
        """Goes on to the state that follows.

        Raises:
            ImpossibleEvent: The table has none.
        """
        try:
            self.front = TRANSITIONS[self.front][event]
        except KeyError:
            raise ImpossibleEvent(f"{event.name} of a batch that is {self.front.name}") from None


class Moment(Protocol):
    """When the server was asked for something."""

    def told(self, now: float) -> float:
        """When it was at the latest that is certain, on the clock of a loop where it is `now`."""


class Trust(NamedTuple):
    """For how long what is known is trusted without asking the server.

    Attributes:
        listing: The number of the first listing that counts as a check: one that was begun before
            a read says nothing about it.
        since: When the last check must have been asked for, on the running loop's clock; -inf: at
            any time.
        now: What it is now, on that clock; of no matter where `since` is -inf.
    """

    listing: int
    since: float = -math.inf
    now: float = 0.0


ANY = Trust(0)
"""Whatever is known."""


# What the driver is to do next.


@dataclass(frozen=True, slots=True)
class Create:
    """Make the conversation, which has only a local name."""


@dataclass(frozen=True, slots=True)
class List:
    """List the newest items.

    Attributes:
        limit: At least so many.
        anew: Whether they take the place of all that is known.
    """

    limit: int
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the late copies: under ids of their own they would stand in a batch's way."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Have the log say that the next batch may be sent, and what stands before it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the batch.

    Attributes:
        items: Its items.
    """

    items: tuple[Outgoing, ...]


Step: TypeAlias = Create | List | Delete | Seal | Send

# In the place of a listing's number: what is known is to be confirmed, or to be listed anew; or to
# be confirmed before anything is sent, as the log may have forgotten what was noted last.
_UNCONFIRMED, _REFRESHED, _DOUBTFUL = -1, -2, -3

# What a request that is out does, where it sends no batch: it deletes an item, or the conversation.
_Removal: TypeAlias = str


class Ledger:
    """One conversation, as it is known here.

    Attributes:
        conversation_id: Its id, or its local name.
        known: The newest items on the server, or None.
        watch: Requests without an answer that may still be applied.
        queue: What the log has accepted and the server is not known to have.
        recorded: The front batch of the queue.
        own: The batch of the append that has the turn, where it promises delivery.
        listings: How many listings were begun, numbered from 1.
        removed: How many items were removed from the server by this process.
        delivered: How many items of the queue were put on the server, or found there.
        paused: Why nothing of the queue is sent any more, or None.
        refusal: The error that this came from, if it was met here.
        left: Where the log stood when it was let go of here; what is known holds while it still
            stands there. None: it was not.
    """

    def __init__(self, conversation_id: str, lock: AbstractContextManager[Any]) -> None:
        """Begins with nothing.

        Args:
            conversation_id: The conversation.
            lock: Guards the queue, which commits change in another thread.
        """
        self.conversation_id: str = conversation_id
        self.known: History | None = None
        self.watch: Unsettled = Unsettled()
        self.queue: Queue = Queue()
        self.recorded: Batch = Batch(Promise.RECORDED)
        self.own: Batch = Batch(Promise.DELIVERED)
        self.listings: int = 0
        self.removed: int = 0
        self.delivered: int = 0
        self.paused: str | None = None
        self.refusal: Exception | None = None
        self.left: object = None
        self._lock = lock
        # The number of the last listing that confirmed what is known, and when it was asked for.
        self._checked = 0
        self._checked_at: Moment | None = None
        self._flying: Batch | _Removal | None = None
        self._loaded_at = 0.0

    @property
    def local(self) -> bool:
        """Whether the server has not made the conversation yet."""
        return self.conversation_id.startswith(LOCAL)

    @property
    def size(self) -> int:
        """Bytes of memory that the held items take."""
        known = 0 if self.known is None else self.known.size
        # Most of it is the same items: those known, and those shown before what waits.
        return max(self.queue.shown_size, known)

    @property
    def waits(self) -> bool:
        """Whether something is in the queue that would be sent."""
        return bool(self.queue) and self.paused is None

    def rename(self, conversation_id: str) -> None:
        """Notes the id of a conversation that had only a local name."""
        self.conversation_id = conversation_id

    # What next

    def next(self, batch: Batch, *, anchored: bool) -> Step | None:
        """What is to be done next for a batch; None: there is nothing to do, or nobody can do it.

        Args:
            batch: `own` or `recorded`.
            anchored: Whether what it stands behind was listed just now.
        """
        known, queue = self.known, self.queue
        if batch.front is Front.STUCK:
            return None
        if batch is self.recorded:
            if not queue:
                return None
            if self.local:
                return Create()
        elif not batch.items:
            return None
        if batch.front is Front.DOUBT:
            return List(1)
        if self.watch.extra:
            return Delete()
        if known is None:
            return List(ANCHORS)
        if self.doubtful:
            # Otherwise what is known, without what it may lack, would be kept for others.
            return List(1)
        if batch is self.recorded and batch.front is Front.NONE and not anchored:
            # More than one item that the batch stands behind: other writers may remove the newest
            # ones before an answer is looked for.
            if len(known) == 1 and not known.complete:
                return List(ANCHORS, anew=True)
            if self.watch.crowded:
                return List(ANCHORS)
        return Seal() if batch.front is Front.NONE else Send(batch.items)

    # Reading

    def checked(self, trust: Trust) -> bool:
        """Whether a listing that counts has confirmed what is known."""
        if self._checked < trust.listing:
            return False
        at = self._checked_at
        return trust.since == -math.inf or (at is not None and at.told(trust.now) >= trust.since)

    def age(self, now: float) -> float:
        """Seconds since a listing was asked for that confirmed what is known; inf: none was."""
        return math.inf if self._checked_at is None else now - self._checked_at.told(now)

    def view(self, limit: int | None, trust: Trust, *, idle: bool) -> list[dict[str, Any]] | None:
        """Answers a read of the newest `limit` items (None: all) from here.

        Args:
            limit: How many.
            trust: For how long what is known is trusted.
            idle: Whether nobody works on the conversation: or what the server has may be changing.

        Returns:
            The caller's own copy, oldest first; None: the server has to be asked first.
        """
        if self.local:
            with self._lock:
                # Nobody else can know the conversation: the server holds nothing of it.
                return self.queue.tail(limit)
        if not self.checked(trust):
            return None
        if self.queue:
            with self._lock:
                return self.queue.view(limit)
        known = self.known
        if known is None or self.watch.active or not idle or not known.covers(limit):
            return None
        return copies(known.tail(limit))

    @property
    def confirmed(self) -> bool:
        """Whether what is known goes on from what a listing, or a log that vouches, has shown."""
        return self._checked >= 0

    @property
    def refreshed(self) -> bool:
        """Whether the server is to be asked for all of it, whatever the log keeps."""
        return self._checked == _REFRESHED

    @property
    def doubtful(self) -> bool:
        """Whether the log may have forgotten what was noted last, and the server was not asked."""
        return self._checked == _DOUBTFUL

    @property
    def evicted(self) -> bool:
        """Whether nothing is known of the server, and nothing is in doubt: the cache dropped it."""
        unknown = self.known is None and not self.queue
        return unknown and self.confirmed and not self.watch.active

    # What is known of the server. In the turn.

    def begin_empty(self, at: Moment) -> None:
        """Notes that the conversation was just made: it is known to be empty."""
        self.known = History(complete=True)
        self._checked_at = at

    def forget(self) -> None:
        """Drops what is known of the server; the next read asks."""
        self.known = None

    def forget_all(self) -> None:
        """Drops what is shown before what waits, too."""
        self.known = None
        self.show_nothing()

    def refresh(self) -> None:
        """Drops it, and has the server asked, whoever vouches for what."""
        self.forget_all()
        self._checked = _REFRESHED

    def replace(self, known: History) -> None:
        """Takes what the log keeps in the place of what is known: a reader has listed it since."""
        self.known = known

    def show_nothing(self) -> None:
        """Drops what is shown before what waits."""
        with self._lock:
            self.queue.show_behind(None)

    def show(self) -> None:
        """Shows what is known before what waits: it was listed since all of that was accepted."""
        with self._lock:
            self.queue.show_behind(self.known)

    def extend_back(self, older: Sequence[Held], *, complete: bool) -> None:
        """Takes in a listing's items that stand before those that are known."""
        assert self.known is not None  # they were listed behind something
        self.known.extend_back(older, complete=complete)

    def begin_listing(self) -> int:
        """Notes that a listing is asked for, and returns its number."""
        self.listings += 1
        return self.listings

    def listed(
        self,
        items: list[Held],
        *,
        found: int | None,
        positions: dict[str, int],
        reached_start: bool,
        number: int,
        at: Moment,
        asked_at: float,
        rewriting: Rewriting,
    ) -> int | Untold | None:
        """Takes in a listing of the newest items, and has it decide what is in doubt.

        Args:
            items: Oldest first.
            found: Where in `items` the newest one stands that is in `positions`, or None.
            positions: Where what is known has the ids that were looked for.
            reached_start: Whether they reach the conversation's beginning.
            number: The listing's.
            at: When it was asked for.
            asked_at: The same, on the running loop's clock.
            rewriting: How the server is known to rewrite texts.

        Returns:
            How many items of a batch in doubt have landed; or that this cannot be told, now or
            ever; None: none was in doubt.
        """
        self._take(items, found, positions, reached_start=reached_start)
        self._checked, self._checked_at = number, at
        if not self.watch.active:
            return None
        undecided = self.watch.undecided
        landed = self.watch.settle(
            items, reached_start=reached_start, listed_at=asked_at, rewriting=rewriting
        )
        if not undecided:
            return None
        batch = self._in_doubt()
        if batch is None:
            # Nobody waits for the outcome of the append in doubt: it was torn with its event loop,
            # or its caller has heard that it is not known. The listing shows what has landed.
            if isinstance(landed, Untold):
                self.watch.suspect(landed)
            return None
        if isinstance(landed, Untold):
            self.known = None
            self.show_nothing()
            batch.fire(Event.UNTOLD)
            return landed
        batch.fire(Event.ALL if landed == len(batch.items) else Event.REST)
        self._go_out(batch, landed)
        return landed

    def _in_doubt(self) -> Batch | None:
        doubtful = (Front.DOUBT, Front.STUCK)
        for batch in (self.own, self.recorded):
            if batch.items and batch.front in doubtful:
                return batch
        return None

    def _take(
        self,
        items: list[Held],
        found: int | None,
        positions: dict[str, int],
        *,
        reached_start: bool,
    ) -> None:
        position = None if found is None else positions.get(items[found].id)
        if self.known is None or found is None or position is None or reached_start:
            self.known = History(items, complete=reached_start)
            return
        overlap = min(found, position)
        held = self.known.items[position - overlap : position]
        if [item.id for item in held] == [item.id for item in items[found - overlap : found]]:
            self.known.replace_after(position, items[found + 1 :])
        else:
            # Another writer removed something further back. How far back its
            # changes go is not known: keep only what was just listed.
            self.known = History(items, complete=reached_start)

    def gone(self) -> None:
        """Notes that the conversation is not to be found: no listing will tell what landed."""
        self.known = None
        self.watch.decided_lost()
        if self.recorded.front is Front.DOUBT:
            # What of the batch had landed was deleted with the conversation: it may be sent again.
            self.recorded.fire(Event.REST)

    def removed_newest(self) -> None:
        """Notes that the newest item was removed from the server."""
        known = self.known
        assert known is not None  # it was looked at
        last = known.items[-1]
        known.drop_last()
        self.watch.removed(last.id)
        self.removed += 1
        # The service may list an item twice; then nothing here says whether one
        # of them or both went.
        if any(item.id == last.id for item in known.items) or not (len(known) or known.complete):
            self.known = None

    def removed_copy(self, item_id: str) -> None:
        """Notes that a late copy was removed from the server."""
        self.watch.removed(item_id)
        self.removed += 1
        if self.known is not None:
            self.known.remove(item_id)

    # Requests that change something, each from `sending` or `removing` to one of the others

    def take_own(self, items: tuple[Outgoing, ...]) -> None:
        """Takes in a batch of an append that promises delivery, and has the turn."""
        self.own = Batch(Promise.DELIVERED)
        self.own.items = items

    def withdraw_own(self) -> None:
        """Takes back what is left of it: its caller is told that it is not there."""
        self.own = Batch(Promise.DELIVERED)

    def sealed_own(self) -> None:
        """Notes that such a batch may be sent. What stands before it is known; no log has it."""
        self.own.fire(Event.SEAL)

    def begin_recorded(self) -> None:
        """Notes that a batch that is sealed, and not sent, is to be sealed anew.

        That says whether the log is another process's by now: the event loop may have ended, or
        stood still, between sealing and sending.
        """
        if self.recorded.front is Front.SEALED:
            self.recorded.fire(Event.NOTE)

    def sending(self, batch: Batch) -> None:
        """Notes that the request of a batch is about to be written."""
        batch.fire(Event.SEND)
        self._flying = batch

    def removing(self, item_id: str) -> None:
        """Notes that a request to delete an item is about to be written."""
        self._flying = item_id

    def clearing(self) -> None:
        """Notes that a request to delete the conversation is about to be written."""
        self._flying = CONVERSATION

    def answered(self) -> None:
        """Notes that the delete that was out is applied or refused, for certain."""
        self._flying = None

    def applied(self, batch: Batch, held: Sequence[Held], rewriting: Rewriting) -> None:
        """Notes that a batch is on the server, as the answer shows it."""
        assert self.known is not None  # it was listed before anything was sent
        self._flying = None
        batch.fire(Event.APPLIED)
        self.known.append(held)
        self.watch.acknowledged(batch.items, held, rewriting)
        self._go_out(batch, len(held))

    def refused(self, batch: Batch, *, gone: bool) -> None:
        """Notes that a batch is not on the server; `gone` says that the conversation is not."""
        self._flying = None
        batch.fire(Event.REFUSED)
        if gone:
            # Nothing of it may be served again.
            self.known = None

    def duplicate(self, batch: Batch) -> bool:
        """Notes that the ids of a batch stand there already; False: that is no sign of it.

        If an earlier request may have come through after all, a listing tells. If none did, they
        stood there before.
        """
        if not batch.resent or batch.reopened or not self.watch.active:
            return False
        self._flying = None
        batch.reopened = True
        batch.fire(Event.DUPLICATE)
        self.watch.reopen(batch.items)
        return True

    @property
    def flying(self) -> bool:
        """Whether a request that changes something is out."""
        return self._flying is not None

    def lost(self, *, expires: float) -> None:
        """Notes that nobody will say how the request that is out has ended.

        Args:
            expires: Until when it may still be applied, on the running loop's clock. How long a
                server may take to apply a request that its client gave up on is not known. As
                long as a whole operation may take is the bound that this package watches for.
        """
        flying, self._flying = self._flying, None
        if flying is None:
            return
        known = History(complete=False) if self.known is None else self.known
        if isinstance(flying, Batch):
            self.watch.begin(known.items, complete=known.complete)
            self.watch.sent(flying.items, expires=expires)
            flying.resent = True
            flying.fire(Event.LOST)
            return
        left = [item for item in known.items if item.id != flying]
        self.watch.begin(left, complete=known.complete)
        self.watch.removing(flying, expires=expires)
        self.known = None

    def abandon(self, *, expires: float) -> None:
        """Notes that whoever had the turn was lost with the event loop; `expires` as in `lost`."""
        self.lost(expires=expires)
        # The caller was told that the outcome is not known: whoever has the turn next must not
        # send the rest of its append.
        self.withdraw_own()
        self.known = None

    def _go_out(self, batch: Batch, count: int) -> None:
        batch.items = batch.items[count:]
        if batch is self.recorded:
            with self._lock:
                self.queue.land(count)
                self.delivered += count
                self.queue.show_behind(self._shown())

    def _shown(self) -> History | None:
        """What may be shown before what waits; not while late copies are to be removed of it."""
        return None if self.watch.extra else self.known

    # What the log has committed, in the order of the commits. With the lock, in the commit.

    def accepted(self, rows: Sequence[Row], others: Sequence[Row], *, idle: bool) -> None:
        """Takes in what was just recorded.

        Args:
            rows: The new rows.
            others: Rows of other processes that were recorded before them.
            idle: Whether nobody works on the conversation.
        """
        empty = not self.queue
        self.queue.take_in([*others, *rows])
        # Items of another process may have been sent and listed already: shown behind what is
        # known, they would stand there twice.
        if empty and not others and idle and not self.watch.active:
            self.queue.show_behind(self.known)

    def caught_up(
        self, rows: Sequence[Row], there: Collection[int] | None = None, *, alone: bool = False
    ) -> None:
        """Takes in what others have recorded and taken back since; nobody else has sent any of it.

        Args:
            rows: Rows that were accepted since.
            there: The places of all rows that are there; None: nobody has taken any back.
            alone: Whether nobody works on the conversation, or whoever does asks.
        """
        self.queue.take_in(rows)
        if there is not None:
            self.queue.taken_back(frozenset(there))
        known = self._shown()
        if alone and known is not None and not self.queue.sealed and not self.watch.active:
            # Nothing of the queue was sent, so none of it can be among what is known.
            self.queue.show_behind(known)

    def sealed(self, rows: Sequence[Row], through: int, newer: Sequence[Row]) -> None:
        """Notes that the batch up to a place may be sent.

        Args:
            rows: What of it there is; none: it was taken back meanwhile.
            through: The place.
            newer: Rows of other processes.
        """
        self.queue.take_in(newer)
        self.queue.seal([row.seq for row in rows], through)
        batch = self.recorded
        batch.items = self.queue.batch
        if batch.items:
            batch.fire(Event.SEAL)
            # While any earlier request may still be applied, it may be one for these items.
            batch.resent, batch.reopened = self.watch.active, False
        # If the server stays away from here on, reads are answered from what is known now.
        self.queue.show_behind(self._shown())

    def noted(self, newer: Sequence[Row], *, unsent: bool) -> None:
        """Notes that the log is up to date.

        Args:
            newer: Rows of other processes.
            unsent: Whether it says of the front batch that no request is out.
        """
        self.queue.take_in(newer)
        if unsent:
            self.recorded.fire(Event.NOTE)

    def withdrawn(self, seq: int) -> Entry | None:
        """Notes that a row was taken back; returns it, if it is known here."""
        entry = next((one for one in reversed(self.queue.entries) if one.seq == seq), None)
        self.queue.remove(frozenset([seq]))
        return entry

    def dropped(self, seqs: Iterable[int], *, sealed: bool) -> None:
        """Notes that rows were taken back; with `sealed` those of the front batch, too."""
        self.queue.remove(frozenset(seqs))
        if sealed:
            if self.recorded.front is Front.FLYING:
                # Its request is out, and lands or not: no row of the queue belongs to it any more.
                self.recorded = Batch(Promise.RECORDED)
            else:
                self.recorded.fire(Event.WITHDRAW)
                self.recorded.items = ()
            self.paused = self.refusal = None

    def load(
        self,
        rows: Sequence[Row],
        doubt: bytes | None,
        paused: str | None,
        kept: History | None,
        *,
        first: bool,
        mine: bool,
        now: float,
        expires: float,
        vouched: bool = False,
        doubtful: bool = False,
    ) -> None:
        """Takes the log's word for everything: somebody else has had the conversation.

        Args:
            rows: All that waits.
            doubt: What is noted about requests that may still be applied, or None.
            paused: Why nothing is sent, or None.
            kept: What is kept of the conversation, or None.
            first: Whether the log is read for the first time, and says what was known before.
            mine: Whether what is in doubt is this process's to look after.
            now: What it was on the running loop's clock before the log was asked; `as_of` says
                when it was.
            expires: Until when a request may still be applied that is sent now.
            vouched: Whether `kept` goes on from what was confirmed before, or needs no listing.
            doubtful: Whether the log may have forgotten what was noted last. Then all that waits
                was sealed, and a listing decides about it; and nothing is vouched for.
        """
        self.paused = paused
        sealed = [row for row in rows if row.sealed]
        if sealed or not first or vouched or doubtful:
            # Another process has had the conversation since this was known. Some of what is sealed
            # may have landed, and be listed here already. Until a listing decides, what waits is
            # shown behind the history that the log keeps with it.
            self.known = None
        # Not after a `refresh`: a listing that only confirms the kept history would not see what
        # other writers have removed further back.
        if self.known is None and kept is not None and not self.refreshed:
            self.known = kept
            if (not first or self.listings) and not vouched:
                # Earlier listings have confirmed another history: a new one has to confirm this.
                self._checked = _UNCONFIRMED
        if doubtful:
            self._checked = _DOUBTFUL
        elif self.doubtful:
            self._checked = 0 if vouched else _UNCONFIRMED
        if not first or (mine and (doubt is not None or doubtful)):
            # Whoever has sent since looks after what was in doubt here, if anything was.
            self.watch = Unsettled(self.watch)
        self._loaded_at = now
        batch = tuple(row.data for row in sealed)
        if mine and doubt is not None:
            self.watch.restore(doubt, batch, now=now, expires=expires, sent=doubtful)
        elif mine and doubtful and batch:
            # Nothing can stand in a conversation that is not made yet.
            before = History(complete=self.local) if kept is None else kept
            self.watch.begin(before.items, complete=before.complete)
            self.watch.sent(batch, expires=expires)
        self.queue = Queue()
        self.queue.take_in(rows)
        self.queue.seal([row.seq for row in sealed], max((row.seq for row in sealed), default=0))
        self.recorded = Batch(Promise.RECORDED)
        self.recorded.items = self.queue.batch
        self.recorded.resent = self.watch.active
        if self.paused is not None:
            self.recorded.front = Front.STUCK
        elif self.recorded.items and self.watch.undecided:
            # As after a lost answer, unless the log notes that no request of the batch is out.
            self.recorded.front = Front.DOUBT
        self.queue.show_behind(self._shown())

    def as_of(self, now: float) -> None:
        """Notes when it was, at the latest, that the log said what was loaded.

        Requests that it tells of may have been sent, and noted, until then.
        """
        self.watch.postpone(now - self._loaded_at)

    # What is said of the log otherwise

    def part(self) -> None:
        """Forgets what the log holds, which nobody uses here any more."""
        with self._lock:
            self.queue, self.recorded = Queue(), Batch(Promise.RECORDED)
            self.paused = self.refusal = None

    def forget_doubt(self) -> None:
        """Forgets what is in doubt: another process looks after it, or knows better."""
        self.known, self.watch = None, Unsettled(self.watch)

    def pause(self, reason: str, error: Exception | None) -> None:
        """Notes that nothing of the queue is sent until somebody decides."""
        self.paused, self.refusal = reason, error
        self.recorded.fire(Event.FINAL)

    def left_as_of(self, mark: object) -> None:
        """Notes where the log stands when it is let go of."""
        self.left = mark
