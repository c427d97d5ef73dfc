"""`reads`: reads of what is held, by size and limit, and the bare copy beside them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agents import SQLiteSession
from agents.memory import Session

from benchmarks.harness import Bench, Work, amount, numbers
from benchmarks.kinds import MEMORY, OURS, SDK, MakeSession
from benchmarks.payload import items, structural_copy
from benchmarks.results import Figure
from benchmarks.sites import BATCH, Counter, Site
from benchmarks.timing import Action, alternate, spread

BARE = "bare structural copy"

# Of the shorter one of two conversations, of which the same few items are read.
SHORT = "the same of a short one"

# Calls of each in one turn.
CALLS = 5
CALLS_OF_FEW = 20


def _read(session: Session, limit: int | None = None) -> Action:
    return lambda: session.get_items(limit)


def _copy(held: list[Any]) -> Action:
    async def bare() -> Any:
        return structural_copy(held)

    return bare


async def read_all_and_few(
    site: Site, make: MakeSession, *, size: int, large: int, few: int, turns: int, turns_of_few: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times reads of what our session holds, in turn with what they are held against.

    Args:
        site: A server; none of the reads that are timed asks it.
        make: Makes our session.
        size: Items held where all of them are read.
        large: Items held where the newest `few` are read; the short conversation has five times
            as many as are read.
        few: See `large`.
        turns: How often each read of all has its turn.
        turns_of_few: How often each read of few has its turn.

    Returns:
        Seconds of each call of all items, of ours, the bare copy and SQLite in memory; and of few
        items, of ours, the bare copy and the short conversation.
    """
    stored = items(size), items(large), items(few * 5)
    with contextlib.closing(SQLiteSession("bench")) as local:
        async with site.holding(*stored) as (client, made):
            whole, long, short = [make(client, conversation_id) for conversation_id in made]
            held, newest = await whole.get_items(), (await long.get_items())[-few:]
            await short.get_items()
            await local.add_items(held)
            of_all = {OURS: _read(whole), BARE: _copy(held), MEMORY: _read(local)}
            of_few = {OURS: _read(long, few), BARE: _copy(newest), SHORT: _read(short, few)}
            return (
                await alternate(of_all, rounds=turns, calls=CALLS),
                await alternate(of_few, rounds=turns_of_few, calls=CALLS_OF_FEW),
            )


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
                # What holds its items here in turn, then what has to ask.
                local = {BARE: _copy(held[-limit:])}
                local |= {name: _read(one, limit or None) for name, one in sessions.items()}
                asking = {SDK: local.pop(SDK)} if SDK in local else {}
                with bench.measuring(f"reads: {which}", 1):
                    rounds, half = options.rounds, options.seconds / 2
                    taken = await alternate(local, rounds=rounds, calls=CALLS, seconds=half)
                    taken |= await alternate(asking, rounds=rounds, seconds=half)
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


WORK = Work("reads", "reads of what is held, by size and limit", _options, _run)
