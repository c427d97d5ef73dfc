"""`appends`: appends by the number of items, and by many sessions at once."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

from benchmarks.harness import Bench, Work, amount, count, numbers, shares
from benchmarks.kinds import Counter, Kind
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.timing import Stopwatch, spread


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
    for latency in bench.latencies(options.latency):
        # By size alone, then by number of sessions with 20 items each.
        cases = [(size, 1) for size in options.sizes]
        cases += [(20, many) for many in options.at_once if (20, many) not in cases]
        for size, many in cases:
            for kind in bench.kinds:
                yield await _appends(bench, kind, size, many, latency, options.times)


async def _appends(
    bench: Bench, kind: Kind, size: int, many: int, latency: float, times: int
) -> Figure:
    workload = (
        f"{count(many, 'session')} at once, add_items of {count(size, 'item')} each, "
        f"{bench.at(latency)}"
    )
    counter = Counter()
    taken: list[float] = []
    sent = items(size)
    with bench.measuring(f"appends: {kind.name}, {workload}", times * many) as step:
        async with kind.shelf(bench.sites.at(latency), counter) as make:
            sessions = [make() for _ in range(many)]
            # The conversation is there, and the connections are open.
            await asyncio.gather(*(session.add_items(items(1)) for session in sessions))
            before = counter.requests

            async def appends(number: int) -> None:
                for _ in range(times):
                    with Stopwatch() as one:
                        await sessions[number].add_items(sent)
                    taken.append(one.seconds)
                    step()

            with Stopwatch() as whole:
                await asyncio.gather(*map(appends, range(many)))
            requests = counter.requests - before
    return Figure(
        "appends",
        workload,
        kind.name,
        {"items": size, "sessions": many, **bench.where(latency)},
        {
            **spread(taken),
            "CPU us an item": whole.cpu / (size * times * many) * 1e6,
            "items a second": size * times * many / whole.seconds,
            "requests": requests,
        },
    )


WORK = Work("appends", "appends by size, and by many sessions at once", _options, _run)
