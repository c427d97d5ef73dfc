"""One run over real sockets: workers, a foreign writer, a bad network, one conversation."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from agents import OpenAIConversationsSession
from openai import OpenAIError

from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    ConversationCache,
    Event,
    LateCopyRemoved,
    Reconciled,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Emulator, FaultKind, Faults, Request
from tests.campaigns.setting import ATTEMPT, DEADLINE, SLACK, SPANS, Setting
from tests.campaigns.witness import KEY, Handler, Witness
from tests.clients import openai_client
from tests.servers import eventually
from tests.simulation.ledger import Appended, Ledger, Violation, text_of


class World:
    """A conversation, everyone who works on it, and the account of it.

    Attributes:
        tally: What happened, by name.
        ledger: What was asked for and what was answered.
        emulator: The server with its log of requests.
        listing: What the server holds in the end.
    """

    def __init__(self, setting: Setting, service: Handler) -> None:
        self.setting = setting
        self.tally: Counter[str] = Counter()
        self.ledger = Ledger()
        self.listing: list[dict[str, Any]] = []
        self._witness = Witness(service, self.ledger)
        self.emulator = Emulator(service=self._witness)  # type: ignore[arg-type]
        rng = random.Random(f"{setting.seed}:world")
        weights = {kind: rng.random() for kind in FaultKind}
        scale = setting.rate / sum(weights.values())
        rates = {kind: weight * scale for kind, weight in weights.items()}
        self._plan = self._witness.planned(
            Faults(setting.seed, rates, spans=SPANS),
            lambda fault: self.tally.update([f"fault {fault.kind}"]),
        )
        self._cache = ConversationCache(max_bytes=rng.choice((64 << 20, 64 << 20, 20_000)))
        self._policy = RetryPolicy(
            deadline=DEADLINE,
            attempt_timeout=ATTEMPT,
            initial_delay=0.005,
            max_delay=0.05,
            random=random.Random(f"{setting.seed}:jitter").random,
            budget=RetryBudget(1000, 100),
        )
        self._texts = 0
        self._left = setting.operations

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
            self._begin()
            self.emulator.faults = self._plan
            async with asyncio.TaskGroup() as group:
                for number in range(self.setting.workers):
                    group.create_task(self._work(number))
                if self.setting.foreign:
                    group.create_task(self._foreign())
            self.emulator.faults = None
            await self._end()
        self.tally["requests"] = len(self.emulator.requests)

    def _begin(self) -> None:
        made = self._witness.handle(Request("POST", "/v1/conversations", (), KEY, b"{}"))
        self._conversation_id = made.json()["id"]
        path = f"/v1/conversations/{self._conversation_id}/items"
        for start in range(0, self.setting.history, 10):
            texts = tuple(f"old {number}" for number in range(start, start + 10))
            body = json.dumps({"items": [{"role": "user", "content": text} for text in texts]})
            self._witness.handle(Request("POST", path, (), KEY, body.encode()))
            self.ledger.appended.append(Appended(texts, -2, start, landed=10, unknown=False))
        self._witness.watch(self._conversation_id)

    async def _end(self) -> None:
        if self.setting.kind == "sdk":
            await asyncio.to_thread(eventually, self._witness.settled)
            self.listing = self._witness.items(self._conversation_id)
            return
        # Writes whose callers left end first, then the commits that were put off.
        last = self._cached(self._cache)
        await last.flush()
        await asyncio.to_thread(eventually, self._witness.settled)
        await last.flush()
        elsewhere = self._cached(ConversationCache())
        for session in (last, self._cached(self._cache, max_staleness=0), elsewhere):
            started = time.monotonic()
            items = await session.get_items()
            self.ledger.check_read(items, None, started, time.monotonic())  # type: ignore[arg-type]
        self.listing = self._witness.items(self._conversation_id)
        if items != self.listing:
            raise Violation("the last read differs from what the server holds")
        self.ledger.check_end(
            self.listing,
            self._witness.split,
            # The other writer's removals are in the ledger, so nothing else may be missing.
            others=False,
            abandoned=self.tally["event AbandonedWriteFailed"],
        )

    def _cached(self, cache: ConversationCache, **options: Any) -> CachedSession:
        session = CachedSession(
            conversation_id=self._conversation_id,
            openai_client=self._client,
            cache=cache,
            retry=self._policy,
            observer=self._observe,
            **options,
        )
        self._stack.push_async_callback(session.aclose)
        return session

    def _session(self, **options: Any) -> OpenAIConversationsSession:
        if self.setting.kind == "cached":
            return self._cached(self._cache, **options)
        return OpenAIConversationsSession(
            conversation_id=self._conversation_id, openai_client=self._client
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, AbandonedWriteFailed | Reconciled | LateCopyRemoved):
            self.tally[f"event {type(event).__name__}"] += 1

    async def _foreign(self) -> None:
        """Another process, on a good network: appends, and removes the newest item if it is its."""
        rng = random.Random(f"{self.setting.seed}:foreign")
        root = f"/v1/conversations/{self._conversation_id}/items"
        number = 0
        while self._left > 0:
            await asyncio.sleep(rng.expovariate(20.0))
            items = await asyncio.to_thread(self._witness.items, self._conversation_id)
            own = items and text_of(items[-1]).startswith("foreign")
            if rng.random() < 0.7 or not own:
                number += 1
                body = {"items": [{"role": "user", "content": f"foreign {number}"}]}
                request = Request("POST", root, (), KEY, json.dumps(body).encode())
                self.ledger.appended.append(
                    Appended((f"foreign {number}",), -1, number, landed=1, unknown=False)
                )
            else:
                request = Request("DELETE", f"{root}/{items[-1]['id']}", (), KEY)
            answer = await asyncio.to_thread(self._witness.handle, request)
            if request.method == "DELETE" and answer.status == 200:
                self.ledger.popped[text_of(items[-1])] += 1

    async def _work(self, worker: int) -> None:
        rng = random.Random(f"{self.setting.seed}:worker {worker}")
        sessions = [self._session(), self._session(max_staleness=0)]
        number = 0
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.expovariate(50.0))))
            if rng.random() < 0.1:
                sessions[0] = self._session()
            session = rng.choice(sessions)
            limit = rng.uniform(0.0, 0.05) if rng.random() < 0.15 else None
            number += 1
            self.tally["operations"] += 1
            started = time.monotonic()
            operation = rng.choices(("append", "read", "pop", "refresh"), (5, 5, 1.5, 0.3))[0]
            try:
                async with asyncio.timeout(limit):
                    if operation == "append":
                        await self._append(session, rng, worker, number)
                    elif operation == "read":
                        await self._read(session, rng, strict=session is sessions[1])
                    elif operation == "pop":
                        await self._pop(session)
                    elif isinstance(session, CachedSession):
                        await self._refresh(session)
            except TimeoutError:
                if limit is None:
                    raise
                self.tally["cancelled"] += 1
            took = time.monotonic() - started
            if self.setting.kind == "cached" and took > DEADLINE + SLACK:
                raise Violation(f"an operation took {took:.1f} s")

    def _expected(self) -> tuple[type[Exception], ...]:
        # The SDK's session may raise anything where an answer has another shape.
        return (OpenAIError, CachedSessionError) if self.setting.kind == "cached" else (Exception,)

    async def _append(self, session: Any, rng: random.Random, worker: int, number: int) -> None:
        items = [self._item(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 25)))]
        append = Appended(tuple(map(text_of, items)), worker, number)
        self.ledger.appended.append(append)
        try:
            await session.add_items(items)
        except AppendOutcomeUnknown as error:
            append.landed = error.landed
            self.tally["append unknown"] += 1
        except self._expected() as error:
            self.tally["append failed"] += 1
            if self.setting.kind == "cached":
                append.landed, append.unknown = landed(error), False
        else:
            append.landed, append.unknown = len(items), False
            self.tally["append applied"] += 1

    def _item(self, rng: random.Random) -> dict[str, Any]:
        self._texts += 1
        name = f"call {self._texts}"
        kind = rng.random()
        if kind < 0.2 and self.setting.repeats:
            # Equal on purpose: the same words twice are two messages.
            return {"role": "user", "content": rng.choice(("yes", "no"))}
        if kind < 0.3:
            return {"type": "function_call", "call_id": name, "name": "tool", "arguments": "{}"}
        if kind < 0.4:
            return {"type": "function_call_output", "call_id": name, "output": "done"}
        return {"role": "user", "content": f"text {self._texts}"}

    async def _read(self, session: Any, rng: random.Random, *, strict: bool) -> None:
        limit = rng.choice((None, None, 0, 1, 3, 10, 30))
        started = time.monotonic()
        try:
            items = await session.get_items(limit)
        except self._expected() as error:
            not_anothers(error)
            self.tally["read failed"] += 1
            return
        self.tally["read answered"] += 1
        # A session that trusts its copy need not see another writer's changes.
        if strict or not self.setting.foreign:
            try:
                self.ledger.check_read(items, limit, started, time.monotonic())
            # An item of the SDK's session may lack all that it could be known by.
            except (Violation, LookupError):
                if self.setting.kind == "cached":
                    raise
                self.tally["read wrong"] += 1

    async def _pop(self, session: Any) -> None:
        self.ledger.doubtful_pops += 1
        try:
            item = await session.pop_item()
        except self._expected() as error:
            not_anothers(error)
            self.tally["pop failed"] += 1
            return
        self.ledger.doubtful_pops -= 1
        if item is not None:
            self.tally["popped"] += 1
            self.ledger.popped[text_of(item)] += 1

    async def _refresh(self, session: CachedSession) -> None:
        try:
            await session.refresh()
        except CachedSessionError:
            self.tally["refresh failed"] += 1


def not_anothers(error: Exception) -> None:
    """What became of somebody's append is no reason for a read or a pop to fail."""
    if isinstance(error, AppendOutcomeUnknown):
        raise Violation("a read or a pop raises for an append") from error


def landed(error: Exception) -> int:
    """How many items landed, as the exception's note says it; none if it says nothing."""
    for note in getattr(error, "__notes__", ()):
        if "the first " in note:
            return int(note.partition("the first ")[2].split()[0])
    return 0
