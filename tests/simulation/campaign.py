"""Runs plans in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter

from simloop import SimLoop

from tests.campaigns.plan import Failure
from tests.simulation.fleet_setting import FleetSetting
from tests.simulation.fleet_tables import Tables
from tests.simulation.fleet_world import FleetWorld
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.outbox_world import OutboxWorld
from tests.simulation.world import Setting, World


def _freeze(runs: list[int] = [0]) -> None:  # noqa: B006 - counts the process's runs
    # The loop collects garbage at the end of every run, to see what is left
    # over. What was there before the first two, which import what is imported
    # late, need not be looked at every time.
    if runs[0] < 2:
        gc.freeze()
        runs[0] += 1


def play(plan: Setting, tables: Tables | None = None) -> Counter[str]:
    """Makes one run and returns what happened in it.

    Args:
        plan: What it is like.
        tables: Those of a fleet, for a plan of one.

    Raises:
        Failure: A promise was not kept.
    """
    _freeze()
    loop = SimLoop(plan.seed)
    # The loop raises what a callback raised when it stops: nothing is lost.
    world: World | None = None
    try:
        asyncio.set_event_loop(None)
        world = _world(plan, tables)
        loop.run_until_complete(world.run())
    except (Exception, ExceptionGroup) as error:
        _drain(loop)
        raise Failure(plan, error, [] if world is None else world.trace) from error
    finally:
        loop.close()
    world.tally.update(seeds=1, requests=len(world.trace))
    return world.tally


def _world(plan: Setting, tables: Tables | None) -> World:
    if isinstance(plan, FleetSetting):
        assert tables is not None
        return FleetWorld(plan, tables)
    return OutboxWorld(plan) if isinstance(plan, OutboxSetting) else World(plan)


def _drain(loop: SimLoop) -> None:
    """Ends what a failed run left lying, so that only its failure is reported."""

    async def end() -> None:
        # Some clean up in several steps, or begin something new while they do.
        for _ in range(1000):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)

    # What it raises is the failed run's own.
    with contextlib.suppress(Exception):
        loop.run_until_complete(end())
