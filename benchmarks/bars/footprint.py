"""Bars on what the package costs without doing anything: memory held, and its import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from benchmarks.bars.table import Bar
from benchmarks.holding import hold_conversations
from benchmarks.sites import Site
from benchmarks.timing import percentile

_IMPORTS = """
import time
clocks = time.perf_counter, time.process_time
began = [clock() for clock in clocks]
import agents
between = [clock() for clock in clocks]
from cached_session import CachedSession
ended = [clock() for clock in clocks]
print(*(b - a for a, b in zip(began, between)), *(b - a for a, b in zip(between, ended)))
"""


async def memory_held(site: Site, *, conversations: int = 200, size: int = 50) -> list[Bar]:
    """The two bars on memory."""
    held = await hold_conversations(site, conversations=conversations, size=size)
    how = (
        f"{conversations} conversations of {size} items, traced by tracemalloc: "
        f"{held.traced / 1e6:.2f} MB for {held.json / 1e6:.2f} MB of JSON"
    )
    # Counting too little and counting too much are the same mistake.
    off = max(held.counted / held.traced, held.traced / held.counted) - 1
    return [
        Bar(
            "bytes of memory per byte of JSON held",
            "at most 4",
            4.0,
            held.traced / held.json,
            "",
            how,
        ),
        Bar(
            "bytes as the cache counts them, against those bytes of memory",
            "within 25 %",
            25.0,
            off * 100,
            "%",
            f"{how}; counted: {held.counted / 1e6:.2f} MB",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Imports:
    """Seconds of `import agents`, and of `import cached_session` after it, in a new process.

    Attributes:
        agents: Time.
        agents_cpu: CPU seconds.
        own: Time.
        own_cpu: CPU seconds.
    """

    agents: float
    agents_cpu: float
    own: float
    own_cpu: float


def import_both() -> Imports:
    """Imports both in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True
    )
    return Imports(*map(float, done.stdout.split()))


async def imports(*, times: int = 9) -> list[Bar]:
    """The bar on the import."""
    # One that nobody counts: it writes the compiled modules.
    taken = [import_both() for _ in range(times + 1)][1:]
    agents = min(one.agents for one in taken) * 1e3
    own = [one.own * 1e3 for one in taken]
    cpu = min(one.own_cpu for one in taken) * 1e3
    return [
        Bar(
            "`import cached_session` beyond `import agents`",
            "at most 80 ms",
            80.0,
            min(own),
            "ms",
            f"the quickest of {times} new processes, compiled modules present (p50 "
            f"{percentile(own, 50):.0f} ms); `import agents` itself "
            f"takes {agents:.0f} ms; CPU time of ours: {cpu:.0f} ms",
        )
    ]
