"""Which conversation a session is on: its name, whose it is, its local copy, and who makes it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agents import OpenAIConversationsSession

from cached_session.conversation.conversation import Conversation
from cached_session.conversation.listing import Asked
from cached_session.conversation.operation import Operation, Superseded
from cached_session.conversation.tasks import bury
from cached_session.conversation.turns import Run, Turn, Turns
from cached_session.core.items import Outgoing
from cached_session.core.ledger import ANY, LOCAL, Trust
from cached_session.core.outcomes import Applied
from cached_session.errors import CachedSessionError, DeadlineExceeded, Reopened, SessionClosed
from cached_session.events import CallFinished, CallStarted, Meter
from cached_session.forks import in_child, keep
from cached_session.server.connections import account, settings
from cached_session.server.remote import Remote
from cached_session.server.retrying import Retrier, RetryPolicy
from cached_session.session.arguments import Chosen
from cached_session.session.cache import ConversationCache

if TYPE_CHECKING:
    from cached_session.conversation.backlog import Backlog
    from cached_session.outbox import Outbox
    from cached_session.session.adoption import Adopter, Means

T = TypeVar("T")

NEW = "a new conversation"


class Binding:
    """All that one session has: its conversation, through which client, and under what policy.

    It is what operations know as their caller, and backlogs as their user.

    Attributes:
        chosen: The openai client, and where it is from.
        meter: Who counts the session's requests.
        stale_if_error: For how long what is known counts where a read cannot ask, or None.
        outbox: Where appends are recorded before they are sent, or None.
        conversation: The copy that was bound last; `bound` says whether it still counts.
        closed: Whether the session takes no calls any more.
    """

    def __init__(
        self,
        chosen: Chosen,
        underlying: OpenAIConversationsSession | None,
        conversation_id: str | None,
        cache: ConversationCache,
        policy: RetryPolicy,
        meter: Meter,
        max_staleness: float | None,
        stale_if_error: float | None,
        outbox: Outbox | None,
    ) -> None:
        """Makes one; nothing is bound yet.

        Args:
            chosen: See the class.
            underlying: The session that is wrapped, which then keeps the id, or None.
            conversation_id: The conversation, or None: made on first use.
            cache: Where the local copy comes from.
            policy: How requests are repeated.
            meter: See the class.
            max_staleness: When a read asks what other processes wrote, see `CachedSession`.
            stale_if_error: See the class.
            outbox: See the class.
        """
        self.stale_if_error = stale_if_error
        self.chosen = chosen
        self.meter = meter
        self.outbox = outbox
        self.conversation: Conversation | None = None
        self.closed: bool = False
        self._client = chosen.client
        self._cache = cache
        self._policy = policy
        self._retrier = Retrier(policy, meter)
        self._remote = Remote(chosen.client, meter)
        # The name. Where a session is wrapped, that session's id counts. While the conversation
        # has only a local name, the wrapped session has none, and `_local` is the copy.
        self._underlying = underlying
        self._id = conversation_id
        self._local: Conversation | None = None
        # The client's `settings` when the copy was bound.
        self._settings: tuple[object, ...] = ()
        # The trust in the copy, and the number of the listing that opens it for this session.
        self._max_staleness = max_staleness
        self._opening: int | None = None
        # Who sends what others have left in the outbox.
        self._adopter: Adopter | None = None
        # Calls that are under way.
        self._calls = 0
        # Whether the session is no user of its backlogs any more.
        self._parted = False
        self._begin_making()
        in_child(self, Binding._begin_anew)

    def _begin_making(self) -> None:
        # Whoever makes the conversation, or waits for it, and the tasks that make it.
        self._making = Turns()
        self._makers: set[asyncio.Task[None]] = set()

    def _begin_anew(self) -> None:
        """In a forked child: it has no copy yet, and waits for nobody who makes a conversation."""
        keep(self._making, self._makers, self.conversation)
        self.conversation = None
        self._begin_making()

    # The name

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, or its local name; None before there is one."""
        self.created()
        if self._underlying is None or self._local is not None:
            return self._id
        return self._wrapped_id()

    @conversation_id.setter
    def conversation_id(self, value: str | None) -> None:
        self._set_id(value)
        self.conversation = None

    def _set_id(self, value: str | None) -> None:
        self._local = None
        if self._underlying is not None:
            # The SDK's setter takes None; its annotation does not say so.
            self._underlying.session_id = cast(str, value)
        self._id = value

    def _wrapped_id(self) -> str | None:
        try:
            return None if self._underlying is None else self._underlying.session_id
        except ValueError:  # the SDK's way to say that there is none yet
            return None

    def created(self) -> None:
        """Takes over the id of a conversation that had only a local name, if it has one now."""
        conversation = self._local
        if conversation is not None and not conversation.conversation_id.startswith(LOCAL):
            self._set_id(conversation.conversation_id)

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that the wrapped session has made while ours waits, or None."""
        return None if self._local is None else self._wrapped_id()

    async def agree(self, made: str, deadline: float) -> str:
        """The conversation to use, now that `made` was made for what waits: that one, or another's.

        Args:
            made: Its id.
            deadline: Until when to wait for the wrapped session, on the running loop's clock.

        Raises:
            DeadlineExceeded: The wrapped session was making one, too, and took too long.
        """
        if self._underlying is None or self._local is None:
            return made
        if self.made_elsewhere is None:
            self._underlying.session_id = made
        await self._wrapped_settled(deadline)
        return self.made_elsewhere or made

    async def _wrapped_settled(self, deadline: float) -> None:
        """Waits for a conversation that the wrapped session may be making at this moment.

        Then both mean the same one.
        """
        if self._underlying is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                # With an id there this sends nothing.
                await self._underlying.get_items(limit=0)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{NEW}: the wrapped session's own request took until the deadline; "
                "nothing was read or written",
                conversation_id=self.conversation_id,
            ) from None

    def _made_of(self, local: str) -> str | None:
        """The id that a conversation with a local name has got in this process, or None."""
        if self.outbox is None or not local.startswith(LOCAL):
            return None
        # Only now, as in `bind`.
        from cached_session.conversation.record import address_of, owner_of

        address = address_of(owner_of(self.outbox, account(self._client)), local)
        with self.outbox.lock:
            backlog = self.outbox.backlogs.get(address)
        name: str | None = None if backlog is None else backlog.order.ledger.conversation_id
        return None if name == local else name

    # Making the conversation: once, whoever calls first

    async def _made(self, deadline: float, *, create: bool) -> None:
        """Makes the conversation, or waits for whoever does.

        Args:
            deadline: Until when, on the running loop's clock.
            create: Whether to make it; otherwise whoever came before is waited for, no more.
        """
        turn = await self._making.enter(deadline, NEW)
        bury(self._makers)
        if self.conversation_id is not None or not turn.current:
            turn.end_for_all()
            return
        if not create:
            # This caller makes none. The next in the line gets the turn alone: it may make one.
            turn.end()
            return
        # The task goes on when this caller is cancelled, so that the next one uses the
        # conversation that it makes, and does not make a second one.
        task = asyncio.get_running_loop().create_task(self._make(deadline))
        self._makers.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._abandoned(task, turn))
            raise
        self._makers.discard(task)
        if task.cancelled() or task.exception() is not None:
            # The next in the line tries again.
            turn.end()
        # This caller comes before those who waited for it: it takes its place in the
        # conversation's order of work in this step, and they theirs in the next ones.
        turn.end_for_all()
        task.result()

    def _abandoned(self, task: asyncio.Task[None], turn: Turn) -> None:
        self._makers.discard(task)
        turn.end()
        if not task.cancelled():
            task.exception()  # nobody else retrieves it

    async def _make(self, deadline: float) -> None:
        # A lost answer leaves an empty conversation behind that nobody uses.
        # No request could tell it from the one that is made next.
        retrier = self._retrier
        if self.outbox is not None:
            # Nobody has to wait for the server to come back.
            retrier = Retrier(dataclasses.replace(self._policy, max_attempts=1), self.meter)
        outcome = await retrier.run(
            self._remote.create,
            deadline=deadline,
            conversation_id=None,
        )
        if isinstance(outcome, Applied):
            name = outcome.value
            if self._underlying is not None:
                if self.conversation_id is None:
                    self.conversation_id = name
                await self._wrapped_settled(deadline)
                return
            self.conversation_id = name
        elif self.outbox is None or not outcome.retryable:
            raise outcome.error
        else:
            # The server is out of reach. The outbox takes what is appended all
            # the same, and makes the conversation when it can.
            name = f"{LOCAL}{uuid.uuid4().hex}"
        self.bind(name).ledger.begin_empty(Asked.now())
        # Nobody else knows it yet: no listing need open it.
        self._opening = 0

    # The copy

    def bound(self) -> Conversation | None:
        """The copy of the current conversation, if it is bound already."""
        conversation = self.conversation
        if (
            conversation is None
            or not self._is_on(conversation)
            or self._settings != settings(self._client)
        ):
            return None
        return conversation

    def _is_on(self, conversation: Conversation) -> bool:
        return conversation.conversation_id == self.conversation_id and not conversation.replaced

    def bind(self, conversation_id: str) -> Conversation:
        """The copy of a conversation, which is the session's own from now on."""
        conversation = self.bound()
        if conversation is None:
            self._settings = settings(self._client)
            client = account(self._client)
            if self.outbox is None:
                conversation = self._cache.conversation(client, conversation_id)
            else:
                # Only now: most processes use no outbox, and need not load it.
                from cached_session.conversation.record import owner_of
                from cached_session.session.adoption import adopter_of

                owner = owner_of(self.outbox, client)
                conversation = self._cache.conversation(owner, conversation_id, client=client)
                conversation.attach(self.outbox, owner, None if self._parted else self)
                if not self._parted:
                    self._adopter = adopter_of(self.outbox, owner, self)
            self.conversation = conversation
            self._opening = None
            if conversation_id.startswith(LOCAL):
                self._local, self._id = conversation, conversation.conversation_id
        return conversation

    def view(self, limit: int | None) -> list[dict[str, Any]] | None:
        """Answers a read of `limit` items (None: all) without waiting, or returns None."""
        conversation = self.conversation
        # First: where an outbox has to be asked at each read, nothing else need be looked at.
        if conversation is None or not conversation.valid(self.valid_since()):
            return None
        if self.bound() is None or not self._making.idle:
            return None
        return self.held(limit, conversation)

    def held(self, limit: int | None, conversation: Conversation) -> list[dict[str, Any]] | None:
        """The same of a copy that was validated just now; see `Ledger.view`."""
        if not (self._is_on(conversation) and conversation.current):
            return None
        self._cache.touch(conversation)
        held = conversation.view(limit, self.trust(conversation))
        if held is not None:
            self.count(hit=True)
            if conversation.ledger.waits:
                # The loop that sends it may have ended.
                conversation.go_on(self._operation(conversation.conversation_id))
        return held

    def count(self, *, hit: bool) -> None:
        """Counts a read that was answered without a request, or needs one."""
        if hit:
            self.meter.hits += 1
        else:
            self.meter.misses += 1
        self._cache.count(hit=hit)

    def trust(self, conversation: Conversation) -> Trust:
        """For how long what is known is trusted by a read now, without asking the server.

        A check is a listing that confirms the newest items, whoever of the process
        asked for it. An append's answer is none: other writers' items may stand
        before those that it shows.
        """
        if conversation.vouched_for:
            # What counts then was validated just now.
            return ANY
        if self._max_staleness is None:
            # For ever, from the first listing that was begun after the session had come to it.
            if self._opening is None:
                self._opening = conversation.ledger.listings + 1
            return Trust(self._opening)
        now = Operation.now()
        if self._max_staleness == 0:
            # Not even a check that another caller makes while this one waits:
            # our own writes may come between that and the answer.
            return Trust(0, math.inf, now)
        # The copy's age counts, whichever session has checked it.
        return Trust(0, now - self._max_staleness, now)

    def valid_since(self) -> float:
        """When the outbox must have been asked what other processes have done, for a read now.

        On the running loop's clock.
        """
        if self._max_staleness is None or self._max_staleness == 0:
            return math.inf
        return Operation.now() - self._max_staleness

    # Calls

    def usable(self) -> Binding:
        """Itself, for a call.

        Raises:
            SessionClosed: The session was closed.
            ValueError: The client was replaced.
        """
        if self.closed:
            raise SessionClosed(
                "the session is closed; make a new one", conversation_id=self.conversation_id
            )
        self.chosen.check()
        return self

    async def perform(
        self,
        work: Callable[[Operation, Conversation], Awaitable[T]],
        *,
        create: bool = True,
        seconds: float | None = None,
    ) -> T | None:
        """Does one operation on the current conversation.

        Args:
            work: What to do. It may be called again, on another conversation:
                whoever waits behind a `clear_session` goes on with the next one.
            create: Whether to make a conversation if there is none.
            seconds: What it may take; None: what the policy says.

        Returns:
            What `work` returns; None if there is no conversation.
        """
        deadline = self._retrier.deadline()
        if seconds is not None:
            deadline = Operation.now() + seconds
        self._calls += 1
        try:
            found = await self._perform(work, deadline, create=create)
        finally:
            self._calls -= 1
        if self._adopter is not None:
            self._adopter.used()
        return found

    async def _perform(
        self,
        work: Callable[[Operation, Conversation], Awaitable[T]],
        deadline: float,
        *,
        create: bool,
    ) -> T | None:
        while True:
            conversation_id = self.conversation_id
            if not self._making.idle or (create and conversation_id is None):
                # Whoever comes while others wait for it waits behind them.
                await self._made(deadline, create=create)
                conversation_id = self.conversation_id
            if conversation_id is None and not create:
                return None
            if conversation_id is None:
                continue  # cleared meanwhile
            made = self._made_of(conversation_id)
            if made is not None:
                self.conversation_id = made
                continue
            previous, conversation = self.conversation, self.bind(conversation_id)
            operation = self._operation(conversation_id, deadline)
            operation.within = conversation.run
            behind = functools.partial(_behind, previous, work, operation, conversation)
            try:
                return await conversation.perform(operation, behind, opens=self.outbox is not None)
            except (Superseded, Reopened):
                continue

    def _operation(self, conversation_id: str, deadline: float | None = None) -> Operation:
        deadline = self._retrier.deadline() if deadline is None else deadline
        return Operation(self._remote, self._policy, self.meter, conversation_id, deadline, self)

    @property
    def means(self) -> Means | None:
        """Through what is sent that others have left; None: the session uses the outbox no more."""
        # Only now, as in `bind`.
        from cached_session.session.adoption import Means

        if self._parted or self.outbox is None:
            return None
        # No session counts what is sent so.
        meter = self.meter.apart()
        return Means(self.outbox, self._client, self._cache, self._policy, meter)

    async def append(
        self,
        operation: Operation,
        conversation: Conversation,
        items: Sequence[Outgoing],
        call: CallStarted | None,
    ) -> None:
        """Appends by the outbox, if there is one, or else at once.

        Args:
            operation: The call's.
            conversation: Where to.
            items: The items.
            call: The call, if observers were told of it.
        """
        if self.outbox is not None:
            await conversation.accept(operation, items, call)
        else:
            await conversation.deliver(operation, items)

    async def begin_run(self, wait: float | None) -> tuple[Conversation, Run] | None:
        """Takes the conversation's turn for a whole run; see `CachedSession.turn`.

        Args:
            wait: Seconds to wait for it; None: as long as a call may take.

        Returns:
            Whose turn it is, and the run; None: the present task had begun it before.
        """
        seconds = self._policy.deadline if wait is None else wait
        deadline = Operation.now() + seconds

        async def begin(
            operation: Operation, conversation: Conversation
        ) -> tuple[Conversation, Run] | None:
            run = await conversation.begin_run(operation, deadline, seconds)
            return None if run is None else (conversation, run)

        return await self.perform(begin)

    async def identify(self) -> str | None:
        """The id of the conversation, or its local name; it is made if there is none."""

        async def settle(operation: Operation, conversation: Conversation) -> str:
            # Whoever deletes it comes first.
            await conversation.cleared(operation)
            await conversation.create(operation)
            return conversation.conversation_id

        return await self.perform(settle)

    async def leave(self) -> None:
        """Leaves the conversation, behind whoever is making one; the next use makes another."""
        if not self._making.idle:
            await self._made(self._retrier.deadline(), create=False)
        self.conversation_id = None

    async def flush(self, seconds: float | None, *, create: bool = True) -> None:
        """Waits for the writes before it; see `CachedSession.flush`.

        Args:
            seconds: What it may take; None: what the policy says.
            create: Whether a conversation that has only a local name is to get its id, too.
        """

        async def settle(operation: Operation, conversation: Conversation) -> None:
            await conversation.flush(operation)
            if create:
                await conversation.create(operation)

        await self.perform(settle, create=False, seconds=seconds)

    # Its end

    async def close(self, session: object, timeout: float | None) -> None:
        """Closes the session whose binding this is; see `CachedSession.aclose`."""
        self.closed = True
        try:
            if timeout is not None or self.outbox is None:
                await self.flush(timeout, create=False)
            elif self._calls or not self._making.idle:
                # Until the outbox has what calls before this one append. For the server
                # only where one of them is making the conversation: one attempt.
                await self.perform(
                    lambda operation, conversation: conversation.recorded(operation), create=False
                )
            if self._adopter is not None:
                await self._adopter.looked(self)
        except GeneratorExit:
            # The event loop was left lying: nothing runs on it that could be waited for.
            self._stop_using(session)
            raise
        except asyncio.CancelledError:
            await self.close_at_once(session)
            raise
        except Exception as error:
            try:
                await self._part(session)
            except CachedSessionError as another:
                error.add_note(f"the session is closed, and that failed, too: {another}")
            raise
        await self._part(session)

    async def close_at_once(self, session: object) -> None:
        """Closes the session for a caller who hears of something else."""
        self.closed = True
        # An error of closing the outbox is not raised: what is recorded stays there.
        with contextlib.suppress(CachedSessionError):
            await self._part(session)

    async def _part(self, session: object) -> None:
        """Parts from the copy; what is recorded is the outbox's, which sends it."""
        outbox, used = self.outbox, self._stop_using(session)
        if outbox is None:
            return
        # Only now, as in `bind`.
        from cached_session.conversation.backlog import let_go_unused

        await asyncio.gather(
            *(one.leave(self._operation(one.order.ledger.conversation_id)) for one in used)
        )
        await let_go_unused(outbox)

    def _stop_using(self, session: object) -> list[Backlog]:
        """Notes that the session uses nothing any more; returns the backlogs that it has used."""
        outbox, self.conversation, self._parted = self.outbox, None, True
        if outbox is None:
            return []
        outbox.users.discard(session)
        if self._adopter is not None:
            self._adopter.leave(self)
        with outbox.lock:
            # The backlogs of all conversations that the session was on. One whose conversation got
            # its id is there by both names.
            used = {id(one): one for one in outbox.backlogs.values() if self in one.users}
            for backlog in used.values():
                backlog.users.discard(self)
        return [*used.values()]


