"""`reads`: reads of what is held, by size and limit, and the bare copy beside them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator, Callable

from cached_session.bench.harness import Bench, Work, numbers
from cached_session.bench.kinds import Counter
from cached_session.bench.payload import items, structural_copy
from cached_session.bench.results import Figure
from cached_session.bench.sites import BATCH
from cached_session.bench.timing import Action, alternate, spread

BARE = "bare structural copy"


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
    parser.add_argument("--rounds", type=int, default=100, help="calls of each kind (100)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds for one size and limit (20)"
    )


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    site = bench.sites.at()
    for size in options.sizes:
        async with contextlib.AsyncExitStack() as stack:
            sessions = {}
            with bench.measuring(f"reads: storing {size:,} items", len(bench.kinds)) as step:
                for kind in bench.kinds:
                    make = await stack.enter_async_context(kind.shelf(site, Counter()))
                    sessions[kind.name] = make()
                    stored = items(size)
                    # Releases of the SDK before 0.24 send what they are given
                    # in one request, and more than a batch is refused.
                    for start in range(0, size, BATCH):
                        await sessions[kind.name].add_items(stored[start : start + BATCH])
                    step()
                if not sessions:
                    return
                held = await next(iter(sessions.values())).get_items()
            for limit in options.limits:
                if limit > size:
                    continue
                part = held[-limit:]
                actions: dict[str, Action] = {BARE: _bare(part)}
                for name, session in sessions.items():
                    actions[name] = _read(session.get_items, limit or None)
                which = f"get_items({limit or ''}) of {size:,} items held"
                with bench.measuring(f"reads: {which}", 1):
                    taken = await alternate(actions, rounds=options.rounds, seconds=options.seconds)
                for name, seconds in taken.items():
                    yield Figure(
                        "reads",
                        f"{which}, after all were stored with add_items, {bench.at(0.0)}",
                        name,
                        {"items": size, "limit": limit or "all"},
                        {**spread(seconds, "us"), "calls": len(seconds)},
                    )


def _bare(part: object) -> Action:
    async def copy() -> object:
        return structural_copy(part)

    return copy


def _read(get_items: Callable[[int | None], object], limit: int | None) -> Action:
    return lambda: get_items(limit)  # type: ignore[return-value]  # a coroutine


WORK = Work("reads", "reads of what is held, by size and limit", _options, _run)
