"""One run of a fleet: processes that crash and sleep, one engine, a bad network."""

from __future__ import annotations

import math
import random
from typing import Any

from cached_session import AppendOutcomeUnknown
from tests.simulation.fleet_engine import Fleet, FleetOutbox
from tests.simulation.fleet_setting import Fate, FleetSetting
from tests.simulation.fleet_tables import Tables
from tests.simulation.fleet_threads import Host
from tests.simulation.outbox_ledger import OutboxLedger
from tests.simulation.outbox_world import OutboxWorld


class FleetWorld(OutboxWorld):
    """A conversation, the processes of a fleet that work on it, and the account of it."""

    def __init__(self, setting: FleetSetting, tables: Tables) -> None:
        self._fleet_setting, self._tables = setting, tables
        super().__init__(setting)
        self.parting = setting.parting
        if Fate.SLEEP in setting.fates and setting.engine:
            # Whoever stands still, and perhaps again and again, keeps no time.
            self.slack = math.inf

    def _disk(self, account: OutboxLedger) -> Any:
        return Fleet(account, self._fleet_setting, self._tables)

    def _outbox(self, name: str, rng: random.Random) -> Any:
        setting = self._fleet_setting
        return FleetOutbox(
            self.disk,
            name,
            Host(rng, setting.delays.longest),
            max_items=setting.max_items,
            max_window_bytes=setting.max_window_bytes,
            lease=setting.lease,
            account="fleet",
        )

    def _failed(self, kind: str, error: Exception) -> None:
        if isinstance(error, AppendOutcomeUnknown) and self._fleet_setting.engine:
            # Whether it was recorded could not be found out: its caller was told so.
            self.tally[f"{kind} unknown"] += 1
            return
        super()._failed(kind, error)

    async def _workers(self) -> None:
        await super()._workers()
        # Whoever stands still goes on before the end.
        self.disk.rate = 0.0

    async def _end(self) -> None:
        await super()._end()
        self.tally["engine crashes"] += self.disk.crashes
