"""Time and CPU: how they are taken, and what is said of many of them."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

Action: TypeAlias = Callable[[], Awaitable[Any]]


class Stopwatch:
    """Takes the time of its `with` block.

    Attributes:
        seconds: What the clock on the wall says.
        cpu: CPU seconds of this process, all threads together. The server of
            the benchmarks is another process.
    """

    seconds = 0.0
    cpu = 0.0

    def __enter__(self) -> Self:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu = time.process_time() - self._cpu_started


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float], unit: str = "ms") -> dict[str, float]:
    """Three percentiles of seconds, named with their unit: "ms" or "us"."""
    scale = {"ms": 1e3, "us": 1e6}[unit]
    return {f"p{percent} {unit}": percentile(values, percent) * scale for percent in (50, 95, 99)}


async def alternate(
    actions: Mapping[str, Action], *, rounds: int, calls: int = 1, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Times several actions in turn, call by call, so that noise meets all of them alike.

    Args:
        actions: What to time, by name. Each is called once before, untimed.
        rounds: How often each one has its turn.
        calls: How often it is called in one turn.
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
