"""The bars of a fleet: what a ledger in PostgreSQL costs beside the engine's own bare calls.

All of it runs on a server that is started for it, with the disk of this machine, and as a user has
it: a commit is on the disk when it is confirmed. Ratios are taken within one run, in turn.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from openai import AsyncOpenAI

from benchmarks.kinds import KIND_FILE
from benchmarks.payload import items
from benchmarks.results import Bar
from benchmarks.sites import Counter, Site, Sites
from benchmarks.statements import Statements
from benchmarks.timing import percentile
from benchmarks.work.loop import run_loop
from cached_session import CachedSession, ConversationCache, PostgresOutbox
from tests.postgres import Server, server
from tests.proxy import Fate, Proxy, before

# As an engine is by default, and nobody is told of a commit that is not on the disk.
AS_IT_IS = ("fsync = on", "synchronous_commit = on")
# A disk, or a standby, that takes 10 ms for a commit; those that come meanwhile share it.
SLOW = (*AS_IT_IS, "commit_delay = 10000", "commit_siblings = 0")

# Seconds between a request to OpenAI and its answer.
LATENCY = 0.08

# What a worker asks by itself, behind its calls.
_BY_ITSELF = ("waiting", "expire")


class Asked:
    """What an engine is asked, by who goes through here, a statement each."""

    def __init__(self, address: str, proxy: Proxy) -> None:
        self.address = psycopg.conninfo.make_conninfo(address, port=proxy.port)
        self._all: list[str] = []
        proxy.rule = self._rule

    def _rule(self, data: bytes) -> Fate:
        # The end of a statement with parameters, and one without.
        if data.endswith(b"S\0\0\0\4") or data.startswith(b"Q"):
            found = re.search(rb"cached_session\.(\w+)", data)
            self._all.append(found[1].decode() if found else "")
        return Fate.PASS

    def since(self, *, calls: bool = True) -> int:
        """How much since the last time; `calls`: for the calls of sessions only."""
        asked, self._all = self._all, []
        return sum(name not in _BY_ITSELF for name in asked) if calls else len(asked)


class Worker:
    """What one process of a fleet has: a client, a cache, an outbox."""

    def __init__(self, site: Site, address: str) -> None:
        self.counter = Counter()
        self.client: AsyncOpenAI = site.client(self.counter)
        self.outbox = PostgresOutbox(address, account="bench")
        self._cache = ConversationCache(max_bytes=1 << 30)

    def session(self, conversation: str) -> CachedSession:
        """A new session on a conversation."""
        return CachedSession(
            conversation_id=conversation,
            openai_client=self.client,
            cache=self._cache,
            outbox=self.outbox,
        )

    async def __aenter__(self) -> Worker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.outbox.aclose(timeout=30)
        await self.client.close()


async def kept(site: Site, address: str, size: int) -> str:
    """A conversation of so many items, which the ledger has."""
    async with Worker(site, address) as worker:
        conversation = await site.fill(worker.client, items(size), in_order=True)
        await worker.session(conversation).get_items()
        return conversation


async def steady(site: Site, engine: Server, *, size: int = 20, rounds: int = 1000) -> list[Bar]:
    """The bars on reads of what nobody has changed."""
    address = engine.with_tables()
    conversation = await kept(site, address, size)
    with before(engine.port) as proxy:
        asked = Asked(address, proxy)
        async with Worker(site, asked.address) as worker:
            session = worker.session(conversation)
            await session.get_items()
            asked.since()
            for _ in range(10):
                await session.get_items()
            requests, trips = worker.counter.requests, asked.since() / 10
    async with Worker(site, address) as worker, _statements(address) as bare:
        session = worker.session(conversation)

        async def select() -> None:
            await bare.ask(
                "SELECT number, claims FROM cached_session.conversations WHERE number = %s", 1
            )

        ours, theirs = await _in_turn(session.get_items, select, rounds)
    how = (
        f"`get_items()` of {size} items that nobody has changed, against one row by its key, which "
        f"another thread of the same kind asks for; p50 of {rounds} calls each, in turn: "
        f"{ours * 1e6:.0f} us against {theirs * 1e6:.0f} us"
    )
    return [
        Bar("steady reads: requests to OpenAI", requests, 0, "10 reads", "requests", "0"),
        Bar("steady reads: round trips to the engine each", trips, 1, "10 reads", "each", "1"),
        Bar("steady reads, against a bare SELECT", ours / theirs, 1.3, how),
    ]


async def appends(site: Site, engine: Server, *, rounds: int = 500) -> list[Bar]:
    """The bars on appends, and on the whole way of a batch."""
    address = engine.with_tables()
    conversation = await kept(site, address, 0)
    sent = items(2)
    with before(engine.port) as proxy:
        asked = Asked(address, proxy)
        async with Worker(site, asked.address) as worker:
            session = worker.session(conversation)
            await session.get_items()
            asked.since()
            worker.counter.requests = 0
            for _ in range(10):
                await session.add_items(sent)
                await session.flush()
            cycle, requests = asked.since() / 10, worker.counter.requests / 10
    async with Worker(site, address) as worker, _statements(address) as bare:
        session = worker.session(conversation)
        await session.get_items()
        await bare.ask(
            "CREATE TABLE bare (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            "conversation bigint NOT NULL, accepted_at double precision NOT NULL, "
            "data bytea NOT NULL)"
        )
        await bare.ask("CREATE INDEX ON bare (conversation, seq)")
        data = [repr(item).encode() for item in sent]

        async def insert() -> None:
            await bare.ask(
                "INSERT INTO bare (conversation, accepted_at, data) "
                "SELECT 1, %s, unnest(%s::bytea[]) RETURNING seq",
                time.time(),
                data,
            )

        # What is sent in the background has come to its end before the next call.
        ours, theirs = await _in_turn(
            lambda: session.add_items(sent), insert, rounds, session.flush
        )
    how = (
        f"`add_items` of 2 items, against one INSERT of the same into a table like that of the "
        "ledger, with its commit, by another thread of the same kind; nothing is being sent; p50 "
        f"of {rounds} calls each, in turn: {ours * 1e3:.2f} ms against {theirs * 1e3:.2f} ms"
    )
    ten = "10 appends, each with a `flush()`"
    return [
        Bar("`add_items`, against the bare call", ours / theirs, 1.3, how),
        Bar("a batch, all of it: round trips to the engine", cycle, 3, ten, "each"),
        Bar("a batch, all of it: requests to OpenAI", requests, 1, ten, "each", "1"),
    ]


async def cold(site: Site, engine: Server, *, size: int = 10_000, times: int = 5) -> list[Bar]:
    """The bars on the first read of a worker that has never seen a conversation."""
    address = engine.with_tables()
    conversation = await kept(site, address, size)
    seconds, trips, requests = [], 0, 0
    with before(engine.port) as proxy:
        asked = Asked(address, proxy)
        for _ in range(times):
            asked.since()
            async with Worker(site, asked.address) as worker:
                started = time.perf_counter()
                found = await worker.session(conversation).get_items()
                seconds.append(time.perf_counter() - started)
                trips, requests = max(trips, asked.since()), worker.counter.requests
            if len(found) != size:
                raise RuntimeError(f"{len(found)} items were read, and not {size}")
    how = (
        f"first `get_items()` of a new outbox, cache and client; {times} times, of which the most "
        f"is told; with connecting, through a proxy in Python: {min(seconds):.2f} s at the least"
    )
    work = f"a new worker, {size:,} items in the ledger"
    return [
        Bar(f"{work}: requests to OpenAI", requests, 0, how, "requests", "0"),
        Bar(f"{work}: round trips to the engine", trips, 2, how, "round trips"),
    ]


async def run(
    site: Site, engine: Server, *, size: int = 20, times: int = 20, latency: float = LATENCY
) -> list[Bar]:
    """The bars on a run with one tool call, on a worker that never saw the conversation."""
    address = engine.with_tables()
    name = address.rpartition("/")[2]
    engine.execute("CREATE TABLE bare_run (data bytea)", name)
    conversation, another = await kept(site, address, size), await kept(site, address, size)
    for one in ("history", "another"):
        history = _on_alchemy(address, one, create=True)
        await history.add_items(items(size))
        await history.engine.dispose()
    first, later = _Runs(), _Runs()
    for _ in range(times):
        # A worker that has just been started, and one that has been at work on something else.
        for runs in (first, later):
            async with Worker(site, address) as worker:
                if runs is later:
                    await run_loop(worker.session(another), runs=1)
                    await worker.session(another).flush()
                runs.ours += (await run_loop(worker.session(conversation), runs=1)).seconds
            history = _on_alchemy(address, "history")
            try:
                if runs is later:
                    other = type(history)("another", engine=history.engine)
                    await run_loop(other, runs=1)
                runs.alchemy += (await run_loop(history, runs=1)).seconds
            finally:
                await history.engine.dispose()
            async with KIND_FILE.shelf(site, Counter()) as make:
                local = make()
                await local.add_items(items(size))
                runs.on_file += (await run_loop(local, runs=1)).seconds
            async with _statements(address) as bare:
                if runs is later:
                    await bare.ask("SELECT 1")
                started = time.perf_counter()
                # As many as ours: two that read, and three that record.
                for _ in range(2 if runs is first else 1):
                    await bare.ask("SELECT version FROM cached_session.schema_version")
                for _ in range(3):
                    await bare.ask("INSERT INTO bare_run (data) VALUES (%s)", b"x" * 400)
                runs.trips.append(time.perf_counter() - started)
    work = (
        f"a run with one tool call at {latency * 1e3:g} ms, on a worker that never saw the "
        "conversation"
    )
    how = (
        f"scripted model, tracing off, {size} items of history and 4 more with each run; the "
        f"worker has been at work on another conversation; p50 of {times} runs each, in turn: {{}}"
    )
    return [
        Bar(
            f"{work}, against `SQLAlchemySession`",
            later.p50.ours / later.p50.alchemy,
            1.3,
            how.format(
                f"{later.p50.ours * 1e3:.1f} ms against {later.p50.alchemy * 1e3:.1f} ms, on "
                "asyncpg. With what is new in a process that has just been started, connecting in "
                f"the run: {first.p50.ours * 1e3:.1f} ms against {first.p50.alchemy * 1e3:.1f} ms"
            ),
        ),
        Bar(
            f"{work}, against `SQLiteSession` on file and the round trips",
            later.p50.ours / (later.p50.on_file + later.p50.trips),
            1.3,
            how.format(
                f"{later.p50.ours * 1e3:.1f} ms against {later.p50.on_file * 1e3:.1f} ms, and "
                f"{later.p50.trips * 1e3:.1f} ms for a bare SELECT and three INSERTs. Just "
                f"started: {first.p50.ours * 1e3:.1f} ms against {first.p50.on_file * 1e3:.1f} ms "
                f"and {first.p50.trips * 1e3:.1f} ms"
            ),
        ),
    ]


@dataclass
class _Runs:
    """Seconds that runs took, and bare round trips as many as those of ours."""

    ours: list[float] = field(default_factory=list)
    alchemy: list[float] = field(default_factory=list)
    on_file: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)

    @property
    def p50(self) -> _Medians:
        """The median of each."""
        each = (self.ours, self.alchemy, self.on_file, self.trips)
        return _Medians(*(percentile(one, 50) for one in each))


class _Medians(NamedTuple):
    ours: float
    alchemy: float
    on_file: float
    trips: float


async def processes(
    site: Site, engine: Server, slow: Server, *, few: int = 4, many: int = 16, seconds: float = 5
) -> list[Bar]:
    """The bars on many processes at once, each on a conversation of its own."""
    of_few, of_many = [await _accepts(site, slow, count, seconds) for count in (few, many)]
    here_few, here_many = [await _accepts(site, engine, count, seconds) for count in (few, many)]
    how = (
        f"one item at a time, for {seconds:g} s, each sent to the server behind it; a commit takes "
        "10 ms (commit_delay), and those that come meanwhile share it: "
        f"{of_many.rate:,.0f} a second against {of_few.rate:,.0f}. With this machine's own disk, "
        f"{here_many.rate:,.0f} against {here_few.rate:,.0f}; of its CPU was in use "
        f"{here_many.busy:.0%} and {here_few.busy:.0%}"
    )
    all_of_them = (of_few, of_many, here_few, here_many)
    return [
        Bar(
            f"accepts of {few} processes, against those of {many}, on {many} conversations",
            of_few.rate / of_many.rate,
            1 / 3,
            how,
        ),
        Bar(
            "deadlocks of them",
            sum(one.deadlocks for one in all_of_them),
            0,
            f"of {sum(one.commits for one in all_of_them):,} commits, as the engine counts both",
            "deadlocks",
            "0",
        ),
    ]


async def idle(site: Site, engine: Server, *, seconds: float = 60) -> list[Bar]:
    """The bar on a worker that does nothing."""
    address = engine.with_tables()
    conversation = await kept(site, address, 20)
    with before(engine.port) as proxy:
        asked = Asked(address, proxy)
        async with Worker(site, asked.address) as worker:
            session = worker.session(conversation)
            await session.get_items()
            await session.add_items(items(2))
            await session.flush()
            # What comes behind its calls: see `_BY_ITSELF`.
            await asyncio.sleep(min(seconds, 10))
            asked.since()
            await asyncio.sleep(seconds)
            found = asked.since(calls=False)
    how = (
        f"an open session, whose last work is on the server; statements in {seconds:g} s, from ten "
        "seconds after it"
    )
    return [Bar("idle: statements a minute", found * 60 / seconds, 0, how, "statements", "0")]


async def measure(sites: Sites, shown: Callable[[str], Any]) -> list[Bar]:
    """All bars; `shown` shows that one is being measured."""
    bars: list[Bar] = []
    with server(AS_IT_IS) as engine:
        for name, work in (
            ("steady reads", steady),
            ("appends", appends),
            ("a cold worker", cold),
        ):
            with shown(name):
                bars += await work(sites.at(), engine)
        with shown("a run"):
            bars += await run(sites.at(LATENCY), engine)
        with shown("processes"), server(SLOW) as slow:
            bars += await processes(sites.at(LATENCY), engine, slow)
        with shown("idle"):
            bars += await idle(sites.at(), engine)
    return bars


class _Accepts(NamedTuple):
    """What processes have had accepted a second, and what the engine and the machine say of it."""

    rate: float
    commits: int
    deadlocks: int
    busy: float


async def _accepts(site: Site, engine: Server, count: int, seconds: float) -> _Accepts:
    address = engine.with_tables()
    async with site.client() as client:
        conversations = [await site.fill(client, items(1)) for _ in range(count)]
    with _workers(address, site, conversations) as workers:
        for worker in workers:
            await _line(worker)
        before_it = _cpu()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        accepted = [int(await _line(worker)) for worker in workers]
        after_it = _cpu()
        for worker in workers:
            await asyncio.to_thread(worker.wait, 120)
    with psycopg.connect(address, autocommit=True) as connection:
        found = connection.execute(
            "SELECT xact_commit, deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert found is not None
    used, all_of_it = (after - start for after, start in zip(after_it, before_it, strict=True))
    busy = used / all_of_it if all_of_it else 0.0
    return _Accepts(sum(accepted) / seconds, found[0], found[1], busy)


@contextmanager
def _workers(
    address: str, site: Site, conversations: Sequence[str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes, one on each conversation; see `benchmarks.accepting`."""
    made: list[subprocess.Popen[str]] = []
    program = sys.executable, "-m", "benchmarks.accepting"
    try:
        for conversation in conversations:
            made.append(
                subprocess.Popen(
                    [*program, address, site.base_url, conversation],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield made
    finally:
        for worker in made:
            with worker:
                worker.kill()


async def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = await asyncio.to_thread(worker.stdout.readline)
    if not line:
        raise RuntimeError("a worker ended before its time; see above")
    return line


def _cpu() -> tuple[float, float]:
    """CPU time of the machine that was used, and all that there was; (0, 0) where nothing tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    spent = [float(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    # Idle, and waiting for a disk.
    return sum(spent) - spent[3] - spent[4], sum(spent)


@asynccontextmanager
async def _statements(address: str) -> AsyncIterator[Statements]:
    bare = Statements(address)
    try:
        yield bare
    finally:
        await bare.let_go()


def _on_alchemy(address: str, name: str, *, create: bool = False) -> Any:
    """A new `SQLAlchemySession`, with an engine of its own."""
    from agents.extensions.memory import SQLAlchemySession

    url = address.replace("postgresql://", "postgresql+asyncpg://")
    return SQLAlchemySession.from_url(name, url=url, create_tables=create)


async def _nothing() -> None:
    """Nothing is done between two calls."""


async def _in_turn(
    ours: Callable[[], Awaitable[Any]],
    theirs: Callable[[], Awaitable[Any]],
    rounds: int,
    between: Callable[[], Awaitable[Any]] = _nothing,
) -> tuple[float, float]:
    """The median seconds of two calls, in turn; `between` is done after each of ours, untimed."""
    taken: list[list[float]] = [[], []]
    for number in range(rounds + 10):
        for spent, call in zip(taken, (ours, theirs), strict=True):
            started = time.perf_counter()
            await call()
            if number >= 10:  # what is imported, planned and connected at first use is there
                spent.append(time.perf_counter() - started)
            if call is ours:
                await between()
    first, second = (percentile(spent, 50) for spent in taken)
    return first, second
