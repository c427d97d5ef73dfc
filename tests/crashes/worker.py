"""What a process of a round does, from its fork to its end; it says each step before it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

from openai import AsyncOpenAI, OpenAIError

from cached_session import (
    CachedSession,
    CachedSessionError,
    ConversationCache,
    Event,
    LateCopyRemoved,
    Reconciled,
    RequestFinished,
    RetryBudget,
    RetryPolicy,
)
from cached_session.outbox import Log, SQLiteOutbox
from tests.crashes.account import text_of
from tests.crashes.plan import ATTEMPT, DEADLINE, Work

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


class SlowDisk(SQLiteOutbox):
    """An outbox on a disk that at times takes its time, so that more comes between two steps."""

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


class Worker:
    """One process's work."""

    def __init__(self, work: Work, setting: dict[str, Any], say: Say) -> None:
        self._work = work
        self._path = setting["path"]
        self._base_url = setting["base_url"]
        self._known: str | None = setting["conversation"]
        self._say = say
        self._rng = random.Random(f"{work.seed}:{work.name}")
        self._events = 0
        self._appended = False
        self._said: str | None = None

    async def run(self) -> None:
        """Does it."""
        say, work = self._say, self._work
        SlowDisk.rng = self._rng
        outbox = (SlowDisk if work.slow_disk else SQLiteOutbox)(self._path)
        say("opened", time.monotonic())
        async with AsyncOpenAI(base_url=self._base_url, api_key="key", max_retries=0) as client:
            session = await self._session(client, outbox)
            if work.mode == "work":
                session = await self._append_and_read(session, client, outbox)
            else:
                await session.flush(timeout=20)
                self._say_id(session)
            if work.mode == "check":
                await self._check(session, outbox)
            if work.ending == "stay":
                await asyncio.sleep(FOREVER)
            if work.ending == "close":
                await self._close(session)
                await outbox.aclose(timeout=20)

    async def _session(self, client: AsyncOpenAI, outbox: SQLiteOutbox) -> CachedSession:
        return CachedSession(
            conversation_id=self._known or await self._recorded(outbox),
            openai_client=client,
            cache=ConversationCache(),
            retry=policy(self._rng),
            outbox=outbox,
            observer=self._observe,
            max_staleness=self._rng.choice((None, None, 0)),
        )

    async def _recorded(self, outbox: SQLiteOutbox) -> str | None:
        """The conversation as the file has it."""
        summaries = await outbox.transact(lambda log: log.summaries())
        names = [summary.address.conversation for summary in summaries]
        assert len(names) < 2, f"several conversations are in the file: {names}"
        return names[0] if names else None

    async def _append_and_read(
        self, session: CachedSession, client: AsyncOpenAI, outbox: SQLiteOutbox
    ) -> CachedSession:
        rng, say = self._rng, self._say
        for number in range(self._work.calls):
            chance = rng.random()
            if chance < self._work.reads:
                await self._read(session)
            elif chance < self._work.reads + 0.07:
                await self._flush(session)
            elif chance < self._work.reads + 0.12:
                await self._close(session)
                session = await self._session(client, outbox)
            items = self._items(number)
            say("about", [text_of(item) for item in items])
            await session.add_items(items)
            say("returned")
            self._say_id(session)
            if self._work.pause:
                await asyncio.sleep(rng.expovariate(1 / self._work.pause))
        return session

    def _items(self, call: int) -> list[Any]:
        items: list[dict[str, Any]] = []
        name = f"{self._work.name}.{call}"
        for number in range(self._rng.randint(1, 5)):
            kind = self._rng.choices(("text", "word", "call"), (4, 4, 1))[0]
            if kind == "call":
                call_id = f"call {name}.{number}"
                items += [
                    {
                        "type": "function_call",
                        "call_id": call_id,
                        "name": "look",
                        "arguments": "{}",
                    },
                    {"type": "function_call_output", "call_id": call_id, "output": "seen"},
                ]
                continue
            text = f"{name}.{number}" if kind == "text" else self._rng.choice(("yes", "yes", "no"))
            items.append({"role": "user", "content": text})
        return items[:5]

    async def _read(self, session: CachedSession) -> None:
        limit = self._rng.choice((None, None, 4))
        try:
            items = await session.get_items(limit)
        except (OpenAIError, CachedSessionError) as error:
            self._say("event", f"read failed {type(error).__name__}")
            return
        shown: list[Any] = list(items)
        self._say("read", limit, [*map(text_of, shown)], [item.get("id") for item in shown])

    async def _flush(self, session: CachedSession) -> None:
        try:
            await session.flush(timeout=self._rng.uniform(0.05, 0.5))
        except (OpenAIError, CachedSessionError) as error:
            self._say("event", f"flush failed {type(error).__name__}")

    async def _check(self, session: CachedSession, outbox: SQLiteOutbox) -> None:
        items = await session.get_items()
        self._say_id(session)
        self._say("items", items)
        self._say("again", await session.get_items() == items)
        summaries = await outbox.transact(lambda log: log.summaries())
        self._say("waiting", sum(summary.items for summary in summaries))

    async def _close(self, session: CachedSession) -> None:
        try:
            await session.aclose()
        except (OpenAIError, CachedSessionError) as error:
            if self._work.mode != "work":
                raise
            self._say("event", f"close failed {type(error).__name__}")

    def _say_id(self, session: CachedSession) -> None:
        if self._said is not None:
            return
        try:
            self._said = session.session_id
        except ValueError:  # it has a local name
            return
        self._say("conversation", self._said)

    def _observe(self, event: Event) -> None:
        self._events += 1
        if self._events == self._work.kill_at or type(event).__name__ == self._work.kill_on:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(event, RequestFinished) and event.operation == "append":
            self._appended = True
        if isinstance(event, Reconciled):
            self._say("event", "reconciled" if self._appended else "reconciled by restart")
        if isinstance(event, LateCopyRemoved):
            self._say("event", "late copy removed")
