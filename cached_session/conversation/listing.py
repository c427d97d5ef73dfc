"""From pages to what is known: which pages are asked for, when to stop, and what it says.

Whoever calls what awaits here holds the conversation's turn.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from openai import NotFoundError

from cached_session.conversation.operation import Operation, is_gone
from cached_session.core.history import History
from cached_session.core.items import Held
from cached_session.core.ledger import Ledger, Trust
from cached_session.core.outcomes import Applied
from cached_session.core.unsettled import Untold
from cached_session.errors import UnexpectedAnswer
from cached_session.events import LateCopyRemoved, LateCopySuspected
from cached_session.server.classify import is_unknown_cursor, says_gone
from cached_session.server.remote import PAGE, Page

if TYPE_CHECKING:
    from cached_session.conversation.record import Record

# How many of the newest verified items a check recognises the conversation by.
# One would do; more, because another writer may have deleted it.
LANDMARKS = 64

# What a check asks for beyond what this process added: other writers' items.
SLACK = 20

# How often a listing is begun anew when the server loses its place in it. Each
# time another writer may have deleted the very item that was the cursor.
RESTARTS = 8


class Asked(NamedTuple):
    """When the server was asked for something, to be compared on another event loop, too.

    Attributes:
        on_loop: On the clock of the loop that asked.
        monotonic: On the system's.
        process: In which process.
    """

    on_loop: float
    monotonic: float
    process: int

    @classmethod
    def now(cls) -> Asked:
        """This moment."""
        return cls(Operation.now(), time.monotonic(), os.getpid())

    @classmethod
    def at(cls, on_loop: float) -> Asked:
        """A moment on the running loop's clock that was just now."""
        elapsed = Operation.now() - on_loop
        return cls(on_loop, time.monotonic() - elapsed, os.getpid())

    def told(self, now: float) -> float:
        """When it was at the latest that is certain, on the clock of a loop where it is `now`.

        Each loop may have a clock of its own. Of what the two clocks say the
        earlier is taken, as a check that is taken for newer than it is would be
        trusted for too long. In a forked process it was never: the process that
        asked writes on, and nobody tells this one.
        """
        if self.process != os.getpid():
            return -math.inf
        return min(self.on_loop, now - (time.monotonic() - self.monotonic))


async def fresh(
    ledger: Ledger, record: Record | None, operation: Operation, limit: int | None, trust: Trust
) -> History:
    """Makes what is known such that it may answer a read of `limit` items (None: all).

    Raises:
        openai.OpenAIError: The server refused, or stayed out of reach.
        UnexpectedAnswer: The server cannot list its own conversation.
    """
    if ledger.known is None or ledger.watch.active or not ledger.checked(trust):
        await relist(ledger, operation, limit)
    restarts = 0
    while True:
        while ledger.watch.extra:
            await remove_late_copies(ledger, record, operation)
            # Other writers go on meanwhile; an answer shows one moment, not two.
            await relist(ledger, operation, limit)
        history = ledger.known
        assert history is not None  # relist has set it
        if history.covers(limit):
            return history
        try:
            if limit is None:
                older = await rest(operation, history.items)
                ledger.extend_back(older, complete=True)
            else:
                await _extend(ledger, operation, limit)
        except CursorLost:
            restarts += 1
            if restarts > RESTARTS:
                raise _no_cursors(ledger) from None
            ledger.forget()
            await relist(ledger, operation, limit)


async def relist(
    ledger: Ledger, operation: Operation, limit: int | None, *, anew: bool = False
) -> int | Untold | None:
    """Lists the newest part and puts it in the place of what is not verified.

    Args:
        ledger: The conversation's.
        operation: The operation that asks.
        limit: How many items are wanted; None: as many as a page has.
        anew: Whether it is put in the place of all that is known.

    Returns:
        What it says of a batch in doubt; see `Ledger.listed`.
    """
    try:
        return await _relist(ledger, operation, limit, anew=anew)
    except NotFoundError as error:
        # Nothing of it may be served again.
        ledger.forget()
        if says_gone(error):
            ledger.gone()
        raise


