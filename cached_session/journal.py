"""One conversation's part of an outbox, and its mirror in memory.

Every transaction on the outbox is here, with what it changes in the mirror
once it is committed. A batch is sealed in the outbox, with what stands before
it on the server, before it is first sent; from then on it never changes. So a
process that takes over after a crash is where this one is after a lost answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from cached_session.core.history import History
from cached_session.core.items import Outgoing, copies
from cached_session.core.local import LOCAL
from cached_session.core.unsettled import Unsettled
from cached_session.core.waiting import Waiting
from cached_session.errors import OutboxError
from cached_session.keeping import KeptWindow, Newest
from cached_session.operation import Operation
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address, Claim, Mailbox, Row, StoredWindow
from cached_session.outbox.store import Store
from cached_session.replica import Replica
from cached_session.signals import Signal
from cached_session.turns import Turns

T = TypeVar("T")


class Elsewhere(Exception):
    """Another living process sends this backlog."""


class Changed(Exception):
    """Another process has sent of this backlog since it was read here."""


class Journal:
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
        return await self.outbox.transact(lambda store: work(store, self.address))

    # Reading what is recorded. In the conversation's turn.

    async def open(self, operation: Operation) -> None:
        """Reads what the outbox holds, once."""
        if self._opened and self._opening.idle:
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
            self.waiting.take_in(_plain(found.rows))

    async def reload(self, operation: Operation) -> None:
        """Reads it anew: somebody else has changed it."""
        async with self.replica.turn(operation):
            self.replica.window.forget()
            await self._load(operation)

    def _claim(self, store: Store, address: Address) -> Claim | None:
        """See `Store.claim`. That another process had it is told until it was taken account of.

        Whoever claimed it first may have been cancelled, or have failed to read it.
        """
        claimed = store.claim(address)
        if claimed is Claim.TAKEN:
            self._stale = True
        return Claim.TAKEN if claimed is not None and self._stale else claimed

    async def _load(self, operation: Operation) -> None:
        window = self.replica.window

        def work(
            store: Store, address: Address
        ) -> tuple[Address, bool, Mailbox, StoredWindow | None, Newest, int]:
            real = store.known_as(address)
            if real is not None:
                address = address._replace(conversation=real)
            mailbox = store.mailbox(address)
            nothing = not mailbox.rows and mailbox.doubt is None
            mine = nothing or self._claim(store, address) is not None
            window, newest = store.window(address), store.window_newest(address)
            return address, mine, mailbox, window, newest, store.last()

        self.address, mine, mailbox, stored, newest, last = await self._transact(work)
        if self.address.conversation != self.replica.conversation_id:
            self._rename(operation)
        # From here on without waiting.
        self._stale = False
        if window.history is None and stored is not None:
            window.take_up(self._kept.read(stored, newest), first=not self._opened)
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
            newer = [item[:3] for item in self.waiting.items if item.seq > last]
            self.waiting.reset()
            self.waiting.take_in([*_plain(mailbox.rows), *newer])
            self.batch = [row.seq for row in sealed]
            self.waiting.sealed_are(self.batch, max(self.batch, default=0))
            self.waiting.show_behind(self._shown())
        self.paused = mailbox.paused
        self.changed.fire()

    def _shown(self) -> History | None:
        """What may be shown before what waits; not while late copies are to be removed of it."""
        window = self.replica.window
        return None if window.unsettled.extra else window.history

    def _rename(self, operation: Operation) -> None:
        self.replica.rename(self.address.conversation)
        operation.conversation_id = self.address.conversation
        self.outbox.backlogs[self.address] = self.replica.backlog
        if self.replica.backlog is not None:
            self.replica.backlog.created()

    # Accepting and withdrawing

    async def accept(self, items: Sequence[Outgoing]) -> None:
        """Records items behind those that wait."""
        waiting, window = self.waiting, self.replica.window

        def work(store: Store, address: Address) -> tuple[int, float, tuple[int, ...]]:
            now = time.time()
            return store.newest(address), now, store.accept(address, items, now)

        loop = asyncio.get_running_loop()
        with self.lock:
            self._unheard[loop] += 1
        try:
            before, now, seqs = await self._transact(work)
        except Exception:
            self._heard(loop)
            raise
        rows = [(seq, data, now) for seq, data in zip(seqs, items, strict=True)]
        others = before > waiting.seen
        if others:
            # Another process, or a task of another loop, has recorded some before these.
            seen = waiting.seen
            # Where that fails, these ones are recorded all the same, and the
            # others are sealed with them.
            with contextlib.suppress(OutboxError):
                found = await self._transact(
                    lambda store, address: store.mailbox(address, after=seen)
                )
                # These ones, too, where another process has them on the server by now.
                rows = sorted({row[0]: row for row in (*_plain(found.rows), *rows)}.values())
        with self.lock:
            empty = not waiting
            waiting.take_in(rows)
            # Of another process's items some may be on the server, and listed, already.
            shown = not others and self.replica.turns.idle and not window.unsettled.active
            if empty and shown:
                waiting.show_behind(window.history)
        self._heard(loop)

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            self._unheard[loop] -= 1
            if self._unheard[loop] <= 0:
                del self._unheard[loop]

    async def withdraw(self) -> dict[str, Any] | None:
        """Removes the newest item, if it certainly was not sent, and returns it as it was shown."""
        if not self.waiting:
            return None
        row = await self._transact(lambda store, address: store.withdraw(address))
        if row is None:
            return None
        taken = Waiting()
        taken.take_in(_plain([row]))
        with self.lock:
            self.waiting.remove({row.seq})
        self.changed.fire()
        return copies([taken.items[0].held])[0]

    async def drop(self, *, sealed: bool) -> int:
        """Removes what was not sent; with `sealed` all, and what it was paused for."""

        def work(store: Store, address: Address) -> list[int]:
            store.landed(address, self.waiting.landed)
            rows = store.mailbox(address).rows
            if sealed:
                store.resume(address)
            store.drop(address, sealed=sealed)
            return [row.seq for row in rows if sealed or not row.sealed]

        seqs = await self._transact(work)
        with self.lock:
            self.waiting.remove(frozenset(seqs))
        if sealed:
            self.paused = self.refusal = None
            self.batch = []
        self.changed.fire()
        return len(seqs)

    # Sending. In the turn.

    async def created(self, conversation_id: str, operation: Operation) -> None:
        """Gives the conversation its id that had only a local name."""
        self.address = await self._transact(
            lambda store, address: store.created(address, conversation_id)
        )
        if self.address.conversation == conversation_id:
            self.replica.window.begin_empty(operation.now())
        else:
            # Another process that has the local name had made one before.
            self.replica.window.forget()
        self._rename(operation)
        self.changed.fire()

    async def seal(self) -> list[Outgoing]:
        """Seals the next batch, which may be sent from now on, or the one that is sealed.

        Returns:
            Its items; none if they were withdrawn meanwhile.

        Raises:
            Elsewhere: Another process sends this backlog.
            Changed: Another process did.
        """
        waiting, window = self.waiting, self.replica.window
        history = window.history
        assert history is not None  # listed before anything is sealed
        with self.lock:
            through = waiting.batch()
        doubt = window.unsettled.dump(history.items, complete=history.complete)
        keep, kept = self._kept.writing(history, landed=waiting.landed)

        def work(store: Store, address: Address) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
            claimed = self._claim(store, address)
            if claimed is None:
                raise Elsewhere
            if claimed is Claim.TAKEN:
                raise Changed
            seen = waiting.seen
            store.landed(address, waiting.landed)
            keep(store, address)
            return store.seal(address, through, doubt), store.mailbox(address, after=seen).rows

        rows, newer = await self._transact(work)
        kept()
        with self.lock:
            waiting.take_in(_plain(newer))
            self.batch = [row.seq for row in rows]
            waiting.sealed_are(self.batch, through)
            # From here on the server may stay away: reads are answered from this.
            waiting.show_behind(self._shown())
        self.changed.fire()
        return [row.data for row in rows]

    def landed(self, count: int) -> None:
        """Notes that so many more items of the batch are on the server, and in the window.

        `record` puts it down. Until then a process that takes over finds it out.
        """
        seqs, self.batch = self.batch[:count], self.batch[count:]
        with self.lock:
            self.waiting.have_landed(seqs, self._shown())
        self.changed.fire()

    async def record(self, *, release: bool = False) -> None:
        """Puts down what has landed.

        Args:
            release: Whether to let other processes send.
        """
        waiting, window = self.waiting, self.replica.window
        history, unsettled = window.history, window.unsettled
        keep, kept = self._kept.writing(history, landed=waiting.landed)
        items, complete = ([], False) if history is None else (history.items, history.complete)
        doubt: bytes | None = None
        if unsettled.active or (self.batch and history is not None):
            doubt = unsettled.dump(items, complete=complete)

        def work(store: Store, address: Address) -> tuple[Row, ...]:
            seen = waiting.seen
            store.landed(address, waiting.landed)
            keep(store, address)
            # What another process has noted since is newer than what is known here.
            if store.owns(address) and (doubt is not None or not self.batch):
                store.set_doubt(address, doubt)
            newer = store.mailbox(address, after=seen).rows
            if release:
                store.release(address)
            return newer

        newer = await self._transact(work)
        kept()
        with self.lock:
            waiting.take_in(_plain(newer))

    async def keep_window(self, *, listed: bool = False) -> None:
        """Keeps the window for the next process, if it has changed; `listed`: see `KeptWindow`."""
        history = self.replica.window.history
        if self._kept.behind(history):
            landed = self.waiting.landed
            keep, kept = self._kept.writing(history, listed=listed, landed=landed)
            await self._transact(keep)
            kept()

    # Other processes, refusals

    async def alone(self, operation: Operation) -> bool:
        """Whether no other process sends what waits here, from now on. In the turn.

        What another process has done is read first. What is in doubt and was
        taken over by another one is that one's to look after.
        """
        window = self.replica.window
        if self.local or not (self.waiting or window.unsettled.active):
            return True
        claimed = await self._transact(self._claim)
        if claimed is Claim.TAKEN:
            window.forget()
            await self._load(operation)
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

    async def pause(self, reason: str, error: Exception) -> None:
        """Notes that nothing is sent until somebody decides."""
        # First of all here: where it cannot be recorded, nothing is sent either.
        self.paused, self.refusal = reason, error
        await self._transact(lambda store, address: store.pause(address, reason))
        self.changed.fire()

    async def resumed(self) -> bool:
        """Whether somebody has decided, since it was paused."""
        mailbox = await self._transact(lambda store, address: store.mailbox(address))
        return mailbox.paused is None

    async def forget_window(self) -> None:
        """Forgets the window of a conversation that is gone."""
        await self._transact(lambda store, address: store.replace_window(address, None))


def _plain(rows: Iterable[Row]) -> list[tuple[int, Outgoing, float]]:
    """Rows as `Waiting` takes them in."""
    return [(row.seq, row.data, row.accepted_at) for row in rows]
