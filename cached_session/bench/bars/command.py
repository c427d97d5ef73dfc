"""`cached-session bench bars`: measures the bars and prints their table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from cached_session.bench.bars.footprint import imports, memory_held
from cached_session.bench.bars.loops import late_runs, loop_against_memory
from cached_session.bench.bars.reads import held_reads
from cached_session.bench.bars.table import Bar
from cached_session.bench.bars.wire import cold_reads, long_appends
from cached_session.bench.sites import Sites

LATENCY = 0.05

# Those that ask for a latency get an emulator with one, the others one without.
BARS: dict[str, Callable[[Sites], Awaitable[list[Bar]]]] = {
    "reads": lambda sites: held_reads(sites.at()),
    "cold": lambda sites: cold_reads(sites.at(LATENCY), latency=LATENCY),
    "appends": lambda sites: long_appends(sites.at()),
    "loop": lambda sites: loop_against_memory(sites.at(LATENCY), latency=LATENCY),
    "memory": lambda sites: memory_held(sites.at()),
    "late": lambda sites: late_runs(sites.at()),
    "import": lambda _: imports(),
}


async def measure(sites: Sites, names: list[str]) -> AsyncIterator[tuple[str, list[Bar]]]:
    """Measures groups of bars one after the other; yields each when it is done."""
    for name in names:
        yield name, await BARS[name](sites)
