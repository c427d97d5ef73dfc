"""One run over real sockets: workers, a foreign writer, a bad network, one conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from urllib.parse import urlsplit

from agents import OpenAIConversationsSession

from cached_session import (
    AbandonedWriteFailed,
    CachedSession,
    ConversationCache,
    Event,
    LateCopyRemoved,
    Reconciled,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Emulator, Request, Response
from tests.campaigns.account import Call, Item, Served, Violation
from tests.campaigns.menu import KEY, Menu, Worker
from tests.campaigns.setting import ATTEMPT, DEADLINE, SLACK, SPANS, Setting
from tests.campaigns.witness import Handler, Witness
from tests.clients import openai_client
from tests.servers import accepts, eventually

T = TypeVar("T")


class World(Menu):
    """A conversation, everyone who works on it, and the account of it.

    Attributes:
        emulator: The server with its log of requests.
        listing: What the server holds in the end.
    """

    pace = 50.0
    patience = 0.05
    deadline, slack = DEADLINE, SLACK
    limits = (None, None, 0, 1, 3, 10, 30)
    foreign_pace = 20.0

    def __init__(self, setting: Setting, service: Handler) -> None:
        super().__init__(Served(), setting.operations)
        self.setting = setting
        self.listing: list[Item] = []
        self._witness = Witness(service, self.account)
        self.emulator = Emulator(service=self._witness)  # type: ignore[arg-type]
        self._plan = self._witness.planned(
            setting.faults(SPANS), lambda fault: self.tally.update([f"fault {fault.kind}"])
        )
        max_bytes = setting.rng("world").choice((64 << 20, 64 << 20, 20_000))
        self._cache = ConversationCache(max_bytes=max_bytes)
        self._policy = RetryPolicy(
            deadline=DEADLINE,
            attempt_timeout=ATTEMPT,
            initial_delay=0.005,
            max_delay=0.05,
            random=setting.rng("jitter").random,
            budget=RetryBudget(1000, 100),
        )
        self._ours = setting.kind == "cached"
        if not setting.repeats:
            # Both kinds of session are to do the same, and what both can.
            self.words, self.odds = 0.0, {"append": 50, "read": 50, "pop": 15}
        if not self._ours:
            # The SDK's session is only counted. It may take its time, and may raise anything
            # where an answer has another shape.
            self.expected, self.deadline = (Exception,), float("inf")

    @property
    def trace(self) -> list[str]:
        """The requests, one line each."""
        return [
            f"{entry.method} {entry.path} {entry.fault or '-'} {entry.status or '-'}"
            for entry in self.emulator.requests
        ]

    async def run(self) -> None:
        """Runs everything to its end.

        Raises:
            Violation: An invariant does not hold. The SDK's session is only counted.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.emulator)
            self._client = await stack.enter_async_context(
                openai_client(self.setting.http, self.emulator.base_url, ATTEMPT)
            )
            self._stack = stack
            made = self._handle(Request("POST", "/v1/conversations", (), KEY, b"{}"))
            self._conversation_id = made.json()["id"]
            self._put([f"old {number}" for number in range(self.setting.history or 0)], "before")
            self._witness.watch(self._conversation_id)
            self.emulator.faults = self._plan
            async with asyncio.TaskGroup() as group:
                for number in range(self.setting.workers):
                    group.create_task(self._one_worker(number))
                if self.setting.foreign:
                    group.create_task(self._foreign(self.setting.rng("foreign")))
            self.emulator.faults = None
            # The plan's last fault may have closed the port, for as long as all attempts of a call
            # take: nobody's end is to meet that.
            port = urlsplit(self.emulator.base_url).port or 80
            await asyncio.to_thread(eventually, lambda: accepts(port))
            await self._end()
        self.tally.update(seeds=1, requests=len(self.emulator.requests))

    async def _one_worker(self, number: int) -> None:
        await self._work(await self._worker(number, self.setting.rng(f"worker {number}")))

    async def _end(self) -> None:
        if not self._ours:
            await asyncio.to_thread(eventually, self._witness.settled)
            self.listing = self._held()
            return
        # Writes whose callers left end first, then the commits that were put off.
        last = await self._session(None)
        await last.flush()
        await asyncio.to_thread(eventually, self._witness.settled)
        await last.flush()
        elsewhere = await self._session(None, cache=ConversationCache())
        for session in (last, await self._session(None, max_staleness=0), elsewhere):
            started = self._now()
            items = await session.get_items()
            self.account.check_read(items, None, started, self._now())
        self.listing = self._held()
        if items != self.listing:
            raise Violation("the last read differs from what the server holds")
        abandoned = self.tally["event AbandonedWriteFailed"]
        self.account.check_end(self.listing, self._witness.split, abandoned=abandoned)

    async def _session(self, at: Worker | None, **options: Any) -> Any:
        about = {"conversation_id": self._conversation_id, "openai_client": self._client}
        if not self._ours:
            return OpenAIConversationsSession(**about)  # type: ignore[arg-type]
        settings = {"cache": self._cache, "retry": self._policy, "observer": self._observe}
        session = CachedSession(**{**about, **settings, **options})  # type: ignore[arg-type]
        self._stack.push_async_callback(session.aclose)
        return session

    def _observe(self, event: Event) -> None:
        if isinstance(event, AbandonedWriteFailed | Reconciled | LateCopyRemoved):
            self.tally[f"event {type(event).__name__}"] += 1

    def _handle(self, request: Request) -> Response:
        return self._witness.handle(request)

    def _held(self) -> list[Item]:
        return self._witness.items(self._conversation_id)

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    def _raised(self, call: Call, error: Exception) -> None:
        if self._ours:
            super()._raised(call, error)
        else:
            # It does not say what has landed.
            call.raises(self._now(), None, unknown=True)

    async def _checked_read(self, at: Worker, session: Any, limit: int | None) -> None:
        started = self._now()
        items = await session.get_items(limit)
        # A session that trusts its copy need not see another writer's changes.
        if at.which == 1 or not self.setting.foreign:
            try:
                self.account.check_read(items, limit, started, self._now())
            # An item of the SDK's session may lack all that it could be known by.
            except (Violation, LookupError):
                if self._ours:
                    raise
                self.tally["read wrong"] += 1
