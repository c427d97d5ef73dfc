"""Sending what is left in an outbox, where no session does."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Self

from openai import AsyncOpenAI

from cached_session.conversation.record import address_of, owner_of
from cached_session.errors import OutboxUnavailable
from cached_session.events import Meter, Observer, logger
from cached_session.outbox import Address, Outbox
from cached_session.outbox.shared import check_seconds
from cached_session.server.connections import account as account_of
from cached_session.server.retrying import RetryPolicy
from cached_session.session.adoption import Adopter, Means
from cached_session.session.arguments import Chosen, check_observer, check_outbox, check_type
from cached_session.session.cache import ConversationCache


class Standing(NamedTuple):
    """What waits in an outbox.

    Attributes:
        waiting: Of how many conversations of the relay's account something waits.
        paused: How many of them are paused.
        others: Of how many conversations of other accounts something waits.
    """

    waiting: int
    paused: int
    others: int


class Relay:
    """Sends what an outbox holds and nobody living sends: `async with Relay(outbox, client):`.

    Of all conversations of one account, that of the client, or the one that the outbox names.
    What is paused it leaves alone. Any number may run beside living workers.

    Attributes:
        account: The account, as an address without a conversation.

    Args:
        outbox: An outbox that no session has: closing the relay closes it.
        openai_client: The client that sends. It is never closed here; close it after the relay.
        retry: How requests are repeated; None: `RetryPolicy()`.
        observer: Called with each event; see `CachedSession`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The client's base URL is not that of a server, or its key is not fixed and the
            outbox names no account; or the outbox is in memory, and leaves nothing to others.
    """

    def __init__(
        self,
        outbox: Outbox,
        openai_client: AsyncOpenAI,
        *,
        retry: RetryPolicy | None = None,
        observer: Observer | None = None,
    ) -> None:
        for name, value in (("outbox", outbox), ("openai_client", openai_client)):
            if value is None:
                raise TypeError(f"{name} must be given, not None")
        check_outbox(outbox, None)
        check_type("openai_client", openai_client, AsyncOpenAI)
        check_type("retry", retry, RetryPolicy)
        if observer is not None:
            check_observer(observer)
        client = Chosen(openai_client).client
        if not outbox.durable:
            raise ValueError("outbox: one in memory leaves nothing to others")
        self._outbox = outbox
        self.account: Address = address_of(owner_of(outbox, account_of(client)), "")
        if not self.account.credentials:
            raise ValueError(
                "openai_client: its key is not fixed, so that nothing tells what is its account's; "
                "give the outbox an account="
            )
        self._adopter = Adopter(self.account)
        policy = RetryPolicy() if retry is None else retry
        self._means = Means(outbox, client, ConversationCache(), policy, Meter(observer))
        self._stopping = False
        self._running = False
        self._sending: asyncio.Task[None] | None = None
        # Whether the engine could not be reached at the last look.
        self._away = False
        # As a session does, or the file would be closed whenever nothing is sent.
        outbox.users.add(self)

    @property
    def sent(self) -> int:
        """How many items it has put on the server, or found there."""
        return self._adopter.sent

    async def run(self, *, every: float = 1.0, once: bool = False) -> None:
        """Sends what is left, and what will be, until the relay is closed, or this is cancelled.

        A database that goes away meanwhile is waited for.

        Args:
            every: Seconds between two looks.
            once: Whether to return when nothing is left that can be sent. While the server is
                away, it waits.

        Raises:
            TypeError: `every` is no number.
            ValueError: `every` is not above 0, or not finite.
            RuntimeError: It is running already.
            OutboxError: The outbox cannot be used any more.
        """
        check_seconds("every", every, "")
        if not every:
            raise ValueError("every must be above 0")
        if self._running:
            raise RuntimeError(
                f"the relay of {self._outbox!r} is running already. Wait for its run(), or make "
                "another Relay, with an outbox of its own."
            )
        self._running = True
        self._sending = sending = asyncio.create_task(self._send(every, once=once))
        try:
            await asyncio.wait({sending})
        finally:
            self._running = False
            sending.cancel()
        if not sending.cancelled():
            sending.result()

    async def _send(self, every: float, *, once: bool) -> None:
        while not self._stopping:
            try:
                again = await self._adopter.sweep(self._through, every)
            except OutboxUnavailable as error:
                # Once: either the engine comes back, or somebody reads this.
                if not self._away:
                    logger.warning("%s", error)
                self._away, again = True, None
            else:
                if self._away:
                    logger.info("The engine of %r is there again.", self._outbox)
                self._away = False
                if once and not self._adopter.unsure:
                    return
            await asyncio.sleep(every if again is None else min(again, every))

    def _through(self) -> Means | None:
        return None if self._stopping else self._means

    async def standing(self) -> Standing:
        """What waits at this moment.

        Raises:
            OutboxError: The outbox could not be read.
        """
        summaries = await self._outbox.consult(lambda log: log.summaries())
        waiting = [one for one in summaries if one.items]
        ours = [one for one in waiting if one.address[:4] == self.account[:4]]
        paused = sum(one.paused is not None for one in ours)
        return Standing(len(ours), paused, len(waiting) - len(ours))

    async def aclose(self, grace: float = 8.0) -> None:
        """Begins no request any more, lets others have what is left, and closes the outbox.

        Args:
            grace: Seconds to wait for requests that are in flight. One that is not over then is
                cut off, and whoever goes on finds out what it did.

        Raises:
            TypeError: `grace` is no number.
            ValueError: `grace` is negative or not finite.
            OutboxError: What is left could not be read. The outbox is closed.
        """
        check_seconds("grace", grace, "")
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + grace
        with self._outbox.lock:
            backlogs = [*self._outbox.backlogs.values()]
        try:
            await asyncio.gather(*(one.sender.halt(deadline) for one in backlogs))
        finally:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.wait({self._sending})
            self._outbox.users.discard(self)
            await self._outbox.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
