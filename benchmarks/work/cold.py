"""`cold`: the first read of a new session, by the length of the conversation."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable

from benchmarks.harness import Bench, Work, amount, numbers, shares
from benchmarks.kinds import Kind
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.sites import Counter, Site
from benchmarks.timing import Taken, percentile


async def cold_reads(
    site: Site,
    kinds: Iterable[Kind],
    *,
    size: int,
    times: int,
    calls: int = 1,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Taken]:
    """Reads one whole conversation, each time with a new session on an open connection.

    Args:
        site: The server.
        kinds: What reads, in turn. Those that keep nothing on the server are left out.
        size: Items of the conversation.
        times: How often all begin anew, with new clients.
        calls: How often each of them reads then.
        step: Called after each read.
    """
    makers = {kind.name: kind.session for kind in kinds if kind.session is not None}
    taken = {name: Taken() for name in makers}
    async with site.holding(items(size)) as (_, [conversation_id]):
        for _ in range(times):
            async with contextlib.AsyncExitStack() as stack:
                counters = {name: Counter() for name in makers}
                clients = {
                    name: await stack.enter_async_context(site.client(counter))
                    for name, counter in counters.items()
                }
                for name, make in makers.items():
                    await make(clients[name], conversation_id).get_items(1)
                for _, (name, make) in itertools.product(range(calls), makers.items()):
                    before = counters[name].requests
                    session = make(clients[name], conversation_id)
                    with taken[name].call():
                        await session.get_items()
                    taken[name].requests.append(counters[name].requests - before)
                    step()
    return taken


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=numbers,
        default=[100, 1000, 3000, 10_000],
        help="items of the conversation (100,1000,3000,10000)",
    )
    parser.add_argument(
        "--latency", type=shares, default=[0.0, 0.05], help="seconds a request (0,0.05)"
    )
    parser.add_argument("--times", type=amount, default=3, help="reads of each kind (3)")


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    for latency, size in itertools.product(bench.latencies(options.latency), options.sizes):
        workload = f"first get_items() of {size:,} items, {bench.at(latency)}"
        steps = options.times * sum(kind.session is not None for kind in bench.kinds)
        with bench.measuring(f"cold: {workload}", steps) as step:
            taken = await cold_reads(
                bench.sites.at(latency), bench.kinds, size=size, times=options.times, step=step
            )
        for name, reads in taken.items():
            yield Figure(
                "cold",
                f"{workload}, by a new session on an open connection",
                name,
                {"items": size, **bench.where(latency)},
                {
                    "p50 ms": percentile(reads.seconds, 50) * 1e3,
                    "worst ms": max(reads.seconds) * 1e3,
                    "CPU p50 ms": percentile(reads.cpu, 50) * 1e3,
                    "requests": reads.requests[0],
                    "reads": len(reads.seconds),
                },
            )


WORK = Work("cold", "the first read of a conversation, by its length", _options, _run)
