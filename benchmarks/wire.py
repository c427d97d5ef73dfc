"""Operations on the wire, one at a time: what a first read takes, and what a long append takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.kinds import Counter, MakeSession, put_away
from benchmarks.payload import items
from benchmarks.sites import Site
from benchmarks.timing import Stopwatch


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

    @staticmethod
    def least(taken: Sequence[Taken]) -> Taken:
        """The least of each."""
        return Taken(
            min(one.seconds for one in taken),
            min(one.cpu for one in taken),
            min(one.requests for one in taken),
        )


async def cold_read(site: Site, make: MakeSession, conversation_id: str) -> Taken:
    """Reads a whole conversation with a new session, on an open connection."""
    counter = Counter()
    async with site.client(counter) as client:
        await make(client, conversation_id).get_items(1)
        before = counter.requests
        session = make(client, conversation_id)
        with Stopwatch() as watch:
            await session.get_items()
    return Taken(watch.seconds, watch.cpu, counter.requests - before)


async def long_append(site: Site, make: MakeSession, count: int) -> Taken:
    """Appends items with one call to a conversation that the session has just made."""
    counter = Counter()
    async with site.client(counter) as client:
        session = make(client, None)
        await session.get_items()
        before = counter.requests
        sent = items(count)
        with Stopwatch() as watch:
            await session.add_items(sent)
        requests = counter.requests - before
        await put_away(site, [session])
    return Taken(watch.seconds, watch.cpu, requests)
