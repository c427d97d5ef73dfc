"""What an outbox holds of a conversation while sessions use it: who adds, sends, waits for it.

One backlog a conversation and outbox. It ends when the last session is closed
and nothing of it is sent any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from cached_session.conversation.delivery import behind, look_back
from cached_session.conversation.listing import Asked
from cached_session.conversation.operation import Operation, Order, Superseded
from cached_session.conversation.record import Record
from cached_session.conversation.sender import Sender
from cached_session.conversation.tasks import Errands, Signal
from cached_session.conversation.turns import Turns
from cached_session.core.items import Outgoing
from cached_session.core.ledger import Ledger
from cached_session.core.looking import LOOK_AFTER
from cached_session.core.outcomes import Applied
from cached_session.errors import (
    CachedSessionError,
    DeadlineExceeded,
    Naming,
    OutboxError,
    OutboxFull,
    Reopened,
    counted,
    verb,
)
from cached_session.events import Sending, logger
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address
from cached_session.outbox.shared import Unreadable
from cached_session.outbox.told import Trouble


class User(Protocol):
    """What a backlog needs to know of a session that uses it."""

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that was made beside this one, and is to be used, or None."""

    async def agree(self, made: str, deadline: float) -> str:
        """The conversation to use, now that `made` was made here: that one, or another's."""

    def created(self) -> None:
        """Told that the conversation, which had only a local name, has its own id."""


