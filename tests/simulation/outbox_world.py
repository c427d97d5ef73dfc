"""One run with the outbox on: processes that crash and take over, on one disk and a bad network."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from openai import OpenAIError

from cached_session import (
    CachedSession,
    CachedSessionError,
    DeadlineExceeded,
    Event,
    OutboxError,
    OutboxFull,
    OutboxPaused,
    RequestFinished,
)
from cached_session.emulator import Fault, Request
from cached_session.outbox.records import Address
from tests.simulation.ledger import Violation, text_of
from tests.simulation.outbox_disk import CALL, Delays, Disk, SimOutbox
from tests.simulation.outbox_ledger import Call, OutboxLedger
from tests.simulation.outbox_process import PROCESS, Process, task_factory
from tests.simulation.world import SETTLED, Setting, World


@dataclass(frozen=True)
class OutboxSetting:
    """What one run is like beyond its `Setting`; drawn from its seed.

    Attributes:
        base: The rest.
        processes: How many live at the same time.
        crashes: How many crash or are restarted in all.
        lifetime: Seconds that one lives, on average, while crashes are left.
        delays: What the disk is like.
        max_items: How many items may wait.
        max_window_bytes: What the stored windows may take.
    """

    base: Setting
    processes: int
    crashes: int
    lifetime: float
    delays: Delays
    max_items: int
    max_window_bytes: int

    @classmethod
    def draw(cls, seed: int) -> OutboxSetting:
        """The setting that belongs to a seed."""
        rng = random.Random(f"{seed}:outbox setting")
        return cls(
            base=Setting.draw(seed),
            processes=rng.choice((1, 1, 1, 2)),
            crashes=rng.choice((0, 1, 2, 3, 5, 8)),
            lifetime=rng.choice((0.3, 1.0, 3.0, 10.0)),
            delays=Delays(rng.choice((0.0, 0.002, 0.02, 0.2)), rng.choice((0.0, 0.0, 0.0, 0.03))),
            max_items=rng.choice((100_000, 100_000, 40)),
            max_window_bytes=rng.choice((0, 2000, 64 << 20)),
        )

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong but crashes: no call may fail."""
        return self.base.rate == 0 and self.delays.failures == 0


