"""One run in virtual time: workers, a foreign writer, a bad network, one conversation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    CachedSession,
    ConversationCache,
    Event,
    LateCopyRemoved,
    LateCopySuspected,
    Reconciled,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Fault, FaultKind, Habits, Request, Response
from cached_session.emulator.rewriting import REWRITES
from tests.campaigns.account import Call, Item, Served, Violation, text_of
from tests.campaigns.menu import Menu, Worker
from tests.campaigns.plan import Plan
from tests.simulation.network import Network

T = TypeVar("T")

# How long after a request was given up on it may still be applied: the plan's
# longest delay is 2 s, the library watches for 60 s.
SETTLED = 200.0

_LONG = "{}" + " and so on" * 20


@dataclass(frozen=True, kw_only=True)
class Setting(Plan):
    """What one run is like; drawn from its seed.

    Attributes:
        habits: How the server differs from the real service.
    """

    world = "virtual"
    exact = True

    habits: Habits = field(default_factory=Habits)

    @classmethod
    def rewriting(cls, seed: int) -> Setting:
        """The setting that belongs to a seed, on a server that rewrites texts."""
        rng = random.Random(f"{seed}:rewriting")
        kinds = rng.sample([*REWRITES], rng.choice((1, 1, 1, 2, 3)))
        setting = cls.draw(seed)
        habits = dataclasses.replace(setting.habits, rewrites=",".join(kinds))
        return dataclasses.replace(setting, name="rewriting", habits=habits)

    @classmethod
    def draw(cls, seed: int) -> Setting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:setting")
        return cls(
            name="virtual",
            seed=seed,
            rate=rng.choice((0.0, 0.05, 0.15, 0.3, 0.4)),
            operations=rng.randint(15, 45),
            workers=rng.randint(1, 4),
            foreign=rng.random() < 0.4,
            # More than a page, so that listings need cursors.
            history=rng.choice((0,) * 9 + (rng.randint(90, 320),)),
            habits=Habits(
                unknown_cursor_ignored=rng.random() < 0.2,
                has_more_on_full_last_page=rng.random() < 0.2,
                delete_missing_ok=rng.random() < 0.1,
                content_left_as_string=rng.random() < 0.2,
            ),
        )


class World(Menu):
    """A conversation, everyone who works on it, and the account of it."""

    def __init__(self, setting: Any, account: Any = None) -> None:
        super().__init__(Served() if account is None else account, setting.operations)
        self.setting = setting
        self._faults = setting.faults()
        rng = setting.rng("world")
        self.network = Network(
            setting.seed,
            self._plan,
            latency=rng.choice((0.0, 0.01, 0.05)),
            habits=setting.habits,
        )
        self._split: set[str] = set()
        self._cache = ConversationCache(max_bytes=rng.choice((64 << 20, 64 << 20, 20_000)))
        self._policy = RetryPolicy(
            random=setting.rng("jitter").random, budget=RetryBudget(1000, 100)
        )
        self.deadline = self._policy.deadline
        self._client = self.network.client()

    @property
    def trace(self) -> list[str]:
        """The requests, one line each."""
        return self.network.trace

    def _plan(self, request: Request) -> Fault | None:
        fault = self._faults(request)
        if fault is not None:
            self.tally[f"fault {fault.kind}"] += 1
            if fault.kind is FaultKind.PARTIAL_BATCH:
                self._split.update(text_of(item) for item in json.loads(request.body)["items"])
        return fault

    async def _session(self, at: Worker | None, **options: Any) -> CachedSession:
        return CachedSession(
            openai_client=self._client,
            cache=self._cache,
            retry=self._policy,
            observer=self._observe,
            **{"conversation_id": self._conversation_id, **options},
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, AbandonedWriteFailed | Reconciled | LateCopyRemoved):
            self.tally[f"event {type(event).__name__}"] += 1
        if isinstance(event, LateCopySuspected):
            self.tally["event LateCopySuspected"] += 1
            self._told(event.item_ids)
        if isinstance(event, AbandonedWriteFailed):
            # Each of them may be there once, as its caller wanted.
            self._told(event.item_ids, once=set(self._names(event.item_ids)))

    async def run(self) -> None:
        """Runs everything to its end and checks the invariants."""
        plan, self.network.plan = self.network.plan, lambda request: None
        first = CachedSession(openai_client=self._client, cache=self._cache, retry=self._policy)
        await first.get_items()
        self._conversation_id = first.session_id
        self._put([f"old {n}" for n in range(self.setting.history or 0)], "before")
        self.network.committed = self._committed
        self._committed()
        self.network.plan = plan
        foreign = (
            asyncio.create_task(self._foreign(self.setting.rng("foreign")))
            if self.setting.foreign
            else None
        )
        try:
            await self._workers()
        finally:
            if foreign is not None:
                foreign.cancel()
                await asyncio.gather(foreign, return_exceptions=True)
        # Late commits come in, watches end; then the network is good.
        await asyncio.sleep(SETTLED)
        self.network.plan = lambda request: None
        await self._end()
        if self.network.in_flight:
            raise Violation(f"{self.network.in_flight} requests are still in flight")
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            raise Violation(f"tasks are left over: {left}")

    async def _workers(self) -> None:
        await asyncio.gather(*map(self._one_worker, range(self.setting.workers)))

    async def _one_worker(self, number: int) -> None:
        await self._work(await self._worker(number, self.setting.rng(f"worker {number}")))

    def _handle(self, request: Request) -> Response:
        return self.network.service.handle(request)

    def _held(self) -> list[Item]:
        return self.network.service.items(self._conversation_id)

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        result = function(*arguments)
        self._committed()
        return result

    def _committed(self) -> None:
        self.account.state(self._now(), self.network.listing(self._conversation_id))

    async def _end(self) -> None:
        for options in ({}, {"max_staleness": 0}):
            started = self._now()
            items: Any = await (await self._session(None, **options)).get_items()
            self.account.check_read(items, None, started, self._now())
        abandoned = self.tally["event AbandonedWriteFailed"]
        self.account.check_end(self._held(), self._split, abandoned=abandoned)

    def _dressed(self, rng: random.Random, text: str) -> str:
        """A text with something about it that a server that rewrites texts may change."""
        if not self.setting.habits.rewrites:
            return text
        return rng.choice(
            ("{}", " {}\n", "{}\r\n.", "{}\0", "{} e\u0301", "{} a@b.org", _LONG)
        ).format(self._named(text))

    def _named(self, text: str) -> str:
        return f"[{text}]" if self.setting.habits.rewrites else text

    def _unknown(self, call: Call, error: AppendOutcomeUnknown) -> None:
        super()._unknown(call, error)
        # It names what stands there, which may be more than one copy by then.
        self._told(error.item_ids, once=call.texts[error.landed :])

    async def _checked_read(self, at: Worker, session: CachedSession, limit: int | None) -> None:
        started = self._now()
        items: Any = await session.get_items(limit)
        # A session that trusts its copy need not see another writer's changes,
        # and a read of several pages sees them at several moments.
        if not self.setting.foreign or (at.which == 1 and limit is not None and limit <= 1):
            self.account.check_read(items, limit, started, self._now())

    def _told(self, item_ids: Iterable[str], *, once: Iterable[str] = ()) -> None:
        """Somebody was told that these may be copies, beside `once` what was to be there."""
        if not self.setting.habits.rewrites:
            return  # here every copy can be told: the account makes no allowance
        named = Counter(self._names(item_ids))
        named.subtract(once)
        self.account.told.update((+named).elements())

    def _names(self, item_ids: Iterable[str]) -> list[str]:
        shown = (self.network.shown_item(item_id) for item_id in item_ids)
        return [text_of(item) for item in shown if item is not None]
