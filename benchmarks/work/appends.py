"""`appends`: appends by the number of items, and by many sessions at once."""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.harness import Bench, Work, amount, count, numbers, shares
from benchmarks.kinds import Kind
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.sites import Counter, Site
from benchmarks.timing import Taken, at_once, spread


@asynccontextmanager
async def _ready(site: Site, kind: Kind, many: int = 1) -> AsyncIterator[tuple[Any, Counter]]:
    """So many sessions whose conversation is there, and whose connections are open."""
    counter = Counter()
    async with kind.shelf(site, counter) as make:
        sessions = [make() for _ in range(many)]
        await asyncio.gather(*(session.add_items(items(1)) for session in sessions))
        yield sessions, counter


async def appends_in_turn(
    site: Site, kinds: Iterable[Kind], *, size: int, times: int, calls: int = 1
) -> dict[str, Taken]:
    """Appends so many items with one call of each kind in turn.

    Args:
        site: The server.
        kinds: What appends.
        size: Items of each call.
        times: How often all begin anew, with new sessions.
        calls: How often each of them appends then.
    """
    taken = {kind.name: (kind, Taken()) for kind in kinds}
    sent = items(size)
    for _ in range(times):
        async with AsyncExitStack() as stack:
            ready = [
                (*await stack.enter_async_context(_ready(site, kind)), appends)
                for kind, appends in taken.values()
            ]
            for _, ([session], counter, appends) in itertools.product(range(calls), ready):
                before = counter.requests
                with appends.call():
                    await session.add_items(sent)
                appends.requests.append(counter.requests - before)
    return {name: appends for name, (_, appends) in taken.items()}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=numbers, default=[1, 20, 100, 1000], help="items a call (1,20,100,1000)"
    )
    parser.add_argument(
        "--at-once", type=numbers, default=[1, 10, 100], help="sessions at once (1,10,100)"
    )
    parser.add_argument(
        "--latency", type=shares, default=[0.0], help="seconds between request and answer (0)"
    )
    parser.add_argument("--times", type=amount, default=10, help="calls of each session (10)")


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    # By size alone, then by number of sessions with 20 items each.
    cases = [(size, 1) for size in options.sizes]
    cases += [(20, many) for many in options.at_once if (20, many) not in cases]
    for latency, (size, many), kind in itertools.product(
        bench.latencies(options.latency), cases, bench.kinds
    ):
        yield await _at_once(bench, kind, size, many, latency, options.times)


async def _at_once(
    bench: Bench, kind: Kind, size: int, many: int, latency: float, times: int
) -> Figure:
    workload = (
        f"{count(many, 'session')} at once, add_items of {count(size, 'item')} each, "
        f"{bench.at(latency)}"
    )
    sent = items(size)
    with bench.measuring(f"appends: {kind.name}, {workload}", times * many) as step:
        async with _ready(bench.sites.at(latency), kind, many) as (sessions, counter):
            before = counter.requests
            each, together = await at_once(
                many, times, lambda number: sessions[number].add_items(sent), step
            )
            requests = counter.requests - before
    stored = size * times * many
    return Figure(
        "appends",
        workload,
        kind.name,
        {"items": size, "sessions": many, **bench.where(latency)},
        {
            **spread(each.seconds),
            "CPU us an item": together.total_cpu / stored * 1e6,
            "items a second": stored / together.total,
            "requests": requests,
        },
    )


WORK = Work("appends", "appends by size, and by many sessions at once", _options, _run)
