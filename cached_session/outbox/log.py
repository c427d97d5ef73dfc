"""The log of one conversation: each verb is one transaction, on plain values.

Somebody else may use the same file. What was read holds as long as the epoch is
the same: it changes whenever somebody becomes the owner of a conversation, and
only the owner sends, and notes what is in doubt. Anybody may accept and
withdraw: rows that others have accepted since come with each answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from cached_session.core.items import Held, unhold
from cached_session.errors import Reopened
from cached_session.outbox.records import (
    Address,
    Mark,
    Namesake,
    Row,
    StoredItem,
    StoredWindow,
)
from cached_session.outbox.store import Store


class Epoch(NamedTuple):
    """As of when a conversation was read.

    Attributes:
        opened: As what the log was opened: another one each time.
        claims: The number of the conversation's record, and how often somebody had become its
            owner; (0, 0) if nobody ever had; None: another process has it, and goes on changing
            it.
    """

    opened: str
    claims: tuple[int, int] | None


class Found(NamedTuple):
    """What was read of a conversation.

    Attributes:
        address: Where it is.
        epoch: As of when.
        before: Where it stood before it was claimed.
        held: Whether it was claimed, and others are kept from sending.
        mine: Whether nobody else looks after it.
        anew: Whether somebody else has had it, so that all of it was read; or nothing but rows
            that were accepted since, and what follows is not told.
        rows: What waits.
        doubt: What is noted about requests that may still be applied, or None.
        paused: Why it is not sent, or None.
        window: What is kept of the conversation, or None.
        newest: The newest item of that.
        exists: Whether there is a record of it.
        namesakes: Backlogs of the conversation that another account has.
    """

    address: Address
    epoch: Epoch
    before: Mark
    held: bool
    mine: bool
    anew: bool
    rows: tuple[Row, ...]
    doubt: bytes | None = None
    paused: str | None = None
    window: StoredWindow | None = None
    newest: tuple[int, str] | None = None
    exists: bool = True
    namesakes: tuple[Namesake, ...] = ()


class Accepted(NamedTuple):
    """What was recorded.

    Attributes:
        rows: The new rows.
        others: Rows before them that were not taken in when this began: those of other processes,
            and of an append in the same commit.
    """

    rows: tuple[Row, ...]
    others: tuple[Row, ...]


class Kept(NamedTuple):
    """What is to be kept of a conversation for the next process.

    Attributes:
        items: The newest items, oldest first; None: what is kept is to be forgotten.
        complete: Whether they reach the conversation's beginning.
        unverified: How many of the newest ones no listing has shown yet.
        new: From which on they are not kept yet, if the newest kept one is still `newest`; None:
            all of them are to be written.
        newest: As it was when this process read or wrote it.
        listed: Whether the server was asked for them just now.
    """

    items: Sequence[Held] | None
    complete: bool = False
    unverified: int = 0
    new: int | None = None
    newest: tuple[int, str] | None = None
    listed: bool = False


class Written(NamedTuple):
    """What was kept: the newest item of it, by which it is told from any other writing of it."""

    newest: tuple[int, str] | None


class Sealed(NamedTuple):
    """What became of a batch that was to be sealed.

    Attributes:
        epoch: From now on.
        rows: The batch; none: it was taken back.
        newer: Rows of other processes.
        written: What was kept, or None.
    """

    epoch: Epoch
    rows: tuple[Row, ...]
    newer: tuple[Row, ...]
    written: Written | None


class Noted(NamedTuple):
    """What was noted.

    Attributes:
        newer: Rows of other processes.
        doubt: Whether the doubt was written: it is this process's to write.
        written: What was kept, or None.
        left: Where it stands, where it was released.
        epoch: From now on; None: somebody else has had it since it was read.
    """

    newer: tuple[Row, ...]
    doubt: bool
    written: Written | None
    left: Mark | None
    epoch: Epoch | None


class Look(NamedTuple):
    """How a conversation stands.

    Attributes:
        elsewhere: Whether another living process sends it.
        waits: Whether anything waits.
        paused: Why it is not sent, or None.
        doubted: Whether something is noted to be in doubt.
    """

    elsewhere: bool
    waits: bool
    paused: str | None
    doubted: bool


class Log:
    """The verbs, on an open store. Each is called in a transaction of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(
        self, address: Address, epoch: Epoch | None, seen: int, *, claim: bool, first: bool
    ) -> Found:
        """Reads a conversation: all of it, where somebody else has had it since.

        Args:
            address: Where it is.
            epoch: As of when it was read here, or None.
            seen: The newest place that is known here.
            claim: Whether it is to be claimed; otherwise that is done where something is to be
                sent, and nobody else does.
            first: Whether it was never read here.
        """
        store = self._store
        real = store.known_as(address)
        if real is not None:
            address = address._replace(conversation=real)
        mark = store.mark(address)
        anew = epoch != Epoch(store.token, _claims(mark))
        mailbox = store.mailbox(address, after=0 if anew else seen)
        nothing = mailbox.doubt is None and not store.newest(address)
        mine = not store.elsewhere(address)
        held = mine and (claim or not nothing) and store.claim(address) is not None
        if held and not claim and (mailbox.paused is not None or not store.newest(address)):
            # Nothing is sent here: whoever decides about it, or looks after
            # what is in doubt, must find it free.
            store.release(address)
            held = False
        now = Epoch(store.token, _claims(store.mark(address)) if mine else None)
        if not anew:
            return Found(address, now, mark, held, mine, False, mailbox.rows)
        return Found(
            address,
            now,
            mark,
            held,
            mine,
            True,
            mailbox.rows,
            mailbox.doubt,
            mailbox.paused,
            store.window(address),
            store.window_newest(address),
            bool(mark.number),
            # Only those who come to it anew are told.
            tuple(store.namesakes(address)) if first else (),
        )

    def catch_up(self, address: Address, epoch: Epoch, seen: int) -> tuple[Row, ...]:
        """The rows that were accepted since.

        Raises:
            Reopened: See there; as every verb from here on.
        """
        self._check(epoch)
        return self._store.mailbox(address, after=seen).rows

    def accept(
        self, address: Address, epoch: Epoch, seen: int, items: Sequence[bytes], now: float
    ) -> Accepted:
        """Records items behind those that wait; `now` is in seconds since the epoch."""
        self._check(epoch)
        store = self._store
        others = store.mailbox(address, after=seen).rows if store.newest(address) > seen else ()
        seqs = store.accept(address, items, now)
        rows = (Row(seq, item, False, now) for seq, item in zip(seqs, items, strict=True))
        return Accepted(tuple(rows), others)

    def seal(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        through: int,
        landed: int,
        doubt: bytes,
        kept: Kept | None,
    ) -> Sealed | Found | None:
        """Claims a conversation, and notes that the batch up to a place may be sent from now on.

        Args:
            address: Where it is.
            epoch: As of when it was read here.
            seen: The newest place that is known here.
            through: The place of the batch's last item.
            landed: The place up to which items are on the server.
            doubt: What is to be noted about this batch and others that may still be applied.
            kept: What is to be kept of the conversation, or None: it is kept already.

        Returns:
            What is sealed; or all there is, where somebody else has had it since, and nothing is
            sealed; or None: another process has it.
        """
        self._check(epoch)
        store = self._store
        if epoch.claims != _claims(store.mark(address)):
            found = self.open(address, None, seen, claim=True, first=False)
            return found if found.held else None
        if store.claim(address) is None:
            return None
        store.landed(address, landed)
        written = self._keep(address, kept)
        rows = store.seal(address, through, doubt)
        newer = store.mailbox(address, after=seen).rows
        return Sealed(Epoch(store.token, _claims(store.mark(address))), rows, newer, written)

    def note(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        landed: int,
        doubt: bytes | None,
        undoubted: bool,
        kept: Kept | None,
        release: bool,
    ) -> Noted:
        """Puts down what has landed, and what is known.

        Args:
            address: Where it is.
            epoch: As of when it was read here. Where another process had it then, what is noted
                there is newer than what is known here.
            seen: The newest place that is known here.
            landed: The place up to which items are on the server.
            doubt: What is noted about requests that may still be applied, or None.
            undoubted: Whether nothing is, where `doubt` is None; or else it stays as it is.
            kept: As in `seal`.
            release: Whether to let other processes send.
        """
        self._check(epoch)
        store = self._store
        same = epoch.claims == _claims(store.mark(address))
        store.landed(address, landed)
        written = self._keep(address, kept)
        # What another process has noted since is newer than what is known here.
        mine = same and store.owns(address)
        if mine and (doubt is not None or undoubted):
            store.set_doubt(address, doubt)
        newer = store.mailbox(address, after=seen).rows
        if release:
            store.release(address)
        # One with nothing in it went with that.
        mark = store.mark(address)
        return Noted(
            newer,
            mine and doubt is not None,
            written,
            mark if release else None,
            Epoch(store.token, _claims(mark)) if same else None,
        )

    def withdraw(self, address: Address, epoch: Epoch) -> Row | None:
        """Takes the newest item back; None if there is none, or it may have been sent."""
        self._check(epoch)
        return self._store.withdraw(address)

    def drop(self, address: Address, epoch: Epoch, *, sealed: bool, landed: int) -> tuple[int, ...]:
        """Takes back what was not sent; with `sealed` all, and what it was paused for."""
        self._check(epoch)
        store = self._store
        if sealed:
            store.landed(address, landed)
            store.resume(address)
        rows = store.mailbox(address).rows
        store.drop(address, sealed=sealed)
        return tuple(row.seq for row in rows if sealed or not row.sealed)

    def forget(self, address: Address, epoch: Epoch) -> None:
        """Forgets what is kept of a conversation that is gone."""
        self._check(epoch)
        self._store.replace_window(address, None)

    def pause(self, address: Address, epoch: Epoch, reason: str) -> None:
        """Notes why nothing is sent until somebody decides."""
        self._check(epoch)
        self._store.pause(address, reason)

    def name(self, address: Address, epoch: Epoch, conversation: str) -> Address:
        """Gives a conversation its id that had only a local name; see `Store.created`."""
        self._check(epoch)
        return self._store.created(address, conversation)

    def look(self, address: Address, epoch: Epoch) -> Look:
        """How a conversation stands, for those who wait for another process, or for a human."""
        self._check(epoch)
        store = self._store
        return Look(
            store.elsewhere(address),
            bool(store.newest(address)),
            store.paused(address),
            store.doubt(address) is not None,
        )

    def _check(self, epoch: Epoch) -> None:
        # By their places alone, another file's items would be taken for known ones.
        if epoch.opened != self._store.token:
            raise Reopened("the outbox was closed during this call; nothing was recorded by it")

    def _keep(self, address: Address, kept: Kept | None) -> Written | None:
        """Keeps a window, unless another process may have kept a newer one."""
        store = self._store
        if kept is None:
            return None
        owns, newest = store.owns(address), store.window_newest(address)
        if kept.items is None:
            if not owns:
                return None
            store.replace_window(address, None)
            return Written(None)
        ours = newest == kept.newest
        if not owns:
            if store.elsewhere(address) or not (ours or kept.listed):
                return None
            # Nor while a batch may have landed that nobody has looked for: the next process would
            # show both, what was kept and what waits.
            if store.any_sealed(address):
                return None
            # One that is not known here may have been kept since the server was asked.
            if not (ours or newest is None or any(newest[1] == item.id for item in kept.items)):
                return None
        if ours and kept.new is not None:
            newer = tuple(map(_stored, kept.items[kept.new :]))
            store.append_window(address, newer, kept.unverified)
        else:
            window = StoredWindow(tuple(map(_stored, kept.items)), kept.complete, kept.unverified)
            # A window of nothing that may not be all shows nothing: no batch could be told by
            # what stands before it.
            some = bool(kept.items) or kept.complete
            store.replace_window(address, window if some else None)
        return Written(store.window_newest(address))


def _claims(mark: Mark) -> tuple[int, int]:
    # Whoever accepts makes a record, and changes nothing by that.
    return (mark.number, mark.claims) if mark.claims else (0, 0)


def _stored(item: Held) -> StoredItem:
    # JSON: what is held in memory has a form that is this process's own.
    return StoredItem(item.id, json.dumps(unhold(item), separators=(",", ":")).encode())