class Call:
    """Around a call of a session: tells observers of its beginning and its end.

    Attributes:
        started: What they were told; None: nobody listens.
        hit: As in `CallFinished`.
        items: As in `CallFinished`.
    """

    __slots__ = ("_begun", "_binding", "_clock", "_heard", "_name", "hit", "items", "started")

    def __init__(self, binding: Binding, name: str) -> None:
        """Tells nobody yet.

        Args:
            binding: The session's.
            name: The method's.
        """
        self._binding = binding
        self._name = name
        self.started: CallStarted | None = None
        self.hit: bool | None = None
        self.items: int | None = None

    def __enter__(self) -> Call:
        binding = self._binding
        if binding.meter.listening:
            self._clock = asyncio.get_running_loop().time
            self._begun = self._clock()
            self.started = CallStarted(self._name, binding.conversation_id)
            self._heard = binding.meter.tell(self.started)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        started, binding = self.started, self._binding
        if started is None:
            return
        binding.meter.tell(
            CallFinished(
                started,
                binding.conversation_id or started.conversation_id,
                self._clock() - self._begun,
                self.hit,
                None if exc_type else self.items,
                exc_type.__name__ if exc_type else None,
            ),
            heard=self._heard,
        )


async def _behind(
    previous: Conversation | None,
    work: Callable[[Operation, Conversation], Awaitable[T]],
    operation: Operation,
    conversation: Conversation,
) -> T:
    """Does a call's work behind what is in flight on the copy that the session had before."""
    if previous is not None and previous is not conversation:
        # The client's key was changed: these are two copies.
        await previous.settled(operation)
    return await work(operation, conversation)
