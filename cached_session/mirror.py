"""What an outbox holds of one conversation, as it is known here.

Other processes may use the same file. What they did is read before anything is
decided by what stands here.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from cached_session.core.history import History
from cached_session.core.items import Outgoing
from cached_session.core.local import LOCAL
from cached_session.core.unsettled import Unsettled
from cached_session.core.waiting import Waiting
from cached_session.errors import OutboxError
from cached_session.keeping import KeptWindow, Newest
from cached_session.operation import Operation, Reopened
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address, Claim, Mailbox, Row, StoredWindow
from cached_session.outbox.store import Store
from cached_session.replica import Replica
from cached_session.signals import Signal
from cached_session.turns import Turns

T = TypeVar("T")


class Mirror:
    """What an outbox holds of one conversation.

    Attributes:
        outbox: Where it is recorded.
        address: Under which name.
        replica: The conversation's local copy.
        lock: Guards `waiting`, which other threads read.
        waiting: The items that are accepted and not on the server.
        changed: Fired whenever the above may have changed.
        batch: The places of the sealed items that are not known to have landed.
        paused: Why nothing is sent any more, or None.
        refusal: The error that this came from, if it was met here.
    """

    def __init__(self, outbox: Outbox, address: Address, replica: Replica) -> None:
        self.outbox = outbox
        self.address = address
        self.replica = replica
        self.lock = threading.Lock()
        self.waiting = Waiting()
        self.changed = Signal()
        self.batch: list[int] = []
        self.paused: str | None = None
        self.refusal: Exception | None = None
        self._kept = KeptWindow(wanted=outbox.max_window_bytes > 0)
        self._opened = False
        self._opening = Turns()
        # Another process had it, and what that one did was not read yet.
        self._stale = False
        # How often it had been claimed when it was read, if it was nobody's then.
        self._read_at: int | None = None
        # What the outbox was opened as when it was read.
        self._token: str | None = None
        self.outdated = False
        """Whether the outbox was opened anew since it was read."""
        # How many calls on which event loop have not heard yet what was recorded for them.
        self._unheard: Counter[asyncio.AbstractEventLoop] = Counter()

    @property
    def local(self) -> bool:
        """Whether the server has not created the conversation yet."""
        return self.replica.conversation_id.startswith(LOCAL)

    @property
    def keeps_windows(self) -> bool:
        """Whether what is known of the conversation is kept for the next process."""
        return self.outbox.max_window_bytes > 0

    async def _transact(self, work: Callable[[Store, Address], T]) -> T:
        def checked(store: Store) -> T:
            # By their places alone, another file's items would be taken for known ones.
            if store.token != self._token:
                self.outdated = True
                raise Reopened("the outbox was closed during this call; nothing was recorded by it")
            return work(store, self.address)

        return await self.outbox.transact(checked)

    # Reading what is recorded. In the conversation's turn.

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
                    await self._load(operation)
                    self._opened = True
            elif self.outdated and turn.current:
                await self.reload(operation)
        except BaseException:
            turn.end()
            raise
        turn.end_for_all()

    @property
    def missed(self) -> bool:
        """Whether something may be recorded that an event loop did not live to hear of."""
        return bool(self._unheard) and any(not loop.is_running() for loop in [*self._unheard])

    async def _catch_up(self) -> None:
        with self.lock:
            for loop in [*self._unheard]:
                if not loop.is_running():
                    del self._unheard[loop]
        seen = self.waiting.seen
        found = await self._transact(lambda store, address: store.mailbox(address, after=seen))
        with self.lock:
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
        unclaimed = store.claims(address) == self._read_at
        claimed = store.claim(address)
        if claimed is Claim.TAKEN and not unclaimed:
            self._stale = True
        if claimed is None:
            return None
        return Claim.TAKEN if self._stale else Claim.KEPT

    async def _load(self, operation: Operation, *, using: bool = False) -> None:
        """Reads it; `using` says that the caller needs what it claims, and lets go of it after."""
        window = self.replica.window

        def work(store: Store) -> _Read:
            address = self.address
            real = store.known_as(address)
            if real is not None:
                address = address._replace(conversation=real)
            mailbox = store.mailbox(address)
            nothing = not mailbox.rows and mailbox.doubt is None
            nobodys = nothing and not store.elsewhere(address)
            read = _Read(
                token=store.token,
                address=address,
                # In this order: a claim is counted.
                claims=store.claims(address) if nobodys else None,
                known=store.knows(address),
                mine=nothing or self._claim(store, address) is not None,
                mailbox=mailbox,
                window=store.window(address),
                newest=store.window_newest(address),
                last=store.last(),
            )
            if mailbox.paused is not None and not using:
                # Nothing is sent here: whoever decides about it must find it free.
                store.release(address)
            return read

        read = await self.outbox.transact(work)
        # A conversation that was used here before may have had nothing recorded.
        if self.local and not read.known and not self._opened and window.history is None:
            name = self.replica.conversation_id
            raise OutboxError(
                f"{name} is a name that an outbox gives to a conversation before the server has "
                "made it, and this outbox does not know it. Pass the outbox that gave it",
                conversation_id=name,
            )
        mine, mailbox, stored = read.mine, read.mailbox, read.window
        self.address = read.address
        if self.address.conversation != self.replica.conversation_id:
            self._rename(operation)
        # From here on without waiting.
        self._stale = False
        self._read_at = read.claims
        same, self._token, self.outdated = read.token == self._token, read.token, False
        if window.history is None and stored is not None:
            kept = self._kept.read(stored, read.newest, removed=window.removed)
            window.take_up(kept, first=not self._opened)
        sealed = [row for row in mailbox.rows if row.sealed]
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
        self.changed.fire()

    def _shown(self) -> History | None:
        """What may be shown before what waits; not while late copies are to be removed of it."""
        window = self.replica.window
        return None if window.unsettled.extra else window.history

    def show_nothing(self) -> None:
        """Forgets what stands on the server before what waits; it is read anew."""
        with self.lock:
            self.waiting.show_behind(None)

    def _rename(self, operation: Operation) -> None:
        self.replica.rename(self.address.conversation)
        operation.conversation_id = self.address.conversation
        self.outbox.backlogs[self.address] = self.replica.backlog
        if self.replica.backlog is not None:
            self.replica.backlog.created()

    async def alone(self, operation: Operation) -> bool:
        """Whether no other process sends what waits here, from now on. In the turn.

        What another process has done is read first. What is in doubt and was
        taken over by another one is that one's to look after. Whoever hears that
        it is, and not only because nothing is to be sent, lets go of it in the end.
        """
        window = self.replica.window
        if not (self.waiting or window.unsettled.active):
            return True
        claimed = await self._transact(self._claim)
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
        elsewhere, left = await self._transact(
            lambda store, address: (store.elsewhere(address), store.mailbox(address).rows)
        )
        return not elsewhere or not left

    async def resumed(self) -> bool:
        """Whether somebody has decided, since it was paused."""
        mailbox = await self._transact(lambda store, address: store.mailbox(address))
        return mailbox.paused is None


class _Read(NamedTuple):
    """What was read of a conversation.

    Attributes:
        token: What the outbox was opened as.
        address: Where it is.
        claims: How often it was claimed, if it was nobody's; None: it was somebody's.
        known: Whether the outbox has a record of it.
        mine: Whether nobody else sends it.
        mailbox: What waits.
        window: What is kept of the conversation, or None.
        newest: The newest item of that.
        last: The last place that was given out.
    """

    token: str
    address: Address
    claims: int | None
    known: bool
    mine: bool
    mailbox: Mailbox
    window: StoredWindow | None
    newest: Newest
    last: int


def plain(rows: Iterable[Row]) -> list[tuple[int, Outgoing, float]]:
    """Rows as `Waiting` takes them in."""
    return [(row.seq, row.data, row.accepted_at) for row in rows]
