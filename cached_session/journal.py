"""One conversation's part of an outbox: every transaction that changes it.

Each comes with what it changes in the mirror once it is committed. A batch is
sealed in the outbox, with what stands before it on the server, before it is
first sent; from then on it never changes. So a process that takes over after a
crash is where this one is after a lost answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from cached_session.core.items import Outgoing, copies
from cached_session.core.waiting import Waiting
from cached_session.errors import OutboxError
from cached_session.keeping import Writing
from cached_session.mirror import plain
from cached_session.operation import Operation
from cached_session.outbox.records import Address, Claim, Mark, Row
from cached_session.outbox.store import Store
from cached_session.outbox.told import Trouble
from cached_session.reading import Reading


class Elsewhere(Exception):
    """Another living process sends this backlog."""


class Changed(Exception):
    """Another process has sent of this backlog since it was read here."""


class Journal(Reading):
    """What an outbox holds of one conversation, and what is done to it."""

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
            # Where that fails, these ones are recorded all the same, and all of
            # it is read before more is done.
            try:
                found = await self._transact(
                    lambda store, address: store.mailbox(address, after=seen)
                )
                # These ones, too, where another process has them on the server by now.
                rows = sorted({row[0]: row for row in (*plain(found.rows), *rows)}.values())
            except OutboxError:
                self.outdated = True
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
        taken.take_in(plain([row]))
        with self.lock:
            self.waiting.remove({row.seq})
        self.changed.fire()
        return copies([taken.items[0].held])[0]

    async def drop(self, *, sealed: bool) -> int:
        """Removes what was not sent; with `sealed` all, and what it was paused for."""

        def work(store: Store, address: Address) -> list[int]:
            if sealed:
                store.landed(address, self.waiting.landed)
                store.resume(address)
            rows = store.mailbox(address).rows
            store.drop(address, sealed=sealed)
            return [row.seq for row in rows if sealed or not row.sealed]

        seqs = await self._transact(work)
        with self.lock:
            self.waiting.remove(frozenset(seqs))
        if sealed:
            self.paused = self.refusal = None
            # Whoever has decided so need not be told.
            self.outbox.told.over(self.address, Trouble.PAUSED)
            self.batch = []
        self.changed.fire()
        return len(seqs)

    # Sending. In the turn.

    async def created(self, conversation_id: str, operation: Operation, *, empty: bool) -> None:
        """Gives the conversation its id that had only a local name.

        Args:
            conversation_id: The id.
            operation: The one that has the turn.
            empty: Whether the conversation is known to be empty.
        """
        self.address = await self._transact(
            lambda store, address: store.created(address, conversation_id)
        )
        if empty and self.address.conversation == conversation_id:
            self.replica.window.begin_empty(operation.now())
        else:
            # Somebody else had made it before, or another one for the local name.
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
        doubt = window.unsettled.dump(history.items, complete=history.complete, sending=True)
        keep, kept = self._keeping()

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

        rows, newer = await self._claiming(self._transact(work))
        self.holds = True
        kept()
        with self.lock:
            waiting.take_in(plain(newer))
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

    async def record(self, *, release: bool = False, listed: bool = False) -> None:
        """Puts down what has landed.

        What is in doubt goes with it: what a process that takes over does not
        know to have landed, it may take for a late copy.

        Args:
            release: Whether to let other processes send.
            listed: See `KeptWindow.writing`.
        """
        waiting, window = self.waiting, self.replica.window
        history, unsettled = window.history, window.unsettled
        keep, kept = self._keeping(listed=listed)
        items, complete = ([], False) if history is None else (history.items, history.complete)
        doubt: bytes | None = None
        if unsettled.active or (self.batch and history is not None):
            doubt = unsettled.dump(items, complete=complete, sending=False)

        def work(store: Store, address: Address) -> tuple[tuple[Row, ...], Mark | None] | None:
            if self._stale:
                # Claimed, and not read yet: what is noted there is newer.
                if release:
                    store.release(address)
                return None
            seen = waiting.seen
            store.landed(address, waiting.landed)
            keep(store, address)
            # What another process has noted since is newer than what is known here.
            if store.owns(address) and (doubt is not None or not self.batch):
                store.set_doubt(address, doubt)
            newer = store.mailbox(address, after=seen).rows
            if release:
                store.release(address)
            return newer, store.mark(address) if release else None

        recorded = await self._transact(work)
        if release:
            self.holds = False
        if recorded is None:
            return
        newer, mark = recorded
        kept()
        if release:
            window.left_at = mark
        with self.lock:
            waiting.take_in(plain(newer))

    async def keep_window(self, *, listed: bool = False) -> None:
        """Keeps the window for the next process, if it has changed; `listed`: see `record`."""
        if self._kept.behind(self._shown()):
            # Or the next process would show both, what was kept and what waits.
            await self.record(listed=listed)

    def _keeping(self, *, listed: bool = False) -> tuple[Writing, Callable[[], None]]:
        # Not with late copies in it: where their removal ends with this process,
        # others would show what is left of them, and what is gone.
        removed = self.replica.window.removed
        return self._kept.writing(
            self._shown(), landed=self.waiting.landed, removed=removed, listed=listed
        )

    async def pause(self, reason: str, error: Exception) -> None:
        """Notes that nothing is sent until somebody decides."""
        # First of all here: where it cannot be recorded, nothing is sent either.
        self.paused, self.refusal = reason, error
        self._tell_of_pause()
        await self._transact(lambda store, address: store.pause(address, reason))
        self.changed.fire()

    async def forget_window(self) -> None:
        """Forgets the window of a conversation that is gone."""
        await self._transact(lambda store, address: store.replace_window(address, None))
