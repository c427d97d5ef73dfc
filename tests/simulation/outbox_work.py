"""What the workers of a process do in a run with the outbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    OutboxFull,
    OutboxPaused,
)
from cached_session.outbox import Address, Log
from tests.campaigns.account import Account, Violation, text_of
from tests.campaigns.menu import Worker
from tests.simulation.outbox_disk import Disk
from tests.simulation.outbox_ledger import OutboxLedger
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.world import World

GIVEN_UP = "nobody else writes, and a batch was given up on"


class OutboxWork(World):
    """A world in which processes work on a conversation, with one disk.

    Attributes:
        disk: The outbox of all processes.
    """

    renewed = 0.0
    several: Mapping[str, int] = {"clear": 5, "reopen": 2}
    slack = 5.0

    def __init__(self, setting: OutboxSetting) -> None:
        account = OutboxLedger()
        super().__init__(setting, account)
        account.single = setting.processes == 1
        account.alone = account.single and not setting.foreign
        account.cursors_ignored = setting.habits.unknown_cursor_ignored
        self._beside = Account()
        self.disk = self._disk(account)

    def _disk(self, account: OutboxLedger) -> Disk:
        return Disk(account)

    async def _session(self, at: Worker | None, **options: Any) -> CachedSession:
        assert at is not None
        session: CachedSession = at.process.session(
            **{"conversation_id": self._conversation_id, **options}
        )
        return session

    async def _close(self, at: Worker, session: CachedSession) -> None:
        await at.process.close(session)

    async def _leave_cleared(self, at: Worker, session: CachedSession) -> None:
        if at.process.alive:
            await at.process.close(session)

    def _stopping(self, at: Worker) -> bool:
        return bool(at.process.stopping)

    def _kind(self, at: Worker) -> str:
        kind = super()._kind(at)
        # What another living process is sending must not be removed by this one.
        return "read" if kind == "pop" and not self.account.single else kind

    def _failed(self, kind: str, error: Exception) -> None:
        what = f"{kind} failed"
        self.tally[what] += 1
        self.tally[f"error {type(error).__name__}"] += 1
        # Even then the foreign writer may take away what a batch is known by, or
        # a pop may whose process had ended.
        others = self.setting.foreign or self.account.orphaned
        expected = (OutboxFull, OutboxPaused) if others else OutboxFull
        if isinstance(error, AppendOutcomeUnknown):
            # Each append has returned: it is for the backlog to be paused.
            raise Violation(f"{what}, for what was appended before: {error!r}") from error
        if self.setting.calm and not isinstance(error, expected):
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

    async def _checked_read(self, at: Worker, session: CachedSession, limit: int | None) -> None:
        started, empty = self._now(), not self.disk.waiting()
        elsewhere = self.disk.watched_elsewhere(at.process.outbox.token)
        items: Any = await session.get_items(limit)
        # Whoever finds out may be this read.
        self._note_given_up()
        self.account.check_read(
            items,
            limit,
            started,
            at.number,
            self.network.shown,
            settled=empty and self.account.quiet(started),
            watched_elsewhere=elsewhere or self.disk.watched_elsewhere(at.process.outbox.token),
        )