class Users(weakref.WeakSet[User]):
    """The sessions that use a backlog and are not closed; those that nobody has any more go."""

    def created(self) -> None:
        """Tells all that the conversation has its own id."""
        for user in list(self):
            user.created()

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that a wrapped session has made meanwhile, or None."""
        made = (user.made_elsewhere for user in list(self))
        return next((name for name in made if name is not None), None)

    async def agree(self, made: str, deadline: float) -> str:
        """The id that all agree on, now that `made` was made here.

        Raises:
            DeadlineExceeded: A wrapped session was making one, too, and did not come to an end.
        """
        for user in list(self):
            agreed = await user.agree(made, deadline)
            if agreed != made:
                return agreed
        return made


# Seconds until a process that waits for another one looks again.
_LOOK_AGAIN = 0.02

# At most so many pages of a listing are asked for when a conversation is left.
_PAGES = 10


class Backlog:
    """The part of an outbox in one conversation.

    Attributes:
        order: Who works on the conversation.
        record: What is recorded.
        sender: Who sends it.
        room: Who may add to it.
        users: Who uses it: sessions that are not closed.
    """

    def __init__(
        self,
        outbox: Outbox,
        address: Address,
        order: Order,
        renamed: Callable[[str], Backlog | None],
        parted: Callable[[Backlog], None],
    ) -> None:
        """Makes one; nothing is read yet.

        Args:
            outbox: Where it is recorded.
            address: Under which name.
            order: The conversation's.
            renamed: Called with the conversation's own id when it gets that; returns another
                backlog that it has by that id already.
            parted: Called when nobody uses it any more, with the outbox's lock.
        """
        self.order = order
        self._ledger = order.ledger
        self._renamed = renamed
        self._parted = parted
        self.sender: Sender = Sender(order, self.create)
        self.record: Record = Record(
            outbox,
            address,
            order.ledger,
            order.lock,
            order.turns,
            self._working,
            self._take_name,
            Asked.now,
        )
        self.sender.use(self.record)
        self.sender.then = self.look
        self.room: Room = Room(order.ledger, outbox, self.record.changed)
        self.users: Users = Users()
        # The oldest row of another process that somebody here watches, to send it if nobody does.
        self._eyed = 0
        # What goes on behind sessions that have been closed.
        self._endings = Errands()

    def _working(self) -> bool:
        return self.sender.working

    @property
    def sending(self) -> Sending:
        """What becomes of what waits."""
        # The sender ends a moment after its last item has landed.
        if not self._ledger.queue:
            return Sending.IDLE
        if self.record.only_looks_on:
            return Sending.ELSEWHERE
        return self.sender.state if self._ledger.paused is None else Sending.PAUSED

    @property
    def empty(self) -> bool:
        """Whether nothing waits, and nothing is held for which others wait."""
        return not (self._ledger.queue or self.record.held)

    @property
    def open(self) -> bool:
        """Whether nothing waits that would be sent."""
        return not self._ledger.waits

    # The conversation's name

    async def create(self, operation: Operation) -> None:
        """Makes the conversation, which has only a local name. In the turn."""
        elsewhere = self.users.made_elsewhere
        if elsewhere is not None:
            await self._name(elsewhere, operation, empty=False)
            return
        outcome = await operation.run(operation.remote.create)
        if not isinstance(outcome, Applied):
            raise outcome.error
        made = outcome.value
        agreed = await self.users.agree(made, operation.deadline)
        await self._name(agreed, operation, empty=agreed == made)

    async def _name(self, conversation_id: str, operation: Operation, *, empty: bool) -> None:
        name = await self.record.name(conversation_id)
        if empty and name == conversation_id:
            self._ledger.begin_empty(Asked.now())
        else:
            # Another process has made a conversation for the local name before this one.
            self._ledger.forget()
        self._take_name(operation)
        self.record.changed.fire()

    def _take_name(self, operation: Operation) -> None:
        """Has the conversation known by the name that the log has for it."""
        name = self.record.address.conversation
        other = self._renamed(name)
        operation.conversation_id = name
        self.users.created()
        if other is not None:
            self._join(other, operation)
            # The operation begins anew, on the other copy.
            raise Superseded

    def _join(self, other: Backlog, operation: Operation) -> None:
        """Leaves all to another backlog of the conversation in this process. In the turn.

        Nothing was ever sent from here: until now it had only a local name.
        """
        self.sender.leave_to(other.sender)
        self.record.join(other.record)
        self._ledger.forget_doubt()
        self._ledger.part()
        other.sender.start(operation)

    # What others have recorded

    def mind(self, operation: Operation) -> None:
        """Sends what others have recorded, if nobody has after a moment.

        Args:
            operation: Through whose client.
        """
        entries = self._ledger.queue.entries
        oldest = entries[0].seq if entries else 0
        if oldest > self._eyed:
            self._eyed = oldest
            asyncio.get_running_loop().call_later(LOOK_AFTER, self._mind, oldest, operation)

    def _mind(self, oldest: int, operation: Operation) -> None:
        entries = self._ledger.queue.entries
        if self.users and entries and entries[0].seq == oldest:
            self.sender.start(operation)

    # Waiting for it

    async def let_go(self, *, heard: bool = False) -> None:
        """Lets others send, where nothing waits here that would be sent. In the turn.

        Args:
            heard: Whether what others have recorded need not be heard with the answer.
        """
        if self.open and not (heard and self.record.settled):
            await self.record.note(release=True)

    async def drained(self, operation: Operation) -> None:
        """Waits until nothing waits any more.

        Raises:
            OutboxPaused: It is not sent until somebody decides.
            OutboxError: The sender could not write what it does.
            DeadlineExceeded: It took too long; all is kept.
        """
        await self.check(operation)
        self.sender.start(operation)
        await self.at_rest(operation)
        self.record.check_not_paused()

    async def at_rest(self, operation: Operation, patience: float = math.inf) -> None:
        """Waits until nothing waits any more, or nothing is sent; or for so many seconds."""
        otherwise = "the server did not take all of it in time"
        await self.until(lambda: self.open, operation, otherwise, patience)

    async def until(
        self,
        condition: Callable[[], bool],
        operation: Operation,
        otherwise: str,
        patience: float = math.inf,
    ) -> None:
        """Waits until it has come to something, or for so many seconds.

        Raises:
            OutboxError: The sender could not write what it does.
            DeadlineExceeded: It took too long; says `otherwise`.
        """
        sender = self.sender
        # What waits may have been read just now, and no sender has been started for it.
        look = functools.partial(sender.start, operation)
        look()
        came = await self.record.changed.until(
            lambda: condition() or sender.failure is not None,
            min(operation.deadline, operation.now() + patience),
            look,
        )
        if not came and operation.now() < operation.deadline:
            return
        if not came:
            raise self._too_late(operation, otherwise) from sender.trouble
        failure = sender.failure
        if failure is not None and not condition():
            raise OutboxError(
                self.record.why_failed(failure), conversation_id=operation.conversation_id
            ) from failure

    async def held_elsewhere(self, operation: Operation) -> None:
        """Waits a little for another process that holds on to what is paused."""
        if operation.now() >= operation.deadline:
            raise self._too_late(operation, "another process holds on to it")
        await asyncio.sleep(LOOK_AFTER / 4)
        if (await self.record.look()).paused is None:
            await self.read_anew(operation)
            self.sender.start(operation)

    async def released(self, operation: Operation) -> None:
        """Waits for another process that works on the conversation.

        Raises:
            DeadlineExceeded: It took too long.
        """
        # Nothing tells what another process does with a file.
        while (await self.record.look()).elsewhere:
            if operation.now() >= operation.deadline:
                why = "another process works on it; nothing was removed from the server"
                raise self._too_late(operation, why)
            await asyncio.sleep(_LOOK_AGAIN)

    async def check(self, operation: Operation) -> None:
        """Raises `OutboxPaused` if nothing is sent any more, and nobody has decided since."""
        if self._ledger.paused is not None and (await self.record.look()).paused is None:
            await self.read_anew(operation.renewed(self._ledger.conversation_id))
            self.sender.start(operation)
        self.record.check_not_paused()

    async def read_anew(self, operation: Operation) -> None:
        """Reads what is recorded: somebody has decided about it."""
        async with self.order.turn(operation):
            await self.record.read(operation, anew=True)

    def _too_late(self, operation: Operation, why: str) -> DeadlineExceeded:
        trouble = self.sender.trouble
        met = "" if trouble is None else f", {type(trouble).__name__}"
        return DeadlineExceeded(
            f"{operation.conversation_id}: {why}. {self.record.recorded} "
            f"in the outbox and not known to be on the server (sending: {self.sender.state}{met})",
            conversation_id=operation.conversation_id,
        )

    # What nobody sends

    async def adopt(self, operation: Operation) -> None:
        """Sends what waits if nobody does, here or elsewhere, whoever has recorded it.

        Returns when that has come to an end, or when somebody uses the conversation here.

        Args:
            operation: Through whose client; without a caller.
        """
        sender, ledger, record = self.sender, self._ledger, self.record
        if sender.busy or self.room.given or not record.abandoned:
            return
        try:
            await record.open(operation, self.order.turn)
            async with self.order.turn(operation):
                # Even if nothing is known to wait: another process may have recorded it.
                alone = await record.alone(operation, doubt=True)
        except CachedSessionError as error:
            # The backlog stays as it is, and the next look tries again.
            account = record.address._replace(conversation="")
            unread = isinstance(error, Unreadable)
            # Once for the account: it may be so of each of its backlogs.
            news = unread and record.outbox.told.news(account, Trouble.UNREADABLE)
            level = logging.WARNING if news else logging.DEBUG
            logger.log(level, "%s: not adopted: %s", operation.conversation_id, error)
            alone = False
        except Superseded:
            return  # it is known by its own id here, and looked after by that
        if alone and ledger.waits and not sender.working:
            logger.info(
                "%s: nobody was left to send %s that %s in the outbox; sent from here on",
                ledger.conversation_id,
                counted(len(ledger.queue)),
                verb(len(ledger.queue), "waits", "wait"),
            )
        if alone or self.users:
            # Through the client of a session that uses it here, so that its observers are told.
            sender.start(sender.operation or operation)
        if sender.busy:
            await record.changed.until(
                lambda: bool(self.users) or not (sender.busy or sender.settling),
                math.inf,
                _no_look,
            )
        else:
            await self.look(operation)

    # Its end: what waits is sent first, whoever has left, and then all is let go of

    async def leave(self, through: Operation) -> None:
        """Notes that a session is closed. Waits for the file, and not for the server.

        Args:
            through: Whose client sends what the session has left.

        Raises:
            OutboxError: It could not be recorded that nothing is held here.
        """
        looks_on = self.record.only_looks_on
        if not looks_on:
            self.sender.start(through)
        if self.users or (self._ledger.waits and not looks_on):
            return  # who sends what waits looks again at its end
        await self.sender.stop()
        operation = through.renewed(self._ledger.conversation_id)
        idle = self.order.turns.idle and not self.room.given
        if idle and not behind(self._ledger, self.record, operation, _PAGES):
            await self._end(operation)
        else:
            self._endings.begin(self._end(operation), self.record.changed.fire)

    async def look(self, operation: Operation) -> None:
        """Lets go of all, if nobody uses it. What is recorded stays, whatever goes wrong."""
        if not self.users and not self.sender.working:
            with contextlib.suppress(CachedSessionError):
                await self._end(operation.renewed(self._ledger.conversation_id))

    async def _end(self, operation: Operation) -> None:
        outbox = self.record.outbox
        try:
            # A cancelled call may still be recording; then a sender is at work when this returns.
            await self.room.at_rest(math.inf)
            async with self.order.turn(operation):
                if self.users or self.sender.working:
                    return  # somebody has come meanwhile
                # So that the next process need not look far back.
                await look_back(self._ledger, self.record, operation, pages=_PAGES)
                # `Reopened`: the outbox was closed meanwhile, which has released all claims.
                with Naming(operation.conversation_id), contextlib.suppress(Reopened):
                    await self._release()
                # Unless a session has come just now: it would make a second backlog, and both would
                # send.
                with outbox.lock:
                    if not self.users:
                        for name in [name for name, one in outbox.backlogs.items() if one is self]:
                            del outbox.backlogs[name]
                        self._parted(self)
        except (Exception, asyncio.CancelledError):
            # Other processes would wait for a claim that was not released. Closing the outbox
            # releases it. If others here still use the outbox, its thread releases the claim: to
            # close it would take the turns of other runs.
            await let_go_unused(outbox)
            raise
        await let_go_unused(outbox)

    async def _release(self) -> None:
        record = self.record
        # If nothing is to be noted, `Record.reading` remembers where the log stands.
        if record.was_read and not (record.outbox.stays_open and record.settled):
            await record.note(release=True)

    async def give_way(self, operation: Operation) -> None:
        """Leaves what waits to another backlog of the same conversation, which nobody uses here.

        What is in flight settles first: two would send the same.
        """
        await self.sender.halt(operation.deadline)
        async with self.order.turn(operation):
            with contextlib.suppress(Reopened):
                await self._release()
            # A session without the outbox that is still on this copy would send what waits, too.
            with self.record.outbox.lock:
                self._parted(self)
        await let_go_unused(self.record.outbox)

    async def shut(self, deadline: float | None) -> str:
        """Sends what there is time for, and ends. A request that is in flight then is cut off.

        Args:
            deadline: Until when, on the running loop's clock; None: there is no time.

        Returns:
            Why something is left, if anything is.
        """
        sender, changed = self.sender, self.record.changed
        # Otherwise what is being recorded at this moment would be sent after the end.
        await self.room.at_rest(math.inf)
        until = Operation.now() if deadline is None else deadline
        if deadline is not None and not self.record.only_looks_on:
            sender.start()
            await changed.until(lambda: not sender.busy, until, sender.start)
        why, operation = self._why(), sender.operation
        await sender.halt(Operation.now())
        await self._endings.end(until, changed)
        if operation is not None and self.record.held and self.order.turns.idle:
            # Otherwise the next process would have to find out what has landed.
            with contextlib.suppress(CachedSessionError):
                async with self.order.turn(operation):
                    await self._release()
        return why

    def _why(self) -> str:
        ledger, sender = self._ledger, self.sender
        if ledger.paused is not None:
            return f"paused: {ledger.paused}"
        if sender.failure is not None:
            return f"sending failed: {sender.failure}"
        if sender.trouble is not None:
            return f"the server could not be reached: {type(sender.trouble).__name__}"
        if sender.state is Sending.ELSEWHERE:
            return "another process sends it"
        if not self.record.was_read:
            return "it was not read here"
        if not ledger.waits or self.record.only_looks_on:
            return "another process has recorded it"
        return "there was no time to send it"


def _no_look() -> None:
    """Nothing is to be done while others send."""


async def let_go_unused(outbox: Outbox) -> None:
    """Lets go of an outbox's file, if no session and no sender uses it; a connection is kept."""
    if outbox.stays_open:
        return
    with outbox.lock:
        backlogs = list(outbox.backlogs.values())
    if not outbox.users and not any(backlog.sender.working for backlog in backlogs):
        await outbox.let_go()


