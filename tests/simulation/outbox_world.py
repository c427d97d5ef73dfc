"""One run with the outbox on: processes that crash and take over, on one disk and a bad network."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from openai import OpenAIError

from cached_session import (
    BacklogChanged,
    CachedSessionError,
    Event,
    OutboxPaused,
    RequestFinished,
    Sending,
)
from cached_session.conversation.conversation import Conversation
from cached_session.emulator import Fault, FaultKind, Request
from cached_session.outbox.records import Address
from tests.campaigns.account import Call, Violation, text_of
from tests.campaigns.menu import CALL
from tests.simulation.outbox_disk import SimOutbox
from tests.simulation.outbox_process import PROCESS, Process, task_factory
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.outbox_work import OutboxWork

# How often somebody decides at most, at the end, what is to become of a paused backlog.
DECISIONS = 20


class OutboxWorld(OutboxWork):
    """A conversation, the processes that work on it one after another, and the account of it."""

    def __init__(self, setting: OutboxSetting) -> None:
        super().__init__(setting)
        self._chance = random.Random(f"{setting.seed}:crashes")
        self._crashes = setting.crashes
        self._numbers = 0
        self._survivors: list[Process] = []
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
        self.network.cut_off = self._cut_off
        await super().run()

    async def _workers(self) -> None:
        self.disk.conversation = self._conversation_id
        self.account.fill(map(text_of, self._held()))
        slots = [
            asyncio.create_task(self._slot(number), name=f"slot {number}")
            for number in range(self.setting.processes)
        ]
        try:
            self._survivors = await asyncio.gather(*slots)
        finally:
            for task in slots:
                task.cancel()

    # Processes

    async def _slot(self, slot: int) -> Process:
        """Runs processes one after another; returns the last one, which goes on living."""
        rng = random.Random(f"{self.setting.seed}:slot {slot}")
        while True:
            process = self._process()
            main = process.start(self._live(process, slot), f"process {process.number}")
            lifetime = rng.expovariate(1 / self.setting.lifetime) if self._crashes else None
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
        self.account.began(number)
        rng = random.Random(f"{self.setting.seed}:process {number}")
        return Process(
            number,
            self.network,
            self._outbox(f"process {number}", rng),
            rng,
            max_bytes=rng.choice((64 << 20, 64 << 20, 20_000)),
            observer=self._observe,
        )

    def _outbox(self, name: str, rng: random.Random) -> Any:
        return SimOutbox(
            self.disk,
            name,
            rng,
            self.setting.delays,
            max_items=self.setting.max_items,
            max_window_bytes=self.setting.max_window_bytes,
        )

    async def _live(self, process: Process, slot: int) -> None:
        workers = range(self.setting.workers)
        await asyncio.gather(*(self._work_in(process, slot * 10 + worker) for worker in workers))

    async def _work_in(self, process: Process, worker: int) -> None:
        rng = self.setting.rng(f"worker {worker} in {process.number}")
        await self._work(await self._worker(worker, rng, process))

    async def _leave(self, process: Process) -> None:
        while True:
            try:
                await process.close_all()
                break
            except (OpenAIError, CachedSessionError) as error:
                self._failed("close", error)
                await asyncio.sleep(1.0)

    # The network

    def _plan(self, request: Request) -> Fault | None:
        self._mark(request)
        fault = super()._plan(request)
        if fault is not None and fault.kind is FaultKind.CURSOR_IGNORED:
            # As by habit where the cursor is gone; otherwise it is met again in the page.
            self.account.cursors_ignored |= dict(request.query).get("after") not in self._ids
        return fault

    def _mark(self, request: Request) -> None:
        """Notes which pop sent a delete.

        A delete of a late copy is not from the pop itself, which may have
        started the sender that found that copy.
        """
        call, process = CALL.get(), PROCESS.get()
        if request.method != "DELETE" or "/items/" not in request.path or process is None:
            return
        if call is not None and call.kind == "pop" and _within(Conversation._delete):
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
        for item_id in there.difference(before):
            self.account.came(item_id, self._text(item_id))
        for item_id in set(before) - there:
            self.account.left(item_id)
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
        if isinstance(event, BacklogChanged) and event.state is Sending.PAUSED:
            self._note_given_up()

    # The end

    async def _end(self) -> None:
        survivors = self._survivors
        for process in survivors:
            process.outbox.failures = 0.0
        # At the same time: one may have to wait for what another one sends.
        drains = [process.start(self._drained(process), "end") for process in survivors]
        await asyncio.gather(*drains)
        for process in survivors:
            await process.start(self._left_behind(process), "what was left behind")
        if self.disk.waiting():
            raise Violation("after a flush in every process items wait")
        self.account.check_end(self._held())
        for process in survivors:
            await process.start(self._leave(process), "exit")
            await process.exit()
        if left := self.disk.by_hand(lambda log: log.summaries()):
            waits = [summary for summary in left if summary.items]
            if waits:
                raise Violation(f"items are left in the outbox: {waits}")

    async def _drained(self, process: Process) -> None:
        """What waits is sent by itself once somebody uses the conversation."""
        self._resume()
        at = await self._worker("end", self.setting.rng("end"), process)
        await self._checked_read(at, at.session, None)
        for _ in range(DECISIONS):
            try:
                await at.session.flush()
                break
            except OutboxPaused:
                self._resume()
                # Another process may have it, or something be on its way, for a moment.
                await asyncio.sleep(1.0)
        else:
            raise Violation("it is paused again and again, on a network that is good")
        for options in ({}, {"max_staleness": 0}):
            await self._checked_read(at, await self._session(at, **options), None)

    async def _left_behind(self, process: Process) -> None:
        for summary in self.disk.by_hand(lambda log: log.summaries()):
            if summary.items and summary.address.conversation != self._conversation_id:
                await self._left_over(process, summary.address)

    async def _left_over(self, process: Process, address: Address) -> None:
        """A conversation that a crash left in the middle of a clear."""
        session = process.session(conversation_id=address.conversation)
        await session.flush()
        texts = [text_of(item) for item in self.network.service.items(session.session_id)]
        if texts not in (["a", "b", "c"], ["a"]):
            raise Violation(f"a conversation that was left behind holds {texts}")


def _within(function: Callable[..., Any]) -> bool:
    """Whether the running task is in a call of it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None
