"""The verbs of a log that several processes share, on the statements of `Store`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from cached_session.errors import Reopened, run_is_over
from cached_session.outbox.log import (
    Accepted,
    Epoch,
    Found,
    Kept,
    Log,
    Look,
    Noted,
    Orphans,
    Sealed,
    Ticket,
    Withdrawn,
    Written,
    had_by_others,
)
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Mailbox,
    Mark,
    Row,
    StoredWindow,
)
from cached_session.outbox.sqlite.store import Store


class SQLiteLog(Log):
    """The verbs, on an open store; see `Log` for what each does.

    Attributes:
        store: The statements.
    """

    def __init__(self, store: Store) -> None:
        """`store` is in a transaction whenever a verb is called."""
        self.store = store

    def open(
        self, address: Address, epoch: Epoch | None, seen: int, *, claim: bool, first: bool
    ) -> Found:
        store = self.store
        real = store.known_as(address)
        if real is not None:
            address = address._replace(conversation=real)
        mark = store.mark(address)
        anew = epoch != Epoch(store.token, _claims(mark))
        mailbox = store.mailbox(address, after=0 if anew else seen)
        nothing = mailbox.doubt is None and not store.newest(address)
        mine = not store.elsewhere(address)
        before = store.holds(address)
        held = mine and (claim or not nothing) and store.claim(address) is not None
        idle = mailbox.paused is not None or not store.newest(address)
        if held and not claim and not before and idle:
            # This process will not send it. It lets it go, so that a command can decide about the
            # pause, and another process can look after what is in doubt.
            store.release(address)
            held = False
        now = Epoch(store.token, _claims(store.mark(address)) if mine else None)
        version = store.version(address)
        if not anew:
            there = store.places(address)
            return Found(
                address, now, mark, held, mine, False, mailbox.rows, version=version, there=there
            )
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
            # A caller that knew the conversation before has been told of them.
            tuple(store.namesakes(address)) if first else (),
            version,
        )

    def validate(
        self,
        address: Address,
        epoch: Epoch,
        version: Hashable,
        seen: int,
        newest: tuple[int, str] | None,
    ) -> Found | None:
        self._check(epoch)
        store = self.store
        now_version = store.version(address)
        if now_version == version:
            return None
        real = store.known_as(address)
        if real is not None:
            address = address._replace(conversation=real)
        mark, mine = store.mark(address), not store.elsewhere(address)
        now = Epoch(store.token, _claims(mark) if mine else None)
        anew = now != epoch or now.claims is None
        mailbox = store.mailbox(address, after=0 if anew else seen)
        continued = newest is not None and store.in_window(address, newest[0])
        return Found(
            address,
            now,
            mark,
            store.holds(address),
            mine,
            anew,
            mailbox.rows,
            mailbox.doubt,
            mailbox.paused,
            store.window(address, newest[0] if continued and newest is not None else 0),
            store.window_newest(address),
            bool(mark.number),
            version=now_version,
            there=store.places(address),
            continued=continued,
        )

    def catch_up(self, address: Address, epoch: Epoch, seen: int) -> tuple[Row, ...]:
        self._check(epoch)
        return self.store.mailbox(address, after=seen).rows

    def accept(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        items: Sequence[bytes],
        now: float,
        ticket: Ticket | None = None,
    ) -> Accepted:
        self._check(epoch)
        self._check_turn(address, ticket)
        store = self.store
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
        self._check(epoch)
        store = self.store
        if epoch.claims != _claims(store.mark(address)):
            found = self.open(address, None, seen, claim=True, first=False)
            return found if found.held else None
        if store.claim(address) is None:
            return None
        written = self._landed(address, landed, kept, same=True)
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
        self._check(epoch)
        store = self.store
        same = epoch.claims == _claims(store.mark(address))
        # Not if another process has had it since: that one goes by the doubt that stands beside
        # these rows. Without the rows it would take what has landed for late copies.
        written = self._landed(address, landed if same else 0, kept, same=same)
        # What another process has noted since is newer than what is known here.
        mine = same and store.owns(address)
        if mine and (doubt is not None or undoubted):
            store.set_doubt(address, doubt)
        newer = store.mailbox(address, after=seen).rows
        if release:
            store.release(address)
        # A record with nothing in it was removed just now.
        mark = store.mark(address)
        return Noted(
            newer,
            mine and doubt is not None,
            written,
            mark if release else None,
            Epoch(store.token, _claims(mark)) if same else None,
        )

    def withdraw(
        self, address: Address, epoch: Epoch, seen: int, ticket: Ticket | None = None
    ) -> Withdrawn:
        self._check(epoch)
        self._check_turn(address, ticket)
        store = self.store
        if store.newest(address) > seen:
            return Withdrawn(None, store.mailbox(address, after=seen).rows)
        return Withdrawn(store.withdraw(address), None)

    def drop(
        self,
        address: Address,
        epoch: Epoch,
        *,
        sealed: bool,
        landed: int,
        ticket: Ticket | None = None,
    ) -> tuple[int, ...]:
        self._check(epoch)
        self._check_turn(address, ticket)
        store = self.store
        if sealed:
            self._check_same(address, epoch)
            store.landed(address, landed)
            store.resume(address)
        rows = store.mailbox(address).rows
        store.drop(address, sealed=sealed)
        return tuple(row.seq for row in rows if sealed or not row.sealed)

    def forget(self, address: Address, epoch: Epoch) -> None:
        self._check(epoch)
        self.store.replace_window(address, None)

    def pause(self, address: Address, epoch: Epoch, reason: str) -> None:
        self._check(epoch)
        self._check_same(address, epoch)
        self.store.pause(address, reason)

    def name(self, address: Address, epoch: Epoch, conversation: str) -> Address:
        self._check(epoch)
        return self.store.created(address, conversation)

    def look(self, address: Address, epoch: Epoch) -> Look:
        self._check(epoch)
        store = self.store
        return Look(
            store.elsewhere(address),
            bool(store.newest(address)),
            store.paused(address),
            store.doubt(address) is not None,
        )

    def release(self, address: Address) -> None:
        self.store.release(address)

    def line_up(self, address: Address, ticket: Ticket | None) -> Ticket:
        number = None if ticket is None or ticket.opened != self.store.token else ticket.number
        number = self.store.line_up(address, number)
        return Ticket(number, self.store.token, self.store.first_in_line(address) == number)

    def has_turn(self, ticket: Ticket) -> bool:
        return ticket.opened == self.store.token and self.store.in_line(ticket.number)

    def step_out(self, ticket: Ticket) -> None:
        # A ticket of an earlier opening went with that one's owner: there is none to be given up.
        if ticket.opened == self.store.token:
            self.store.step_out(ticket.number)

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        return self.store.orphans(account, beside, limit)

    def summaries(self) -> list[BacklogSummary]:
        return self.store.summaries()

    def mailbox(self, address: Address) -> Mailbox:
        return self.store.mailbox(address)

    def resume(self, address: Address) -> None:
        self.store.resume(address)

    def discard(self, address: Address) -> int | None:
        store = self.store
        if store.claim(address) is None:
            return None
        store.resume(address)
        removed = store.drop(address, sealed=True)
        store.release(address)
        return removed

    def move(self, address: Address, to: Address) -> Address:
        store = self.store
        store.move(address, to)
        store.release(to)
        known = store.known_as(to)
        return to if known is None else to._replace(conversation=known)

    def _check(self, epoch: Epoch) -> None:
        # There may be another file by now: its items would be taken for known ones, as they have
        # the same places.
        if epoch.opened != self.store.token:
            raise Reopened("the outbox was closed during this call; nothing was recorded by it")

    def _check_same(self, address: Address, epoch: Epoch) -> None:
        if epoch.claims != _claims(self.store.mark(address)):
            raise had_by_others()

    def _check_turn(self, address: Address, ticket: Ticket | None) -> None:
        if ticket is not None and not self.has_turn(ticket):
            raise run_is_over(address.conversation)

    def _landed(
        self, address: Address, landed: int, kept: Kept | None, *, same: bool
    ) -> Written | None:
        """Removes rows that have landed, and keeps a window that has them in their place."""
        gone = self.store.landed(address, landed)
        written = self._keep(address, kept, same=same)
        if gone and written is None:
            # The window that is kept lacks what has just landed, and its rows are gone: whoever
            # reads both would miss those items.
            self.store.replace_window(address, None)
        return written

    def _keep(self, address: Address, kept: Kept | None, *, same: bool) -> Written | None:
        """Keeps a window, unless another process may have kept a newer one."""
        store = self.store
        if kept is None:
            return None
        owns, newest = store.owns(address), store.window_newest(address)
        if kept.items is None:
            if not owns:
                return None
            store.replace_window(address, None)
            return Written(None)
        assert kept.stored is not None  # there is something to be kept
        ours = newest == kept.newest
        if not owns:
            # A process that has claimed it since may have changed what is on the server.
            if not same or store.elsewhere(address) or not (ours or kept.listed):
                return None
            # Nor while a batch may have landed that nobody has looked for: the next process would
            # show both, what was kept and what waits.
            if store.any_sealed(address):
                return None
            # An item that is not known here may have been kept since the server was asked.
            if not (ours or newest is None or any(newest[1] == item.id for item in kept.items)):
                return None
        elif not (ours or newest is None or kept.listed):
            # A reader has kept what it listed, and may know items that are not known here.
            return None
        added = ours and kept.new is not None
        ids = [item.id for item in kept.items]
        if not added and store.window_matches(address, ids, kept.complete):
            # The items stay as they are, with their places: written anew, the process that kept
            # them would take them for another window.
            store.append_window(address, (), kept.unverified)
            return Written(newest)
        if added:
            store.append_window(
                address, tuple(map(kept.stored, kept.items[kept.new :])), kept.unverified
            )
        else:
            window = StoredWindow(
                tuple(map(kept.stored, kept.items)), kept.complete, kept.unverified
            )
            # An empty window is kept only of an empty conversation: otherwise it shows nothing, and
            # holds no anchor.
            some = bool(kept.items) or kept.complete
            store.replace_window(address, window if some else None)
        return Written(store.window_newest(address))


def _claims(mark: Mark) -> tuple[int, int]:
    # A record that nobody has claimed yet was made by an append alone: that changes no epoch.
    return (mark.number, mark.claims) if mark.claims else (0, 0)
