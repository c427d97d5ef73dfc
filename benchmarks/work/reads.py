"""`reads`: reads of what is held, by size and limit, and the bare copy beside them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agents.memory import Session

from benchmarks.harness import Bench, Work, amount, numbers
from benchmarks.kinds import SDK, Counter
from benchmarks.payload import items, structural_copy
from benchmarks.results import Figure
from benchmarks.sites import BATCH
from benchmarks.timing import Action, alternate, spread

BARE = "bare structural copy"

# Calls of each kind in one turn. What is called next finds the processor's
# caches full of what was called before.
_CALLS = 5


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=numbers, default=[100, 1000, 10_000], help="items held (100,1000,10000)"
    )
    parser.add_argument(
        "--limits",
        type=numbers,
        default=[0, 20, 100],
        help="newest items to read, 0 for all of them (0,20,100)",
    )
    parser.add_argument("--rounds", type=amount, default=100, help="turns of each kind (100)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds for one size and limit (20)"
    )


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    for size in options.sizes:
        async with contextlib.AsyncExitStack() as stack:
            sessions: dict[str, Session] = {}
            with bench.measuring(f"reads: storing {size:,} items", len(bench.kinds)) as step:
                for kind in bench.kinds:
                    shelf = kind.shelf(bench.sites.at(), Counter())
                    sessions[kind.name] = (await stack.enter_async_context(shelf))()
                    await _store(sessions[kind.name], items(size))
                    step()
            held = await sessions[bench.kinds[0].name].get_items()
            for limit in options.limits:
                if limit > size:
                    continue
                which = f"get_items({limit or ''}) of {size:,} items held"
                with bench.measuring(f"reads: {which}", 1):
                    taken = await _times(sessions, held, limit, options.rounds, options.seconds)
                for name, seconds in taken.items():
                    yield Figure(
                        "reads",
                        f"{which}, after all were stored with add_items, {bench.at(0.0)}",
                        name,
                        {"items": size, "limit": limit or "all"},
                        {**spread(seconds, "us"), "calls": len(seconds)},
                    )


async def _store(session: Session, stored: list[Any]) -> None:
    # Releases of the SDK before 0.24 send what they are given in one request,
    # and more than a batch is refused.
    for start in range(0, len(stored), BATCH):
        await session.add_items(stored[start : start + BATCH])


async def _times(
    sessions: dict[str, Session], held: list[Any], limit: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of each call; what holds its items here in turn, then what has to ask."""
    newest = held[-limit:]

    async def bare() -> Any:
        return structural_copy(newest)

    def read(session: Session) -> Action:
        return lambda: session.get_items(limit or None)

    local = {BARE: bare} | {
        name: read(session) for name, session in sessions.items() if name != SDK
    }
    taken = await alternate(local, rounds=rounds, calls=_CALLS, seconds=seconds / 2)
    if SDK in sessions:
        asking = {SDK: read(sessions[SDK])}
        taken |= await alternate(asking, rounds=rounds, seconds=seconds / 2)
    return taken


WORK = Work("reads", "reads of what is held, by size and limit", _options, _run)
