"""The local copy of one conversation: serve, check, append, pop, clear, in one order.

One replica a conversation and account, shared by every session of the process.
Whatever needs the network holds the replica's turn. Reads are done by the
caller's own task and simply stop when it is cancelled. Writes run in a task of
their own, so that a request in flight settles, in order, behind a caller who
has left.

Every operation raises `Superseded` if its session left the conversation while
it waited for the turn.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from openai import NotFoundError

from cached_session.appending import Append
from cached_session.classify import says_gone
from cached_session.connections import Account
from cached_session.core.items import Outgoing, copies
from cached_session.core.outcomes import Applied, Unknown
from cached_session.errands import Failed, bury, ended, forsake
from cached_session.operation import Operation, Superseded, is_gone
from cached_session.removing import remove_newest
from cached_session.turns import Turn, Turns
from cached_session.window import Window

if TYPE_CHECKING:
    from cached_session.backlog import Backlog

T = TypeVar("T")
Key: TypeAlias = tuple[Account, str]


class InTurn:
    """Around work that needs the turn.

    No generator: `Runner.run_sync` shuts its event loop's generators down after
    each run and goes on with the loop, which then warns of every new one.
    """

    __slots__ = ("_operation", "_replica", "_turn")

    def __init__(self, replica: Replica, operation: Operation) -> None:
        self._replica = replica
        self._operation = operation

    async def __aenter__(self) -> None:
        self._turn = await self._replica.enter(self._operation)

    async def __aexit__(self, *_: object) -> None:
        self._replica.leave(self._turn)


class Replica:
    """The local copy of one conversation.

    Attributes:
        conversation_id: The conversation.
        key: The account and the conversation, by which the cache knows it.
        turns: Who may work on it.
        window: What is held of it.
        backlog: What an outbox holds for it, if a session uses one.
        replaced: Whether another copy is the conversation's own by now.
    """

    def __init__(
        self,
        conversation_id: str,
        key: Key,
        resized: Callable[[Replica], None],
        renamed: Callable[[Replica, str], None],
    ) -> None:
        """Makes an empty copy.

        Args:
            conversation_id: The conversation.
            key: See the class.
            resized: Called whenever its size may have changed.
            renamed: Called with the new id when the conversation gets its own.
        """
        self.conversation_id = conversation_id
        self.key = key
        self._resized = resized
        self._renamed = renamed
        self.backlog: Backlog | None = None
        self.replaced = False
        self.turns = Turns()
        self.window = Window(conversation_id)
        self._writes: set[asyncio.Task[Any]] = set()

    def rename(self, conversation_id: str) -> None:
        """Gives a conversation its id that had only a local name."""
        self._renamed(self, conversation_id)
        self.conversation_id = self.window.conversation_id = conversation_id

    @property
    def source(self) -> Backlog | Replica:
        """What answers reads: the backlog while it has a part in it, or this copy alone."""
        backlog = self.backlog
        return self if backlog is None or not backlog.waits else backlog

    @property
    def size(self) -> int:
        """Bytes of memory that the held items take."""
        history, backlog = self.window.history, self.backlog
        # Most of it is the same items: those of the window, and those shown before what waits.
        shown = 0 if backlog is None else backlog.journal.waiting.shown_size
        return max(shown, 0 if history is None else history.size)

    def drop(self) -> None:
        """Forgets what is held of the server; the next read asks."""
        self.window.forget()
        if self.backlog is not None:
            self.backlog.journal.show_nothing()

    def served(
        self, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]] | None:
        """Answers a read of the newest `limit` items (None: all) without waiting.

        Returns:
            The caller's own copy, oldest first; None: ask the server, or wait
            for whoever is doing so. What may be served is said by
            `Window.trusted`, where the other arguments are explained.
        """
        history = self.window.trusted(listing, since)
        if history is None or not history.covers(limit) or not self.turns.idle:
            return None
        return copies(history.tail(limit))

    async def read(
        self, operation: Operation, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]]:
        """Answers a read, with as few requests as it takes; arguments as in `served`."""
        async with self.turn(operation):
            history = await self.window.fresh(operation, limit, listing, since)
            return copies(history.tail(limit))

    async def settled(self, operation: Operation) -> None:
        """Waits for the writes before this call."""
        async with self.turn(operation):
            pass

    async def settle(self, operation: Operation) -> None:
        """Waits for the writes before this call, and checks what is still in doubt."""
        async with self.turn(operation):
            await self.look(operation)

    async def look(self, operation: Operation) -> None:
        """Checks what is still in doubt. In the turn."""
        if self.window.unsettled.active:
            try:
                await self.window.fresh(operation, 1, 0, -math.inf)
            except NotFoundError as error:
                # A clear that was given up on came through: nothing is left in doubt.
                if not (self.window.unsettled.may_be_cleared and says_gone(error)):
                    raise

    async def pop(
        self,
        operation: Operation,
        *,
        listing: int,
        since: float,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> dict[str, Any] | None:
        """Removes and returns the newest item; None if there is none.

        What `first` does is done in the same turn. Where it raises, nothing is removed.
        """
        turn = await self.enter(operation)
        try:
            if first is not None:
                await first()
            history = await self.window.fresh(operation, 1, listing, since)
        except BaseException:
            self.leave(turn)
            raise
        remove = functools.partial(remove_newest, self.window, operation, history)
        return await self._write(operation, turn, remove)

    async def refresh(self, operation: Operation) -> None:
        """Drops the window, in its turn: a write before this call settles first."""
        async with self.turn(operation):
            self.window.forget()

    async def clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        """Deletes the conversation, and calls `deleted` in the moment that it is.

        Raises:
            openai.NotFoundError: Somebody else had deleted it.
        """
        turn = await self.enter(operation)
        await self._write(operation, turn, functools.partial(self._clear, operation, deleted))

    async def _clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        doubt = functools.partial(self.window.doubt_clear, operation)
        with self.window.doubting(doubt):
            outcome = await operation.delete_conversation()
        applied = isinstance(outcome, Applied) or (
            # An earlier clear that was given up on came through after all.
            is_gone(outcome) and self.window.unsettled.may_be_cleared
        )
        if isinstance(outcome, Unknown):
            doubt()
        self.window.forget()
        if not isinstance(outcome, Applied) and not applied:
            raise outcome.error
        deleted()

    async def append(self, operation: Operation, items: Sequence[Outgoing]) -> None:
        """Appends items, each once, in order; errors as in `CachedSession.add_items`."""
        append = Append(self.window, operation, items)
        turn = await self.enter(operation)
        try:
            # Nothing is sent yet: a caller who is cancelled here sends nothing.
            await append.anchor()
        except BaseException:
            self.leave(turn)
            raise
        try:
            await self._write(operation, turn, append.run)
        except asyncio.CancelledError:
            append.stop()
            raise

    async def written(self) -> None:
        """Waits for the writes of this event loop that are under way."""
        loop = asyncio.get_running_loop()
        writes = {write for write in self._writes if write.get_loop() is loop}
        if writes:
            await asyncio.wait(writes)

    async def deliver(
        self, operation: Operation, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Does a write in its turn, to its end, whatever becomes of the caller."""
        turn = await self.enter(operation)
        await self._write(operation, turn, work, kept=True)

    def turn(self, operation: Operation) -> InTurn:
        """Around work of the caller's own task that needs the turn."""
        return InTurn(self, operation)

    async def enter(self, operation: Operation) -> Turn:
        """Waits for the turn; `leave` ends it."""
        turn = await self.turns.enter(operation.deadline, self.conversation_id)
        if turn.taken_over:
            self.window.abandon()
        bury(self._writes)
        if operation.superseded():
            turn.end()
            raise Superseded
        operation.turn = turn
        return turn

    def leave(self, turn: Turn) -> None:
        """Ends a turn, unless it was taken over."""
        if turn.current:
            self._resized(self)
            turn.end()

    async def _write(
        self,
        operation: Operation,
        turn: Turn,
        write: Callable[[], Coroutine[Any, Any, T]],
        *,
        kept: bool = False,
    ) -> T:
        """Runs a write that holds the turn, to its end, whatever becomes of the caller.

        `kept` says whether an outbox has what is written, and sees to it if this fails.
        """
        task = asyncio.get_running_loop().create_task(ended(write))
        # Whoever has the next turn settles what it leaves, whatever becomes of its loop.
        forsake(task)
        self._writes.add(task)
        # A callback, not a `finally` in the task: one that is cancelled before
        # its first step runs neither.
        task.add_done_callback(lambda task: self._written(task, turn))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._abandoned(operation, task, kept=kept))
            raise
        end = task.result()
        if isinstance(end, Failed):
            raise end.error
        return end

    def _written(self, task: asyncio.Task[Any], turn: Turn) -> None:
        self._writes.discard(task)
        self.leave(turn)

    @staticmethod
    def _abandoned(operation: Operation, task: asyncio.Task[Any], *, kept: bool) -> None:
        if not task.cancelled() and isinstance(task.result(), Failed):
            operation.abandoned(task.result().error, kept=kept)
