"""Runs a campaign: `python -m tests.campaigns virtual --start SEED --until operations=1000000`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args

import pytest

from cached_session.emulator import FaultKind
from tests.campaigns import campaign
from tests.campaigns.ablations import BY_NAME
from tests.campaigns.plan import Failure
from tests.campaigns.setting import Kind
from tests.campaigns.setting import Setting as Sockets
from tests.clients import HTTP_KINDS
from tests.crashes.campaign import play as play_processes
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.postgres import server
from tests.servers import agentic_server
from tests.simulation.fleet_setting import FleetSetting
from tests.simulation.fleet_tables import Tables
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.world import Setting as Virtual

PLANS: Final[dict[str, Callable[[int], Any]]] = {
    "virtual": Virtual.draw,
    "rewriting": Virtual.rewriting,
    "outbox": OutboxSetting.draw,
    "crowded": OutboxSetting.crowded,
    "virtual-fleet": FleetSetting.draw,
    "web-fleet": FleetSetting.web,
    "asleep": FleetSetting.asleep,
    "asleep-before-a-send": FleetSetting.asleep_before_a_send,
    "unanswered": FleetSetting.unanswered,
    "sockets": Sockets.draw,
    **{
        f"sockets-{http}": partial(Sockets.draw, name=f"sockets-{http}", http=http)
        for http in HTTP_KINDS
    },
    "agentic": partial(Sockets.draw, name="agentic"),
    **{f"compared-{kind}": partial(Sockets.compared, kind=kind) for kind in get_args(Kind)},
    "processes": Round.draw,
    "fleet": Round.in_a_fleet,
    "removals": Round.amid_removals,
}
"""What plans are like: the world, and what is special in it."""

Play = Callable[[list[Any]], Counter[str]]


def _virtual(plans: list[Any], tables: Tables | None = None) -> Counter[str]:
    from tests.simulation.campaign import play  # needs simloop, which needs Python 3.12

    (plan,) = plans
    return play(plan, tables)


def _sockets(plans: list[Any]) -> Counter[str]:
    return campaign.total(asyncio.run(campaign.play(plans)))


def _player(plan: Any, ablation: str | None, stack: ExitStack) -> tuple[Play, int]:
    """What makes runs in the world of a plan, and how many at the same time."""
    world = plan.world
    if world == "processes":
        nursery = stack.enter_context(Nursery())
        engine = stack.enter_context(server()) if plan.fleet else None
        return lambda plans: play_processes(
            plans[0], nursery, ablation, engine and engine.with_tables()
        ), 1
    if ablation is not None:
        BY_NAME[ablation](stack.enter_context(pytest.MonkeyPatch.context()))
    if world == "fleet":
        return partial(_virtual, tables=Tables(stack.enter_context(server()))), 1
    return (_virtual, 1) if world == "virtual" else (_sockets, campaign.AT_ONCE)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("plans", choices=PLANS)
    parser.add_argument("--start", type=int, default=random.randrange(1 << 40), help="first seed")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seeds", type=int, default=20)
    length.add_argument("--until", help="such as kills=2000: until so much has happened")
    parser.add_argument("--times", type=int, default=1, help="make the runs of a seed so often")
    parser.add_argument("--only", default="", help="kinds of fault, with commas between them")
    parser.add_argument("--ablation", choices=BY_NAME, help="a safeguard that is switched off")
    parser.add_argument("--keep-going", action="store_true", help="count failures, do not stop")
    parser.add_argument("--trace", action="store_true", help="print the requests of a failure")
    arguments = parser.parse_args()
    draw: Callable[..., Any] = PLANS[arguments.plans]
    only = arguments.only
    goal, _, wanted = (arguments.until or "").partition("=")
    seeds: Iterable[int] = count(arguments.start)
    if not goal:
        seeds = islice(seeds, arguments.seeds)
    tally: Counter[str] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        if arguments.plans == "agentic":
            directory = Path(stack.enter_context(TemporaryDirectory()))
            draw = partial(draw, upstream=stack.enter_context(agentic_server(directory)))
        play, at_once = _player(draw(0), arguments.ablation, stack)
        plans = (draw(seed) for seed in seeds for _ in range(arguments.times))
        if only:
            plans = (plan.with_only(map(FaultKind, only.split(","))) for plan in plans)
        while some := [*islice(plans, at_once)]:
            try:
                tally.update(play(some))
            except Failure as failure:
                tally["failures"] += 1
                sys.stdout.write(f"{failure}\n")
                if arguments.trace:
                    traceback.print_exception(failure.__cause__)
                    sys.stdout.write("\n".join(failure.trace) + "\n")
                sys.stdout.flush()
                if not arguments.keep_going:
                    break
            if goal and tally[goal] >= int(wanted):
                break
    tally["seconds"] = round(time.monotonic() - began)
    for name, number in sorted(tally.items()):
        sys.stdout.write(f"{name:32} {number}\n")
    return 1 if tally["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
