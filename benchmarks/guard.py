"""The guard: ratios that a change must not make much worse.

Every ratio holds a path of CachedSession against plain work of the same size,
in one process and in turn, by the median of what the turns say. A noisy or slow
machine then slows both sides. The bounds leave room for about a third above
what is usual, so that a regression by half is noticed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.kinds import OURS, MakeSession, cached_session, remote
from benchmarks.results import Bar
from benchmarks.sites import Site
from benchmarks.timing import paired
from benchmarks.work.appends import appends_in_turn
from benchmarks.work.cold import cold_reads
from benchmarks.work.imports import import_both
from benchmarks.work.loop import loop_on
from benchmarks.work.memory import hold_conversations
from benchmarks.work.reads import BARE, CALLS, CALLS_OF_FEW, SHORT, read_all_and_few
from benchmarks.yardsticks import PAGE, Bare


async def reads(site: Site, make: MakeSession) -> AsyncIterator[Bar]:
    """Reads of what is held, against the bare copy, and against a short conversation."""
    of_all, of_few = await read_all_and_few(
        site, make, size=500, large=3000, few=20, turns=30, turns_of_few=150
    )
    for name, taken, other, calls, most in (
        ("get_items() of 500 held / bare copy", of_all, BARE, CALLS, 0.55),
        ("get_items(20) of 3,000 held / bare copy", of_few, BARE, CALLS_OF_FEW, 0.72),
        ("get_items(20) of 3,000 held / of 100 held", of_few, SHORT, CALLS_OF_FEW, 1.35),
    ):
        yield Bar(name, paired(taken[OURS], taken[other], calls), most)


async def wire(site: Site, make: MakeSession) -> AsyncIterator[Bar]:
    """CPU of a long append and of a first read, against bare requests of the same size."""
    kinds = remote(OURS, "", make), remote(BARE, "", Bare)
    appended = await appends_in_turn(site, kinds, size=200, times=1, calls=10)
    read = await cold_reads(site, kinds, size=1000, times=1, calls=10)
    for name, taken, most in (
        ("CPU of add_items of 200 / bare requests", appended, 1.6),
        ("CPU of a first read of 1,000 / bare requests", read, 1.8),
    ):
        yield Bar(name, paired(taken[OURS].cpu, taken[BARE].cpu), most)


async def requests(site: Site, make: MakeSession) -> AsyncIterator[Bar]:
    """How many requests a first read and a loop need; these are exact."""
    ours = remote(OURS, "", make)
    read = (await cold_reads(site, [ours], size=1000, times=1))[OURS]
    looped = await loop_on(ours, site, runs=5)
    yield Bar("requests of a first read of 1,000", sum(read.requests), 1000 / PAGE + 1)
    yield Bar("requests of 5 runs with one tool call", sum(looped.requests), 1 + 5 * 3)


async def footprint(site: Site) -> AsyncIterator[Bar]:
    """Memory by the byte of JSON, and the import by that of the SDK."""
    held = await hold_conversations(site, conversations=20, size=40)
    yield Bar("memory / JSON", held.traced / held.json, 2.3)
    yield Bar("memory / memory as counted", held.traced / held.counted, 1.25)
    yield Bar("memory as counted / memory", held.counted / held.traced, 1.25)
    agents, ours = import_both(5)
    cpu = paired(ours.cpu, agents.cpu)
    yield Bar("CPU of import cached_session / of import agents, both compiled", cpu, 0.025)


async def measure(site: Site, make: MakeSession = cached_session) -> list[Bar]:
    """All checks; `make` makes the sessions that are measured."""
    checks = [reads(site, make), wire(site, make), requests(site, make), footprint(site)]
    return [check for group in checks async for check in group]
