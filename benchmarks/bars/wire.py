"""Bars on what goes over the wire: the first read of a long conversation, a long append."""

from __future__ import annotations

from benchmarks.bars.table import Bar
from benchmarks.harness import count
from benchmarks.kinds import Counter, cached_session, sdk_session
from benchmarks.payload import items
from benchmarks.sites import Site, delete
from benchmarks.wire import Taken, cold_read, long_append

# Ours, and what it is held against.
_MAKERS = (cached_session, sdk_session)


async def cold_reads(
    site: Site, *, size: int = 10_000, latency: float = 0.05, times: int = 3
) -> list[Bar]:
    """The three bars on the first read."""
    async with site.client(Counter()) as client:
        conversation_id = await site.fill(client, items(size))
        taken = [
            [await cold_read(site, make, conversation_id) for make in _MAKERS] for _ in range(times)
        ]
        await delete(client, conversation_id)
    work = f"cold read of {size:,} items at {latency * 1e3:g} ms, against the SDK session"
    how = f"first `get_items()` of a new session on an open connection; the least of {times} each"
    ours, sdk = (Taken.least(column) for column in zip(*taken, strict=True))
    return [
        Bar(
            f"{work}: time",
            "at most 1/9",
            1 / 9,
            ours.seconds / sdk.seconds,
            "",
            f"{how}: {ours.seconds:.2f} s against {sdk.seconds:.2f} s",
        ),
        Bar(
            f"{work}: requests",
            "at most 1/5",
            1 / 5,
            ours.requests / sdk.requests,
            "",
            f"{how}: {ours.requests} against {sdk.requests}",
        ),
        Bar(
            f"{work}: CPU",
            "at most 1/5",
            1 / 5,
            ours.cpu / sdk.cpu,
            "",
            f"{how}: {ours.cpu:.2f} s against {sdk.cpu:.2f} s of this process",
        ),
    ]


async def long_appends(site: Site, *, size: int = 1000, times: int = 5) -> list[Bar]:
    """The bar on a long append."""
    taken = [[await long_append(site, make, size) for make in _MAKERS] for _ in range(times)]
    ours, sdk = (Taken.least(column) for column in zip(*taken, strict=True))
    return [
        Bar(
            f"append of {size:,} items, CPU against the SDK session",
            "at most 1/6",
            1 / 6,
            ours.cpu / sdk.cpu,
            "",
            f"one `add_items` to a new conversation, {count(ours.requests, 'request')}; "
            f"the least of {times} each: {ours.cpu:.3f} s against {sdk.cpu:.3f} s of this process",
        )
    ]
