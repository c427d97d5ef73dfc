"""Reads beside other processes on one file: each shows what was done before, and waits for none."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from openai import NotFoundError

from cached_session import CachedSession, PostgresOutbox, SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind, Faults
from cached_session.emulator.requests import is_append
from cached_session.outbox import Log
from tests.outbox_sessions.support import Make, Process, Vouching, held, until, words
from tests.postgres import Server
from tests.session.support import Elsewhere, sent, texts, users

T = TypeVar("T")

MANY_PAIRS = int(os.environ.get("FLEET_PAIRS", "300"))
"""How many calls and reads the campaign does."""

LONGEST = 300
"""How many of them one conversation sees: reads of all of it get longer with each."""


class Watched:
    """A log, and which of its verbs are called."""

    def __init__(self, log: Log, verbs: Counter[str]) -> None:
        self._log = log
        self._verbs = verbs

    def __getattr__(self, name: str) -> Any:
        self._verbs[name] += 1
        return getattr(self._log, name)


class Counting(SQLiteOutbox):
    """Counts how often the log is asked what has changed, and how often for something else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.verbs: Counter[str] = Counter()

    @property
    def asked(self) -> tuple[int, int]:
        """Validations, and other verbs but the look for what others have left."""
        others = Counter({name: self.verbs[name] for name in self.verbs if name != "orphans"})
        return others.pop("validate", 0), others.total()

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        return await super().transact(self._watched(work), applied)

    async def consult(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        return await super().consult(self._watched(work), applied)

    def _watched(self, work: Callable[[Log], T]) -> Callable[[Log], T]:
        return lambda log: work(cast(Log, Watched(log, self.verbs)))


class Blind(Counting):
    """One whose log tells nothing to those who do not ask."""

    def glance(self) -> None:
        return None


@asynccontextmanager
async def processes(emulator: Emulator, path: Path, *kinds: Make) -> AsyncIterator[list[Process]]:
    """Processes on one file."""
    async with Process(emulator, kinds[0](path)) as one, Process(emulator, kinds[1](path)) as two:
        yield [one, two]


async def opened(
    emulator: Emulator, both: list[Process], *there: str, **options: Any
) -> tuple[CachedSession, CachedSession, str]:
    """A session in each process, which has read the conversation."""
    conversation = Elsewhere(emulator).conversation(*there)
    a, b = (process.session(conversation, **options) for process in both)
    await a.get_items()
    await b.get_items()
    emulator.clear_log()
    return a, b, conversation


@pytest.mark.parametrize("pairs", [80, pytest.param(MANY_PAIRS, marks=pytest.mark.campaign)])
async def test_what_another_one_has_done(
    pairs: int, kind: Make, path: Path, emulator: Emulator, tell: Callable[[str], None]
) -> None:
    """Of many appends and pops in one process, each is seen by a read in the other one."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    stale = 0
    async with processes(emulator, path, kind, kind) as both:
        for done in range(0, pairs, LONGEST):
            stale += await pairs_of_calls(emulator, both, rng, min(LONGEST, pairs - done))
    tell(f"{pairs} pairs of calls, {stale} stale, seed {seed}")
    assert stale == 0, f"seed {seed}"


async def pairs_of_calls(
    emulator: Emulator, both: list[Process], rng: random.Random, pairs: int
) -> int:
    """Has so many calls done on a new conversation, each followed by a read; how many are stale."""
    a, b, conversation = await opened(emulator, both, "a", "b", "c")
    expected, stale = ["a", "b", "c"], 0
    for number in range(pairs):
        writer, reader = rng.choice(((a, b), (b, a)))
        if len(expected) > 3 and rng.random() < 0.2:
            popped = await writer.pop_item()
            assert words([popped]) == [expected.pop()]
        else:
            new = [f"{number}.{part}" for part in range(rng.choice((1, 1, 2)))]
            await writer.add_items(users(*new))
            expected += new
        if rng.random() < 0.1:
            await writer.flush()
        limit = rng.choice((None, 3))
        stale += words(await reader.get_items(limit)) != expected[-limit if limit else 0 :]
    await asyncio.gather(a.flush(), b.flush())
    assert texts(emulator.items(conversation)) == expected
    for session in (a, b):
        assert await session.get_items() == emulator.items(conversation)
        await session.aclose()
    return stale


@pytest.mark.processes
def test_in_threads(kind: Make, path: Path, emulator: Emulator) -> None:
    """While one process appends without a pause, each read of another shows what had returned."""
    conversation = Elsewhere(emulator).conversation("a")
    returned: list[str] = ["a"]
    # The reader's first read comes before: nothing is kept yet, and it would wait for the sender.
    begun, over = threading.Event(), threading.Event()

    async def append() -> None:
        await asyncio.to_thread(begun.wait)
        async with Process(emulator, kind(path)) as process:
            session = process.session(conversation)
            for number in range(400):
                await session.add_items(users(str(number)))
                returned.append(str(number))
            over.set()
            await session.aclose(timeout=60)

    async def read() -> tuple[int, int]:
        stale = reads = 0
        async with Process(emulator, kind(path)) as process:
            session = process.session(conversation)
            while not over.is_set() or not reads:
                before = list(returned)
                shown = words(await session.get_items())
                begun.set()
                reads += 1
                stale += shown[: len(before)] != before or len(shown) != len(set(shown))
            await session.aclose(timeout=60)
        return stale, reads

    appending = threading.Thread(target=lambda: asyncio.run(append()))
    appending.start()
    stale, reads = asyncio.run(read())
    appending.join()
    assert stale == 0
    assert reads > 20
    assert texts(emulator.items(conversation)) == returned


async def test_no_request_for_what_the_file_tells(path: Path, emulator: Emulator) -> None:
    """What another process has appended, sent and popped is read without a request."""
    async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
        a, b, conversation = await opened(emulator, both, "a")
        await a.add_items(users("b"))
        assert words(await b.get_items()) == ["a", "b"]
        await a.flush()
        assert await b.get_items() == emulator.items(conversation)
        await a.pop_item()
        await a.add_items(users("c", "d"))
        await a.flush()
        sent(emulator)
        assert await b.get_items() == emulator.items(conversation)
        assert words(await b.get_items(2)) == ["c", "d"]
        assert sent(emulator) == []
        await a.aclose()
        await b.aclose()


async def test_a_first_read_asks(path: Path, emulator: Emulator) -> None:
    """A new session's first read asks the server once, whatever the file tells."""
    async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
        a, b, conversation = await opened(emulator, both, "a")
        await a.add_items(users("b"))
        await a.flush()
        Elsewhere(emulator).append(conversation, "c")
        another = both[1].session(conversation)
        sent(emulator)
        assert words(await another.get_items()) == ["a", "b", "c"]
        assert sent(emulator) == ["GET items"]
        for session in (another, b):
            assert words(await session.get_items()) == ["a", "b", "c"]
        assert sent(emulator) == []
        for session in (a, b, another):
            await session.aclose()


async def test_what_another_one_was_told_stays(path: Path, emulator: Emulator) -> None:
    """An item of a writer elsewhere that a read has shown does not vanish when others append."""
    async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
        a, b, conversation = await opened(emulator, both, "a")
        Elsewhere(emulator).append(conversation, "x")
        another = both[1].session(conversation)
        assert words(await another.get_items()) == ["a", "x"]
        for number in range(3):
            await a.add_items(users(str(number)))
            await a.flush()
            assert words(await b.get_items()) == texts(emulator.items(conversation))
        for session in (a, b, another):
            await session.aclose()


async def test_a_conversation_that_was_cleared(path: Path, emulator: Emulator) -> None:
    """Once another process has deleted the conversation, a read shows nothing of it."""
    async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
        a, b, _ = await opened(emulator, both, "a")
        await a.add_items(users("b"))
        await a.flush()
        assert words(await b.get_items()) == ["a", "b"]
        await a.clear_session()
        with pytest.raises(NotFoundError):
            await b.get_items()
        await a.aclose()
        await b.aclose()


@pytest.mark.parametrize("waits", [True, False])
async def test_without_windows(waits: bool, path: Path, emulator: Emulator) -> None:
    """Where the file keeps no windows, a read asks the server, and is as true."""

    def outbox(path: Path) -> SQLiteOutbox:
        return SQLiteOutbox(path, max_window_bytes=0)

    async with processes(emulator, path, outbox, outbox) as both:
        a, b, conversation = await opened(emulator, both, "a")
        expected = ["a"]
        for number in range(50):
            await a.add_items(users(str(number)))
            expected.append(str(number))
            if not waits:
                await a.flush()
            assert words(await b.get_items()) == expected
            if number % 5 == 4:
                assert words([await a.pop_item()]) == [expected.pop()]
                assert words(await b.get_items()) == expected
        await a.flush()
        assert texts(emulator.items(conversation)) == expected
        await a.aclose()
        await b.aclose()


@pytest.mark.parametrize("first", [False, True])
async def test_beside_one_that_sends(first: bool, path: Path) -> None:
    """While another process's batch is on its way a read shows all of it, and does not wait."""
    with held() as (emulator, gate):
        async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
            a, b, conversation = await opened(emulator, both, "a", "b")
            gate.hold()
            await a.add_items(users("c", "d"))
            await gate.arrived()
            await a.add_items(users("e"))
            reader = both[1].session(conversation) if first else b
            async with asyncio.timeout(5):
                for _ in range(3):
                    assert words(await reader.get_items()) == ["a", "b", "c", "d", "e"]
                    assert words(await reader.get_items(2)) == ["d", "e"]
            assert reader.stats.waiting == 3
            gate.open()
            await a.flush()
            for session in {reader, b, a}:
                assert await session.get_items() == emulator.items(conversation)
                await session.aclose()


class Lingering(Counting):
    """One that keeps from its caller for a while what it has read of a conversation anew."""

    vouches = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.goes_on = asyncio.Event()

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        opens = self.verbs["open"]
        result = await super().transact(work, applied)
        if opens == 1 and self.verbs["open"] == 2:
            await self.goes_on.wait()
        return result


async def test_recorded_while_all_is_read_anew(path: Path) -> None:
    """Nobody takes what others record at that moment for what waits behind the server's answer."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with processes(emulator, path, Lingering, Vouching) as (one, two):
            reader, writer = one.session(conversation), two.session(conversation)
            first = asyncio.create_task(reader.get_items())
            await until(lambda: one.outbox.verbs["open"] == 2)
            gate.hold()
            await writer.add_items(users("b"))
            await gate.arrived()
            second = asyncio.create_task(one.session(conversation).get_items())
            await until(lambda: reader.stats.waiting == 1)
            gate.open()
            await writer.flush()
            await writer.add_items(users("c"))
            await writer.flush()
            one.outbox.goes_on.set()
            assert words(await first) == words(await second) == ["a", "b", "c"]


async def test_landed_and_not_noted(path: Path, emulator: Emulator) -> None:
    """What has landed, and its process does not know, is shown once, also when that has ended."""
    async with Process(emulator, SQLiteOutbox(path)) as two:
        one = Process(emulator, SQLiteOutbox(path))
        a, b, conversation = await opened(emulator, [one, two], "a")
        emulator.faults = lambda request: (
            Fault(FaultKind.RESET_AFTER_COMMIT) if is_append(request) else None
        )
        await a.add_items(users("b"))
        await until(lambda: texts(emulator.items(conversation)) == ["a", "b"])
        assert words(await b.get_items()) == ["a", "b"]
        await one.outbox.let_go()
        assert words(await b.get_items()) == ["a", "b"]
        emulator.faults = None
        await b.add_items(users("c"))
        assert words(await b.get_items()) == ["a", "b", "c"]
        await b.flush()
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]
        assert await b.get_items() == emulator.items(conversation)
        await b.aclose()
        await one.outbox.aclose()
        await one.client.close()


async def test_a_claim_that_ends_during_a_read(kind: Make, path: Path) -> None:
    """What another process sends while a read waits for the server is shown once.

    The outbox was closed meanwhile, which lets other processes send what this one has accepted.
    """
    with held() as (emulator, gate):
        async with processes(emulator, path, kind, kind) as both:
            a, b, conversation = await opened(emulator, both, "a")
            emulator.faults = lambda request: (
                Fault(FaultKind.RATE_LIMITED, retry_after=60) if is_append(request) else None
            )
            await a.add_items(users("b"))
            await until(lambda: a.stats.sending == "offline")
            await a.refresh()
            gate.hold()
            reading = asyncio.create_task(a.get_items())
            await gate.arrived()
            await both[0].outbox.let_go()
            emulator.faults = None
            gate.hold(skip=1_000)  # all but the listing, which is at the gate
            await b.flush()
            assert texts(emulator.items(conversation)) == ["a", "b"]
            gate.open()
            assert words(await reading) == ["a", "b"]
            assert words(await a.get_items()) == ["a", "b"]


async def test_an_append_without_the_outbox_after_another_process(
    kind: Make, path: Path, emulator: Emulator
) -> None:
    """A session without the outbox does not take for a late copy what another process appended."""
    async with processes(emulator, path, kind, kind) as both:
        a, b, conversation = await opened(emulator, both, "a")
        plain = CachedSession(
            conversation_id=conversation, openai_client=both[0].client, cache=both[0].cache
        )
        script = [FaultKind.RESET_BEFORE_COMMIT, None, None, FaultKind.RESET_BEFORE_COMMIT]
        emulator.faults = Faults.script(script, only=is_append)
        # The request that was reset may be carried out late, as far as anybody knows.
        await a.add_items(users("yes"))
        await a.flush()
        await b.add_items(users("yes"))
        await b.flush()
        await plain.add_items(users("c"))
        assert texts(emulator.items(conversation)) == ["a", "yes", "yes", "c"]
        for session in (plain, a, b):
            assert await session.get_items() == emulator.items(conversation)
            await session.aclose()


@pytest.mark.parametrize(("staleness", "asked"), [(None, 20), (5, 0), (math.inf, 0)])
async def test_how_often_the_log_is_asked(
    staleness: float | None, asked: int, path: Path, emulator: Emulator
) -> None:
    """Each read asks the log in one round trip that writes nothing; with seconds, none does."""
    async with processes(emulator, path, Blind, SQLiteOutbox) as both:
        outbox: Any = both[0].outbox
        a, b, _ = await opened(emulator, both, "a", max_staleness=staleness)
        outbox.verbs.clear()
        for _ in range(20):
            assert words(await a.get_items()) == ["a"]
        assert outbox.asked == (asked, 0)
        assert sent(emulator) == []
        await a.aclose()
        await b.aclose()


async def test_a_file_that_nobody_writes(path: Path, emulator: Emulator) -> None:
    """While nobody has written to the file, a read does not even ask its thread."""
    async with processes(emulator, path, Counting, SQLiteOutbox) as both:
        outbox: Any = both[0].outbox
        a, b, _ = await opened(emulator, both, "a")
        await a.get_items()
        outbox.verbs.clear()
        for _ in range(20):
            assert words(await a.get_items()) == ["a"]
        assert outbox.asked == (0, 0)
        await b.add_items(users("b"))
        # Otherwise its sender may claim the conversation before the read, or after it.
        await b.flush()
        assert words(await a.get_items()) == ["a", "b"]
        # Once more in the conversation's turn, as another process has had it.
        assert outbox.asked == (2, 0)
        await a.aclose()
        await b.aclose(timeout=60)


async def test_readers_keep_nobody_from_writing(path: Path, emulator: Emulator) -> None:
    """A read validates while another program has the file locked for writing."""
    async with processes(emulator, path, Blind, SQLiteOutbox) as both:
        a, b, _ = await opened(emulator, both, "a")
        locked, go_on = threading.Event(), threading.Event()

        def hold(log: Log) -> None:
            locked.set()
            go_on.wait(20)

        holding = asyncio.create_task(both[1].outbox.transact(hold))
        await asyncio.to_thread(locked.wait)
        async with asyncio.timeout(5):
            assert words(await a.get_items()) == ["a"]
        go_on.set()
        await holding
        await a.aclose()
        await b.aclose()


async def test_a_log_that_vouches(path: Path, emulator: Emulator) -> None:
    """Where the log stands in the server's place, a new process reads without any request."""
    async with processes(emulator, path, Vouching, Vouching) as both:
        conversation = Elsewhere(emulator).conversation(*map(str, range(150)))
        a = both[0].session(conversation)
        await a.get_items()
        await a.add_items(users("b"))
        await a.flush()
        emulator.faults = lambda request: (
            Fault(FaultKind.RATE_LIMITED) if is_append(request) else None
        )
        await a.add_items(users("c"))
        sent(emulator)
        for _ in range(3):
            b = both[1].session(conversation)
            assert words(await b.get_items()) == [*map(str, range(150)), "b", "c"]
            assert b.stats.requests == 0
            await b.aclose()
        emulator.faults = None
        await a.flush()
        sent(emulator)
        b = both[1].session(conversation)
        assert await b.get_items() == emulator.items(conversation)
        assert b.stats.requests == 0
        await a.pop_item()
        sent(emulator)
        assert await b.get_items() == emulator.items(conversation)
        assert sent(emulator) == []
        await b.refresh()
        assert await b.get_items() == emulator.items(conversation)
        assert "GET items" in sent(emulator)
        await a.aclose()
        await b.aclose()


async def test_what_another_one_has_listed(kind: Make, path: Path, emulator: Emulator) -> None:
    """What another process has asked the server for is read here, in a run's turn, too."""
    async with processes(emulator, path, kind, kind) as both:
        a, b, conversation = await opened(emulator, both, "a")
        foreign = Elsewhere(emulator)
        for number, turn in enumerate((a.turn, contextlib.nullcontext)):
            foreign.append(conversation, str(number))
            await b.refresh()
            listed = await b.get_items()
            async with turn():
                for _ in range(2):
                    assert await a.get_items() == listed == emulator.items(conversation)


async def test_one_that_looks_on_sends_nothing(path: Path, emulator: Emulator) -> None:
    """What another process has recorded is left to that one by those who only read it."""
    async with processes(emulator, path, SQLiteOutbox, SQLiteOutbox) as both:
        a, b, conversation = await opened(emulator, both, "a")
        for number in range(20):
            await a.add_items(users(str(number)))
            await b.get_items()
        await a.flush()
        assert a.stats.requests > 1
        assert b.stats.requests == 1
        assert words(await b.get_items()) == texts(emulator.items(conversation))
        await a.aclose()
        await b.aclose()


@pytest.mark.processes
@pytest.mark.parametrize("kept", [0, 1 << 20], ids=["nothing is kept", "a window is kept"])
@pytest.mark.parametrize("call", ["append", "pop"])
async def test_what_has_come_and_gone(
    call: str, kept: int, postgres: Server, emulator: Emulator
) -> None:
    """A read shows what another process has done of which the ledger keeps nothing any more."""
    address = postgres.with_tables()
    one, two = (PostgresOutbox(address, max_window_bytes=kept) for _ in range(2))
    async with Process(emulator, one) as reading, Process(emulator, two) as writing:
        a, b, conversation = await opened(emulator, [reading, writing], "a", "b")
        if call == "append":
            await b.add_items(users("c"))
            await b.flush()
        else:
            await b.pop_item()
        await b.aclose()
        # As a worker does once an hour, of what nobody has used for long.
        postgres.execute("SELECT cached_session.expire(0, 100)", address.rpartition("/")[2])
        there = ["a", "b", "c"] if call == "append" else ["a"]
        assert words(await a.get_items()) == there
        await a.add_items(users("d"))
        await a.flush()
        async with writing.session(conversation) as again:
            assert words(await again.get_items()) == [*there, "d"]
        assert texts(emulator.items(conversation)) == [*there, "d"]
        await a.aclose()
