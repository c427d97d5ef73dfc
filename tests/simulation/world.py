"""One run of the campaign: workers, a foreign writer, a bad network, one conversation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAIError

from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    ConversationCache,
    Event,
    LateCopyRemoved,
    LateCopySuspected,
    Reconciled,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Fault, FaultKind, Faults, Habits, Request
from cached_session.emulator.rewriting import REWRITES
from tests.simulation.ledger import Appended, Ledger, Violation, text_of
from tests.simulation.network import Network

# How long after a request was given up on it may still be applied: the plan's
# longest delay is 2 s, the library watches for 60 s.
SETTLED = 200.0

_LONG = "{}" + " and so on" * 20


@dataclass(frozen=True)
class Setting:
    """What one run is like; drawn from its seed.

    Attributes:
        seed: Of everything.
        rate: Share of requests that a fault befalls.
        operations: How many operations the workers do together.
        workers: How many tasks work at the same time.
        foreign: Whether another writer is about.
        filled: How many items the conversation holds at the start.
        habits: How the server differs from the real service.
    """

    seed: int
    rate: float
    operations: int
    workers: int
    foreign: bool
    filled: int = 0
    habits: Habits = field(default_factory=Habits)

    @classmethod
    def rewriting(cls, seed: int) -> Setting:
        """The setting that belongs to a seed, on a server that rewrites texts."""
        rng = random.Random(f"{seed}:rewriting")
        kinds = rng.sample([*REWRITES], rng.choice((1, 1, 1, 2, 3)))
        setting = cls.draw(seed)
        habits = dataclasses.replace(setting.habits, rewrites=",".join(kinds))
        return dataclasses.replace(setting, habits=habits)

    @classmethod
    def draw(cls, seed: int, *, max_rate: float = 0.4) -> Setting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:setting")
        return cls(
            seed=seed,
            rate=rng.choice((0.0, 0.05, 0.15, 0.3, max_rate)),
            operations=rng.randint(15, 45),
            workers=rng.randint(1, 4),
            foreign=rng.random() < 0.4,
            # More than a page, so that listings need cursors.
            filled=rng.choice((0,) * 9 + (rng.randint(90, 320),)),
            habits=Habits(
                unknown_cursor_ignored=rng.random() < 0.2,
                has_more_on_full_last_page=rng.random() < 0.2,
                delete_missing_ok=rng.random() < 0.1,
                content_left_as_string=rng.random() < 0.2,
            ),
        )


class World:
    """A conversation, everyone who works on it, and the account of it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tally: Counter[str] = Counter()
        self.ledger = Ledger()
        self._random = random.Random(f"{setting.seed}:world")
        kinds = [kind for kind in FaultKind]
        weights = [self._random.random() for _ in kinds]
        scale = setting.rate / sum(weights)
        self._faults = Faults(
            setting.seed,
            {kind: weight * scale for kind, weight in zip(kinds, weights, strict=True)},
        )
        self.network = Network(
            setting.seed,
            self._plan,
            latency=self._random.choice((0.0, 0.01, 0.05)),
            habits=setting.habits,
        )
        self._split: set[str] = set()
        self._cache = ConversationCache(max_bytes=self._random.choice((64 << 20, 64 << 20, 20_000)))
        self._policy = RetryPolicy(
            random=random.Random(f"{setting.seed}:jitter").random, budget=RetryBudget(1000, 100)
        )
        self._client = self.network.client()
        self._conversation_id = ""
        self._texts = 0
        self._left = setting.operations

    def _plan(self, request: Request) -> Fault | None:
        fault = self._faults(request)
        if fault is not None:
            self.tally[f"fault {fault.kind}"] += 1
            if fault.kind is FaultKind.PARTIAL_BATCH:
                self._split.update(text_of(item) for item in json.loads(request.body)["items"])
        return fault

    def _session(self, **options: Any) -> CachedSession:
        return CachedSession(
            conversation_id=self._conversation_id,
            openai_client=self._client,
            cache=self._cache,
            retry=self._policy,
            observer=self._observe,
            **options,
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, AbandonedWriteFailed | Reconciled | LateCopyRemoved):
            self.tally[f"event {type(event).__name__}"] += 1
        if isinstance(event, LateCopySuspected):
            self.tally["event LateCopySuspected"] += 1
            self._told(event.item_ids)
        if isinstance(event, AbandonedWriteFailed):
            # Each of them may be there once, as its caller wanted.
            self._told(event.item_ids, once=set(self._named(event.item_ids)))

    async def run(self) -> None:
        """Runs everything to its end and checks the invariants."""
        plan, self.network.plan = self.network.plan, lambda request: None
        first = CachedSession(openai_client=self._client, cache=self._cache, retry=self._policy)
        await first.get_items()
        self._conversation_id = first.session_id
        self._fill()
        self.network.committed = self._committed
        self._committed()
        self.network.plan = plan
        workers = [
            asyncio.create_task(self._work(number), name=f"worker {number}")
            for number in range(self.setting.workers)
        ]
        foreign = asyncio.create_task(self._foreign()) if self.setting.foreign else None
        try:
            await asyncio.gather(*workers)
        finally:
            if foreign is not None:
                foreign.cancel()
                await asyncio.gather(foreign, return_exceptions=True)
        # Late commits come in, watches end; then the network is good.
        await asyncio.sleep(SETTLED)
        self.network.plan = lambda request: None
        await self._check_end()

    def _fill(self) -> None:
        items = [
            {"role": "user", "content": self._named_text(f"old {n}")}
            for n in range(self.setting.filled)
        ]
        for start in range(0, len(items), 20):
            self._directly("POST", "", {"items": items[start : start + 20]})
            texts = tuple(text_of(item) for item in items[start : start + 20])
            self.ledger.appended.append(Appended(texts, -2, start, len(texts), unknown=False))

    def _directly(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """A request that no network can lose."""
        root = f"/v1/conversations/{self._conversation_id}/items"
        headers = {"authorization": "Bearer direct"}
        content = b"" if body is None else json.dumps(body).encode()
        self.network.service.handle(Request(method, root + path, (), headers, content))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _committed(self) -> None:
        self.ledger.state(self._now(), self.network.listing(self._conversation_id))

    async def _check_end(self) -> None:
        for session in (self._session(), self._session(max_staleness=0)):
            started = self._now()
            items = await session.get_items()
            self.ledger.check_read(items, None, started, self._now())  # type: ignore[arg-type]
        listing = self.network.service.items(self._conversation_id)
        self.ledger.check_end(
            listing,
            self._split,
            others=self.setting.foreign,
            abandoned=self.tally["event AbandonedWriteFailed"],
        )
        if self.network.in_flight:
            raise Violation(f"{self.network.in_flight} requests are still in flight")
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            raise Violation(f"tasks are left over: {left}")

    async def _foreign(self) -> None:
        """Another process, on a good network: appends items, removes the newest if it is its own.

        One that removed ours could take a part of a late copy before the copy
        is found; what is left of it then cannot be told from anybody's items.
        `docs/guarantees.md` says so.
        """
        rng = random.Random(f"{self.setting.seed}:foreign")
        for number in range(100):
            await asyncio.sleep(rng.expovariate(1.0))
            items = self.network.service.items(self._conversation_id)
            own = items and text_of(items[-1]).startswith("foreign")
            if rng.random() < 0.7 or not own:
                text = f"foreign {number}"
                item = {"role": "user", "content": self._named_text(text)}
                self._directly("POST", "", {"items": [item]})
                self.ledger.appended.append(Appended((text,), -1, number, landed=1, unknown=False))
            else:
                self._directly("DELETE", f"/{items[-1]['id']}")
            self._committed()

    async def _work(self, worker: int) -> None:
        rng = random.Random(f"{self.setting.seed}:worker {worker}")
        sessions = [self._session(), self._session(max_staleness=0)]
        number = 0
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.expovariate(2.0))))
            if rng.random() < 0.1:
                sessions[0] = self._session()
            session = rng.choice(sessions)
            limited = rng.random() < 0.15
            number += 1
            started = self._now()
            match rng.choices(("append", "read", "pop", "refresh", "clear"), (50, 50, 15, 3, 3))[0]:
                case "append":
                    action = self._append(session, rng, worker, number)
                case "read":
                    action = self._read(session, rng, strict=session is sessions[1])
                case "pop":
                    action = self._pop(session)
                case "refresh":
                    action = self._refresh(session)
                case _:
                    action, limited = self._clear(), False
            self.tally["operations"] += 1
            try:
                async with asyncio.timeout(rng.uniform(0.0, 0.3) if limited else None):
                    await action
            except TimeoutError as error:
                if not limited and not isinstance(error, CachedSessionError):
                    raise
                self.tally["cancelled"] += 1
            # A clear's flow has four operations, and one makes two requests of its own.
            operations = 4 if action.__name__ == "_clear" else 1
            if self._now() - started > operations * self._policy.deadline + 0.1:
                raise Violation(f"an operation took {self._now() - started:.1f} s")

    async def _append(
        self, session: CachedSession, rng: random.Random, worker: int, number: int
    ) -> None:
        items = [self._item(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 25)))]
        append = Appended(tuple(text_of(item) for item in items), worker, number)
        self.ledger.appended.append(append)
        try:
            await session.add_items(items)  # type: ignore[arg-type]
        except AppendOutcomeUnknown as error:
            append.landed = error.landed
            # It names what stands there, which may be more than one copy by then.
            self._told(error.item_ids, once=append.texts[error.landed :])
            self.tally["append unknown"] += 1
        except (OpenAIError, CachedSessionError) as error:
            append.landed, append.unknown = _landed(error), False
            self.tally["append refused"] += 1
        else:
            append.landed, append.unknown = len(items), False
            self.tally["append applied"] += 1

    def _item(self, rng: random.Random) -> dict[str, Any]:
        self._texts += 1
        kind = rng.random()
        if kind < 0.25:
            # Equal on purpose: the same words twice are two messages.
            return {"role": "user", "content": self._dressed(rng, rng.choice(("yes", "no")))}
        if kind < 0.4:
            return {
                "type": "function_call",
                "call_id": f"{self._texts}",
                "name": "tool",
                "arguments": "{}",
            }
        return {"role": "user", "content": self._dressed(rng, f"text {self._texts}")}

    def _dressed(self, rng: random.Random, text: str) -> str:
        """A text with something about it that a server that rewrites texts may change."""
        if not self.setting.habits.rewrites:
            return text
        return rng.choice(
            ("{}", " {}\n", "{}\r\n.", "{}\0", "{} e\u0301", "{} a@b.org", _LONG)
        ).format(self._named_text(text))

    def _named_text(self, text: str) -> str:
        """A text by which `text_of` knows it, also where the server rewrites what is about it."""
        return f"[{text}]" if self.setting.habits.rewrites else text

    async def _read(self, session: CachedSession, rng: random.Random, *, strict: bool) -> None:
        limit = rng.choice((None, None, 0, 1, 3, 10))
        started = self._now()
        try:
            items = await session.get_items(limit)
        except (OpenAIError, CachedSessionError) as error:
            self._not_anothers(error)
            self.tally["read failed"] += 1
            return
        self.tally["read answered"] += 1
        # A session that trusts its copy need not see another writer's changes,
        # and a read of several pages sees them at several moments.
        if not self.setting.foreign or (strict and limit is not None and limit <= 1):
            self.ledger.check_read(items, limit, started, self._now())  # type: ignore[arg-type]

    @staticmethod
    def _not_anothers(error: Exception) -> None:
        """What became of somebody's append is no reason for a read or a pop to fail."""
        if isinstance(error, AppendOutcomeUnknown):
            raise Violation("a read or a pop raises for an append") from error

    def _told(self, item_ids: Iterable[str], *, once: Iterable[str] = ()) -> None:
        """Somebody was told that these may be copies, beside `once` what was to be there."""
        if not self.setting.habits.rewrites:
            return  # here every copy can be told: the account makes no allowance
        named = Counter(self._named(item_ids))
        named.subtract(once)
        self.ledger.tell((+named).elements())

    def _named(self, item_ids: Iterable[str]) -> list[str]:
        shown = (self.network.shown_item(item_id) for item_id in item_ids)
        return [text_of(item) for item in shown if item is not None]

    async def _pop(self, session: CachedSession) -> None:
        self.ledger.doubtful_pops += 1
        try:
            item = await session.pop_item()
        except (OpenAIError, CachedSessionError) as error:
            self._not_anothers(error)
            self.tally["pop failed"] += 1
            return
        self.ledger.doubtful_pops -= 1
        if item is not None:
            self.tally["popped"] += 1
            self.ledger.popped[text_of(item)] += 1  # type: ignore[arg-type]

    async def _clear(self) -> None:
        """A conversation of its own: filled, cleared, used again. Never half of it is left."""
        session = CachedSession(openai_client=self._client, cache=self._cache, retry=self._policy)
        words: list[Any] = [
            {"role": "user", "content": self._named_text(text)} for text in ("a", "b", "c")
        ]
        try:
            await session.add_items(words)
            cleared = session.session_id
            await session.clear_session()
            await session.add_items(words[:1])
            items = [text_of(dict(item)) for item in await session.get_items()]
        except (OpenAIError, CachedSessionError):
            self.tally["clear failed"] += 1
            return
        self.tally["cleared"] += 1
        if items != ["a"] or session.session_id == cleared:
            raise Violation(f"after a clear and an append of one item: {items}")

    async def _refresh(self, session: CachedSession) -> None:
        try:
            await session.refresh()
        except CachedSessionError:
            self.tally["refresh failed"] += 1


def _landed(error: Exception) -> int:
    """How many items landed, as the exception's note says it; none if it says nothing."""
    for note in getattr(error, "__notes__", ()):
        if "the first " in note:
            return int(note.partition("the first ")[2].split()[0])
    return 0
