"""`cold`: the first read of a new session, by the length of the conversation."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from benchmarks.harness import Bench, Work, amount, numbers, shares
from benchmarks.kinds import Counter
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.sites import delete
from benchmarks.timing import percentile
from benchmarks.wire import Taken, cold_read


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
    kinds = [kind for kind in bench.kinds if kind.session is not None]
    for latency in bench.latencies(options.latency):
        site = bench.sites.at(latency)
        for size in options.sizes:
            async with site.client(Counter()) as client:
                workload = f"first get_items() of {size:,} items, {bench.at(latency)}"
                taken: dict[str, list[Taken]] = {kind.name: [] for kind in kinds}
                with bench.measuring(f"cold: {workload}", options.times * len(kinds)) as step:
                    conversation_id = await site.fill(client, items(size))
                    for _ in range(options.times):
                        for kind in kinds:
                            assert kind.session is not None
                            taken[kind.name].append(
                                await cold_read(site, kind.session, conversation_id)
                            )
                            step()
                    await delete(client, conversation_id)
            for name, reads in taken.items():
                yield Figure(
                    "cold",
                    f"{workload}, by a new session on an open connection",
                    name,
                    {"items": size, **bench.where(latency)},
                    {
                        "p50 ms": percentile([read.seconds for read in reads], 50) * 1e3,
                        "worst ms": max(read.seconds for read in reads) * 1e3,
                        "CPU p50 ms": percentile([read.cpu for read in reads], 50) * 1e3,
                        "requests": reads[0].requests,
                        "reads": len(reads),
                    },
                )


WORK = Work("cold", "the first read of a conversation, by its length", _options, _run)
