"""Which conversation a session is on, and that conversation's local copy."""

from __future__ import annotations

import asyncio
from typing import cast

from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session.cache import ConversationCache
from cached_session.classify import classify
from cached_session.connections import account, connections
from cached_session.core.outcomes import Applied, Outcome
from cached_session.events import Meter
from cached_session.operation import Operation
from cached_session.remote import Remote
from cached_session.replica import Replica
from cached_session.retrying import Retrier, RetryPolicy
from cached_session.turns import Turns

NEW = "a new conversation"


class Binding:
    """The conversation of one session: its id, how it is made, its local copy.

    Args:
        client: The openai client.
        underlying: The session that is wrapped, which then keeps the id, or None.
        conversation_id: The conversation, or None: made on first use.
        cache: Where the local copy comes from.
        policy: How requests are repeated.
        meter: Who counts them.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        underlying: OpenAIConversationsSession | None,
        conversation_id: str | None,
        cache: ConversationCache,
        policy: RetryPolicy,
        meter: Meter,
    ) -> None:
        self._client = client
        self._underlying = underlying
        self._conversation_id = conversation_id
        self._cache = cache
        self._policy = policy
        self._meter = meter
        self._remote = Remote(client, meter)
        self._creating = Turns()
        self._creations: set[asyncio.Task[None]] = set()
        self._api_key: str | None = None
        self.replica: Replica | None = None
        """The copy that was bound last; `bound` says whether it still counts."""
        self.opening: int | None = None
        """The number of the listing that opens the copy for this session; None: not yet said."""

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, None before there is one."""
        if self._underlying is None:
            return self._conversation_id
        try:
            return self._underlying.session_id
        except ValueError:  # the SDK's way to say that there is none yet
            return None

    @conversation_id.setter
    def conversation_id(self, value: str | None) -> None:
        if self._underlying is not None:
            # The SDK's setter takes None; its annotation does not say so.
            self._underlying.session_id = cast(str, value)
        self._conversation_id = value
        self.replica = None

    def bound(self) -> Replica | None:
        """The copy of the current conversation, if it is bound already."""
        replica = self.replica
        if (
            replica is None
            or replica.conversation_id != self.conversation_id
            or self._api_key != self._client.api_key
        ):
            return None
        return replica

    def bind(self, conversation_id: str) -> Replica:
        """The copy of a conversation, which is the session's own from now on."""
        replica = self.bound()
        if replica is None:
            self._api_key = self._client.api_key
            replica = self._cache.replica(account(self._client), conversation_id)
            self.replica = replica
            self.opening = None
        return replica

    def operation(self, conversation_id: str, deadline: float | None = None) -> Operation:
        """Begins an operation on a conversation."""
        return Operation(self._remote, self._policy, self._meter, conversation_id, deadline)

    async def begin(self) -> tuple[Operation, Replica]:
        """Begins an operation on the current conversation; makes one if there is none."""
        conversation_id = self.conversation_id
        if conversation_id is not None:
            return self.operation(conversation_id), self.bind(conversation_id)
        retrier = Retrier(self._policy, self._meter)
        deadline = retrier.deadline()
        await self._creating.enter(deadline, NEW)
        if self.conversation_id is None:
            # In a task of its own: a caller who is cancelled must not leave
            # behind a conversation that the next caller does not know.
            task = asyncio.get_running_loop().create_task(self._create(retrier, deadline))
            self._creations.add(task)
            task.add_done_callback(self._created)
            await asyncio.wait({task})
            task.result()
        else:
            self._creating.leave()
        conversation_id = self.conversation_id
        assert conversation_id is not None  # it was just made
        return self.operation(conversation_id, deadline), self.bind(conversation_id)

    def _created(self, task: asyncio.Task[None]) -> None:
        self._creations.discard(task)
        self._creating.leave()
        if not task.cancelled():
            task.exception()  # a caller who was cancelled does not retrieve it

    async def _create(self, retrier: Retrier, deadline: float) -> None:
        # A lost answer leaves an empty conversation behind that nobody uses.
        # No request could tell it from the one that is made next.
        outcome = await retrier.run(self._attempt, deadline=deadline, conversation_id=None)
        if not isinstance(outcome, Applied):
            raise outcome.error
        if self._underlying is None:
            self.conversation_id = outcome.value
            self.bind(outcome.value).begin_empty(Operation.now())
            self.opening = 0

    async def _attempt(self, seconds: float) -> Outcome[str]:
        if self._underlying is None:
            return await self._remote.create(timeout=seconds)
        self._meter.requests += 1
        try:
            async with asyncio.timeout(seconds):
                # Its own way of making a conversation, under its own lock, so
                # that a first call to it at the same time finds the same one.
                await self._underlying.get_items(limit=0)
        except Exception as error:
            return classify(error)
        return Applied(self._underlying.session_id)

    def touch(self, replica: Replica) -> None:
        """Tells the cache that the copy was used."""
        self._cache.touch(replica)

    def open(self, session: object) -> None:
        """Notes that `session` uses the client's connections."""
        connections(self._client).users.add(session)

    async def close(self, session: object) -> None:
        """Lets go of the copy, and of the connections if no other session uses them."""
        self.replica = None
        pools = connections(self._client)
        pools.users.discard(session)
        if not pools.users:
            await pools.close()
