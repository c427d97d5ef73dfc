"""What many local copies take in memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.kinds import Counter
from benchmarks.payload import items, json_bytes
from benchmarks.sites import Site, delete
from cached_session.cache import ConversationCache
from cached_session.session import CachedSession


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
    max_bytes: int = 1 << 30,
    after_each: Callable[[], None] = lambda: None,
) -> Holding:
    """Reads conversations, drops the sessions, and takes what the cache alone still holds."""
    sent = items(size)
    async with site.client(Counter()) as client:
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
