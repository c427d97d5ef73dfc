"""The bars: what this package has to reach, as ratios taken within one run.

A bar is about the code, so the quick ones of several repeats stand for each
side. The others say what else the machine did meanwhile. What a user sees of a
busy machine is in the figures' percentiles.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any, TypeAlias

from benchmarks.harness import count
from benchmarks.kinds import (
    KIND_FILE,
    KIND_MEMORY,
    KIND_OURS,
    KIND_SDK,
    MEMORY,
    OURS,
    SDK,
    cached_session,
    new_file,
    outbox_sessions,
    put_away,
)
from benchmarks.payload import items
from benchmarks.results import Bar
from benchmarks.sites import BATCH, Counter, Site, Sites
from benchmarks.timing import Taken, percentile
from benchmarks.work.appends import appends_in_turn
from benchmarks.work.cold import cold_reads
from benchmarks.work.imports import import_both
from benchmarks.work.loop import bare_loop, loop_on, run_loop
from benchmarks.work.memory import hold_conversations
from benchmarks.work.reads import BARE, SHORT, read_all_and_few
from benchmarks.yardsticks import Bare, Played, Table
from cached_session import CachedSession

# Seconds between request and answer where the table says so.
LATENCY = 0.05


# What both sides of a ratio are multiplied with, and how they are put into words.
_Scale: TypeAlias = tuple[float, str]
_S: _Scale = (1, "{:.2f} s")
_MS: _Scale = (1e3, "{:.2f} ms")
_US: _Scale = (1e6, "{:.1f} us")


def _ratio(
    work: str, most: float, ours: float, theirs: float, scale: _Scale, how: str, words: str = ""
) -> Bar:
    """A bar on ours against theirs; `how` has a place for both sides."""
    sides = " against ".join(scale[1].format(side * scale[0]) for side in (ours, theirs))
    return Bar(work, ours / theirs, most, how.format(sides), words=words)


async def reads(
    site: Site, *, size: int = 1000, large: int = 10_000, few: int = 20, rounds: int = 100
) -> list[Bar]:
    """The four bars on reads of what is held."""
    taken = await read_all_and_few(
        site, cached_session, size=size, large=large, few=few, turns=rounds, turns_of_few=rounds
    )
    whole, some = ({name: percentile(one[name], 10) for name in one} for one in taken)
    how, how_few = (f"p10 of {len(one[OURS])} calls each, in turn: {{}}" for one in taken)
    copy = "a plain recursive copy of the same items; "
    held = f"`get_items()` of {size:,}"
    few_held = f"`get_items({few})` of {large:,} items held, against"
    bare = f"{held} items held, against the bare structural copy"
    sqlite = f'{held} held, against `SQLiteSession(":memory:")`'
    short = f"{few_held} the same of {few * 5:,} held"
    same = "the same (at most 1.1)"
    return [
        _ratio(bare, 1.15, whole[OURS], whole[BARE], _MS, copy + how),
        _ratio(f"{few_held} the copy of {few}", 1.5, some[OURS], some[BARE], _US, copy + how_few),
        _ratio(short, 1.1, some[OURS], some[SHORT], _US, how_few, same),
        _ratio(sqlite, 1 / 5, whole[OURS], whole[MEMORY], _MS, f"the same items; {how}"),
    ]


async def cold(site: Site, *, size: int = 10_000, latency: float, times: int = 3) -> list[Bar]:
    """The three bars on the first read."""
    taken = await cold_reads(site, (KIND_OURS, KIND_SDK), size=size, times=times)
    ours, sdk = taken[OURS], taken[SDK]
    work = f"cold read of {size:,} items at {latency * 1e3:g} ms, against the SDK session"
    how = (
        "first `get_items()` of a new session on an open connection; "
        f"the least of {times} each: {{}}"
    )
    cpu = f"{how} of this process"
    return [
        _ratio(f"{work}: time", 1 / 9, min(ours.seconds), min(sdk.seconds), _S, how),
        _ratio(f"{work}: requests", 1 / 5, min(ours.requests), min(sdk.requests), (1, "{}"), how),
        _ratio(f"{work}: CPU", 1 / 5, min(ours.cpu), min(sdk.cpu), _S, cpu),
    ]


async def appends(site: Site, *, size: int = 1000, times: int = 5) -> list[Bar]:
    """The bar on a long append."""
    taken = await appends_in_turn(site, (KIND_OURS, KIND_SDK), size=size, times=times)
    work = f"append of {size:,} items, CPU against the SDK session"
    how = (
        f"one `add_items` to a new conversation, {count(min(taken[OURS].requests), 'request')}; "
        f"the least of {times} each: {{}} of this process"
    )
    return [_ratio(work, 1 / 6, min(taken[OURS].cpu), min(taken[SDK].cpu), (1, "{:.3f} s"), how)]


async def loop(site: Site, *, latency: float, runs: int = 100, times: int = 3) -> list[Bar]:
    """The bars on the loop's time beyond its round trips.

    A round trip is what one bare append over the same client takes. What the
    bar is a share of can be read in two ways; both are here.
    """
    rounds = [await _remote_round(site, runs) for _ in range(times)]
    ours, trips, memory, least = map(_quickest_runs, zip(*rounds, strict=True))
    requests = 1 + 3 * runs
    beyond = ours.total - trips.total - memory.total
    work = f"{runs} runs with one tool call at {latency * 1e3:g} ms: time beyond"
    how = (
        f"scripted model, tracing off; sum over the runs of the quickest of {times} loops: "
        f"{ours}, of it {trips} for {requests} bare requests over the same client, and {memory} "
        "for the loop on `SQLiteSession` in memory. The loop on a session that sends the same "
        f"requests bare, and reads without any cost, takes {least}: what is run after a wait is "
        "slower than in one go. Beyond that one ours takes "
        f"{(ours.total / least.total - 1) * 100:.1f} %"
    )
    both = (
        f"{work} the {requests} round trips and the loop on `SQLiteSession` in memory, as a share "
        "of both together"
    )
    alone = f"{work} the same, as a share of the loop on `SQLiteSession` alone"
    return [
        Bar(both, beyond / (trips.total + memory.total) * 100, 3.0, how, "%"),
        Bar(alone, beyond / memory.total * 100, 3.0, "as above", "%"),
    ]


def _quickest_runs(loops: Sequence[Taken]) -> Taken:
    """Each run as it was in the quickest of several loops: noise seldom meets it in all."""
    return Taken(
        [min(run) for run in zip(*(one.seconds for one in loops), strict=True)],
        [min(run) for run in zip(*(one.cpu for one in loops), strict=True)],
    )


async def _remote_round(site: Site, runs: int) -> tuple[Taken, ...]:
    """One loop each: ours, bare requests, SQLite, and bare requests in the loop."""
    async with site.client() as client:
        session, bare, least_of_all = cached_session(client), Bare(client), Bare(client)
        ours = await run_loop(session, runs=runs)
        history = await session.get_items()
        trips = await bare_loop(bare, runs)
        memory = await loop_on(KIND_MEMORY, site, runs=runs)
        played = Played(history, client, session.session_id, least_of_all.add_items)
        least = await run_loop(played, runs=runs)
        await put_away(site, [session, bare, least_of_all])
    return ours, trips, memory, least


async def outbox_loop(site: Site, *, latency: float, runs: int = 100, times: int = 5) -> list[Bar]:
    """The bar on the loop with an outbox, at one latency.

    Whole loops are compared: what goes on in the background falls on other
    runs each time, and the quickest of each run would leave it out.
    """
    rounds = [await _outbox_round(site, runs) for _ in range(times)]
    ours, flush, local, played, least = (
        min(loops, key=lambda one: one.total) for loops in zip(*rounds, strict=True)
    )
    requests = max(sum(one[0].requests) for one in rounds)
    later = sum(ours.seconds[1:]) / sum(local.seconds[1:])
    work = (
        f"{runs} runs with one tool call at {latency * 1e3:g} ms, with a `SQLiteOutbox`, against "
        "the loop on `SQLiteSession` on file"
    )
    how = (
        f"scripted model, tracing off; the quickest of {times} loops: {ours} against {local}. "
        f"{requests} requests; when the last run has ended, `flush()` takes another "
        f"{flush.total:.2f} s. The first run, which makes the conversation, takes "
        f"{ours.seconds[0]:.2f} s; without it the ratio is {later:.2f}. As yardsticks: on a "
        "session that sends nothing and reads the same history without any cost the loop takes "
        f"{played}, {played.total / local.total:.2f} of `SQLiteSession`; if that one commits each "
        f"append to a table of SQLite, {least}, {least.total / local.total:.2f}"
    )
    return [Bar(work, ours.total / local.total, 1.1, how)]


async def _outbox_round(site: Site, runs: int) -> tuple[Taken, ...]:
    """One loop each: ours and its flush, SQLite on file, and what ours left, played back."""
    local = await loop_on(KIND_FILE, site, runs=runs)
    counter, flush = Counter(), Taken()
    async with outbox_sessions(site, counter) as make, site.client() as client:
        session = make()
        ours = await run_loop(session, runs=runs)
        with flush.call():
            await session.flush()
        ours.requests.append(counter.requests)
        history, made = await session.get_items(), session.session_id
        played = await run_loop(Played(history, client, made), runs=runs)
        with new_file() as path, closing(Table(path)) as table:
            recorded = await run_loop(Played(history, client, made, table.record), runs=runs)
    return ours, flush, local, played, recorded


async def batches(site: Site, *, appends: int = 10_000, size: int = 3) -> list[Bar]:
    """The bars on many small appends, as fast as they come, with an outbox."""
    counter = Counter()
    sent = items(size)
    async with outbox_sessions(site, counter) as make:
        session = make()
        tracemalloc.start()
        # The first time, what grows with the number of tasks grows.
        _, before = await _burst(session, sent, appends)
        requests = counter.requests
        taken, after = await _burst(session, sent, appends)
        made = counter.requests - requests
        tracemalloc.stop()
    total = appends * size
    how = f"{appends:,} `add_items` calls of {size} items at once, accepted in {taken.total:.1f} s"
    left = (
        f"{how}; {(after - before) / 1e3:.0f} KB more than after the same before, both times with "
        "everything sent and the local copy dropped"
    )
    flat = "memory that they leave behind, for each item"
    return [
        Bar(
            f"requests of {appends:,} appends of {size} items, against items/{BATCH}",
            made / (total / BATCH),
            1.05,
            f"{how}; {made:,} requests for {total:,} items",
            words="within 5 %",
        ),
        Bar(flat, max(0, after - before) / total, 4.0, left, "bytes", "flat: at most 4 bytes"),
    ]


async def _burst(session: CachedSession, sent: list[Any], appends: int) -> tuple[Taken, int]:
    """The time until all is accepted, and the memory that is left when all is sent."""
    taken = Taken()
    with taken.call():
        await asyncio.gather(*(session.add_items(sent) for _ in range(appends)))
    await session.flush(600)
    await session.refresh()
    gc.collect()
    return taken, tracemalloc.get_traced_memory()[0]


async def memory(site: Site, *, conversations: int = 200, size: int = 50) -> list[Bar]:
    """The two bars on memory."""
    held = await hold_conversations(site, conversations=conversations, size=size)
    how = (
        f"{conversations} conversations of {size} items, traced by tracemalloc: "
        f"{held.traced / 1e6:.2f} MB for {held.json / 1e6:.2f} MB of JSON"
    )
    # Counting too little and counting too much are the same mistake.
    off = max(held.counted / held.traced, held.traced / held.counted) - 1
    counting = "bytes as the cache counts them, against those bytes of memory"
    counted = f"{how}; counted: {held.counted / 1e6:.2f} MB"
    return [
        Bar("bytes of memory per byte of JSON held", held.traced / held.json, 4.0, how),
        Bar(counting, off * 100, 25.0, counted, "%", "within 25 %"),
    ]


async def late(
    site: Site, *, runs: int = 400, early: int = 10, limit: int = 40, times: int = 2
) -> list[Bar]:
    """The bar on a late run's time where the model is given the newest items only."""
    loops = [(await loop_on(KIND_OURS, site, runs=runs, limit=limit)).seconds for _ in range(times)]
    # Ten runs from the named one on, and ten that end with the last one.
    first = percentile([run for taken in loops for run in taken[early - 1 : early + 9]], 10)
    last = percentile([run for taken in loops for run in taken[-10:]], 10)
    work = f"time per run at the {runs}th run with `limit={limit}` against the {early}th"
    how = (
        f"one tool call, no latency, {times} loops; p10 of runs {runs - 9} to {runs}: "
        f"{last * 1e3:.1f} ms, of runs {early} to {early + 9}: {first * 1e3:.1f} ms"
    )
    return [Bar(work, last / first, 1.1, how)]


