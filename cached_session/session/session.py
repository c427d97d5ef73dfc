"""CachedSession: checks arguments, finds its conversation's local copy, delegates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from agents import OpenAIConversationsSession, TResponseInputItem
from agents.memory import SessionSettings
from openai import AsyncOpenAI, NotGiven, Omit

from cached_session.conversation.conversation import NONE_HELD, Conversation
from cached_session.conversation.operation import Operation
from cached_session.conversation.turns import Run
from cached_session.core.items import accept
from cached_session.core.ledger import LOCAL
from cached_session.errors import CachedSessionError, OutboxError, counted
from cached_session.events import Meter, Observer, Stats, logger
from cached_session.server.retrying import RetryPolicy
from cached_session.session.arguments import (
    Chosen,
    check_absent,
    check_id,
    check_not_overridden,
    check_observer,
    check_outbox,
    check_staleness,
    check_timeout,
    check_type,
    check_underlying,
    choose,
    resolve_limit,
    told,
)
from cached_session.session.binding import NEW, Binding, Call
from cached_session.session.cache import PROCESS_CACHE, ConversationCache

if TYPE_CHECKING:
    from cached_session.outbox import Outbox


# The types of what the openai client leaves out of a request.
_NOT_GIVEN = (Omit, NotGiven)


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
        openai_client: The client to use; None: the wrapped session's, or the
            SDK's default client. It is never closed here.
        session_settings: The SDK's settings, as an object or a dict. `limit`
            is what `get_items()` returns at most.
        cache: Where the local copy is kept; None: the process's own.
        max_staleness: When a read asks the server what others wrote.
            Seconds: if nobody in the process has asked for longer than that,
            whichever session object it was. None: at the first read of each
            session object, unless it made the conversation itself. 0: at every
            read. `math.inf`: never, while the copy is held. It takes one
            request for each 100 items added since the last time. Each read
            also asks the outbox what other processes did through it, without a
            request; with seconds, if that was not asked for longer.
        stale_if_error: Where a read has to ask and the server cannot be asked,
            because nobody answers, or with 5xx, or with a 429 that time helps,
            after the repeats: for how many seconds after the server last
            confirmed it the copy is the answer all the same, with what waits
            in the outbox behind it. Not while anything in the copy is in
            doubt, and not for `pop_item` or `add_items`. None: the read raises.
        retry: How requests are repeated; None: `RetryPolicy()`.
        outbox: Where appends are recorded before they are sent: an
            `SQLiteOutbox`, a `PostgresOutbox` or a `MemoryOutbox`; `add_items`
            then returns when the record is made. None: it returns when the
            server has the items.
            All sessions of a process on a conversation have the same outbox and
            the same cache; otherwise the first use raises `ValueError`.
        observer: Called with each event (see `cached_session.events`), on the
            thread where it happens.

    Raises:
        TypeError: An argument has the wrong type; or `underlying_session`
            overrides a method of the SDK's session, which would be dropped.
        ValueError: An argument has an impossible value, or contradicts another;
            or `conversation_id` is a local name of an outbox, and there is none;
            or no `openai_client` is given, and which one the wrapped session
            uses cannot be told for certain; or the base URL of the client is
            not that of a server. Every call raises it, too, once somebody has
            replaced a client that was not given here.
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
        stale_if_error: float | None = None,
        retry: RetryPolicy | None = None,
        outbox: Outbox | None = None,
        observer: Observer | None = None,
    ) -> None:
        check_underlying(underlying_session)
        check_type("openai_client", openai_client, AsyncOpenAI)
        check_type("cache", cache, ConversationCache)
        check_type("retry", retry, RetryPolicy)
        check_type("session_settings", session_settings, SessionSettings, dict)
        if observer is not None:
            check_observer(observer)
        if conversation_id is not None:
            check_id("conversation_id", conversation_id)
        check_staleness("max_staleness", max_staleness)
        check_staleness("stale_if_error", stale_if_error)
        check_outbox(outbox, conversation_id)
        if underlying_session is not None:
            check_absent(conversation_id=conversation_id)
            ours = isinstance(underlying_session, CachedSession)
            check_not_overridden(
                underlying_session, CachedSession if ours else OpenAIConversationsSession
            )
            if session_settings is None:
                session_settings = underlying_session.session_settings
        chosen = None if openai_client is None else Chosen(openai_client)
        if underlying_session is not None:
            found = (
                underlying_session.__binding.chosen
                if isinstance(underlying_session, CachedSession)
                else told(underlying_session)
            )
            chosen = choose(openai_client, found, underlying_session)
        super().__init__(
            conversation_id=conversation_id,
            openai_client=None if chosen is None else chosen.client,
            session_settings=session_settings,
        )
        # All that the session has is in one attribute. It has double underscores, so that none of
        # the base class, in this release or another, or of a subclass of another name is the same.
        cache = PROCESS_CACHE if cache is None else cache
        self.__binding: Binding = Binding(
            choose(None, told(self), self) if chosen is None else chosen,
            underlying_session,
            conversation_id,
            cache,
            RetryPolicy() if retry is None else retry,
            Meter(observer, cache.observers),
            max_staleness,
            stale_if_error,
            outbox,
        )
        if outbox is not None:
            outbox.users.add(self)

    @property
    def session_id(self) -> str:
        """The conversation's id.

        Raises:
            ValueError: There is none yet. The first `get_items`, or `add_items`
                with an item, makes the conversation; with an outbox, and while
                the server is out of reach, it has a `local_name` until then.
        """
        return _id(self.__binding.conversation_id)

    @session_id.setter
    def session_id(self, value: str | None) -> None:
        _go_to(self.__binding, value)

    # Private members of the base class that act on its conversation. Programs
    # call them, and would go past this session. A release without one of them
    # never meets it here; a test fails when a release adds another.

    @property
    def _session_id(self) -> str | None:
        """The conversation's id, or None while it has none, as in the SDK's session."""
        conversation_id = self.__binding.conversation_id
        if conversation_id is not None and conversation_id.startswith(LOCAL):
            return None
        return conversation_id

    @_session_id.setter
    def _session_id(self, value: str | None) -> None:
        # The base class sets it while it is made, to what it was given. That is
        # the binding's, too, which is made after it.
        if "_CachedSession__binding" in vars(self):
            _go_to(self.__binding, value)

    async def _get_session_id(self) -> str:
        """Returns the conversation's id, and makes the conversation if there is none.

        Raises:
            ValueError: The server is out of reach, and the outbox holds the
                conversation under a local name; or as from `get_items`.
            Exception: As from `get_items`.
        """
        return _id(await self.__binding.usable().identify())

    async def _clear_session_id(self) -> None:
        """Leaves the conversation, which stays on the server; the next use makes a new one."""
        await self.__binding.usable().leave()

    async def _get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Reads as `get_items` does, also of a subclass that overrides that."""
        return await CachedSession.get_items(self, limit)

    @property
    def local_name(self) -> str | None:
        """The name by which the outbox knows a conversation that the server has not made yet.

        It is for a program to store in the place of `session_id`: a session
        with it as `conversation_id=`, and the same outbox, takes up the
        conversation, in another process too, and also after the server has
        made it.

        None before the first use, without an outbox, and once the server has
        made the conversation: then `session_id` is there.
        """
        name = self.__binding.conversation_id
        return name if name is not None and name.startswith(LOCAL) else None

    @property
    def stats(self) -> Stats:
        """What this session did so far, and what is held of its conversation."""
        meter, conversation = self.__binding.meter, self.__binding.conversation
        held = NONE_HELD if conversation is None else conversation.held()
        return Stats(
            hits=meter.hits,
            misses=meter.misses,
            requests=meter.requests,
            retries=meter.retries,
            reconciliations=meter.reconciliations,
            stale=meter.stale,
            **held._asdict(),
        )

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Has one more observer told of the session's events, from now on.

        Args:
            observer: As the argument of the session. One that is given twice, or to the
                session's cache, too, is told of each event once.

        Returns:
            What ends it when it is called.

        Raises:
            TypeError: `observer` is not callable, or a coroutine function.
        """
        check_observer(observer)
        return self.__binding.meter.add(observer)

    def __repr__(self) -> str:
        stats, binding = self.stats, self.__binding
        state = (
            "closed"
            if binding.closed
            else f"{counted(stats.items)} held, {counted(stats.bytes, 'byte')}"
        )
        if stats.waiting:
            state += f", {stats.waiting} waiting"
        return f"CachedSession({binding.conversation_id or NEW}, {state})"

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Returns the conversation's history.

        Args:
            limit: How many of the newest items; None: `session_settings.limit`,
                or all of them. A negative one counts as 1, as in the SDK's session.

        Returns:
            The items, oldest first, in the shape in which the server lists
            them. Items that wait in the outbox stand at the end, in that shape
            as far as it is known: without an id, unless they were given one.
            The list and all in it belong to the caller.

        Raises:
            TypeError: `limit` is no int.
            ValueError: Another session has the conversation with another
                outbox or cache.
            openai.OpenAIError: The server refused, or stayed out of reach.
            DeadlineExceeded: The operations before this one took too long, or
                another process that sends what waits, where the outbox keeps
                too little to be shown meanwhile; or the time was over before
                the next request.
            UnexpectedAnswer: The server cannot list its own conversation.
            OutboxError: The outbox could not be read or written.
            TurnLost: The event loop was stopped during the call, and another
                operation went on.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        limit = resolve_limit(limit, self.session_settings)
        with Call(binding, "get_items") as call:
            held = binding.view(limit)
            call.hit = held is not None or None
            if held is None:

                async def read(
                    operation: Operation, conversation: Conversation
                ) -> list[dict[str, Any]]:
                    # The conversation may have been made, or changed, just now.
                    if limit == 0:
                        return []
                    await conversation.validate(operation, binding.valid_since())
                    held = binding.held(limit, conversation)
                    call.hit = held is not None
                    if held is not None:
                        return held
                    binding.count(hit=False)
                    return await conversation.read(
                        operation, limit, binding.trust(conversation), binding.stale_if_error
                    )

                held = await binding.perform(read)
            call.items = 0 if held is None else len(held)
        return cast("list[TResponseInputItem]", held)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Appends items, each exactly once, in order.

        They travel in batches of at most 20 items, each of which stands in one
        piece on the server.

        Without an outbox all of them are on the server when the call returns.
        If it is cancelled, the batch that is being sent settles and no later
        one is sent: the first batches are there, and the next read shows them.
        With an outbox they are recorded, and are sent in the background; if the
        call raises, none of them is recorded. If it is cancelled, all may be.

        Args:
            items: The items, dicts or pydantic models. They are copied before
                the call first waits, so they may be changed at once. A field
                whose value is the client's `omit` or `NOT_GIVEN` is left out.
                No items: nothing is sent.

        Raises:
            TypeError: `items` is no list of objects that JSON can carry.
            ValueError: An item holds a number or text that JSON cannot carry;
                or another session has the conversation with another outbox or
                cache.
            AppendOutcomeUnknown: Whether items landed could not be found out.
                Not with an outbox.
            openai.OpenAIError: The server refused, or stayed out of reach. A
                note on the exception says how many items landed. With an
                outbox: it refused to make the conversation.
            DeadlineExceeded: The operations before this one took too long, or
                the time was over before the next request.
            UnexpectedAnswer: The server cannot list its own conversation.
            OutboxFull: The outbox has no room, and had none for `max_wait`
                seconds; or never has room for so much.
            OutboxPaused: What was recorded before is not sent until somebody
                decides. Raised without an outbox, too, if another session on
                the conversation has one.
            OutboxError: The outbox could not be read or written.
            TurnLost: The event loop was stopped during the call, and another
                operation went on.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        outgoing = accept(items, omitted=_NOT_GIVEN)
        if outgoing:
            with Call(binding, "add_items") as call:
                call.items = len(outgoing)
                await binding.perform(
                    lambda operation, conversation: binding.append(
                        operation, conversation, outgoing, call.started
                    )
                )

    async def pop_item(self) -> TResponseInputItem | None:
        """Removes the newest item and returns it.

        One that waits in the outbox, and certainly was not sent, is taken out
        of it and never reaches the server. One that may have been sent is
        waited for until it has landed, and then removed from the server.

        Returns:
            The item, which belongs to the caller, or None if there is none.

        Raises:
            ValueError: Another session has the conversation with another outbox
                or cache.
            openai.OpenAIError: The server refused, or stayed out of reach. A
                note says if it is not known whether the item was removed.
            DeadlineExceeded: The operations before this one, or the sending of
                the newest item, took too long; or the time was over before the
                next request.
            UnexpectedAnswer: Other writers removed the newest item at every
                attempt; or the server cannot list its own conversation.
            OutboxPaused: The newest item may have been sent, and nothing is
                sent any more until somebody decides.
            OutboxError: The outbox could not be read or written; nothing was
                removed.
            TurnLost: The event loop was stopped during the call, and another
                operation went on.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        with Call(binding, "pop_item") as call:
            popped = await binding.perform(
                lambda operation, conversation: conversation.pop(
                    operation, binding.trust(conversation)
                )
            )
            call.items = int(popped is not None)
        return cast(TResponseInputItem | None, popped)

    async def clear_session(self) -> None:
        """Deletes the conversation; the next use makes a new one.

        Before the first use nothing is sent.

        What waits in the outbox is dropped first, also where it is paused. A
        batch that is being sent is waited for. If the deletion then fails, what
        was dropped stays dropped.

        Raises:
            ValueError: Another session has the conversation with another outbox
                or cache.
            openai.OpenAIError: The server refused, or stayed out of reach. The
                session keeps the conversation's id. With an outbox a note says
                how many items were dropped.
            DeadlineExceeded: The operations before this one, or a batch that is
                being sent, took too long; or the time was over before the next
                request. The text or a note says how many items were dropped.
            OutboxError: The outbox could not be read or written. Items may have
                been dropped, and the conversation deleted, all the same.
            TurnLost: The event loop was stopped during the call, and another
                operation went on.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        with Call(binding, "clear_session"):
            await binding.perform(
                lambda operation, conversation: conversation.clear(operation), create=False
            )

    async def refresh(self) -> None:
        """Forgets the local copy; the next read of any session on it asks the server.

        Also of a session in this process that is made later, see `ConversationCache.invalidate`.
        What waits in the outbox stays, and is shown behind what the server says.

        Raises:
            ValueError: Another session has the conversation with another outbox
                or cache.
            DeadlineExceeded: The operations before this one took too long.
            OutboxError: The outbox could not be read.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        with Call(binding, "refresh"):
            await binding.perform(
                lambda operation, conversation: conversation.refresh(operation), create=False
            )

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until every write before this call is on the server or has failed.

        With an outbox it waits until nothing waits there any more. A
        conversation that has only a local name is made, if the server can be
        reached. Looks once more for items that a late commit stored twice, if
        such a commit may still come.

        Args:
            timeout: Seconds that it may take; None: `RetryPolicy.deadline`.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or not finite; or another session
                has the conversation with another outbox or cache.
            OutboxPaused: The server refused what the outbox holds, the client
                has no credentials, or what became of a batch cannot be found
                out. All is kept, and not sent until somebody decides.
            OutboxError: The outbox could not be read or written, by this call
                or by what sends. What is recorded is kept.
            openai.OpenAIError: That look failed, or the server refused to make
                the conversation.
            DeadlineExceeded: The operations before this one, or the sending of
                what waits, took too long. What is recorded is kept, and is
                still being sent.
            UnexpectedAnswer: The server cannot list its own conversation.
            TurnLost: The event loop was stopped during the call, and another
                operation went on.
            SessionClosed: The session was closed.
        """
        binding = self.__binding.usable()
        check_timeout(timeout)
        with Call(binding, "flush"):
            await binding.flush(timeout)

    def turn(self, wait: float | None = None) -> AbstractAsyncContextManager[None]:
        """The conversation's turn, for a whole run of an agent: `async with session.turn():`.

        One at a time has it, in the order in which they came: of all sessions
        on the conversation that share a cache and an account; and of all
        processes that share an outbox's file or database, of each of which one
        waits in that line at a time. Two runs at once would mix their items,
        and the API refuses what comes of that. It binds those who ask for it;
        who appends without a turn is not kept from it.

        What the task that has the turn does on the conversation belongs to it,
        through any session, and so does what the tasks do that it makes. The
        same task can take it again. A task that it makes waits as anybody does:
        a function tool, for example, and `asyncio.wait_for` before Python 3.12.
        When the turn is over, because it was given back, or its event loop was
        stopped or closed and somebody else took it, or the outbox's file or
        database was closed, `add_items`, `pop_item` and `clear_session` of
        those tasks raise `TurnLost` and change nothing.

        The turn of a process that ends is free at once; in a database, after
        its lease if it was killed. A new session makes
        its conversation first. `clear_session` in a turn leaves the
        conversation that it is on: nobody has a turn on the next one.

        Args:
            wait: Seconds to wait for the turn; 0: only if it is free. None:
                `RetryPolicy.deadline`.

        Returns:
            What takes the turn when it is entered, and gives it back at its end.
            If the outbox cannot be written then, that is logged as a warning, and
            the turn is given back when it can. Entering raises what a read may
            raise, and:

            ConversationBusy: The turn did not come in time.
            TurnLost: The present task had the turn, and it is over.
            SessionClosed: The session was closed.

        Raises:
            TypeError: `wait` is no number.
            ValueError: `wait` is negative or not finite.
        """
        check_timeout(wait, "wait")
        return SessionTurn(self.__binding, wait)

    async def aclose(self, timeout: float | None = None) -> None:
        """Closes the session. Calls made from now on are refused; closing twice does nothing.

        Without an outbox it flushes first. With one it does not wait for the
        server, unless it is given a time: what is recorded is the outbox's,
        which sends it as long as the event loop runs, after the last session
        was closed, too, and closes itself when nothing is left.

        The openai client stays open, and so do the connections to the server,
        which live as long as the client and the event loop.

        Whatever this raises, the session is closed, and what is recorded is
        still being sent.

        Args:
            timeout: Seconds for `flush`; None: `RetryPolicy.deadline`, and with
                an outbox no time at all.

        Raises:
            TypeError: `timeout` is no number. The session stays open.
            ValueError: `timeout` is negative or not finite, and the session
                stays open; or another session has the conversation with
                another outbox or cache.
            OutboxPaused: As from `flush`.
            OutboxError: As from `flush`.
            openai.OpenAIError: As from `flush`.
            DeadlineExceeded: As from `flush`.
            UnexpectedAnswer: As from `flush`.
            TurnLost: As from `flush`.
        """
        check_timeout(timeout)
        if not self.__binding.closed:
            await self.__binding.close(self, timeout)

    async def __aenter__(self) -> Self:
        self.__binding.usable()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            try:
                await self.aclose()
            except OutboxError as error:
                # What the block has appended is recorded: an error would say that it is not.
                if self.__binding.outbox is None:
                    raise
                logger.warning("a session could not let go of its outbox: %s", error)
        elif not self.__binding.closed:
            # Something went wrong already, or the block was cancelled: that
            # must reach the caller, at once, and not what a flush says of it.
            await self.__binding.close_at_once(self)


def _go_to(binding: Binding, conversation_id: str | None) -> None:
    # None as in the SDK: the next use makes a new conversation.
    if conversation_id is not None:
        check_id("session_id", conversation_id)
    binding.conversation_id = conversation_id


def _id(conversation_id: str | None) -> str:
    """A conversation's id, or the error that says that it has none yet."""
    if conversation_id is None:
        raise ValueError(
            "session_id is not yet available: the conversation is made on first use. "
            "Await get_items(), or add_items() with an item, first."
        )
    if conversation_id.startswith(LOCAL):
        raise ValueError(
            "session_id is not yet available: the server could not be reached. The outbox "
            f"holds the conversation as {conversation_id}, which is its local_name, and it gets "
            "its id when the server answers; await flush()."
        )
    return conversation_id


