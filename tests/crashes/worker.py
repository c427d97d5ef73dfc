"""What a process of a round does, from its fork to its end; it says each step before it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationCache,
    Event,
    LateCopyRemoved,
    PostgresOutbox,
    Reconciled,
    RequestFinished,
    RetryBudget,
    RetryPolicy,
)
from cached_session.outbox import LOCAL, Log, SQLiteOutbox
from cached_session.outbox.writer import Threaded
from tests.campaigns.account import Account, Call, Item, text_of
from tests.campaigns.menu import Menu, Worker, name_of
from tests.crashes.plan import ATTEMPT, DEADLINE, LEASE, Work
from tests.takeovers import named

T = TypeVar("T")
Say = Callable[..., None]

FOREVER = 3600.0


def say_to(descriptor: int) -> Say:
    """Writes what happens to a pipe, a line at a time, with nothing held back."""

    def say(*entry: object) -> None:
        line = json.dumps(entry).encode() + b"\n"
        while line:
            line = line[os.write(descriptor, line) :]

    return say


def policy(rng: random.Random) -> RetryPolicy:
    """Short times, and repeats enough."""
    return RetryPolicy(
        attempt_timeout=ATTEMPT,
        initial_delay=0.01,
        max_delay=0.1,
        deadline=DEADLINE,
        random=rng.random,
        budget=RetryBudget(1000, 100),
    )


class Slow(Threaded):
    """An outbox that at times takes its time, so that more comes between two steps."""

    rng = random.Random()

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        """Runs `work`, sometimes later, and says so sometimes later."""
        await self._wait()
        result = await super().transact(work, applied)
        await self._wait()
        return result

    async def _wait(self) -> None:
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.expovariate(50))


class SlowDisk(Slow, SQLiteOutbox):
    """One in a file."""


class SlowEngine(Slow, PostgresOutbox):
    """One in a database."""


def outbox_at(place: str, worker: str, *, slow: bool) -> SQLiteOutbox | PostgresOutbox:
    """An outbox in a database, if `place` is the address of one, or in a file."""
    if place.startswith("postgresql://"):
        return (SlowEngine if slow else PostgresOutbox)(named(place, worker), lease=LEASE)
    return (SlowDisk if slow else SQLiteOutbox)(place)


class Saying(Account):
    """The account of a process that may be killed at any moment: it says each step."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def asks(self, texts: Iterable[str], worker: Any, **about: Any) -> Call:
        """Says what is appended, before it is."""
        call = super().asks(texts, worker, **about)
        self._say("about", call.texts)
        return call

    def answered(self, call: Call, item: Item | None = None) -> None:
        """Says that an append has returned."""
        if call.ended == "returned":
            self._say("returned")


class Life(Menu):
    """One process, from its fork to its end."""

    renewed = hurried = 0.0
    limits = (None, None, 4)
    sizes = (1, 2, 3, 4, 5)
    words, said = 0.45, ("yes", "yes", "no")
    flush_within = (0.05, 0.5)

    def __init__(self, work: Work, setting: dict[str, Any], say: Say) -> None:
        super().__init__(Saying(say), work.operations)
        self._job = work
        self._path = setting["path"]
        self._base_url = setting["base_url"]
        self._known: str | None = setting["conversation"]
        self._say = say
        self._rng = random.Random(f"{work.seed}:{work.name}")
        self._events = 0
        self._appended = False
        self._said: str | None = None
        self._was_asked = False
        self.prefix = f"{work.name}."
        self.odds = {"append": 1.0, "read": work.reads, "flush": 0.07, "reopen": 0.05}

    async def run(self) -> None:
        """Lives."""
        say, work = self._say, self._job
        Slow.rng = self._rng
        self._outbox = outbox = outbox_at(self._path, work.name, slow=work.slow_disk)
        say("opened", time.monotonic())
        async with AsyncOpenAI(base_url=self._base_url, api_key="key", max_retries=0) as client:
            self._client = client
            at = Worker(work.name, self._rng, [await self._session(None)])
            if work.mode == "work":
                await self._work(at)
            else:
                self._asked()
                await at.session.flush(timeout=20)
                self._say_id(at.session)
            if work.mode == "check":
                await self._check(at.session)
            if work.ending == "stay":
                await asyncio.sleep(FOREVER)
            if work.ending == "close":
                await self._close(at, at.session)
                await outbox.aclose(timeout=20)

    async def _session(self, at: Worker | None, **options: Any) -> CachedSession:
        return CachedSession(
            conversation_id=self._known or await self._recorded(),
            openai_client=self._client,
            cache=ConversationCache(),
            retry=policy(self._rng),
            outbox=self._outbox,
            observer=self._observe,
            max_staleness=self._rng.choice((None, None, 0)),
        )

    async def _recorded(self) -> str | None:
        """The conversation as the file has it."""
        summaries = await self._outbox.transact(lambda log: log.summaries())
        names = [summary.address.conversation for summary in summaries]
        # A session that was closed before it had appended anything may have left a name of its own.
        used = [
            summary.address.conversation
            for summary in summaries
            if summary.items or not summary.address.conversation.startswith(LOCAL)
        ]
        assert len(used) < 2, f"several conversations are in the file: {used}"
        return next(iter(used or names), None)

    async def _pause(self, at: Worker) -> None:
        if self._job.pause:
            await asyncio.sleep(at.rng.expovariate(1 / self._job.pause))

    def _failed(self, kind: str, error: Exception) -> None:
        if kind == "append":
            raise error
        self._say("event", f"{kind} failed {type(error).__name__}")

    async def _append(self, at: Worker) -> None:
        await super()._append(at)
        self._asked()
        self._say_id(at.session)

    async def _flush(self, at: Worker) -> None:
        self._asked()
        await super()._flush(at)

    def _asked(self) -> None:
        """Says when it was asked first to send what waits."""
        if not self._was_asked:
            self._was_asked = True
            self._say("asked", time.time())

    async def _checked_read(self, at: Worker, session: CachedSession, limit: int | None) -> None:
        shown: list[Any] = list(await session.get_items(limit))
        self._say("read", limit, [*map(text_of, shown)], [item.get("id") for item in shown])

    async def _check(self, session: CachedSession) -> None:
        items = await session.get_items()
        self._say_id(session)
        self._say("items", items)
        self._say("again", await session.get_items() == items)
        summaries = await self._outbox.transact(lambda log: log.summaries())
        self._say("waiting", sum(summary.items for summary in summaries))

    async def _close(self, at: Worker, session: CachedSession) -> None:
        try:
            await session.aclose()
        except self.expected as error:
            if self._job.mode != "work":
                raise
            self._failed("close", error)

    def _say_id(self, session: CachedSession) -> None:
        if self._said is None and (name := name_of(session)) is not None:
            self._said = name
            self._say("conversation", name)

    def _observe(self, event: Event) -> None:
        self._events += 1
        if self._events == self._job.kill_at or type(event).__name__ == self._job.kill_on:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(event, RequestFinished) and event.operation == "append":
            self._appended = True
        if isinstance(event, Reconciled):
            self._say("event", "reconciled" if self._appended else "reconciled by restart")
        if isinstance(event, LateCopyRemoved):
            self._say("event", "late copy removed")
