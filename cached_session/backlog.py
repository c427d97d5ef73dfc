"""A conversation whose appends go through an outbox: accept, read, pop, clear, wait.

One backlog a conversation and outbox. What is recorded, and its mirror in
memory, is the journal's; the sender puts it on the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from openai import OpenAIError

from cached_session.classify import classify
from cached_session.connections import Account
from cached_session.core.items import Outgoing, copies
from cached_session.delivering import deliver, look_back, settle
from cached_session.errors import (
    AppendOutcomeUnknown,
    DeadlineExceeded,
    OutboxError,
    OutboxPaused,
)
from cached_session.journal import Journal
from cached_session.operation import Operation, Superseded
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address
from cached_session.replica import Replica
from cached_session.room import Room
from cached_session.sending import Sender
from cached_session.turns import LOOK_AFTER, Turns

T = TypeVar("T")


class User(Protocol):
    """A session that uses a backlog, in short."""

    def created(self) -> None:
        """Told that the conversation, which had only a local name, has its own id."""


class _Waits(Exception):
    """Something was accepted before the turn came."""


class Backlog:
    """The accepted items of one conversation, and the conversation behind them.

    Attributes:
        journal: What is recorded.
        sender: Who sends it.
        bindings: Who uses it: sessions that are not closed.
    """

    def __init__(self, outbox: Outbox, address: Address, replica: Replica) -> None:
        self.replica = replica
        self.journal = Journal(outbox, address, replica)
        self.sender = Sender(self.journal)
        self.bindings: weakref.WeakSet[User] = weakref.WeakSet()
        self._room = Room(self.journal)
        # Held by a clear: what is accepted meanwhile belongs to the next conversation.
        self._clearing = Turns()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._left: set[asyncio.Task[Any]] = set()

    def created(self) -> None:
        """Tells all who use it that the conversation has its own id."""
        for user in list(self.bindings):
            user.created()

    @property
    def waits(self) -> bool:
        """Whether it has a part in what a read shows."""
        # A doubt may have become another process's to look after.
        doubt = self.replica.window.unsettled.active
        return bool(self.journal.waiting) or self.journal.local or doubt

    async def append(
        self, operation: Operation, items: Sequence[Outgoing], context: Callable[[], Operation]
    ) -> None:
        """Accepts items; they are recorded when it returns.

        Args:
            operation: The call's own.
            items: The items, as they will be sent.
            context: Makes the operations that send them.

        Raises:
            OutboxPaused: The server refused what was accepted before.
            OutboxFull: The backlog stayed at its limit.
            OutboxError: They could not be recorded.
        """
        while True:
            if not self._clearing.idle:
                turn = await self._clearing.enter(operation.deadline, operation.conversation_id)
                turn.end()
            if operation.superseded():
                raise Superseded
            await self._check(context)
            place = await self._room.take(items, self.sender.start)
            if self.journal.paused is None and self._clearing.idle and not operation.superseded():
                break
            place.give_back()
        # Whether items are recorded is not for a caller's cancellation to say.
        await self._to_its_end(self._accept(items, context), place.give_back)

    async def _accept(self, items: Sequence[Outgoing], context: Callable[[], Operation]) -> None:
        await self.journal.accept(items)
        self.sender.start(context)

    def served(self, limit: int | None, *, listing: int, since: float) -> list[Any] | None:
        """Answers a read without waiting, or returns None; arguments as in `Replica.served`."""
        journal = self.journal
        if not journal.local and not self.replica.window.checked(listing, since):
            return None
        with journal.lock:
            if not journal.local:
                return journal.waiting.view(limit)
            # Nobody else can know the conversation: the server holds nothing of it.
            newest = None if limit is None else (-limit or sys.maxsize)
            return copies([item.held for item in journal.waiting.items][newest:])

    async def read(
        self, operation: Operation, limit: int | None, *, listing: int, since: float
    ) -> list[dict[str, Any]]:
        """Answers a read, with as few requests as it takes; arguments as in `served`."""
        journal, window = self.journal, self.replica.window
        while True:
            async with self.replica.turn(operation):
                if journal.waiting:
                    # Whoever had the turn may have left it so that no request is needed.
                    held = self.served(limit, listing=listing, since=since)
                    if held is not None:
                        return held
                claims = bool(journal.waiting) or window.unsettled.active
                alone, waited = await journal.alone(operation), bool(journal.waiting)
                listings = window.listings
                if alone:
                    await settle(journal, operation)
                    missing = None if limit is None else max(1, limit - len(journal.waiting))
                    try:
                        history = await window.fresh(operation, missing, listing, since)
                        with journal.lock:
                            journal.waiting.show_behind(history if waited else None)
                            shown = journal.waiting.view(limit) if journal.waiting else None
                        # A read is not to fail for what the next process would gain by it.
                        with contextlib.suppress(OutboxError):
                            await journal.keep_window(listed=window.listings != listings)
                        if not journal.waiting:
                            # Nothing waits any more: what there is, is on the server.
                            history = await window.fresh(operation, limit, listing, since)
                            return copies(history.tail(limit))
                        if waited and shown is not None:
                            return shown
                        # What was accepted meanwhile may stand behind another
                        # process's items, of which some were listed. And what
                        # was withdrawn meanwhile leaves room for older ones.
                        continue
                    finally:
                        if claims:
                            await self._let_go()
            # Another process is sending: what is on the server and what waits
            # cannot be told apart at this moment.
            await self._come_to_rest(operation)
            if journal.paused is not None:
                await self._held_elsewhere(operation)

    async def _held_elsewhere(self, operation: Operation) -> None:
        """Waits a little for another process that holds on to what is paused."""
        if operation.now() >= operation.deadline:
            raise self._too_late(operation, "another process holds on to it")
        await asyncio.sleep(LOOK_AFTER / 4)
        if await self.journal.resumed():
            await self.journal.reload(operation)
            self._start(operation)

    async def _let_go(self) -> None:
        """Lets others send, where nothing waits here that would be sent. In the turn."""
        if self._at_rest():
            await self.journal.record(release=True)

    async def refresh(self, operation: Operation) -> None:
        """Forgets what the server has; see `Replica.refresh`."""
        if not self.journal.local:
            await self.replica.refresh(operation)
            with self.journal.lock:
                self.journal.waiting.show_behind(None)

    async def pop(
        self, operation: Operation, *, listing: int, since: float
    ) -> dict[str, Any] | None:
        """Removes the newest item, from the outbox if it was not sent, and returns it."""
        waiting = self.journal.waiting
        while True:
            withdrawn = await self._to_its_end(self.journal.withdraw())
            if withdrawn is not None:
                return withdrawn
            if not waiting:
                if self.journal.local:
                    return None
                first = functools.partial(self._recorded, operation)
                try:
                    return await self.replica.pop(
                        operation, listing=listing, since=since, first=first
                    )
                except _Waits:
                    continue
            self._raise_if_paused()
            await self._until(
                self._differs(waiting.seen, len(waiting)),
                operation,
                "the newest item is being sent, and that took until the deadline; it was not "
                "removed",
            )

    async def _recorded(self, operation: Operation) -> None:
        """Puts down what has landed, before any of it is removed. In the turn.

        A process that takes over in between would send it again.
        """
        await self.journal.alone(operation)
        await self._let_go()
        if self.journal.waiting:
            raise _Waits

    def _differs(self, seen: int, count: int) -> Callable[[], bool]:
        waiting = self.journal.waiting
        return lambda: (waiting.seen, len(waiting)) != (seen, count) or bool(self.journal.paused)

    async def clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        """Drops what waits, then deletes the conversation; see `Replica.clear`."""
        turn = await self._clearing.enter(operation.deadline, operation.conversation_id)
        try:
            await self._clear(operation, deleted)
        except asyncio.CancelledError:
            # What is accepted until the deletion is done would be lost with it.
            self._behind(self._cleared(), turn.end)
            raise
        except BaseException:
            turn.end()
            raise
        turn.end()

    async def _cleared(self) -> None:
        """Waits for a deletion that its caller has left."""
        await self.replica.written()
        if self.replica.window.history is None:
            await self.journal.forget_window()

    async def _clear(self, operation: Operation, deleted: Callable[[], None]) -> None:
        dropped = await self._to_its_end(self.journal.drop(sealed=False))
        # What is in flight comes first: nothing may land on a conversation that is gone.
        await self._until(
            self._at_rest,
            operation,
            "a batch is being sent, and that took until the deadline; the "
            f"{dropped} items that waited behind it were dropped, and the conversation was not "
            "deleted",
        )
        dropped += await self._to_its_end(self.journal.drop(sealed=True))
        if self.journal.local:
            # It may be created at this moment; then it is known by its id afterwards.
            async with self.replica.turn(operation):
                deleted()
            return
        try:
            await self.replica.clear(operation, deleted)
        except Exception as error:
            error.add_note(
                f"{operation.conversation_id}: {dropped} items that waited in the outbox were "
                "dropped before the conversation was to be deleted"
            )
            raise
        await self.journal.forget_window()

    async def flush(self, operation: Operation, context: Callable[[], Operation]) -> None:
        """Waits until nothing waits any more.

        Raises:
            OutboxPaused: The server refused a batch.
            DeadlineExceeded: It took too long; all is kept.
        """
        await self.drained(operation, context)
        async with self.replica.turn(operation):
            try:
                if await self.journal.alone(operation):
                    # Of what was accepted meanwhile a batch may be in doubt: the
                    # listing that decides about it decides only once.
                    await settle(self.journal, operation)
                    await self.replica.look(operation)
            finally:
                await self._let_go()

    async def create(self, operation: Operation) -> None:
        """Creates the conversation on the server, in one attempt, if it has only a local name.

        Raises:
            openai.OpenAIError: The server refused. That it is away is no failure.
        """
        if not self.journal.local:
            return
        try:
            await self.replica.deliver(operation, lambda: deliver(self.journal, operation))
        except OpenAIError as error:
            if not classify(error).retryable:
                raise

    async def end(self, operation: Operation, *, look: bool) -> None:
        """Lets go of it; a request in flight settles first, and what it did is recorded.

        Args:
            operation: The session's own.
            look: Whether to see to it that the next process need not look far back.
        """
        replica = self.replica
        async with replica.turn(operation):
            if self.bindings:
                return  # somebody has come meanwhile
            if look:
                await look_back(self.journal, operation, pages=10)
            await self.journal.record(release=True)
            # Somebody may have come while that was recorded, too: with a second
            # backlog beside this one, both would send.
            if replica.backlog is self and not self.bindings:
                replica.backlog = replica.window.recording = None

    async def drained(self, operation: Operation, context: Callable[[], Operation]) -> None:
        """Waits until nothing waits any more; raises as `flush`."""
        await self._check(context)
        self.sender.start(context)
        await self._come_to_rest(operation)
        self._raise_if_paused()

    async def _come_to_rest(self, operation: Operation) -> None:
        await self._until(self._at_rest, operation, "the server did not take all of it in time")

    def _at_rest(self) -> bool:
        return not self.journal.waiting or self.journal.paused is not None

    async def _until(
        self, condition: Callable[[], bool], operation: Operation, otherwise: str
    ) -> None:
        journal = self.journal
        # What waits may have been found here just now, and nobody sends it yet.
        look = functools.partial(self._start, operation)
        if await journal.changed.until(condition, operation.deadline, look):
            return
        raise self._too_late(operation, otherwise)

    def _start(self, operation: Operation) -> None:
        self.sender.start(lambda: operation.renewed(self.replica.conversation_id))

    def _too_late(self, operation: Operation, why: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{operation.conversation_id}: {why}. {len(self.journal.waiting)} items are recorded "
            f"in the outbox and not known to be on the server (sending: {self.sender.state})",
            conversation_id=operation.conversation_id,
        )

    async def _check(self, context: Callable[[], Operation]) -> None:
        """Raises `OutboxPaused` if nothing is sent any more, and nobody has decided since."""
        if self.journal.paused is not None and await self.journal.resumed():
            await self.journal.reload(context())
            self.sender.start(context)
        self._raise_if_paused()

    def _raise_if_paused(self) -> None:
        journal, name = self.journal, self.replica.conversation_id
        if journal.paused is not None:
            unknown = journal.paused == AppendOutcomeUnknown.__name__
            why = (
                "whether a recorded batch is on the server cannot be found out"
                if unknown
                else "the server refused a recorded batch"
            )
            raise OutboxPaused(
                f"{name}: {why} ({journal.paused}); {len(journal.waiting)} items are kept in the "
                "outbox and not sent. See `cached-session outbox --help`",
                conversation_id=name,
                waiting=len(journal.waiting),
            ) from journal.refusal

    async def _to_its_end(
        self, work: Coroutine[Any, Any, T], then: Callable[[], None] = lambda: None
    ) -> T:
        """Does something to the outbox and its mirror, whatever becomes of the caller."""
        task = self._behind(work, then)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            task.add_done_callback(_heard)
            raise
        return task.result()

    @property
    def left(self) -> set[asyncio.Task[Any]]:
        """What callers of this event loop have left and is still being done."""
        if not self._left:
            return set()
        loop = asyncio.get_running_loop()
        return {task for task in self._left if task.get_loop() is loop}

    def _behind(self, work: Coroutine[Any, Any, T], then: Callable[[], None]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: then())
        task.add_done_callback(self._tasks.discard)
        return task


def _heard(task: asyncio.Task[Any]) -> None:
    """Retrieves what nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def address_of(owner: Account, conversation: str) -> Address:
    """Under which name an outbox has a conversation of an account."""
    return Address(
        owner.base_url,
        owner.organization or "",
        owner.project or "",
        owner.credentials if owner.fixed else "",
        conversation,
    )


def attach(outbox: Outbox, owner: Account, replica: Replica) -> Backlog:
    """The one backlog of a conversation; made if there is none.

    Raises:
        ValueError: The conversation has another outbox in this process, or
            this outbox has the conversation in another cache.
    """
    name = replica.conversation_id
    address = address_of(owner, name)
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address)
        if backlog is None or (backlog.replica is not replica and not backlog.bindings):
            backlog = Backlog(outbox, address, replica)
        if backlog.replica is not replica:
            raise ValueError(
                f"cache: a session with this outbox has {name} in another cache; give all "
                "sessions on a conversation the same one"
            )
        other = replica.backlog
        # One that is left behind, by a session that was not closed, is in nobody's way.
        if other not in (None, backlog) and (other.bindings or other.sender.working):
            raise ValueError(
                f"outbox: {name} has another outbox in this process; give all sessions on a "
                "conversation the same one"
            )
        outbox.backlogs[address] = replica.backlog = backlog
        replica.window.recording = backlog.journal.record
        return backlog
