"""The held window of one conversation, and how it is brought up to date.

Whoever calls what awaits here holds the conversation's turn.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from openai import NotFoundError

from cached_session.classify import says_gone
from cached_session.core.history import History
from cached_session.core.outcomes import Applied
from cached_session.core.unsettled import Unsettled, Untold
from cached_session.errors import UnexpectedAnswer
from cached_session.events import LateCopyRemoved, LateCopySuspected
from cached_session.listing import CursorLost, Newest, extend, newest, rest
from cached_session.operation import Operation, is_gone
from cached_session.servers import PAGE

# How many of the newest verified items a check recognises the conversation by.
# One would do; more, because another writer may have deleted it.
LANDMARKS = 64

# What a check asks for beyond what this process added: other writers' items.
SLACK = 20

# How often a listing is begun anew when the server loses its place in it. Each
# time another writer may have deleted the very item that was the cursor.
RESTARTS = 8


class _Moment(NamedTuple):
    """When something was asked for, to be compared on another event loop, too.

    Attributes:
        on_loop: On the clock of the loop that asked.
        monotonic: On the system's.
        process: In which process.
    """

    on_loop: float
    monotonic: float
    process: int

    @classmethod
    def at(cls, on_loop: float) -> _Moment:
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


class Window:
    """What is held of one conversation, and what is known about it.

    Attributes:
        conversation_id: The conversation.
        history: The items, or None if nothing is held.
        unsettled: Requests without an answer that may still be applied.
        listings: How many listings were begun, numbered from 1.
        removed: How many items were removed from the server by this process.
        recording: Puts down what is known here where another process finds it, if one may.
        left_at: Where an outbox stood when it was let go of here; what is known holds while
            it still stands there. None: it was not.
    """

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.history: History | None = None
        self.unsettled = Unsettled()
        self.listings = 0
        self.removed = 0
        self.recording: Callable[[], Awaitable[None]] | None = None
        self.left_at: object = None
        # The number of the last listing that confirmed the items, and when it was asked for.
        self._checked = 0
        self._checked_at: _Moment | None = None
        self._in_flight: Callable[[], None] | None = None

    def begin_empty(self, now: float) -> None:
        """Notes that the conversation was just created: it is known to be empty."""
        self.history = History(complete=True)
        self._checked_at = _Moment.at(now)

    def take_up(self, history: History, *, first: bool) -> None:
        """Takes over what was kept; unless it is the `first` of all, a listing must confirm it."""
        self.history = history
        if not first or self.listings:
            # What was confirmed before was something else.
            self._checked = -1

    def forget(self) -> None:
        """Drops the items; the next read asks the server."""
        self.history = None

    def trusted(self, listing: int, since: float) -> History | None:
        """The items, if they may be served without asking.

        Args:
            listing: The number of the first listing that counts as a check:
                one that was begun before a read says nothing about it.
            since: When the last check must have been asked for, on the running loop's clock.
        """
        return self.history if self.checked(listing, since) and not self.unsettled.active else None

    def checked(self, listing: int, since: float) -> bool:
        """Whether a listing that counts has confirmed the items; see `trusted`."""
        if self._checked < listing:
            return False
        at = self._checked_at
        return since == -math.inf or (at is not None and at.told(Operation.now()) >= since)

    @contextmanager
    def doubting(self, note: Callable[[], None]) -> Iterator[None]:
        """Around a request that changes something: `note` is called if its answer is lost here.

        That is when the task that waits for it is torn down with its event
        loop, or is left lying by a loop that was closed.
        """
        self._in_flight = note
        try:
            yield
        except BaseException:
            if self._in_flight is note:
                self.abandon()
            raise
        finally:
            if self._in_flight is note:
                self._in_flight = None

    def abandon(self) -> None:
        """Notes that nobody will say how the request in flight ended; drops the items."""
        note, self._in_flight = self._in_flight, None
        if note is not None:
            note()
        self.forget()

    def doubt_clear(self, operation: Operation) -> None:
        """Notes a delete of the conversation that may still be applied; drops the items."""
        history = self.history or History(complete=False)
        self.unsettled.begin(history.items, complete=history.complete)
        self.unsettled.clearing(expires=operation.now() + operation.policy.deadline)
        self.forget()

    def doubt_removal(self, operation: Operation, item_id: str) -> None:
        """Notes a delete that may still be applied; drops the items."""
        history = self.history
        assert history is not None  # only what is held is deleted
        self.unsettled.begin(
            [item for item in history.items if item.id != item_id], complete=history.complete
        )
        expires = operation.now() + operation.policy.deadline
        self.unsettled.removing(item_id, expires=expires)
        self.forget()

    async def fresh(
        self, operation: Operation, limit: int | None, listing: int, since: float
    ) -> History:
        """Makes the window one that may answer a read of `limit` items; see `trusted`."""
        if self.trusted(listing, since) is None:
            await self.relist(operation, limit)
        restarts = 0
        while True:
            while self.unsettled.extra:
                await self.remove_late_copies(operation)
                # Other writers go on meanwhile; an answer shows one moment, not two.
                await self.relist(operation, limit)
            history = self.history
            assert history is not None  # relist has set it
            if history.covers(limit):
                return history
            try:
                if limit is None:
                    older = await rest(operation, history.items)
                    history.extend_back(older, complete=True)
                else:
                    await extend(operation, history, limit)
            except CursorLost:
                restarts += 1
                if restarts > RESTARTS:
                    raise self._no_cursors() from None
                self.forget()
                await self.relist(operation, limit)

    async def relist(
        self, operation: Operation, limit: int | None, *, anew: bool = False
    ) -> int | Untold:
        """Lists the newest part and puts it in the place of what is not verified.

        Args:
            operation: The operation that asks.
            limit: How many items are wanted; None: as many as a page has.
            anew: Whether it is put in the place of all that is held.

        Returns:
            How many items of an undecided append the listing showed; or that
            it cannot tell.
        """
        try:
            return await self._relist(operation, limit, anew=anew)
        except NotFoundError as error:
            # Nothing of it may be served again.
            self.forget()
            if says_gone(error):
                self.unsettled.decided_lost()
            raise

    async def _relist(self, operation: Operation, limit: int | None, *, anew: bool) -> int | Untold:
        unsettled = self.unsettled
        for _ in range(RESTARTS):
            history = None if anew else self.history
            positions: dict[str, int] = {}
            size = min(PAGE, limit or PAGE)
            enough: int | None = limit or PAGE
            # Where nothing stood before what is in doubt, only all of it can tell.
            if history is not None and (unsettled.anchors or not unsettled.active):
                positions = history.landmarks(LANDMARKS, below=unsettled.anchors)
                size = min(PAGE, len(history) - max(positions.values(), default=0) + SLACK)
                enough = limit
            until: Container[str] = positions
            if unsettled.active:
                # What is in doubt lies behind its anchor: list at least back to it.
                until, enough = positions or unsettled.anchors, None
                size = size if positions else PAGE
            listed_at = operation.now()
            self.listings += 1
            number = self.listings
            try:
                listed = await newest(
                    operation,
                    size=size,
                    until=until,
                    enough=enough,
                    at_least=0 if history is None else len(history),
                )
            except CursorLost:
                self.forget()
                continue
            self._take(listed, positions)
            self._checked = number
            self._checked_at = _Moment.at(listed_at)
            if not unsettled.active:
                return 0
            landed = unsettled.settle(
                listed.items,
                reached_start=listed.reached_start,
                listed_at=listed_at,
                rewriting=operation.remote.server.rewriting,
            )
            if unsettled.suspected:
                operation.meter.tell(LateCopySuspected(self.conversation_id, unsettled.suspected))
            return landed
        raise self._no_cursors()

    def _take(self, listed: Newest, positions: dict[str, int]) -> None:
        items, found = listed.items, listed.found
        position = None if found is None else positions.get(items[found].id)
        if self.history is None or found is None or position is None or listed.reached_start:
            self.history = History(items, complete=listed.reached_start)
            return
        overlap = min(found, position)
        held = self.history.items[position - overlap : position]
        if [item.id for item in held] == [item.id for item in items[found - overlap : found]]:
            self.history.replace_after(position, items[found + 1 :])
        else:
            # Another writer removed something further back. How far back its
            # changes go is not known: keep only what was just listed.
            self.history = History(items, complete=listed.reached_start)

    async def remove_late_copies(self, operation: Operation) -> None:
        """Deletes the items that a late commit stored a second time."""
        extra = self.unsettled.extra
        if extra and self.recording is not None:
            # By what is left of a copy, a process that takes over could not tell it.
            await self.recording()
        while extra:
            outcome = await operation.delete_item(extra[0])
            if not (isinstance(outcome, Applied) or is_gone(outcome)):
                raise outcome.error
            item_id = extra.pop(0)
            self.removed += 1
            if self.history is not None:
                self.history.remove(item_id)
            operation.meter.tell(LateCopyRemoved(self.conversation_id, item_id))

    def _no_cursors(self) -> UnexpectedAnswer:
        return UnexpectedAnswer(
            f"{self.conversation_id}: the server lost its place in every listing of more "
            "than one page; nothing was changed",
            conversation_id=self.conversation_id,
        )
