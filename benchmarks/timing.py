"""Time and CPU: how they are taken, and what is said of many of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Action: TypeAlias = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class Taken:
    """What calls took: each list has an entry for a call, in the order in which they ended.

    Attributes:
        seconds: What the clock on the wall says.
        cpu: CPU seconds of this process, all threads together. The server of the benchmarks is
            another process.
        requests: Requests that were sent, where somebody counted.
        failed: How many of the calls ended with an exception.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    failed: int = 0

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Takes the time of its block."""
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds.append(time.perf_counter() - started)
            self.cpu.append(time.process_time() - cpu_started)

    @property
    def total(self) -> float:
        """Seconds of all calls together."""
        return sum(self.seconds)

    @property
    def total_cpu(self) -> float:
        """CPU seconds of all calls together."""
        return sum(self.cpu)

    def __str__(self) -> str:
        return f"{self.total:.2f} s ({self.total_cpu:.2f} s CPU)"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float], unit: str = "ms") -> dict[str, float]:
    """Three percentiles of seconds, named with their unit: "ms" or "us"."""
    scale = {"ms": 1e3, "us": 1e6}[unit]
    return {f"p{percent} {unit}": percentile(values, percent) * scale for percent in (50, 95, 99)}


async def at_once(
    many: int, times: int, action: Callable[[int], Awaitable[Any]], step: Callable[[], None]
) -> tuple[Taken, Taken]:
    """Calls an action so many times in a row, and so many of these rows at once.

    Args:
        many: How many rows.
        times: How many calls in each of them.
        action: What to call, with the number of its row.
        step: Called after each call.

    Returns:
        What each call took, and what all of them together took. CPU is known of the latter only.
    """
    each, together = Taken(), Taken()

    async def row(number: int) -> None:
        for _ in range(times):
            with each.call():
                await action(number)
            step()

    with together.call():
        await asyncio.gather(*map(row, range(many)))
    return each, together


def paired(ours: Sequence[float], other: Sequence[float], calls: int = 1) -> float:
    """How often one action takes the time of another, of which `alternate` took the times.

    The median over the turns, of the best call of ours by the best of the other in the same turn.
    A processor whose other half is busy takes half as long again, for some turns of both or for
    most. By the best of all turns, one action may have met it idle and the other never.

    Args:
        ours: Seconds of each call of the one.
        other: Those of the other.
        calls: How many calls make a turn.
    """
    turns = [
        [min(taken[start : start + calls]) for start in range(0, len(taken), calls)]
        for taken in (ours, other)
    ]
    ratios = [one / two for one, two in zip(*turns, strict=True)]
    middle: float = statistics.median(ratios)
    return middle


async def alternate(
    actions: Mapping[str, Action], *, rounds: int, calls: int = 1, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Times several actions in turn, call by call, so that noise meets all of them alike.

    Args:
        actions: What to time, by name. Each is called once before, untimed.
        rounds: How often each one has its turn.
        calls: How often it is called in one turn. What is called next finds the processor's
            caches full of what was called before.
        seconds: No new round is begun after this time; at least three are.

    Returns:
        Seconds of each call, by name.
    """
    for action in actions.values():
        await action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    clock = time.perf_counter
    end = clock() + seconds
    for number in range(rounds):
        if number >= 3 and clock() > end:
            break
        for name, action in actions.items():
            spent = taken[name]
            for _ in range(calls):
                started = clock()
                result = await action()
                spent.append(clock() - started)
                # Freed out of the time: freeing belongs to the caller's own work.
                del result
    return taken
