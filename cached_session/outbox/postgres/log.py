"""The verbs of a log that a fleet shares; each is a function of the schema, and one round trip."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Sequence
from types import SimpleNamespace
from typing import Any

from cached_session.core.ledger import LOCAL
from cached_session.errors import AppendOutcomeUnknown, OutboxError, Reopened, counted, run_is_over
from cached_session.outbox.log import (
    Accepted,
    Epoch,
    Found,
    Kept,
    Log,
    Look,
    Noted,
    Orphan,
    Orphans,
    Sealed,
    Ticket,
    Withdrawn,
    Written,
    had_by_others,
)
from cached_session.outbox.postgres.engine import Engine, OutcomeLost, TurnIsOver
from cached_session.outbox.postgres.lease import Lease
from cached_session.outbox.postgres.texts import AsHeld, held, told
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Mailbox,
    Mark,
    Namesake,
    Row,
    StoredItem,
    StoredWindow,
)


class PostgresLog(Log):
    """The verbs, on an engine; see `Log` for what each does.

    Args:
        engine: Where the functions are.
        lease: Who has what is claimed.
        max_window_bytes: What is kept of one conversation at most; 0: nothing.
    """

    def __init__(self, engine: Engine, lease: Lease, max_window_bytes: int) -> None:
        self._engine = engine
        self._lease = lease
        self._max_window_bytes = max_window_bytes

    @property
    def token(self) -> str:
        """As what it was opened."""
        return self._engine.token

    def open(
        self, address: Address, epoch: Epoch | None, seen: int, *, claim: bool, first: bool
    ) -> Found:
        claims = self._claims(epoch)
        asked = self._lease.now()
        found = self._engine.in_time(
            "open", _array(address), *claims, seen, claim, self._lease.seconds, first
        )
        if found.held or found.lapsed:
            self._engine.leased(asked, lapsed=found.lapsed)
        address = address._replace(conversation=found.conversation)
        mark = Mark(found.before_number, found.before_owner, found.before_claims)
        now = Epoch(self.token, (found.now_number, found.now_claims) if found.mine else None)
        rows = _rows(found.seqs, found.items, found.sealed, found.ats)
        if not found.anew:
            places = tuple(found.places or ())
            return Found(
                address,
                now,
                mark,
                found.held,
                found.mine,
                False,
                rows,
                version=found.version,
                there=places,
            )
        return Found(
            address,
            now,
            mark,
            found.held,
            found.mine,
            True,
            rows,
            found.doubt,
            found.paused,
            _window(found, continued=False),
            _newest(found),
            bool(found.before_number),
            # A caller that knew the conversation before has been told of them.
            _namesakes(found, address),
            found.version,
            doubtful=found.doubtful,
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
        changes = self._engine.value(
            "validate",
            self.token,
            _array(address),
            *self._claims(epoch),
            version,
            seen,
            *(newest or (None, None)),
        )
        if changes is None:
            return None
        found = SimpleNamespace(**changes)
        # The connection decodes columns, and not what stands inside JSON.
        found.doubt = _from_hex(found.doubt)
        found.items = [*map(_from_hex, found.items or ())]
        found.window_items = [*map(_from_hex, found.window_items or ())]
        found.conversation = told(found.conversation)
        found.paused = found.paused and told(found.paused)
        found.window_ids = [*map(told, found.window_ids or ())]
        found.newest_id = found.newest_id and told(found.newest_id)
        mark = Mark(found.now_number, found.now_owner, found.now_claims)
        claims = (found.now_epoch, found.now_claims)
        return Found(
            address._replace(conversation=found.conversation),
            Epoch(self.token, claims if found.mine else None),
            mark,
            found.held,
            found.mine,
            found.anew,
            _rows(found.seqs, found.items, found.sealed, found.ats),
            found.doubt,
            found.paused,
            _window(found, continued=found.continued),
            _newest(found),
            bool(found.now_number),
            version=found.version,
            there=tuple(found.places or ()),
            continued=found.continued,
            doubtful=found.doubtful,
        )

    def catch_up(self, address: Address, epoch: Epoch, seen: int) -> tuple[Row, ...]:
        self._check(epoch)
        found = self._engine.read("mailbox", _array(address), seen)
        return _rows(found.seqs, found.items, found.sealed, found.ats)

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
        number = self._turn(address, ticket)
        try:
            found = self._engine.once("accept", _array(address), seen, [*items], now, number)
        except TurnIsOver:
            raise run_is_over(address.conversation) from None
        except OutcomeLost as error:
            raise AppendOutcomeUnknown(
                f"append to {address.conversation}: whether {counted(len(items))} were recorded is "
                f"not known. {error}",
                conversation_id=address.conversation,
                total=len(items),
            ) from error
        new = (Row(seq, item, False, now) for seq, item in zip(found.places, items, strict=True))
        return Accepted(tuple(new), _rows(found.seqs, found.items, found.sealed, found.ats))

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
        asked = self._lease.now()
        found = self._engine.in_time(
            "seal",
            _array(address),
            *self._claims(epoch),
            seen,
            through,
            landed,
            doubt,
            self._lease.seconds,
            *self._keeping(kept),
        )
        if found.state == "changed":
            anew = self.open(address, None, seen, claim=True, first=False)
            return anew if anew.held else None
        self._engine.leased(asked, lapsed=found.lapsed)
        if found.state == "elsewhere":
            return None
        return Sealed(
            Epoch(self.token, (found.now_number, found.now_claims)),
            _rows(found.seqs, found.items, found.sealed, found.ats),
            _rows(found.newer_seqs, found.newer_items, found.newer_sealed, found.newer_ats),
            self._written(address, epoch, kept, found),
        )

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
        found = self._engine.in_time(
            "note",
            _array(address),
            *self._claims(epoch),
            seen,
            landed,
            doubt,
            undoubted,
            release,
            *self._keeping(kept),
        )
        mark = Mark(found.now_number, found.now_owner, found.now_claims)
        claims = (found.now_epoch, found.now_claims)
        return Noted(
            _rows(found.seqs, found.items, found.sealed, found.ats),
            found.mine and doubt is not None,
            self._written(address, epoch, kept, found),
            mark if release else None,
            Epoch(self.token, claims) if found.same else None,
        )

    def withdraw(
        self, address: Address, epoch: Epoch, seen: int, ticket: Ticket | None = None
    ) -> Withdrawn:
        self._check(epoch)
        number = self._turn(address, ticket)
        try:
            found = self._engine.once("withdraw", _array(address), seen, number)
        except TurnIsOver:
            raise run_is_over(address.conversation) from None
        if found.seqs is not None:
            return Withdrawn(None, _rows(found.seqs, found.items, found.sealed, found.ats))
        row = None if found.seq is None else Row(found.seq, found.item, False, found.at)
        return Withdrawn(row, None)

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
        number = self._turn(address, ticket)
        claims = self._claims(epoch)
        try:
            found = self._engine.once("drop", _array(address), *claims, sealed, landed, number)
        except TurnIsOver:
            raise run_is_over(address.conversation) from None
        if found.seqs is None:
            raise had_by_others()
        return tuple(found.seqs)

    def forget(self, address: Address, epoch: Epoch) -> None:
        self._check(epoch)
        self._engine.call("forget", _array(address))

    def pause(self, address: Address, epoch: Epoch, reason: str) -> None:
        self._check(epoch)
        if not self._engine.in_time("pause", _array(address), *self._claims(epoch), reason)[0]:
            raise had_by_others()

    def name(self, address: Address, epoch: Epoch, conversation: str) -> Address:
        self._check(epoch)
        if not address.conversation.startswith(LOCAL):
            raise ValueError("address: its conversation exists on the server already")
        found = self._engine.call("name", _array(address), conversation)
        return address._replace(conversation=found[0])

    def look(self, address: Address, epoch: Epoch) -> Look:
        self._check(epoch)
        found = self._engine.read("look", self.token, _array(address))
        return Look(bool(found.elsewhere), bool(found.waits), found.paused, bool(found.doubted))

    def release(self, address: Address) -> None:
        self._engine.in_time("release", _array(address))

    def line_up(self, address: Address, ticket: Ticket | None) -> Ticket:
        taken = None if ticket is None or ticket.opened != self.token else ticket.number
        asked = self._lease.now()
        found = self._engine.once("line_up", _array(address), taken, self._lease.seconds)
        self._engine.leased(asked, lapsed=found.lapsed)
        return Ticket(found.ticket_of, self.token, found.first)

    def has_turn(self, ticket: Ticket) -> bool:
        if ticket.opened != self.token:
            return False
        return bool(self._engine.value("has_turn", self.token, ticket.number))

    def step_out(self, ticket: Ticket) -> None:
        # A ticket of an earlier opening went with that one's owner: there is none to be given up.
        if ticket.opened == self.token:
            self._engine.call("step_out", self.token, ticket.number)

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        found: list[Orphan] = []
        others = False
        for row in self._engine.rows("waiting", self.token, _array(account)):
            address = account._replace(conversation=row.conversation)
            if row.free and address not in beside and len(found) < limit:
                found.append(Orphan(address, row.claims, row.oldest))
            else:
                others = True
        return Orphans(tuple(found), others)

    def summaries(self) -> list[BacklogSummary]:
        return [
            BacklogSummary(
                row.number,
                Address(
                    row.base_url, row.organization, row.project, row.credentials, row.conversation
                ),
                row.items,
                row.size,
                row.sealed,
                row.oldest,
                row.paused,
                row.owned,
                row.window_size,
            )
            for row in self._engine.rows("summaries")
        ]

    def mailbox(self, address: Address) -> Mailbox:
        found = self._engine.read("mailbox", _array(address), 0)
        rows = _rows(found.seqs, found.items, found.sealed, found.ats)
        return Mailbox(rows, found.doubt, found.paused)

    def resume(self, address: Address) -> None:
        self._engine.call("resume", _array(address))

    def discard(self, address: Address) -> int | None:
        found = self._engine.once("discard", _array(address), self._lease.seconds)
        removed: int | None = found.removed
        return removed

    def move(self, address: Address, to: Address) -> Address:
        found = self._engine.call(
            "move", self.token, _array(address), _array(to), self._lease.seconds
        )
        if found.state == "owned":
            raise OutboxError(
                f"The backlog of {to.conversation} cannot be moved to another account: a living "
                "process sends it. Close its sessions first."
            )
        if found.state == "both":
            raise OutboxError(
                f"The other account has a backlog of {to.conversation}, too, with number "
                f"{found.there}. Send or discard that one first."
            )
        return to._replace(conversation=self._engine.value("known_as", _array(to)))

    def _check(self, epoch: Epoch) -> None:
        # Between two openings anybody may have changed what was read in the first one.
        if epoch.opened != self.token:
            raise Reopened("the outbox was closed during this call; nothing was recorded by it")

    def _claims(self, epoch: Epoch | None) -> tuple[int | None, int | None]:
        if epoch is None or epoch.opened != self.token or epoch.claims is None:
            return None, None
        return epoch.claims

    def _turn(self, address: Address, ticket: Ticket | None) -> int | None:
        if ticket is None:
            return None
        if ticket.opened != self.token:
            raise run_is_over(address.conversation)
        return ticket.number

    def _keeping(self, kept: Kept | None) -> Sequence[Any]:
        """What `keep` takes: no more than what is new, where that is all that has changed."""
        if kept is None or self._max_window_bytes == 0:
            return None, None, None, None, None, None, None, None, self._max_window_bytes
        if kept.items is None:
            return "forget", None, None, None, None, None, None, None, self._max_window_bytes
        more = kept.new is not None and kept.newest is not None
        return "more" if more else "all", *self._window(kept, kept.new if more else None)

    def _window(self, kept: Kept, new: int | None) -> Sequence[Any]:
        assert kept.items is not None  # there is something to be kept
        assert kept.stored is not None
        items = [*map(kept.stored, kept.items[new or 0 :])]
        seq, item_id = kept.newest or (None, None)
        return (
            [item.id for item in items],
            [item.data for item in items],
            kept.complete,
            kept.unverified,
            seq,
            item_id,
            kept.listed,
            self._max_window_bytes,
        )

    def _written(
        self, address: Address, epoch: Epoch, kept: Kept | None, found: Any
    ) -> Written | None:
        if kept is None or found.kept is None:
            return None
        if found.kept == "all":
            # Another process has written the window since, so the new items alone do not continue
            # it: all of it is written.
            found = self._engine.in_time(
                "keep_all", _array(address), *self._claims(epoch), *self._window(kept, None)
            )
        if found.kept != "kept":
            return None
        return Written(_newest(found))


def _rows(
    seqs: Sequence[int] | None,
    items: Sequence[bytes] | None,
    sealed: int | None,
    ats: Sequence[float] | None,
) -> tuple[Row, ...]:
    """Rows as the functions give them: the sealed ones are the oldest."""
    found = zip(seqs or (), items or (), ats or (), strict=True)
    return tuple(Row(seq, data, n < (sealed or 0), at) for n, (seq, data, at) in enumerate(found))


def _namesakes(found: Any, address: Address) -> tuple[Namesake, ...]:
    others = zip(
        found.other_numbers or (),
        found.other_credentials or (),
        found.other_conversations or (),
        found.other_counts or (),
        strict=True,
    )
    return tuple(
        Namesake(number, address._replace(credentials=credentials, conversation=name), items)
        for number, credentials, name, items in others
    )


@functools.lru_cache(maxsize=1024)
def _array(address: Address) -> AsHeld:
    """An address as the functions take it, which is an array in its text form.

    Made once for each: psycopg would make one at each call, in more time than the engine needs.
    """
    parts = (held(part).replace("\\", "\\\\").replace('"', '\\"') for part in address)
    return AsHeld("{" + ",".join(f'"{part}"' for part in parts) + "}")


def _window(found: Any, *, continued: bool) -> StoredWindow | None:
    if not found.window_kept:
        return None
    items = tuple(map(StoredItem, found.window_ids or (), found.window_items or ()))
    # The oldest ones, which went for the bound, may have been unverified, too.
    unverified = found.window_unverified if continued else min(found.window_unverified, len(items))
    return StoredWindow(items, found.window_complete, unverified)


def _from_hex(data: str | None) -> bytes | None:
    """Bytes as the engine writes them into JSON: `\\x` and two digits each."""
    return None if data is None else bytes.fromhex(data[2:])


def _newest(found: Any) -> tuple[int, str] | None:
    return None if found.newest_seq is None else (found.newest_seq, found.newest_id)
