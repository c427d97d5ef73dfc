"""`loop`: Runner loops by length, tool calls and latency."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import AsyncIterator

from benchmarks.harness import Bench, Work, amounts, count, numbers, shares
from benchmarks.kinds import Counter, Kind
from benchmarks.loops import run_loop
from benchmarks.results import Figure
from benchmarks.timing import percentile

# Runs, tool calls, latency. A grid of short loops, and one long loop without
# latency: with it, the SDK's session would take a quarter of an hour.
_CASES = [*itertools.product([30], [0, 1, 5], [0.0, 0.005, 0.05, 0.2]), (400, 1, 0.0)]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=amounts, help="runs of the agent, 1 to 400 (30, and 400)")
    parser.add_argument("--tools", type=numbers, help="tool calls in each run (0,1,5)")
    parser.add_argument("--latency", type=shares, help="seconds a request (0,0.005,0.05,0.2)")


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    cases = _CASES
    if options.runs or options.tools or options.latency:
        cases = list(
            itertools.product(
                options.runs or [30], options.tools or [0, 1, 5], options.latency or [0.0, 0.05]
            )
        )
    if bench.sites.foreign:
        cases = list(dict.fromkeys((runs, tools, 0.0) for runs, tools, _ in cases))
    for runs, tools, latency in cases:
        for kind in bench.kinds:
            yield await _loop(bench, kind, runs, tools, latency)


async def _loop(bench: Bench, kind: Kind, runs: int, tools: int, latency: float) -> Figure:
    workload = (
        f"{count(runs, 'run')} with {count(tools, 'tool call')} each, {bench.at(latency)}, "
        "scripted model"
    )
    counter = Counter()
    with bench.measuring(f"loop: {kind.name}, {workload}", runs) as step:
        async with kind.shelf(bench.sites.at(latency), counter) as make:
            loop = await run_loop(make(), runs=runs, tools=tools, after_run=step)
            requests = counter.requests
    tenth = max(1, runs // 10)
    return Figure(
        "loop",
        workload,
        kind.name,
        {"runs": runs, "tools": tools, **bench.where(latency)},
        {
            "total s": loop.total,
            "requests": requests,
            "CPU s": loop.total_cpu,
            "run p50 ms": percentile(loop.seconds, 50) * 1e3,
            "run p95 ms": percentile(loop.seconds, 95) * 1e3,
            "first tenth p50 ms": percentile(loop.seconds[:tenth], 50) * 1e3,
            "last tenth p50 ms": percentile(loop.seconds[-tenth:], 50) * 1e3,
        },
        {"run ms": [seconds * 1e3 for seconds in loop.seconds]},
    )


WORK = Work("loop", "Runner loops by length, tool calls and latency", _options, _run)
