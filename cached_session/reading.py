"""Reading what an outbox holds of a conversation, and having it to oneself.

Other processes may use the same file. What they did is read before anything is
decided by what is known here. In the conversation's turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from cached_session.core.unsettled import Unsettled
from cached_session.core.wording import counted
from cached_session.errors import OutboxError
from cached_session.events import logger
from cached_session.keeping import Newest
from cached_session.mirror import Mirror, plain
from cached_session.operation import Operation
from cached_session.outbox import Outbox
from cached_session.outbox.records import (
    Address,
    Claim,
    Mailbox,
    Mark,
    Namesake,
    StoredWindow,
    whose,
)
from cached_session.outbox.store import Store
from cached_session.outbox.told import Trouble
from cached_session.replica import Replica
from cached_session.turns import Turns

T = TypeVar("T")


class Reading(Mirror):
    """What an outbox holds of one conversation, read again where somebody else has changed it."""

    def __init__(self, outbox: Outbox, address: Address, replica: Replica) -> None:
        super().__init__(outbox, address, replica)
        self._opened = False
        self._opening = Turns()
        # Another process had it, and what that one did was not read yet.
        self._stale = False
        # How often it had been claimed when it was read, if it was nobody's then.
        self._read_at: int | None = None
        # Whether a session has come to it since it was read.
        self._come = False
        # How many calls on which event loop have not heard yet what was recorded for them.
        self._unheard: Counter[asyncio.AbstractEventLoop] = Counter()

    async def open(self, operation: Operation) -> None:
        """Reads what the outbox holds, once, and once more after it was opened anew."""
        if self._opened and self._opening.idle and not self.outdated:
            if self.missed:
                await self._catch_up()
            return
        # Whoever comes while others wait for it waits behind them.
        turn = await self._opening.enter(operation.deadline, operation.conversation_id)
        try:
            if not self._opened and turn.current:
                async with self.replica.turn(operation):
                    # Meanwhile the sender may have read it, for a call that was
                    # cancelled, and knows more by now than the outbox does.
                    if self._opened:
                        await self._catch_up()
                    else:
                        self._come = False
                        await self._load(operation)
            elif self.outdated and turn.current:
                await self.reload(operation)
        except BaseException:
            # Or the next call would be answered without what is recorded.
            self._come = True
            turn.end()
            raise
        turn.end_for_all()

    def come(self) -> None:
        """Notes that a session has come to it, whose first call reads what others have recorded."""
        self._come = True

    @property
    def missed(self) -> bool:
        """Whether something may be recorded that is not known here.

        By another process before a session came, or for an event loop that did
        not live to hear of it.
        """
        ended = bool(self._unheard) and any(not loop.is_running() for loop in [*self._unheard])
        return self._come or ended

    async def _catch_up(self) -> None:
        # Whoever comes from now on may see more than this reads.
        self._come = False
        try:
            await self._read_on()
        except BaseException:
            self._come = True
            raise

    async def _read_on(self) -> None:
        ended = [loop for loop in [*self._unheard] if not loop.is_running()]
        seen = self.waiting.seen
        found = await self._transact(lambda store, address: store.mailbox(address, after=seen))
        with self.lock:
            for loop in ended:
                self._unheard.pop(loop, None)
            self.waiting.take_in(plain(found.rows))

    async def reload(self, operation: Operation) -> None:
        """Reads it anew: somebody else has changed it."""
        async with self.replica.turn(operation):
            self.replica.window.forget()
            await self._load(operation)

    def _claim(self, store: Store, address: Address) -> Claim | None:
        """See `Store.claim`. That another process had it is told until it was taken account of.

        Whoever claimed it first may have been cancelled, or have failed to read it.
        """
        unclaimed = store.mark(address).claims == self._read_at
        claimed = store.claim(address)
        if claimed is Claim.TAKEN and not unclaimed:
            self._stale = True
        if claimed is None:
            return None
        # In the thread that lets go of what is abandoned: the loop that claims may
        # stand still, and then hears neither of this nor of a release before it.
        self.holds = True
        return Claim.TAKEN if self._stale else Claim.KEPT

    async def _load(self, operation: Operation, *, using: bool = False) -> None:
        """Reads it; `using` says that the caller needs what it claims, and lets go of it after."""
        window = self.replica.window

        def work(store: Store) -> _Read:
            address = self.address
            real = store.known_as(address)
            if real is not None:
                address = address._replace(conversation=real)
            mark, mailbox = store.mark(address), store.mailbox(address)
            nothing = not mailbox.rows and mailbox.doubt is None
            nobodys = nothing and not store.elsewhere(address)
            mine = nothing or self._claim(store, address) is not None
            holds = mine and not nothing
            if holds and not using and (mailbox.paused is not None or not mailbox.rows):
                # Nothing is sent here: whoever decides about it, or looks after
                # what is in doubt, must find it free.
                store.release(address)
                holds = False
            return _Read(
                token=store.token,
                mark=mark,
                address=address,
                nobodys=nobodys,
                mine=mine,
                holds=holds,
                mailbox=mailbox,
                window=store.window(address),
                newest=store.window_newest(address),
                last=store.last(),
                # Only those who come to it anew are told.
                namesakes=[] if self._opened else store.namesakes(address),
            )

        read = await self._claiming(self.outbox.transact(work))
        self.holds = read.holds
        self._tell_of(read.namesakes)
        # A conversation that was used here before may have had nothing recorded.
        if self.local and not read.mark.number and not self._opened and window.history is None:
            name = self.replica.conversation_id
            raise OutboxError(
                f"{name} is a name that an outbox gives to a conversation before the server has "
                "made it, and this outbox does not know it. Pass the outbox that gave it",
                conversation_id=name,
            )
        mine, mailbox, stored = read.mine, read.mailbox, read.window
        if read.address != self.address and self.outbox.told.over(self.address, Trouble.PAUSED):
            # By the name that it has from now on.
            self.outbox.told.news(read.address, Trouble.PAUSED)
        self.address = read.address
        if self.address.conversation != self.replica.conversation_id:
            self._rename(operation)
        # From here on without waiting.
        self._stale = False
        self._read_at = read.mark.claims if read.nobodys else None
        same, self._token, self.outdated = read.token == self._token, read.token, False
        if not self._opened and window.left_at not in (None, read.mark):
            # Another process has had it since the last session on it was closed here.
            window.forget()
            window.unsettled = Unsettled()
        sealed = [row for row in mailbox.rows if row.sealed]
        if sealed:
            # Some of it may have landed and be listed here already: what waits
            # is shown behind what was kept with it, until a listing decides.
            window.forget()
        if window.history is None and stored is not None:
            kept = self._kept.read(stored, read.newest, removed=window.removed)
            window.take_up(kept, first=not self._opened)
        if self._opened or (mine and mailbox.doubt is not None):
            # What was in doubt here, if anything, the one who sent since looks after.
            window.unsettled = Unsettled()
        if mine:
            window.unsettled.restore(
                mailbox.doubt,
                tuple(row.data for row in sealed),
                expires=operation.now() + operation.policy.deadline,
            )
        with self.lock:
            # Accepted since that answer was given, and told of already.
            newer = [item[:3] for item in self.waiting.items if same and item.seq > read.last]
            self.waiting.reset()
            self.waiting.take_in([*plain(mailbox.rows), *newer])
            self.batch = [row.seq for row in sealed]
            self.waiting.sealed_are(self.batch, max(self.batch, default=0))
            self.waiting.show_behind(self._shown())
        self.paused = mailbox.paused
        self._opened = True
        self._tell_of_pause()
        self.changed.fire()

    def _tell_of(self, namesakes: list[Namesake]) -> None:
        """Warns once of what waits under another key: it is not sent from here."""
        if not namesakes or not self.outbox.told.news(self.address, Trouble.ANOTHER_ACCOUNTS):
            return
        for number, address, items in namesakes:
            logger.warning(
                "%s: backlog %d of %r holds %s that another account (%s) accepted. None of that "
                "is known to be on the server; it is not shown here, and not sent under this "
                "account. %s.",
                self.replica.conversation_id,
                number,
                self.outbox,
                counted(items),
                whose(address),
                self.outbox.how_to_move(number),
            )

    async def _claiming(self, transaction: Awaitable[T]) -> T:
        """Waits for a transaction that may claim; a caller who is cancelled does not hear of it."""
        held, self.holds = self.holds, True
        try:
            return await transaction
        except Exception:
            self.holds = held  # nothing of it was recorded
            raise
        except asyncio.CancelledError:
            self.holds = True  # also where somebody has let go meanwhile
            raise

    async def alone(self, operation: Operation, *, doubt: bool = False) -> bool:
        """Whether no other process sends what waits here, from now on. In the turn.

        What another process has done is read first. What is in doubt and was
        taken over by another one is that one's to look after.

        Args:
            operation: The one that has the turn.
            doubt: Whether something is known to be in doubt that is not known here.
        """
        window = self.replica.window
        if not (self.waiting or window.unsettled.active or doubt):
            return True
        claimed = await self._claiming(self._transact(self._claim))
        self.holds = claimed is not None
        if claimed is Claim.TAKEN:
            window.forget()
            await self._load(operation, using=True)
        elif claimed is None and not self.waiting:
            window.forget()
            window.unsettled = Unsettled()
            return True
        return claimed is not None

    async def done_elsewhere(self) -> bool:
        """Whether the other process that sends this has ended, or has nothing left to send."""
        # Without a claim: that comes with reading what was done, in the turn.
        return await self._transact(
            lambda store, address: not store.elsewhere(address) or not store.newest(address)
        )

    async def resumed(self) -> bool:
        """Whether somebody has decided, since it was paused."""
        return await self._transact(lambda store, address: store.paused(address)) is None

    async def doubted(self) -> bool:
        """Whether something is noted to be in doubt."""
        return await self._transact(lambda store, address: store.doubt(address)) is not None


class _Read(NamedTuple):
    """What was read of a conversation.

    Attributes:
        token: What the outbox was opened as.
        mark: Where it stood before this.
        address: Where it is.
        nobodys: Whether nothing waited, nothing was in doubt, and nobody held it.
        mine: Whether nobody else sends it.
        holds: Whether that was claimed, and not let go of.
        mailbox: What waits.
        window: What is kept of the conversation, or None.
        newest: The newest item of that.
        last: The last place that was given out.
        namesakes: Backlogs of the conversation that another account has.
    """

    token: str
    mark: Mark
    address: Address
    nobodys: bool
    mine: bool
    holds: bool
    mailbox: Mailbox
    window: StoredWindow | None
    newest: Newest
    last: int
    namesakes: list[Namesake]