class Place:
    """Room that somebody was given and has not used yet."""

    __slots__ = ("_loop", "_room", "count", "size")

    def __init__(self, room: Room, count: int, size: int) -> None:
        self._room = room
        self._loop = asyncio.get_running_loop()
        self.count: int = count
        self.size: int = size

    @property
    def lost(self) -> bool:
        """Whether nobody is going to use it any more: its event loop has ended."""
        return not self._loop.is_running()

    @property
    def gone(self) -> bool:
        """Whether its event loop can never run again."""
        return self._loop.is_closed()

    def give_back(self) -> None:
        """Notes that it was used, or is not going to be."""
        self._room.take_back(self)


class Room:
    """The room in one backlog.

    Args:
        ledger: The conversation's.
        outbox: Which has the limits.
        changed: Fired whenever the ledger may have changed.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox, changed: Signal) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._changed = changed
        self._turns = Turns()
        self._lock = threading.Lock()
        # Places that were given: their items are not in the backlog until they are recorded.
        self._given: set[Place] = set()
        self._count = self._size = 0

    async def take(self, items: Sequence[Outgoing], look: Callable[[], None]) -> Place:
        """Waits for room, behind those who wait already; for as long as the outbox says.

        Where the backlog is paused there is none to wait for: it returns at once.

        Args:
            items: What is to be added.
            look: See `Signal.until`.

        Raises:
            OutboxFull: There is none.
        """
        count, size = len(items), sum(map(len, items))
        outbox, waiting = self._outbox, self._ledger.queue
        name = self._ledger.conversation_id
        if count > outbox.max_items or size > outbox.max_bytes:
            raise OutboxFull(
                f"{name}: {counted(count)}, {counted(size, 'byte')}, are more than the outbox "
                f"takes of one conversation ({self._most()}); nothing was accepted",
                conversation_id=name,
            )
        place = Place(self, count, size)
        if self._turns.idle and self._fits(place):
            return place
        deadline = asyncio.get_running_loop().time() + outbox.max_wait
        try:
            turn = await self._turns.enter(deadline, name)
            try:
                if await self._changed.until(lambda: self._fits(place), deadline, look):
                    return place
            finally:
                turn.end()
        except DeadlineExceeded:
            pass  # whoever came before it waits for room, too
        waiting = self._ledger.queue  # it may have been read anew
        raise OutboxFull(
            f"{name}: {counted(len(waiting))}, {counted(waiting.size, 'byte')}, "
            f"{verb(len(waiting), 'waits', 'wait')} in the outbox, and it stayed at "
            f"{self._limit()} for {outbox.max_wait:g} s; nothing was accepted by this call, and "
            "nothing that waits was dropped",
            conversation_id=name,
        )

    def take_back(self, place: Place) -> None:
        """Notes that a place was used, or is not going to be."""
        with self._lock:
            self._forget(place)
        self._changed.fire()

    @property
    def given(self) -> bool:
        """Whether somebody was given room for what is being recorded at this moment."""
        if not self._given:
            return False
        with self._lock:
            return any(not place.lost for place in self._given)

    async def used(self, operation: Operation) -> None:
        """Waits until what was given room before this call is recorded, or is not going to be.

        Raises:
            DeadlineExceeded: It took too long.
        """
        if await self.at_rest(operation.deadline):
            return
        raise DeadlineExceeded(
            f"{operation.conversation_id}: the outbox took until the deadline to record what was "
            "appended before this call; nothing was sent by it",
            conversation_id=operation.conversation_id,
        )

    async def at_rest(self, deadline: float) -> bool:
        """Waits for what was given room before this call; see `used`.

        Args:
            deadline: Until when, on the running loop's clock.

        Returns:
            Whether it has come to an end.
        """
        with self._lock:
            before = [*self._given]

        def none_left() -> bool:
            with self._lock:
                return not any(place in self._given and not place.lost for place in before)

        return not before or await self._changed.until(none_left, deadline, lambda: None)

    def _forget(self, place: Place) -> None:
        if place in self._given:
            self._given.remove(place)
            self._count -= place.count
            self._size -= place.size

    def _fits(self, place: Place) -> bool:
        with self._lock:
            for gone in [given for given in self._given if given.gone]:
                self._forget(gone)
            if self._ledger.paused is None and (self._full(place) or self._too_old()):
                for lost in [given for given in self._given if given.lost]:
                    self._forget(lost)
                if self._full(place) or self._too_old():
                    return False
            self._given.add(place)
            self._count += place.count
            self._size += place.size
            return True

    def _full(self, place: Place) -> bool:
        waiting, outbox = self._ledger.queue, self._outbox
        return (
            len(waiting) + self._count + place.count > outbox.max_items
            or waiting.size + self._size + place.size > outbox.max_bytes
        )

    def _limit(self) -> str:
        """Which limit it is that leaves no room."""
        outbox = self._outbox
        if self._too_old():
            return f"its limit of age (the oldest has waited for more than {outbox.max_age:g} s)"
        return f"its limit ({self._most()})"

    def _most(self) -> str:
        outbox = self._outbox
        return f"{counted(outbox.max_items)}, {counted(outbox.max_bytes, 'byte')}"

    def _too_old(self) -> bool:
        # A clock that was set back makes an item young, never too old.
        oldest, limit = self._ledger.queue.oldest, self._outbox.max_age
        return limit is not None and oldest is not None and time.time() - oldest > limit