async def _relist(
    ledger: Ledger, operation: Operation, limit: int | None, *, anew: bool
) -> int | Untold | None:
    watch = ledger.watch
    for _ in range(RESTARTS):
        history = None if anew else ledger.known
        positions: dict[str, int] = {}
        size = min(PAGE, limit or PAGE)
        enough: int | None = limit or PAGE
        # Where nothing stood before what is in doubt, only all of it can tell.
        if history is not None and (watch.anchors or not watch.active):
            positions = history.landmarks(LANDMARKS, below=watch.anchors)
            size = min(PAGE, len(history) - max(positions.values(), default=0) + SLACK)
            enough = limit
        until: Container[str] = positions
        if watch.active:
            # What is in doubt lies behind its anchor: list at least back to it.
            until, enough = positions or watch.anchors, None
            size = size if positions else PAGE
        asked_at, suspicious = operation.now(), watch.active
        number = ledger.begin_listing()
        try:
            listed = await newest(
                operation,
                size=size,
                until=until,
                enough=enough,
                at_least=0 if history is None else len(history),
            )
        except CursorLost:
            ledger.forget()
            continue
        landed = ledger.listed(
            listed.items,
            found=listed.found,
            positions=positions,
            reached_start=listed.reached_start,
            number=number,
            at=Asked.at(asked_at),
            asked_at=asked_at,
            rewriting=operation.remote.server.rewriting,
        )
        if suspicious and watch.suspected:
            operation.meter.tell(LateCopySuspected(ledger.conversation_id, watch.suspected))
        return landed
    raise _no_cursors(ledger)


async def remove_late_copies(ledger: Ledger, record: Record | None, operation: Operation) -> None:
    """Deletes the items that a late commit stored a second time.

    Args:
        ledger: The conversation's.
        record: Its part of a log, by which others may have the conversation: what looks like a copy
            may then be what they have appended. None: nobody else can look after what is in doubt.
        operation: The operation that deletes.

    Raises:
        Reopened: Others may have it by now.
    """
    extra = ledger.watch.extra
    if extra and record is not None:
        # By what is left of a copy, a process that takes over could not tell it.
        await record.note()
    while extra:
        item_id = extra[0]
        outcome = await operation.delete_item(item_id, None if record is None else record.left)
        if not (isinstance(outcome, Applied) or is_gone(outcome)):
            raise outcome.error
        ledger.removed_copy(item_id)
        operation.meter.tell(LateCopyRemoved(ledger.conversation_id, item_id))


def _no_cursors(ledger: Ledger) -> UnexpectedAnswer:
    return UnexpectedAnswer(
        f"{ledger.conversation_id}: the server lost its place in every listing of more "
        "than one page; nothing was changed",
        conversation_id=ledger.conversation_id,
    )


class CursorLost(Exception):
    """The server does not know a cursor, or listed as if none had been given.

    What was listed so far cannot be joined to what is missing: start again.
    """


class _Lane:
    """A listing in one direction, page by page.

    Attributes:
        items: In the order of the listing.
        places: The last place of each id in `items`.
        ended: Whether nothing follows.
    """

    def __init__(self, operation: Operation, order: str, items: Sequence[Held] = ()) -> None:
        self._operation = operation
        self._order = order
        self.items: list[Held] = []
        self.places: dict[str, int] = {}
        self.ended = False
        self._denied = False
        self._add(items)

    async def more(self, limit: int = PAGE, *, at_least: int = 0) -> None:
        """Fetches the next page behind what is there.

        Args:
            limit: How many items are asked for.
            at_least: How many items are known to stand there. A full page that says that there
                are fewer is not believed: the next one is asked for, and if that one is empty
                it was true.
        """
        server, denied = self._operation.remote.server, self._denied
        after = self.items[-1].id if self.items else None
        page = await _page(self._operation, self._order, limit, after)
        if after is not None and _starts_again(page, after, self.places):
            raise CursorLost
        if denied and page.items:
            server.denies_more = True
        self._add(page.items)
        self._denied = page.full and not page.has_more
        doubted = self._denied and (server.denies_more or len(self.items) < at_least)
        # An exactly full last page may say that more follow; the next one is empty.
        self.ended = not page.items or not (page.has_more or doubted)

    @property
    def contradicted(self) -> bool:
        """Whether the last page denied what is known; only the next one tells."""
        known = self._operation.remote.server.denies_more
        return self._denied and not self.ended and not known

    def doubt(self) -> None:
        """Goes on behind a full page that denied what is known."""
        if self._denied:
            self.ended = False

    def _add(self, items: Sequence[Held]) -> None:
        for place, item in enumerate(items, len(self.items)):
            self.places[item.id] = place
        self.items.extend(items)


