"""`memory`: what the held items take, before and after eviction."""

from __future__ import annotations

import argparse
import gc
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from benchmarks.harness import Bench, Work, amount, numbers
from benchmarks.kinds import OURS
from benchmarks.payload import items, json_bytes
from benchmarks.results import Figure
from benchmarks.sites import Site, delete
from cached_session import CachedSession, ConversationCache

_NO_BOUND = 1 << 30


@dataclass(frozen=True, slots=True)
class Holding:
    """What a cache held after many conversations were read through it.

    Attributes:
        conversations: How many of them it kept.
        items: Items in those that were read, kept or not.
        json: Bytes of the kept ones' items as compact JSON.
        traced: Bytes that Python gave back when the cache was dropped.
        counted: Bytes that the cache says it takes.
    """

    conversations: int
    items: int
    json: int
    traced: int
    counted: int


async def hold_conversations(
    site: Site,
    *,
    conversations: int,
    size: int,
    max_bytes: int = _NO_BOUND,
    after_each: Callable[[], None] = lambda: None,
) -> Holding:
    """Reads conversations, drops the sessions, and takes what the cache alone still holds."""
    sent = items(size)
    async with site.client() as client:
        made = []
        stored = 0
        tracemalloc.start()
        try:
            cache = ConversationCache(max_bytes=max_bytes)
            for _ in range(conversations):
                conversation_id = await site.fill(client, sent)
                made.append(conversation_id)
                session = CachedSession(
                    conversation_id=conversation_id, openai_client=client, cache=cache
                )
                stored = json_bytes(await session.get_items())
                del session
                after_each()
            kept, counted = len(cache), cache.bytes
            gc.collect()
            full, _ = tracemalloc.get_traced_memory()
            del cache
            gc.collect()
            empty, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            for conversation_id in made:
                await delete(client, conversation_id)
    return Holding(kept, size * conversations, stored * kept, full - empty, counted)


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
    conversations = options.conversations
    for size, bound in itertools.product(options.sizes, (None, options.bound)):
        workload = (
            f"{conversations:,} conversations of {size} items read once each, "
            f"{f'max_bytes={bound:,}' if bound is not None else 'no bound'}, traced by tracemalloc"
        )
        with bench.measuring(f"memory: {workload}", conversations) as step:
            held = await hold_conversations(
                bench.sites.at(),
                conversations=conversations,
                size=size,
                max_bytes=_NO_BOUND if bound is None else bound,
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
                "max_bytes": "none" if bound is None else bound,
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
