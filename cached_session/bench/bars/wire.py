"""Bars on what goes over the wire: the first read of a long conversation, a long append."""

from __future__ import annotations

from dataclasses import dataclass

from cached_session.bench.bars.table import Bar
from cached_session.bench.kinds import (
    OURS,
    SDK,
    Counter,
    MakeSession,
    cached_session,
    put_away,
    sdk_session,
)
from cached_session.bench.payload import items
from cached_session.bench.sites import Site, delete
from cached_session.bench.timing import Stopwatch, percentile

_MAKE: dict[str, MakeSession] = {SDK: sdk_session, OURS: cached_session}


@dataclass(frozen=True, slots=True)
class Taken:
    """What one operation took.

    Attributes:
        seconds: Time.
        cpu: CPU seconds of this process.
        requests: Requests sent.
    """

    seconds: float
    cpu: float
    requests: int


async def cold_read(site: Site, name: str, conversation_id: str) -> Taken:
    """Reads a whole conversation with a new session on a new client with an open connection."""
    counter = Counter()
    async with site.client(counter) as client:
        await _MAKE[name](client, conversation_id).get_items(1)
        before = counter.requests
        session = _MAKE[name](client, conversation_id)
        with Stopwatch() as watch:
            await session.get_items()
    return Taken(watch.seconds, watch.cpu, counter.requests - before)


async def long_append(site: Site, name: str, count: int) -> Taken:
    """Appends items with one call to a conversation that the session has just made."""
    counter = Counter()
    async with site.client(counter) as client:
        session = _MAKE[name](client, None)
        await session.get_items()
        before = counter.requests
        sent = items(count)
        with Stopwatch() as watch:
            await session.add_items(sent)
        requests = counter.requests - before
        await put_away([session])
    return Taken(watch.seconds, watch.cpu, requests)


async def cold_reads(
    site: Site, *, size: int = 10_000, latency: float = 0.05, times: int = 3
) -> list[Bar]:
    """The three bars on the first read."""
    async with site.client(Counter()) as client:
        conversation_id = await site.fill(client, items(size))
        taken: dict[str, list[Taken]] = {SDK: [], OURS: []}
        for _ in range(times):
            for name, all_taken in taken.items():
                all_taken.append(await cold_read(site, name, conversation_id))
        await delete(client, conversation_id)
    work = f"cold read of {size:,} items at {latency * 1e3:g} ms, against the SDK session"
    how = f"first `get_items()` of a new session on an open connection; p50 of {times} each"
    ours, sdk = _middle(taken[OURS]), _middle(taken[SDK])
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
    taken: dict[str, list[Taken]] = {SDK: [], OURS: []}
    for _ in range(times):
        for name, all_taken in taken.items():
            all_taken.append(await long_append(site, name, size))
    ours, sdk = _middle(taken[OURS]), _middle(taken[SDK])
    return [
        Bar(
            f"append of {size:,} items, CPU against the SDK session",
            "at most 1/6",
            1 / 6,
            ours.cpu / sdk.cpu,
            "",
            f"one `add_items` to a new conversation, {ours.requests} requests; p50 of {times} "
            f"each: {ours.cpu:.3f} s against {sdk.cpu:.3f} s of this process",
        )
    ]


def _middle(taken: list[Taken]) -> Taken:
    return Taken(
        percentile([one.seconds for one in taken], 50),
        percentile([one.cpu for one in taken], 50),
        int(percentile([one.requests for one in taken], 50)),
    )