class SessionTurn(AbstractAsyncContextManager[None]):
    """The turn on the conversation that a session is on when it is entered."""

    def __init__(self, binding: Binding, wait: float | None) -> None:
        """Takes nothing yet.

        Args:
            binding: The session's.
            wait: Seconds to wait for the turn; None: as long as a call may take.
        """
        self._binding = binding
        self._wait = wait
        # One for each time that it was entered; None: the task had the turn already.
        self._entered: list[tuple[Conversation, Run] | None] = []

    async def __aenter__(self) -> None:
        self._entered.append(await self._binding.usable().begin_run(self._wait))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered = self._entered.pop()
        if entered is None:
            return
        conversation, run = entered
        if exc_type is GeneratorExit:
            # A generator that nobody goes on with, as of a stream whose reader has left, or a
            # coroutine that its event loop has left lying: there is nobody who could wait.
            conversation.drop_run(run)
            return
        try:
            await conversation.end_run(run)
        except CachedSessionError as error:
            if exc is not None:
                # What went wrong in the run must reach the caller.
                exc.add_note(f"the turn could not be given back: {error}")
            else:
                # What the run has appended is recorded: an error would say that it is not. The
                # outbox's thread gives the turn back when it can.
                logger.warning("a turn could not be given back at its end: %s", error)