class OutboxWorld(World):
    """A conversation, the processes that work on it one after another, and the account of it."""

    def __init__(self, setting: OutboxSetting) -> None:
        super().__init__(setting.base)
        self.about = setting
        self.account = OutboxLedger()
        self.account.single = setting.processes == 1
        self.account.alone = self.account.single and not setting.base.foreign
        self.disk = Disk(self.account)
        self._chance = random.Random(f"{setting.base.seed}:crashes")
        self._crashes = setting.crashes
        self._numbers = 0
        self._ids: list[str] = []
        self._pops: dict[str, tuple[Call, Process]] = {}

    async def run(self) -> None:
        """Runs everything to its end and checks the invariants."""
        try:
            await self._run()
        except Exception:
            if not self.account.violations:
                raise
        finally:
            self.disk.close()
        if self.account.violations:
            # The first one: the others may follow from it.
            raise self.account.violations[0]

    async def _run(self) -> None:
        asyncio.get_running_loop().set_task_factory(task_factory)  # type: ignore[arg-type]
        plan, self.network.plan = self.network.plan, lambda request: None
        first = CachedSession(openai_client=self._client, cache=self._cache, retry=self._policy)
        await first.get_items()
        self._conversation_id = self.disk.conversation = first.session_id
        self._fill()
        self.account.fill(map(text_of, self.network.service.items(self._conversation_id)))
        self.network.committed = self._committed
        self.network.cut_off = self._cut_off
        self._committed()
        self.network.plan = plan
        slots = [
            asyncio.create_task(self._slot(number), name=f"slot {number}")
            for number in range(self.about.processes)
        ]
        foreign = asyncio.create_task(self._foreign()) if self.setting.foreign else None
        try:
            survivors = await asyncio.gather(*slots)
        finally:
            for task in (*slots, *([] if foreign is None else [foreign])):
                task.cancel()
            if foreign is not None:
                await asyncio.gather(foreign, return_exceptions=True)
        # Late commits come in, watches end; then the network and the disk are good.
        await asyncio.sleep(SETTLED)
        self.network.plan = lambda request: None
        for process in survivors:
            process.outbox.failures = 0.0
        await self._finish(survivors)

    # Processes

    async def _slot(self, slot: int) -> Process:
        """Runs processes one after another; returns the last one, which goes on living."""
        rng = random.Random(f"{self.setting.seed}:slot {slot}")
        while True:
            process = self._process()
            main = process.start(self._live(process, slot), f"process {process.number}")
            lifetime = rng.expovariate(1 / self.about.lifetime) if self._crashes else None
            await asyncio.wait({main}, timeout=lifetime)
            if main.done():
                main.result()
                return process
            self._crashes -= 1
            if rng.random() < 0.2:
                process.stopping = True
                await main
                await process.start(self._leave(process), "exit")
                await process.exit()
                self.tally["restarts"] += 1
            else:
                await process.crash()
                self.account.deletes_heard()
                self.tally["crashes"] += 1
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.expovariate(1.0), 70.0)))

    def _process(self) -> Process:
        number, self._numbers = self._numbers, self._numbers + 1
        rng = random.Random(f"{self.setting.seed}:process {number}")
        outbox = SimOutbox(
            self.disk,
            f"process {number}",
            rng,
            self.about.delays,
            max_items=self.about.max_items,
            max_window_bytes=self.about.max_window_bytes,
        )
        return Process(
            number,
            self.network,
            outbox,
            rng,
            max_bytes=rng.choice((64 << 20, 64 << 20, 20_000)),
            observer=self._observe,
        )

    async def _live(self, process: Process, slot: int) -> None:
        workers = range(self.setting.workers)
        await asyncio.gather(*(self._work_in(process, slot * 10 + worker) for worker in workers))

    async def _leave(self, process: Process) -> None:
        try:
            await process.close_all()
        except (OpenAIError, CachedSessionError) as error:
            self._failed(error, "close failed")
            await self._leave(process)

    # The network

    def _plan(self, request: Request) -> Fault | None:
        self._mark(request)
        return super()._plan(request)

    def _mark(self, request: Request) -> None:
        """Notes which pop sent a delete. A delete of a late copy is not from the pop itself."""
        call, process, task = CALL.get(), PROCESS.get(), asyncio.current_task()
        if request.method != "DELETE" or "/items/" not in request.path or process is None:
            return
        name = "" if task is None else getattr(task.get_coro(), "__qualname__", "")
        if call is not None and name == "Replica._pop":
            self._pops[request.path.rpartition("/")[2]] = (call, process)

    def _cut_off(self, request: Request) -> None:
        process = PROCESS.get()
        if process is not None and not process.alive and self._chance.random() < 0.5:
            self._mark(request)
            late = self._chance.choice((0.0, self._chance.uniform(0.0, 2.0)))
            self.network.later(late, request)

    def _committed(self) -> None:
        self.network.listing(self._conversation_id)
        store = self.network.service.store
        before, self._ids = self._ids, list(store.conversation(self._conversation_id).entries)
        there = set(self._ids)
        for place, item_id in enumerate(before):
            if item_id not in there and item_id in self._pops:
                call, process = self._pops[item_id]
                texts = [self._text(other) for other in before[: place + 1]]
                self.account.deleted(
                    call,
                    item_id,
                    texts[-1],
                    texts.count(texts[-1]) - 1,
                    self.disk.waiting(),
                    orphan=not process.alive,
                )

    def _text(self, item_id: str) -> str:
        shown = self.network.shown_item(item_id)
        assert shown is not None
        return text_of(shown)

    def _observe(self, event: Event) -> None:
        super()._observe(event)
        if isinstance(event, RequestFinished) and event.operation == "delete item":
            self.account.deletes_heard()

    # Workers

    async def _work_in(self, process: Process, worker: int) -> None:
        rng = random.Random(f"{self.setting.seed}:worker {worker} in {process.number}")
        main = {"conversation_id": self._conversation_id}
        sessions = [process.session(**main), process.session(**main, max_staleness=0)]
        while self._left > 0 and not process.stopping:
            self._left -= 1
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.expovariate(2.0))))
            await self._one(process, worker, sessions, rng)

    async def _one(
        self, process: Process, worker: int, sessions: list[CachedSession], rng: random.Random
    ) -> None:
        which = rng.randrange(2)
        session, started = sessions[which], self._now()
        limited = rng.random() < 0.15
        kinds, weights = zip(
            ("append", 50), ("read", 50), ("pop", 15), ("flush", 4), ("refresh", 3), ("clear", 3),
            ("reopen", 5), strict=True,
        )  # fmt: skip
        kind = rng.choices(kinds, weights)[0]
        if kind == "pop" and not self.account.single:
            # What another living process is sending must not be removed by this one.
            kind = "read"
        match kind:
            case "append":
                action = self._append_in(process, session, rng, worker)
            case "read":
                action = self._read_in(process, session, rng)
            case "pop":
                action = self._pop_in(process, session, worker)
            case "flush":
                action = session.flush()
            case "refresh":
                action = session.refresh()
            case "clear":
                action, limited = self._clear_in(process), False
            case _:
                action, limited = self._reopen(process, sessions, which), False
        self.tally["operations"] += 1
        try:
            async with asyncio.timeout(rng.uniform(0.0, 0.3) if limited else None):
                await action
        except (OpenAIError, CachedSessionError) as error:
            self._failed(error, f"{kind} failed")
        except TimeoutError:
            if not limited:
                raise
            self.tally["cancelled"] += 1
        else:
            self.tally[f"{kind} done"] += 1
        longest = {"clear": 5, "reopen": 2}.get(kind, 1) * process.deadline
        if self._now() - started > longest + 5.0:
            raise Violation(f"{kind} took {self._now() - started:.1f} s")

    def _failed(self, error: Exception, what: str) -> None:
        self.tally[what] += 1
        self.tally[f"error {type(error).__name__}"] += 1
        if self.about.calm and not isinstance(error, OutboxFull):
            raise Violation(f"{what}, and nothing had gone wrong: {error!r}") from error
        if isinstance(error, OutboxPaused):
            self._resume()

    def _resume(self) -> None:
        """Somebody looks at what was refused, and has it sent again."""
        for summary in self.disk.by_hand(lambda store: store.summaries()):
            if summary.paused is not None:
                self.tally[f"paused: {summary.paused}"] += 1
                address = summary.address
                self.disk.by_hand(lambda store, address=address: store.resume(address))

    async def _append_in(
        self, process: Process, session: CachedSession, rng: random.Random, worker: int
    ) -> None:
        items: list[Any] = [self._item(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 25)))]
        call = self._call("append", process, worker, tuple(map(text_of, items)))
        await self._ends(call, session.add_items(items))
        self.account.check_append(call)

    async def _pop_in(self, process: Process, session: CachedSession, worker: int) -> None:
        call = self._call("pop", process, worker)
        item: Any = await self._ends(call, session.pop_item())
        self.account.check_pop(call, item)

    def _call(self, kind: str, process: Process, worker: int, texts: tuple[str, ...] = ()) -> Call:
        call = Call(kind, worker, process.number, self._now(), texts)
        self.account.calls.append(call)
        CALL.set(call)
        return call

    async def _ends(self, call: Call, work: Any) -> Any:
        try:
            result = await work
        except Exception:
            call.end("raised")
            if call.kind == "append":
                self.account.check_append(call)
            raise
        finally:
            CALL.set(None)
        call.end("returned")
        return result

    async def _read_in(self, process: Process, session: CachedSession, rng: random.Random) -> None:
        limit = rng.choice((None, None, 0, 1, 3, 10))
        await self._checked_read(process, session, limit)

    async def _checked_read(
        self, process: Process, session: CachedSession, limit: int | None
    ) -> None:
        started, empty = self._now(), not self.disk.waiting()
        calls = len(self.account.calls)
        going = any(call.ended is None for call in self.account.calls if call.kind == "append")
        items: Any = await session.get_items(limit)
        settled = empty and not going and calls == len(self.account.calls)
        self.account.check_read(
            items, limit, started, process.number, self.network.shown, settled=settled
        )

    async def _reopen(self, process: Process, sessions: list[CachedSession], which: int) -> None:
        closed, options = sessions[which], {"max_staleness": 0} if which else {}
        sessions[which] = process.session(conversation_id=self._conversation_id, **options)
        await process.close(closed)

    async def _clear_in(self, process: Process) -> None:
        """A conversation of its own: filled, cleared, used again. Never half of it is left."""
        session = process.session()
        words: list[Any] = [{"role": "user", "content": text} for text in ("a", "b", "c")]
        try:
            await session.add_items(words)
            await session.clear_session()
            await session.add_items(words[:1])
            items = [text_of(dict(item)) for item in await session.get_items()]
            if items != ["a"]:
                raise Violation(f"after a clear and an append of one item: {items}")
        finally:
            if process.alive:
                await process.close(session)

    # The end

    async def _finish(self, survivors: list[Process]) -> None:
        for process in survivors:
            await process.start(self._drained(process), "end")
        listing = self.network.service.items(self._conversation_id)
        self.account.check_end(listing)
        for process in survivors:
            await process.start(self._leave(process), "exit")
            await process.exit()
        if left := self.disk.by_hand(lambda store: store.summaries()):
            waits = [summary for summary in left if summary.items]
            if waits:
                raise Violation(f"items are left in the outbox: {waits}")
        if self.network.in_flight:
            raise Violation(f"{self.network.in_flight} requests are still in flight")
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if tasks:
            raise Violation(f"tasks are left over: {tasks}")

    async def _drained(self, process: Process) -> None:
        """What waits is sent by itself once somebody uses the conversation."""
        self._resume()
        session = process.session(conversation_id=self._conversation_id)
        await self._checked_read(process, session, None)
        try:
            await session.flush()
        except OutboxPaused:
            self._resume()
            await session.flush()
        await asyncio.sleep(1.0)
        if self.disk.waiting():
            raise Violation("after a flush items wait")
        for options in ({}, {"max_staleness": 0}):
            session = process.session(conversation_id=self._conversation_id, **options)
            await self._checked_read(process, session, None)
        for summary in self.disk.by_hand(lambda store: store.summaries()):
            if summary.items:
                await self._left_over(process, summary.address)

    async def _left_over(self, process: Process, address: Address) -> None:
        """A conversation that a crash left in the middle of a clear."""
        session = process.session(conversation_id=address.conversation)
        await session.flush()
        texts = [text_of(item) for item in self.network.service.items(session.session_id)]
        if texts not in (["a", "b", "c"], ["a"]):
            raise Violation(f"a conversation that was left behind holds {texts}")


__all__ = ["DeadlineExceeded", "OutboxError", "OutboxSetting", "OutboxWorld"]
