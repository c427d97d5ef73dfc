"""CachedSession: checks arguments, finds its conversation's local copy, delegates."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from agents import OpenAIConversationsSession, TResponseInputItem
from agents.memory import SessionSettings
from openai import AsyncOpenAI

from cached_session.arguments import (
    check_id,
    check_observer,
    check_outbox,
    check_staleness,
    check_timeout,
    check_type,
    client_of,
    resolve_limit,
)
from cached_session.binding import Binding
from cached_session.cache import PROCESS_CACHE, ConversationCache
from cached_session.core.items import accept
from cached_session.core.local import LOCAL
from cached_session.creating import NEW
from cached_session.errors import SessionClosed
from cached_session.events import Meter, Observer, Sending, Stats
from cached_session.operation import Operation
from cached_session.replica import Replica
from cached_session.retrying import RetryPolicy

if TYPE_CHECKING:
    from cached_session.outbox import Outbox


class CachedSession(OpenAIConversationsSession):
    """A session whose history is on OpenAI's servers and whose reads are local.

    Takes the place of `OpenAIConversationsSession`: the same conversation on
    the server, the same behaviour in the Runner. Reads of what is held cost no
    request; an append happens exactly once, whatever the network does.

    Sessions on one conversation and account share one local copy and one order
    of writes, from every task, thread and event loop of the process.

    Args:
        underlying_session: A session to wrap. Its client, conversation and
            settings are taken over, and both agree on the conversation's id
            from then on, whichever creates it.
        conversation_id: An existing conversation; None: one is made on first use.
        openai_client: The client to use; None: the SDK's default client. It is
            never closed here.
        session_settings: The SDK's settings, as an object or a dict. `limit`
            is what `get_items()` returns at most.
        cache: Where the local copy is kept; None: the process's own.
        max_staleness: Seconds for which the local copy is trusted without
            asking the server; None: without end; 0: not at all, so that every
            read asks, in one request for each 100 items added since the last
            time. The first read of a session object asks, unless the session
            created the conversation, or this is `math.inf`.
        retry: How requests are repeated; None: `RetryPolicy()`.
        outbox: Where appends are recorded before they are sent: a
            `SQLiteOutbox` or a `MemoryOutbox`; `add_items` then returns when
            the record is made. None: it returns when the server has the items.
        observer: Called with each event (see `cached_session.events`), on the
            thread where it happens.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an impossible value, or contradicts another.
    """

    def __init__(
        self,
        underlying_session: OpenAIConversationsSession | None = None,
        *,
        conversation_id: str | None = None,
        openai_client: AsyncOpenAI | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        cache: ConversationCache | None = None,
        max_staleness: float | None = None,
        retry: RetryPolicy | None = None,
        outbox: Outbox | None = None,
        observer: Observer | None = None,
    ) -> None:
        check_type("underlying_session", underlying_session, OpenAIConversationsSession)
        check_type("openai_client", openai_client, AsyncOpenAI)
        check_type("cache", cache, ConversationCache)
        check_type("retry", retry, RetryPolicy)
        check_type("session_settings", session_settings, SessionSettings, dict)
        check_observer(observer)
        if conversation_id is not None:
            check_id("conversation_id", conversation_id)
        check_staleness(max_staleness)
        check_outbox(outbox)
        if underlying_session is not None:
            for name, value in (
                ("conversation_id", conversation_id),
                ("openai_client", openai_client),
            ):
                if value is not None:
                    raise ValueError(f"{name} comes from underlying_session; pass one of the two")
            openai_client = client_of(underlying_session)
            if session_settings is None:
                session_settings = underlying_session.session_settings
        super().__init__(
            conversation_id=conversation_id,
            openai_client=openai_client,
            session_settings=session_settings,
        )
        # Double underscores, so that no attribute of the base class, in this
        # release or another, can be the same as one of these.
        self.__meter = Meter(observer)
        self.__closed = False
        self.__binding = Binding(
            client_of(self),
            underlying_session,
            conversation_id,
            PROCESS_CACHE if cache is None else cache,
            RetryPolicy() if retry is None else retry,
            self.__meter,
            max_staleness,
            outbox,
        )
        self.__binding.open(self)

    @property
    def session_id(self) -> str:
        """The conversation's id.

        Raises:
            ValueError: There is none yet; the first `get_items`, or `add_items`
                with an item, makes the conversation.
        """
        conversation_id = self.__binding.conversation_id
        if conversation_id is not None and conversation_id.startswith(LOCAL):
            raise ValueError(
                "session_id is not yet available: the server could not be reached. The outbox "
                f"holds the conversation as {conversation_id}, and it gets its id when the "
                "server answers; await flush()."
            )
        if conversation_id is None:
            raise ValueError(
                "session_id is not yet available: the conversation is made on first use. "
                "Await get_items(), or add_items() with an item, first."
            )
        return conversation_id

    @session_id.setter
    def session_id(self, value: str | None) -> None:
        # None as in the SDK: the next use makes a new conversation.
        if value is not None:
            check_id("session_id", value)
        self.__binding.conversation_id = value

    @property
    def stats(self) -> Stats:
        """What this session did so far, and what is held of its conversation."""
        meter, replica = self.__meter, self.__binding.replica
        backlog = None if replica is None else replica.backlog
        waiting = 0 if backlog is None else len(backlog.journal.waiting)
        history = None if replica is None else replica.window.history
        return Stats(
            hits=meter.hits,
            misses=meter.misses,
            requests=meter.requests,
            retries=meter.retries,
            reconciliations=meter.reconciliations,
            items=0 if history is None else len(history),
            bytes=0 if history is None else history.size,
            waiting=waiting,
            # The sender ends a moment after its last item has landed.
            sending=backlog.sender.state if backlog is not None and waiting else Sending.IDLE,
        )

    def __repr__(self) -> str:
        stats = self.stats
        state = "closed" if self.__closed else f"{stats.items} items held, {stats.bytes} bytes"
        return f"CachedSession({self.__binding.conversation_id or NEW}, {state})"

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Returns the conversation's history.

        Args:
            limit: How many of the newest items; None: `session_settings.limit`,
                or all of them.

        Returns:
            The items, oldest first, in the shape in which the server lists
            them. The list and all in it belong to the caller.

        Raises:
            TypeError: `limit` is no int.
            ValueError: `limit` is negative.
            openai.OpenAIError: The server refused, or stayed out of reach.
            DeadlineExceeded: The operations before this one took too long.
            UnexpectedAnswer: The server cannot list its own conversation.
            SessionClosed: The session was closed.
        """
        self.__check_open()
        limit = resolve_limit(limit, self.session_settings)
        binding = self.__binding
        held = binding.served(limit)
        if held is None:

            async def read(operation: Operation, replica: Replica) -> list[dict[str, Any]]:
                # The conversation may have been made, or changed, just now.
                if limit == 0:
                    return []
                held = binding.served(limit)
                if held is not None:
                    return held
                self.__meter.misses += 1
                listing, since = binding.trust(replica)
                return await (replica.backlog or replica).read(
                    operation, limit, listing=listing, since=since
                )

            held = await binding.perform(read)
        return cast(list[TResponseInputItem], held)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Appends items, each exactly once, in order, next to each other.

        They travel in batches of at most 20 items. When the call returns, all
        of them are on the server.

        Args:
            items: The items, dicts or pydantic models. They are copied before
                the call first waits, so they may be changed at once. No items:
                nothing is sent.

        Raises:
            TypeError: `items` is no list of objects that JSON can carry.
            ValueError: An item holds a number or text that JSON cannot carry.
            AppendOutcomeUnknown: Whether items landed could not be found out.
            openai.OpenAIError: The server refused, or stayed out of reach. A
                note on the exception says how many items landed.
            DeadlineExceeded: The operations before this one took too long.
            SessionClosed: The session was closed.
        """
        self.__check_open()
        outgoing = accept(items)
        if outgoing:
            await self.__binding.perform(
                lambda operation, replica: self.__binding.append(operation, replica, outgoing)
            )

    async def pop_item(self) -> TResponseInputItem | None:
        """Removes the newest item and returns it.

        Returns:
            The item, which belongs to the caller, or None if there is none.

        Raises:
            openai.OpenAIError: The server refused, or stayed out of reach. A
                note says if it is not known whether the item was removed.
            DeadlineExceeded: The operations before this one took too long.
            UnexpectedAnswer: Other writers removed the newest item at every attempt.
            SessionClosed: The session was closed.
        """
        self.__check_open()

        async def pop(operation: Operation, replica: Replica) -> dict[str, Any] | None:
            listing, since = self.__binding.trust(replica)
            source = replica.backlog or replica
            return await source.pop(operation, listing=listing, since=since)

        return cast(TResponseInputItem | None, await self.__binding.perform(pop))

    async def clear_session(self) -> None:
        """Deletes the conversation; the next use makes a new one.

        Before the first use nothing is sent.

        Raises:
            openai.OpenAIError: The server refused, or stayed out of reach. The
                session keeps the conversation's id.
            DeadlineExceeded: The operations before this one took too long.
            SessionClosed: The session was closed.
        """
        self.__check_open()

        async def clear(operation: Operation, replica: Replica) -> None:
            def deleted() -> None:
                if not operation.superseded():
                    self.__binding.conversation_id = None

            await (replica.backlog or replica).clear(operation, deleted)

        await self.__binding.perform(clear, create=False)

    async def refresh(self) -> None:
        """Forgets the local copy; the next read of any session on it asks the server.

        Raises:
            DeadlineExceeded: The operations before this one took too long.
            SessionClosed: The session was closed.
        """
        self.__check_open()
        await self.__binding.perform(
            lambda operation, replica: (replica.backlog or replica).refresh(operation),
            create=False,
        )

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until every write before this call is on the server or has failed.

        Looks once more for items that a late commit stored twice, if such a
        commit may still come.

        Args:
            timeout: Seconds that it may take; None: `RetryPolicy.deadline`.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or not finite.
            OutboxPaused: The server refused what the outbox holds.
            openai.OpenAIError: That look failed.
            DeadlineExceeded: The operations before this one took too long.
            SessionClosed: The session was closed.
        """
        self.__check_open()
        check_timeout(timeout)
        await self.__binding.flush(timeout)

    async def aclose(self) -> None:
        """Flushes, then lets go of the local copy and of the connections opened for it.

        The openai client stays open. Calls made from now on are refused; closing
        twice does nothing.

        Raises:
            openai.OpenAIError: As from `flush`; the session is closed all the same.
            DeadlineExceeded: As from `flush`; the session is closed all the same.
        """
        if self.__closed:
            return
        self.__closed = True
        try:
            await self.__binding.flush(None, create=False)
        finally:
            await self.__binding.close(self, wait=True)

    async def __aenter__(self) -> Self:
        self.__check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            await self.aclose()
        elif not self.__closed:
            # Something went wrong already, or the block was cancelled: that
            # must reach the caller, at once, and not what a flush says of it.
            self.__closed = True
            await self.__binding.close(self, wait=False)

    def __check_open(self) -> None:
        if self.__closed:
            raise SessionClosed(
                "the session is closed; make a new one",
                conversation_id=self.__binding.conversation_id,
            )
