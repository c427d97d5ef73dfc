"""`crowd`: many sessions at once in one process."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator

from benchmarks.harness import Bench, Work, amount, numbers, shares
from benchmarks.kinds import FILE, Kind
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.sites import Counter
from benchmarks.timing import at_once, percentile, spread

# How often the event loop is asked whether it is late, in seconds.
_TICK = 0.01


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions-at-once", type=numbers, default=[1000], help="(1000)")
    parser.add_argument("--turns", type=amount, default=5, help="turns of each session (5)")
    parser.add_argument(
        "--latency", type=shares, default=[0.05], help="seconds between request and answer (0.05)"
    )


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    for latency in bench.latencies(options.latency):
        for many in options.sessions_at_once:
            for kind in bench.kinds:
                # One file from every thread of every session: so many
                # connections that most systems refuse them.
                if kind.name == FILE:
                    continue
                yield await _crowd(bench, kind, many, latency, options.turns)


async def _crowd(bench: Bench, kind: Kind, many: int, latency: float, turns: int) -> Figure:
    workload = (
        f"{many:,} sessions at once in one process, {turns} turns each of get_items() and "
        f"add_items() of 2 items, {bench.at(latency)}"
    )
    counter = Counter()
    lags: list[float] = []
    with bench.measuring(f"crowd: {kind.name}, {workload}", many * turns) as step:
        async with kind.shelf(bench.sites.at(latency), counter) as make:
            sessions = [make() for _ in range(many)]

            async def turn(number: int) -> None:
                await sessions[number].get_items()
                await sessions[number].add_items(items(2))

            lag = asyncio.create_task(_watch_lag(lags))
            each, together = await at_once(many, turns, turn, step)
            lag.cancel()
            requests = counter.requests
    return Figure(
        "crowd",
        workload,
        kind.name,
        {"sessions": many, **bench.where(latency)},
        {
            "turns a second": many * turns / together.total,
            **{f"turn {name}": value for name, value in spread(each.seconds).items()},
            "lag p50 ms": percentile(lags, 50) * 1e3,
            "lag p99 ms": percentile(lags, 99) * 1e3,
            "CPU s": together.total_cpu,
            "requests": requests,
        },
    )


async def _watch_lag(lags: list[float]) -> None:
    """Notes how much later than asked the event loop wakes a sleeper."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_TICK)
        lags.append(max(0.0, time.perf_counter() - before - _TICK))


WORK = Work("crowd", "many sessions at once in one process", _options, _run)
