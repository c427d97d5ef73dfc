"""What the workers of a process do in a run with the outbox."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from openai import OpenAIError

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    OutboxFull,
    OutboxPaused,
)
from cached_session.outbox import Address, Log
from tests.simulation.ledger import Violation, text_of
from tests.simulation.outbox_calls import Call
from tests.simulation.outbox_disk import CALL, Disk
from tests.simulation.outbox_ledger import OutboxLedger
from tests.simulation.outbox_process import Process
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.world import World

GIVEN_UP = "nobody else writes, and a batch was given up on"


class OutboxWork(World):
    """A world in which processes work on a conversation, with one disk.

    Attributes:
        about: What it is like.
        account: What was accepted and popped.
        disk: The outbox of all processes.
    """

    def __init__(self, setting: OutboxSetting) -> None:
        super().__init__(setting.base)
        self.about = setting
        self.account = OutboxLedger()
        self.account.single = setting.processes == 1
        self.account.alone = self.account.single and not setting.base.foreign
        self.account.cursors_ignored = setting.base.habits.unknown_cursor_ignored
        self.disk = Disk(self.account)

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
        # Even then the foreign writer may take away what a batch is known by, or
        # a pop may whose process had ended.
        others = self.setting.foreign or self.account.orphaned
        expected = (OutboxFull, OutboxPaused) if others else OutboxFull
        if isinstance(error, AppendOutcomeUnknown):
            # Each append has returned: it is for the backlog to be paused.
            raise Violation(f"{what}, for what was appended before: {error!r}") from error
        if self.about.calm and not isinstance(error, expected):
            raise Violation(f"{what}, and nothing had gone wrong: {error!r}") from error
        if isinstance(error, OutboxPaused):
            self._resume()

    def _resume(self) -> None:
        """Somebody looks at what was refused, and has it sent again, or discards it."""
        self._note_given_up()
        for summary in self.disk.by_hand(lambda log: log.summaries()):
            if summary.paused is not None:
                self.tally[f"paused: {summary.paused}"] += 1
                address = summary.address
                if "AppendOutcomeUnknown" in summary.paused and (landed := self._look(address)):
                    self._discard(address, landed)
                else:
                    # As `retry` does, whoever has it.
                    self.disk.by_hand(lambda log, address=address: log.resume(address))

    def _note_given_up(self) -> None:
        """Notes of which batches nothing tells whether they are on the server.

        Where nobody else writes there is none, with all safeguards on: what stands before a
        batch is recorded with it.
        """
        for summary in self.disk.by_hand(lambda log: log.summaries()):
            if summary.paused is not None and "AppendOutcomeUnknown" in summary.paused:
                if self.account.alone and not self.account.orphaned:
                    raise self.account.broken(GIVEN_UP)
                address = summary.address
                mailbox = self.disk.by_hand(lambda log, address=address: log.mailbox(address))
                sealed = {
                    row.seq: text_of(json.loads(row.data)) for row in mailbox.rows if row.sealed
                }
                self.account.given_up.update(sealed)

    def _look(self, address: Address) -> int:
        """Somebody looks at the server how much of a batch is there."""
        if address.conversation != self._conversation_id:
            return 0
        rows = self.disk.by_hand(lambda log: log.mailbox(address)).rows
        sealed = [(row.seq, text_of(json.loads(row.data))) for row in rows if row.sealed]
        listing = [text_of(item) for item in self.network.service.items(address.conversation)]
        return self.account.landed_of(sealed, self.disk.waiting(), listing)

    def _discard(self, address: Address, landed: int) -> None:
        """Somebody discards a backlog, of which so many items are on the server.

        As the command does: it claims, or changes nothing where a living process has it. And
        not before all is over that may still change what was seen there: nobody looks after
        late copies any more.
        """
        if self.network.undone(address.conversation):
            return

        def work(log: Log) -> list[int] | None:
            seqs = [row.seq for row in log.mailbox(address).rows]
            return None if log.discard(address) is None else seqs

        seqs = self.disk.by_hand(work)
        if seqs is None:
            self.tally["discard refused"] += 1
            return
        self.tally["discarded"] += 1
        self.account.discarded(seqs[landed:])

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
        elsewhere = self.disk.watched_elsewhere(process.outbox.token)
        items: Any = await session.get_items(limit)
        # Whoever finds out may be this read.
        self._note_given_up()
        self.account.check_read(
            items,
            limit,
            started,
            process.number,
            self.network.shown,
            settled=empty and self.account.quiet(started),
            watched_elsewhere=elsewhere or self.disk.watched_elsewhere(process.outbox.token),
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
