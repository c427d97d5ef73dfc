"""Bars on the outbox: the loop that does not wait for the server, and full batches."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from openai import AsyncOpenAI

from benchmarks.bars.loops import Played
from benchmarks.bars.table import Bar
from benchmarks.kinds import Counter, outbox_session, put_away
from benchmarks.loops import Loop, run_loop
from benchmarks.payload import items
from benchmarks.sites import BATCH, Site
from benchmarks.timing import Stopwatch
from cached_session.core.items import accept
from cached_session.outbox import SQLiteOutbox
from cached_session.session import CachedSession


async def loop_against_file(
    site: Site, *, latency: float, runs: int = 100, times: int = 5
) -> list[Bar]:
    """The bar on the loop with an outbox, at one latency.

    Whole loops are compared: what goes on in the background falls on other
    runs each time, and the quickest of each run would leave it out.
    """
    rounds = [await _one_round(site, runs) for _ in range(times)]
    ours, local = _quickest(one.ours for one in rounds), _quickest(one.local for one in rounds)
    played = _quickest(one.played for one in rounds)
    least = _quickest(one.recorded for one in rounds)
    flushed = min(one.flushed for one in rounds)
    requests = max(one.requests for one in rounds)
    later = sum(ours.seconds[1:]) / sum(local.seconds[1:])
    return [
        Bar(
            f"{runs} runs with one tool call at {latency * 1e3:g} ms, with a `SQLiteOutbox`, "
            "against the loop on `SQLiteSession` on file",
            "at most 1.1",
            1.1,
            ours.total / local.total,
            "",
            f"scripted model, tracing off; the quickest of {times} loops: {ours} against {local}. "
            f"{requests} requests; when the last run has ended, `flush()` takes another "
            f"{flushed:.2f} s. The first run, which makes the conversation, takes "
            f"{ours.seconds[0]:.2f} s; without it the ratio is {later:.2f}. As yardsticks: "
            "on a session that sends nothing and reads the same history without any "
            f"cost the loop takes {played}, {played.total / local.total:.2f} of `SQLiteSession`; "
            f"if that one commits each append to a table of SQLite, {least}, "
            f"{least.total / local.total:.2f}",
        )
    ]


def _quickest(loops: Iterable[Loop]) -> Loop:
    return min(loops, key=lambda loop: loop.total)


class _Recorded(Played):
    """Plays back, and records each append by one bare commit.

    Args:
        history: As in `Played`.
        client: As in `Played`.
        conversation_id: As in `Played`.
        path: The file.
    """

    def __init__(
        self, history: Sequence[Any], client: AsyncOpenAI, conversation_id: str, path: Path
    ) -> None:
        super().__init__(history, client, conversation_id)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE items (seq INTEGER PRIMARY KEY, data BLOB)")

    async def add_items(self, items: list[Any]) -> None:
        """One commit, in another thread, as its wait for the disk is nobody else's; and on."""
        await asyncio.to_thread(self._commit, accept(items))
        await super().add_items(items)

    def _commit(self, items: list[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO items (data) VALUES (?)", zip(items))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Round:
    """One loop on each session.

    Attributes:
        ours: The one with an outbox.
        local: `SQLiteSession` on file.
        played: The same history in memory; see `Played`.
        recorded: The same, with a commit for each append.
        flushed: Seconds that the flush behind ours took.
        requests: Our requests.
    """

    ours: Loop
    local: Loop
    played: Loop
    recorded: Loop
    flushed: float
    requests: int


async def _one_round(site: Site, runs: int) -> _Round:
    counter = Counter()
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as directory:
        file = SQLiteSession("bench", Path(directory) / "sessions.db")
        local = await run_loop(file, runs=runs, tools=1)
        file.close()
        async with site.client(counter) as client:
            outbox = SQLiteOutbox(Path(directory) / "outbox.db")
            session = outbox_session(client, outbox)
            ours = await run_loop(session, runs=runs, tools=1)
            with Stopwatch() as watch:
                await session.flush()
            requests = counter.requests
            history = await session.get_items()
            memory = Played(history, client, session.session_id)
            played = await run_loop(memory, runs=runs, tools=1)
            table = _Recorded(history, client, session.session_id, Path(directory) / "table.db")
            recorded = await run_loop(table, runs=runs, tools=1)
            table.close()
            await put_away(site, [session])
            await session.aclose()
            await outbox.aclose(timeout=60)
    return _Round(ours, local, played, recorded, watch.seconds, requests)


async def full_batches(site: Site, *, appends: int = 10_000, size: int = 3) -> list[Bar]:
    """The bars on many small appends as fast as they come."""
    counter = Counter()
    sent = items(size)
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as directory:
        async with site.client(counter) as client:
            outbox = SQLiteOutbox(Path(directory) / "outbox.db")
            session = outbox_session(client, outbox)
            tracemalloc.start()
            # The first time, what grows with the number of tasks grows.
            _, before = await _burst(session, sent, appends)
            requests = counter.requests
            seconds, after = await _burst(session, sent, appends)
            made = counter.requests - requests
            tracemalloc.stop()
            await put_away(site, [session])
            await session.aclose()
            await outbox.aclose(timeout=60)
    least = appends * size / BATCH
    how = f"{appends:,} `add_items` calls of {size} items at once, accepted in {seconds:.1f} s"
    return [
        Bar(
            f"requests of {appends:,} appends of {size} items, against items/{BATCH}",
            "within 5 %",
            1.05,
            made / least,
            "",
            f"{how}; {made:,} requests for {appends * size:,} items",
        ),
        Bar(
            "memory that they leave behind, for each item",
            "flat: at most 4 bytes",
            4.0,
            max(0, after - before) / (appends * size),
            "bytes",
            f"{how}; {(after - before) / 1e3:.0f} KB more than after the same before, both times "
            "with everything sent and the local copy dropped",
        ),
    ]


async def _burst(session: CachedSession, sent: list[Any], appends: int) -> tuple[float, int]:
    """Seconds until all is accepted, and the memory that is left when all is sent."""
    with Stopwatch() as watch:
        await asyncio.gather(*(session.add_items(sent) for _ in range(appends)))
    await session.flush(600)
    await session.refresh()
    gc.collect()
    return watch.seconds, tracemalloc.get_traced_memory()[0]