async def _page(operation: Operation, order: str, limit: int, after: str | None) -> Page:
    try:
        return await operation.list_items(
            "asc" if order == "asc" else "desc", limit=limit, after=after
        )
    except NotFoundError as error:
        if after is not None and is_unknown_cursor(error):
            raise CursorLost from error
        raise


def _starts_again(page: Page, after: str, seen: Container[str]) -> bool:
    """Whether a page begins the listing anew instead of behind `after`.

    Some servers do so for a cursor that they do not know. Taken at its word,
    such a listing has no end. A few known ids are no proof: the service lists
    an item twice that was sent twice under one id.
    """
    known = sum(item.id in seen for item in page.items)
    return 2 * known > len(page.items) or any(item.id == after for item in page.items)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest part of a conversation, as just listed.

    Attributes:
        items: Oldest first.
        found: The position in `items` of the newest item that was looked for,
            or None if none of them is there.
        reached_start: Whether the items reach the conversation's beginning.
    """

    items: list[Held]
    found: int | None
    reached_start: bool


async def newest(
    operation: Operation,
    *,
    size: int,
    until: Container[str],
    enough: int | None,
    at_least: int = 0,
) -> Newest:
    """Lists from the newest item back.

    Args:
        operation: The operation that asks.
        size: Items to ask for in the first page, 1 to 100.
        until: Stop at an item with one of these ids.
        enough: Stop when this many items are there; None: do not.
        at_least: How many items are held: fewer are not believed without a second look.

    Raises:
        CursorLost: A page could not be joined to the one before.
    """
    lane = _Lane(operation, "desc")
    looked = 0
    while True:
        await lane.more(size, at_least=at_least)
        if lane.contradicted:
            await lane.more(at_least=at_least)
        for position in range(looked, len(lane.items)):
            if lane.items[position].id in until:
                found = len(lane.items) - 1 - position
                return Newest(lane.items[::-1], found, lane.ended)
        looked = len(lane.items)
        if lane.ended or (enough is not None and looked >= enough):
            return Newest(lane.items[::-1], None, lane.ended)
        size = PAGE


async def _extend(ledger: Ledger, operation: Operation, limit: int) -> None:
    """Extends what is known backwards until it holds `limit` items or the beginning.

    Raises:
        CursorLost: The oldest items known are not where they were.
    """
    history = ledger.known
    assert history is not None  # it was listed before
    while not history.covers(limit):
        items = history.items
        missing = limit - len(items)
        if len(items) > 1 and operation.remote.server.largest_page > 1:
            # One item of overlap proves that the page begins where what is known ends.
            page = await _page(operation, "desc", min(PAGE, missing + 1), items[1].id)
            if not page.items or page.items[0].id != items[0].id:
                raise CursorLost
            older = page.items[1:]
        else:
            page = await _page(operation, "desc", min(PAGE, missing), items[0].id)
            older = page.items
            # Listed anew: the item stands in the page, behind what others have appended.
            if any(item.id == items[0].id for item in older):
                raise CursorLost
        # A page of one item that was asked for may hold the overlap alone.
        more = page.has_more or (page.full and operation.remote.server.denies_more)
        ended = not more or not (older or (page.full and page.items))
        ledger.extend_back(older[::-1], complete=ended)


async def rest(operation: Operation, window: list[Held]) -> list[Held]:
    """Lists all of a conversation that stands before the newest part.

    Pages come from both ends at once and stop where they meet: half the round
    trips in sequence.

    Args:
        operation: The operation that asks.
        window: The newest items, oldest first; at least one.

    Returns:
        All items before the window, oldest first.

    Raises:
        CursorLost: The two ends do not fit together.
    """
    back = _Lane(operation, "desc", window[::-1])
    forth = _Lane(operation, "asc")
    while True:
        results = await asyncio.gather(back.more(), forth.more(), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if back.ended and forth.items and forth.items[0].id not in back.places:
            back.doubt()
            forth.doubt()
        if back.ended:
            return back.items[len(window) :][::-1]
        meeting = forth.places.get(back.items[-1].id)
        if meeting is not None:
            whole = _joined(forth.items, meeting, back.items[::-1])
            return whole[: len(whole) - len(window)]
        if forth.ended:
            raise CursorLost


def _joined(older: list[Held], meeting: int, newer: list[Held]) -> list[Held]:
    overlap = older[meeting:]
    if [item.id for item in overlap] != [item.id for item in newer[: len(overlap)]]:
        raise CursorLost
    return older[:meeting] + newer
