"""`memory`: what the held items take, before and after eviction."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from benchmarks.harness import Bench, Work, amount, numbers
from benchmarks.holding import hold_conversations
from benchmarks.kinds import OURS
from benchmarks.results import Figure


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conversations", type=amount, default=1000, help="how many (1000)")
    parser.add_argument(
        "--sizes", type=numbers, default=[4, 20, 100], help="items of each (4,20,100)"
    )
    parser.add_argument(
        "--bound",
        type=int,
        default=1 << 20,
        help="max_bytes of the cache that has to evict (1048576)",
    )


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    site = bench.sites.at()
    conversations = options.conversations
    for size in options.sizes:
        for bound in (1 << 30, options.bound):
            evicting = bound == options.bound
            workload = (
                f"{conversations:,} conversations of {size} items read once each, "
                f"{f'max_bytes={bound:,}' if evicting else 'no bound'}, traced by tracemalloc"
            )
            with bench.measuring(f"memory: {workload}", conversations) as step:
                held = await hold_conversations(
                    site,
                    conversations=conversations,
                    size=size,
                    max_bytes=bound,
                    after_each=step,
                )
            kept = held.conversations * size
            yield Figure(
                "memory",
                workload,
                OURS,
                {
                    "conversations": conversations,
                    "items each": size,
                    "max_bytes": bound if evicting else "none",
                },
                {
                    "kept": held.conversations,
                    "memory KB": held.traced / 1e3,
                    "counted KB": held.counted / 1e3,
                    "JSON KB": held.json / 1e3,
                    "bytes an item": held.traced / kept if kept else 0,
                    "bytes a JSON byte": held.traced / held.json if held.json else 0,
                },
            )


WORK = Work("memory", "memory of many conversations, before and after eviction", _options, _run)