async def imports(*, times: int = 9) -> list[Bar]:
    """The bar on the import."""
    # One that nobody counts: it writes the compiled modules.
    import_both(1)
    agents, ours = import_both(times)
    how = (
        f"the quickest of {times} new processes, compiled modules present (p50 "
        f"{percentile(ours.seconds, 50) * 1e3:.0f} ms); `import agents` itself takes "
        f"{min(agents.seconds) * 1e3:.0f} ms; CPU time of ours: {min(ours.cpu) * 1e3:.0f} ms"
    )
    work = "`import cached_session` beyond `import agents`"
    return [Bar(work, min(ours.seconds) * 1e3, 80.0, how, "ms")]


BARS: dict[str, Callable[[Sites], Awaitable[list[Bar]]]] = {
    "reads": lambda sites: reads(sites.at()),
    "cold": lambda sites: cold(sites.at(LATENCY), latency=LATENCY),
    "appends": lambda sites: appends(sites.at()),
    "loop": lambda sites: loop(sites.at(LATENCY), latency=LATENCY),
    "outbox-50": lambda sites: outbox_loop(sites.at(LATENCY), latency=LATENCY),
    "outbox-200": lambda sites: outbox_loop(sites.at(0.2), latency=0.2),
    "batches": lambda sites: batches(sites.at()),
    "memory": lambda sites: memory(sites.at()),
    "late": lambda sites: late(sites.at()),
    "import": lambda _: imports(),
}
