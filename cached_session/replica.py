"""The local copy of one conversation: serve, check, append, pop, clear, in one order.

One replica a conversation and account, shared by every session of the process.
Whatever needs the network holds the replica's turn. Reads are done by the
caller's own task and simply stop when it is cancelled. Writes run in a task of
their own, so that a request in flight settles, in order, behind a caller who
has left.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from openai import NotFoundError

from cached_session.appending import Append
from cached_session.connections import Account
from cached_session.core.history import History
from cached_session.core.items import Held, Outgoing, copies, unhold
from cached_session.core.outcomes import Applied, Unknown
from cached_session.core.unsettled import Unsettled
from cached_session.errors import UnexpectedAnswer
from cached_session.events import AbandonedWriteFailed, LateCopyRemoved
from cached_session.listing import CursorLost, extend, newest, rest
from cached_session.operation import Operation, is_gone
from cached_session.remote import PAGE
from cached_session.turns import Turns

T = TypeVar("T")
Key: TypeAlias = tuple[Account, str]

# How many of the newest verified items a check recognises the conversation by.
# One would do; more, because another writer may have deleted it.
LANDMARKS = 64

# What a check asks for beyond what this process added: other writers' items.
SLACK = 20


class Replica:
    """The local copy of one conversation.

    Attributes:
        conversation_id: The conversation.
        key: The account and the conversation, by which the cache knows it.
        turns: Who may work on it.
        history: The window that is held, or None.
        unsettled: Requests without an answer that may still be applied.
        listings: How many listings were begun, numbered from 1.
        checked: The number of the last one that confirmed the window.
        checked_at: When the last of them was asked for, on the loops' clock.
    """

    def __init__(self, conversation_id: str, key: Key, resized: Callable[[Replica], None]) -> None:
        """Makes an empty copy; `resized` is called whenever its size may have changed."""
        self.conversation_id = conversation_id
        self.key = key
        self._resized = resized
        self.turns = Turns()
        self.history: History | None = None
        self.unsettled = Unsettled()
        self.listings = 0
        self.checked = 0
        self.checked_at = -math.inf
        self._writes: set[asyncio.Task[Any]] = set()

    @property
    def size(self) -> int:
        """Bytes of memory that the window takes."""
        history = self.history
        return 0 if history is None else history.size

    def begin_empty(self, now: float) -> None:
        """Notes that the conversation was just created: it is known to be empty."""
        self.history = History(complete=True)
        self.checked_at = now

    def forget(self) -> None:
        """Drops the window; the next read asks the server."""
        self.history = None

    def served(
        self, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]] | None:
        """Answers a read from the window, if it may be trusted that far.

        Args:
            limit: How many of the newest items; None: all.
            listing: The number of the first listing that counts as a check:
                one that was begun before a read says nothing about it.
            since: When the last check must have been asked for.

        Returns:
            The caller's own copy, oldest first, or None: ask the server.
        """
        history = self.history
        if (
            history is None
            or not history.covers(limit)
            or self.checked < listing
            or self.checked_at < since
            or self.unsettled.active
            or not self.turns.idle
        ):
            return None
        return copies(history.tail(limit))

    async def read(
        self, operation: Operation, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]]:
        """Answers a read, with as few requests as it takes; arguments as in `served`."""
        async with self._turn(operation):
            history = await self.fresh(operation, limit, listing, since)
            return copies(history.tail(limit))

    async def settle(self, operation: Operation) -> None:
        """Waits for the writes before this call, and checks what is still in doubt."""
        async with self._turn(operation):
            if self.unsettled.active:
                await self.fresh(operation, 1, 0, -math.inf)

    async def pop(
        self, operation: Operation, *, listing: int, since: float
    ) -> dict[str, Any] | None:
        """Removes and returns the newest item; None if there is none."""
        await self.turns.enter(operation.deadline, self.conversation_id)
        try:
            history = await self.fresh(operation, 1, listing, since)
        except BaseException:
            self._leave()
            raise
        return await self._write(operation, self._pop(operation, history))

    async def _pop(self, operation: Operation, history: History) -> dict[str, Any] | None:
        # Each round that another writer was faster ends with a new listing.
        for _ in range(operation.policy.max_attempts):
            if not len(history):
                return None
            last = history.items[-1]
            if await self._delete(operation, last.id):
                history.drop_last()
                # The service may list an item twice; then nothing here says
                # whether one of them or both went.
                if any(item.id == last.id for item in history.items) or not (
                    len(history) or history.complete
                ):
                    self.forget()
                return unhold(last)
            self.forget()
            history = await self.fresh(operation, 1, 0, -math.inf)
        raise UnexpectedAnswer(
            f"{self.conversation_id}: the newest item was gone at every attempt to remove it; "
            "nothing was removed",
            conversation_id=self.conversation_id,
        )

    async def _delete(self, operation: Operation, item_id: str) -> bool:
        """Deletes an item; False if somebody else had."""
        try:
            outcome = await operation.delete_item(item_id)
        except BaseException:  # the loop ends with the request in flight
            self._doubt_removal(operation, item_id)
            raise
        if isinstance(outcome, Applied):
            return True
        if is_gone(outcome):
            return False
        if isinstance(outcome, Unknown):
            self._doubt_removal(operation, item_id)
            outcome.error.add_note(
                f"{self.conversation_id}: whether the item was removed is not known; "
                "the next read shows it"
            )
        raise outcome.error

    def _doubt_removal(self, operation: Operation, item_id: str) -> None:
        history = self.history
        assert history is not None  # only what is held is deleted
        self.unsettled.begin(
            [item for item in history.items if item.id != item_id], complete=history.complete
        )
        expires = operation.now() + operation.policy.deadline
        self.unsettled.removing(item_id, expires=expires)
        self.forget()

    async def refresh(self, operation: Operation) -> None:
        """Drops the window, in its turn: a write before this call settles first."""
        async with self._turn(operation):
            self.forget()

    async def clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        """Deletes the conversation, and calls `deleted` in the moment that it is.

        Raises:
            openai.NotFoundError: Somebody else had deleted it.
        """
        await self.turns.enter(operation.deadline, self.conversation_id)
        await self._write(operation, self._clear(operation, deleted))

    async def _clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        self.forget()
        outcome = await operation.delete_conversation()
        if not isinstance(outcome, Applied):
            raise outcome.error
        deleted()

    async def append(self, operation: Operation, items: Sequence[Outgoing]) -> None:
        """Appends items, each once, in order; errors as in `CachedSession.add_items`."""
        await self.turns.enter(operation.deadline, self.conversation_id)
        try:
            if self.history is None or self.unsettled.undecided:
                # The anchor: without it, two equal messages cannot be told
                # apart after a lost answer.
                await self.relist(operation, 1)
        except BaseException:
            self._leave()
            raise
        await self._write(operation, Append(self, operation, items).run())

    @asynccontextmanager
    async def _turn(self, operation: Operation) -> AsyncIterator[None]:
        await self.turns.enter(operation.deadline, self.conversation_id)
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._resized(self)
        self.turns.leave()

    async def _write(self, operation: Operation, write: Coroutine[Any, Any, T]) -> T:
        """Runs a write that holds the turn, to its end, whatever becomes of the caller."""
        task = asyncio.get_running_loop().create_task(write)
        self._writes.add(task)
        # A callback, not a `finally` in the task: one that is cancelled before
        # its first step runs neither.
        task.add_done_callback(self._written)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._abandoned(operation, task))
            raise
        return task.result()

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        self._leave()

    def _abandoned(self, operation: Operation, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            operation.meter.tell(AbandonedWriteFailed(self.conversation_id, type(error).__name__))

    async def fresh(
        self, operation: Operation, limit: int | None, listing: int, since: float
    ) -> History:
        """Makes the window one that may answer; arguments as in `served`. Holds the turn."""
        if (
            self.history is None
            or self.unsettled.active
            or self.checked < listing
            or self.checked_at < since
        ):
            await self.relist(operation, limit)
        while self.unsettled.extra:
            await self.remove_late_copies(operation)
            # Other writers go on meanwhile; an answer shows one moment, not two.
            await self.relist(operation, limit)
        for _ in range(operation.policy.max_attempts):
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
                self.forget()
                await self.relist(operation, limit)
        raise self._no_cursors()

    async def relist(self, operation: Operation, limit: int | None) -> int | None:
        """Lists the newest part and puts it in the place of what is not verified.

        Returns:
            How many items of an undecided append the listing showed; None if
            it cannot tell.
        """
        try:
            return await self._relist(operation, limit)
        except NotFoundError:
            # The conversation is gone. Nothing of it may be served again.
            self.forget()
            self.unsettled.decided_lost()
            raise

    async def _relist(self, operation: Operation, limit: int | None) -> int | None:
        unsettled = self.unsettled
        for _ in range(operation.policy.max_attempts):
            history = self.history
            positions: dict[str, int] = {}
            size = min(PAGE, limit or PAGE)
            enough: int | None = limit or PAGE
            if history is not None:
                positions = history.landmarks(LANDMARKS, below=unsettled.anchors)
                size = min(PAGE, len(history) - max(positions.values(), default=0) + SLACK)
                enough = limit
            until: Container[str] = positions
            if unsettled.active:
                # What is in doubt lies behind its anchor: list at least back to it.
                until, enough = positions or unsettled.anchors, None
            listed_at = operation.now()
            self.listings += 1
            number = self.listings
            try:
                listed = await newest(operation, size=size, until=until, enough=enough)
            except CursorLost:
                self.forget()
                continue
            self._take(listed.items, listed.found, listed.reached_start, positions)
            self.checked = number
            self.checked_at = listed_at
            if not unsettled.active:
                return 0
            return unsettled.settle(
                listed.items, reached_start=listed.reached_start, listed_at=listed_at
            )
        raise self._no_cursors()

    def _take(
        self, items: list[Held], found: int | None, reached_start: bool, positions: dict[str, int]
    ) -> None:
        position = None if found is None else positions.get(items[found].id)
        if self.history is None or found is None or position is None:
            self.history = History(items, complete=reached_start)
        else:
            self.history.replace_after(position, items[found + 1 :])

    async def remove_late_copies(self, operation: Operation) -> None:
        """Deletes the items that a late commit stored a second time."""
        extra = self.unsettled.extra
        while extra:
            outcome = await operation.delete_item(extra[0])
            if not (isinstance(outcome, Applied) or is_gone(outcome)):
                raise outcome.error
            item_id = extra.pop(0)
            if self.history is not None:
                self.history.remove(item_id)
            operation.meter.tell(LateCopyRemoved(self.conversation_id, item_id))

    def _no_cursors(self) -> UnexpectedAnswer:
        return UnexpectedAnswer(
            f"{self.conversation_id}: the server lost its place in every listing of more "
            "than one page; nothing was changed",
            conversation_id=self.conversation_id,
        )
