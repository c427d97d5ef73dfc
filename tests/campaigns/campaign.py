"""Runs a campaign: `python -m tests.campaigns.campaign --start SEED --seeds 1`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from cached_session.emulator import ConversationStore, Service, random_ids
from tests.campaigns.setting import Kind, Setting
from tests.campaigns.witness import Forwarding, Handler
from tests.campaigns.world import World
from tests.clients import HTTP_KINDS
from tests.servers import agentic_server

AT_ONCE = 4
"""Runs at the same time, each with a server and a conversation of its own."""


class Failure(AssertionError):
    """A seed that breaks an invariant, with the command that replays its plan."""

    def __init__(self, world: World, error: BaseException, *, forwarded: bool) -> None:
        setting = world.setting
        seed = setting.seed
        option = " --agentic" if forwarded else ""
        if setting == Setting.compared(seed, setting.kind):
            option += f" --compared {setting.kind}"
        if setting.http != "default":
            option += f" --http {setting.http}"
        super().__init__(
            f"seed {seed}: {error!r}\nreplay (the same plan and operations, other timing): "
            f"python -m tests.campaigns.campaign --start {seed} --seeds 1{option}"
        )
        self.trace = [
            f"{entry.method} {entry.path} {entry.fault or '-'} {entry.status or '-'}"
            for entry in world.emulator.requests
        ]


async def run(
    settings: Iterable[Setting], upstream: str | None = None, *, at_once: int = AT_ONCE
) -> list[World]:
    """Makes runs, some at the same time, and returns them.

    Args:
        settings: What each run is like.
        upstream: Base URL of the server behind the faults; None: the emulator's own service.
        at_once: How many runs at the same time.

    Raises:
        Failure: An invariant does not hold.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(setting: Setting) -> World:
        behind: AbstractContextManager[Handler] = (
            nullcontext(Service(ConversationStore(new_id=random_ids())))
            if upstream is None
            else Forwarding(upstream)
        )
        async with slots:
            with behind as service:
                world = World(setting, service)
                try:
                    await world.run()
                except Exception as error:
                    raise Failure(world, error, forwarded=upstream is not None) from error
                return world

    results = await asyncio.gather(*map(one, settings), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, World)]


def total(worlds: Iterable[World]) -> Counter[str]:
    """What happened in all of the runs."""
    tally: Counter[str] = Counter()
    for world in worlds:
        tally.update(world.tally)
        tally["seeds"] += 1
    tally["faults"] = sum(count for name, count in tally.items() if name.startswith("fault "))
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--start", type=int, default=random.randrange(1 << 40))
    parser.add_argument("--agentic", action="store_true", help="behind the faults is agentic-api")
    parser.add_argument(
        "--compared", choices=get_args(Kind), help="the runs of the comparison, with this session"
    )
    parser.add_argument("--http", choices=HTTP_KINDS, default="default", help="the HTTP client")
    parser.add_argument("--trace", action="store_true", help="print the requests of a failure")
    arguments = parser.parse_args()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    settings = [
        Setting.compared(seed, arguments.compared)
        if arguments.compared
        else Setting.draw(seed, arguments.http)
        for seed in seeds
    ]
    with ExitStack() as stack:
        upstream = None
        if arguments.agentic:
            directory = Path(stack.enter_context(TemporaryDirectory()))
            upstream = stack.enter_context(agentic_server(directory))
        try:
            worlds = asyncio.run(run(settings, upstream))
        except Failure as failure:
            sys.stderr.write(f"{failure}\n")
            if arguments.trace:
                traceback.print_exception(failure.__cause__)
                sys.stderr.write("\n".join(failure.trace) + "\n")
            return 1
    for name, count in sorted(total(worlds).items()):
        sys.stdout.write(f"{name:32} {count}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
