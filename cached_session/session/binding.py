"""Which conversation a session is on, and that conversation's local copy."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session.conversation.conversation import Conversation
from cached_session.conversation.listing import Asked
from cached_session.conversation.operation import Operation, Superseded
from cached_session.core.items import Outgoing
from cached_session.core.ledger import Trust
from cached_session.core.local import LOCAL
from cached_session.core.outcomes import Applied
from cached_session.errors import Reopened
from cached_session.events import Meter
from cached_session.forks import in_child, keep
from cached_session.server.connections import account, settings
from cached_session.server.remote import Remote
from cached_session.server.retrying import Retrier, RetryPolicy
from cached_session.session.cache import ConversationCache
from cached_session.session.creating import Creation
from cached_session.session.identity import Identity
from cached_session.session.staleness import Staleness

if TYPE_CHECKING:
    from cached_session.outbox import Outbox

T = TypeVar("T")


class Binding:
    """The conversation of one session: its id, how it is made, its local copy.

    Args:
        client: The openai client.
        underlying: The session that is wrapped, which then keeps the id, or None.
        conversation_id: The conversation, or None: made on first use.
        cache: Where the local copy comes from.
        policy: How requests are repeated.
        meter: Who counts them.
        max_staleness: When a read asks what other processes wrote, see `CachedSession`.
        outbox: Where appends are recorded before they are sent, or None.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        underlying: OpenAIConversationsSession | None,
        conversation_id: str | None,
        cache: ConversationCache,
        policy: RetryPolicy,
        meter: Meter,
        max_staleness: float | None,
        outbox: Outbox | None,
    ) -> None:
        self._client = client
        self._identity = Identity(underlying, conversation_id)
        self._cache = cache
        self._policy = policy
        self._retrier = Retrier(policy, meter)
        self._meter = meter
        self._staleness = Staleness(max_staleness)
        self.outbox = outbox
        """Where appends are recorded before they are sent, or None."""
        self._remote = Remote(client, meter)
        self._creation = self._new_creation()
        self._settings: tuple[object, ...] = ()
        self._closed = False
        # Calls that are under way.
        self._calls = 0
        self.conversation: Conversation | None = None
        """The copy that was bound last; `bound` says whether it still counts."""
        in_child(self, Binding._begin_anew)

    def _begin_anew(self) -> None:
        """In a forked child: it has no copy yet, and waits for nobody who makes a conversation."""
        keep(self._creation, self.conversation)
        self._creation, self.conversation = self._new_creation(), None

    def _new_creation(self) -> Creation:
        return Creation(self._create, lambda: self.conversation_id is not None)

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, None before there is one."""
        return self._identity.id

    @conversation_id.setter
    def conversation_id(self, value: str | None) -> None:
        self._identity.id = value
        self.conversation = None

    def bound(self) -> Conversation | None:
        """The copy of the current conversation, if it is bound already."""
        conversation = self.conversation
        if (
            conversation is None
            or conversation.conversation_id != self.conversation_id
            or conversation.replaced
            or self._settings != settings(self._client)
        ):
            return None
        return conversation

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
                from cached_session.conversation.addresses import owner_of
                from cached_session.session.attaching import attach

                owner = owner_of(self.outbox, client)
                conversation = self._cache.conversation(owner, conversation_id, client=client)
                attach(self.outbox, owner, conversation, None if self._closed else self._identity)
            self.conversation = conversation
            self._staleness.begin()
            if conversation_id.startswith(LOCAL):
                self._identity.wait_as(conversation)
        return conversation

    def view(self, limit: int | None, *, waited: bool = False) -> list[dict[str, Any]] | None:
        """Answers a read without waiting, or returns None; see `Ledger.view`.

        Args:
            limit: How many of the newest items; None: all.
            waited: Whether the caller has waited for whoever makes the conversation.
        """
        conversation = self.bound()
        if conversation is None or not (waited or self._creation.idle) or not conversation.current:
            return None
        self._cache.touch(conversation)
        held = conversation.view(limit, self.trust(conversation))
        if held is not None:
            self._meter.hits += 1
            if conversation.ledger.waits:
                # The loop that sends it may have ended.
                conversation.go_on(self._operation(conversation.conversation_id))
        return held

    def trust(self, conversation: Conversation) -> Trust:
        """For how long what is known is trusted by a read now."""
        return self._staleness.trust(conversation.ledger)

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
            return await self._perform(work, deadline, create=create)
        finally:
            self._calls -= 1

    async def _perform(
        self,
        work: Callable[[Operation, Conversation], Awaitable[T]],
        deadline: float,
        *,
        create: bool,
    ) -> T | None:
        while True:
            if not self._creation.idle or (create and self.conversation_id is None):
                # Whoever comes while others wait for it waits behind them.
                await self._creation.ensure(deadline, create=create)
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
            done = functools.partial(self._done, work, operation, conversation, previous)
            try:
                return await conversation.perform(operation, done, opens=self.outbox is not None)
            except (Superseded, Reopened):
                continue

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
        if not self._creation.idle:
            await self._creation.ensure(self._retrier.deadline(), create=False)
        self.conversation_id = None

    @staticmethod
    async def _done(
        work: Callable[[Operation, Conversation], Awaitable[T]],
        operation: Operation,
        conversation: Conversation,
        previous: Conversation | None,
    ) -> T:
        if previous is not None and previous is not conversation:
            # The client's key was changed: another copy. What is in flight on
            # the old one comes first.
            await previous.settled(operation)
        return await work(operation, conversation)

    def _made_of(self, conversation_id: str) -> str | None:
        """The id that a conversation with a local name has got in this process, or None."""
        if self.outbox is None or not conversation_id.startswith(LOCAL):
            return None
        from cached_session.conversation.addresses import owner_of
        from cached_session.session.attaching import made_of

        owner = owner_of(self.outbox, account(self._client))
        return made_of(self.outbox, owner, conversation_id)

    def _operation(self, conversation_id: str, deadline: float | None = None) -> Operation:
        deadline = self._retrier.deadline() if deadline is None else deadline
        return Operation(self._remote, self._policy, self._meter, conversation_id, deadline, self)

    async def append(
        self, operation: Operation, conversation: Conversation, items: Sequence[Outgoing]
    ) -> None:
        """Appends by the outbox, if there is one, or else at once."""
        if self.outbox is not None:
            await conversation.accept(operation, items)
        else:
            await conversation.deliver(operation, items)

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

    async def recorded(self) -> None:
        """Waits until the outbox has what calls before this one append.

        For the server only where one of them is making the conversation: one attempt.
        """

        async def settle(operation: Operation, conversation: Conversation) -> None:
            await conversation.recorded(operation)

        if self._calls or not self._creation.idle:
            await self.perform(settle, create=False)

    async def _create(self, deadline: float) -> None:
        # A lost answer leaves an empty conversation behind that nobody uses.
        # No request could tell it from the one that is made next.
        retrier = self._retrier
        if self.outbox is not None:
            # Nobody has to wait for the server to come back.
            retrier = Retrier(dataclasses.replace(self._policy, max_attempts=1), self._meter)
        outcome = await retrier.run(
            lambda seconds: self._remote.create(timeout=seconds),
            deadline=deadline,
            conversation_id=None,
        )
        if not isinstance(outcome, Applied):
            if self.outbox is None or not outcome.retryable:
                raise outcome.error
            # The server is out of reach. The outbox takes what is appended all
            # the same, and makes the conversation when it can.
            name = f"{LOCAL}{uuid.uuid4().hex}"
            self.bind(name).ledger.begin_empty(Asked.at(Operation.now()))
            self._staleness.made()
            return
        if not self._identity.wraps:
            self.conversation_id = outcome.value
            self.bind(outcome.value).ledger.begin_empty(Asked.at(Operation.now()))
            self._staleness.made()
            return
        if self.conversation_id is None:
            self.conversation_id = outcome.value
        await self._identity.settled(deadline)

    def open(self, session: object) -> None:
        """Notes that `session` uses the outbox."""
        if self.outbox is not None:
            self.outbox.users.add(session)

    async def close(self, session: object) -> None:
        """Lets go of the copy; what is recorded is the outbox's, which sends it.

        Args:
            session: Whose binding this is.
        """
        outbox, self.conversation, self._closed = self.outbox, None, True
        if outbox is None:
            return
        # Only now, as in `bind`.
        from cached_session.conversation.backlog import let_go_unused

        outbox.users.discard(session)
        with outbox.lock:
            # Of each conversation that the session was on. One that got its id has two names.
            used = {id(one): one for one in outbox.backlogs.values() if self._identity in one.users}
            for backlog in used.values():
                backlog.users.discard(self._identity)
        await asyncio.gather(
            *(one.leave(self._operation(one.order.ledger.conversation_id)) for one in used.values())
        )
        await let_go_unused(outbox)
