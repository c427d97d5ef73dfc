"""From pages to a window: which pages are asked for, and when to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from dataclasses import dataclass

from openai import NotFoundError

from cached_session.classify import is_unknown_cursor
from cached_session.core.history import History
from cached_session.core.items import Held
from cached_session.operation import Operation
from cached_session.remote import Page
from cached_session.servers import PAGE


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


async def extend(operation: Operation, history: History, limit: int) -> None:
    """Extends a window backwards until it holds `limit` items or the beginning.

    Raises:
        CursorLost: The window's oldest items are not where they were.
    """
    while not history.covers(limit):
        items = history.items
        missing = limit - len(items)
        if len(items) > 1 and operation.remote.server.largest_page > 1:
            # One item of overlap proves that the page begins where the window ends.
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
        history.extend_back(older[::-1], complete=ended)


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
