"""Claims that end while a call goes on: the outbox was closed, or its lease has run out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg.conninfo
import pytest

from cached_session import (
    CachedSession,
    ConversationCache,
    DeadlineExceeded,
    PostgresOutbox,
    RetryPolicy,
    TurnLost,
)
from cached_session.emulator import Emulator, Fault, FaultKind, Faults
from cached_session.emulator.requests import is_append
from cached_session.outbox import Log
from tests.outbox_sessions.support import Make, Process, held, until, words
from tests.postgres import Server
from tests.proxy import Fate, Proxy, before
from tests.session.support import Elsewhere, texts, users

T = TypeVar("T")

LEASE = 3.0


def beside(process: Process, conversation: str, cache: ConversationCache | None = None) -> Any:
    """A session without the outbox."""
    return CachedSession(
        conversation_id=conversation, openai_client=process.client, cache=cache or process.cache
    )


@dataclass
class Cut:
    """Two workers of a fleet, of which the first one can be cut off from the engine.

    Attributes:
        one: The first.
        two: The second.
        proxy: Stands between the first and the engine.
    """

    one: Process
    two: Process
    proxy: Proxy

    async def off(self) -> None:
        """The first one does not reach the engine for longer than its lease."""
        self.proxy.leave()
        await self.over()

    async def over(self) -> None:
        """The first one's lease runs out, unless it is extended meanwhile."""
        end = time.monotonic() + LEASE + 0.1
        await until(lambda: time.monotonic() > end)

    def delay(self, function: str) -> tuple[threading.Event, threading.Event]:
        """Holds the first one's next call to a function of the schema.

        Returns:
            That it has come, and that it goes on. What is asked meanwhile comes behind it.
        """
        met, go_on = threading.Event(), threading.Event()

        def rule(data: bytes) -> Fate:
            if f"cached_session.{function}(".encode() in data:
                met.set()
                go_on.wait(20)
            return Fate.PASS

        self.proxy.rule = rule
        return met, go_on


@asynccontextmanager
async def workers(
    emulator: Emulator, postgres: Server, kind: type[PostgresOutbox] = PostgresOutbox
) -> AsyncIterator[Cut]:
    """Two workers; `kind` is that of the first one's outbox."""
    address = postgres.with_tables()
    with before(postgres.port) as proxy:
        place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
        async with (
            Process(emulator, kind(place, lease=LEASE)) as one,
            Process(emulator, PostgresOutbox(address, lease=LEASE)) as two,
        ):
            yield Cut(one, two, proxy)
            proxy.come_back()


async def test_beside_a_session_that_was_closed(kind: Make, path: Path, emulator: Emulator) -> None:
    """A session without the outbox removes nothing, once the sessions with it are closed.

    What looks like a late copy of what these have appended may be what another process has.
    """
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, kind(path)) as one, Process(emulator, kind(path)) as two:
        plain = beside(one, conversation)
        await plain.get_items()
        reset = [FaultKind.RESET_BEFORE_COMMIT]
        emulator.faults = Faults.script(reset, only=is_append)
        session = one.session(conversation)
        await session.add_items(users("yes"))
        await session.aclose(timeout=60)
        other = two.session(conversation)
        await other.add_items(users("yes"))
        await other.flush()
        assert words(await plain.get_items()) == ["a", "yes", "yes"]
        await plain.add_items(users("b"))
        assert texts(emulator.items(conversation)) == ["a", "yes", "yes", "b"]


@pytest.mark.processes
async def test_an_append_beside_the_outbox(postgres: Server) -> None:
    """An append without the outbox removes nothing that another worker has appended meanwhile."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with workers(emulator, postgres) as cut:
            session = cut.one.session(conversation)
            plain = beside(cut.one, conversation)
            await session.get_items()
            reset = [FaultKind.RESET_BEFORE_COMMIT]
            emulator.faults = Faults.script(reset, only=is_append)
            await session.add_items(users("yes"))
            await session.flush()
            await plain.refresh()
            gate.hold()
            appending = asyncio.create_task(plain.add_items(users("b")))
            await gate.arrived()
            await cut.off()
            gate.hold(skip=1_000)  # all but the listing, which is at the gate
            other = cut.two.session(conversation)
            await other.add_items(users("yes"))
            await other.flush()
            await other.aclose()
            cut.proxy.come_back()
            gate.open()
            await appending
            assert texts(emulator.items(conversation)) == ["a", "yes", "yes", "b"]
            assert words(await plain.get_items()) == ["a", "yes", "yes", "b"]
            assert words(await session.get_items()) == ["a", "yes", "yes", "b"]


@pytest.mark.parametrize("doubt", [False, True])
async def test_between_two_batches_of_an_append(doubt: bool, kind: Make, path: Path) -> None:
    """An append without the outbox does not begin anew where the outbox is closed in its middle."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with Process(emulator, kind(path)) as process:
            session, plain = process.session(conversation), beside(process, conversation)
            await session.get_items()
            reset = FaultKind.RESET_BEFORE_COMMIT
            if doubt:
                emulator.faults = Faults.script([reset], only=is_append)
                await session.add_items(users("yes"))
                await session.flush()
            there = texts(emulator.items(conversation))
            first, rest = [*map(str, range(20))], ["20", "21"]
            emulator.faults = Faults.script([reset], only=is_append)
            gate.hold(skip=6)  # two for each: an append, a listing, the append again
            appending = asyncio.create_task(plain.add_items(users(*first, *rest)))
            await gate.arrived()
            # The request that was reset is carried out after all.
            Elsewhere(emulator).append(conversation, *first)
            gate.open()
            gate.hold(skip=1)
            await gate.arrived()
            await process.outbox.let_go()
            emulator.faults = Faults.script(
                [FaultKind.ERROR_BEFORE_COMMIT], only=lambda request: request.method == "DELETE"
            )
            gate.open()
            await appending
            await plain.refresh()
            assert words(await plain.get_items()) == [*there, *first, *rest]
            assert texts(emulator.items(conversation)) == [*there, *first, *rest]


async def test_an_append_behind_a_deletion(kind: Make, path: Path, emulator: Emulator) -> None:
    """What is appended behind a deletion is for the next conversation.

    Also where the outbox is closed while the server does not take the deletion.
    """
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, kind(path)) as process:
        session = process.session(conversation)
        await session.get_items()
        emulator.faults = lambda request: (
            Fault(FaultKind.RATE_LIMITED, retry_after=0.3) if request.method == "DELETE" else None
        )
        emulator.clear_log()
        clearing = asyncio.create_task(session.clear_session())
        await until(lambda: any(entry.method == "DELETE" for entry in emulator.requests))
        appending = asyncio.create_task(session.add_items(users("b")))
        await asyncio.sleep(0)
        await process.outbox.let_go()
        emulator.faults = None
        await asyncio.gather(clearing, appending)
        assert session.session_id != conversation
        assert words(await session.get_items()) == ["b"]
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["b"]


class Counted(PostgresOutbox):
    """Counts the transactions that were asked for, and not done yet."""

    asked = 0

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        self.asked += 1
        try:
            return await super().transact(work, applied)
        finally:
            self.asked -= 1


@pytest.mark.processes
async def test_a_lease_that_ends_between_two_transactions(
    postgres: Server, emulator: Emulator
) -> None:
    """What was claimed before the lease ran out is over, also where nobody has heard of it yet.

    The outbox's thread does several transactions at once, and stands still between two of them.
    """
    foreign = Elsewhere(emulator)
    conversation, another = foreign.conversation("a"), foreign.conversation("b")
    async with workers(emulator, postgres, Counted) as cut:
        outbox = cut.one.outbox
        sending, popping = cut.one.session(conversation), cut.one.session(another)
        await sending.get_items()
        await popping.get_items()
        emulator.faults = lambda request: (
            Fault(FaultKind.RATE_LIMITED, retry_after=0.1) if is_append(request) else None
        )
        await sending.add_items(users("yes"))
        await until(lambda: sending.stats.sending == "offline")
        begun, go_on, passed = threading.Event(), threading.Event(), threading.Event()

        def hold(_: Log) -> None:
            begun.set()
            go_on.wait(20)

        holding = asyncio.create_task(outbox.transact(hold))
        await asyncio.to_thread(begun.wait, 20)
        emulator.faults = None
        await until(lambda: outbox.asked == 2)  # it seals what it sends again
        standing = asyncio.create_task(outbox.transact(lambda _: passed.wait(20)))
        pop = asyncio.create_task(popping.pop_item())
        await until(lambda: outbox.asked == 4)
        go_on.set()
        await holding
        other = cut.two.session(conversation)
        await other.flush()
        await other.aclose()
        assert texts(emulator.items(conversation)) == ["a", "yes"]
        passed.set()
        await standing
        assert words([await pop]) == ["b"]
        await sending.flush()
        assert texts(emulator.items(conversation)) == ["a", "yes"]
        assert words(await sending.get_items()) == ["a", "yes"]


@pytest.mark.processes
async def test_what_another_worker_has_found_out(postgres: Server) -> None:
    """A batch that another worker has taken over meanwhile is not paused by the first one.

    What it finds then cannot tell what became of the batch: the other one has removed it.
    """
    with held() as (emulator, gate):
        foreign = Elsewhere(emulator)
        conversation = foreign.conversation(*map(str, range(40)))
        async with workers(emulator, postgres) as cut:
            session, other = cut.one.session(conversation), cut.two.session(conversation)
            await session.get_items(2)
            await other.get_items(2)
            emulator.faults = Faults.script([FaultKind.RESET_BEFORE_COMMIT], only=is_append)
            gate.hold(skip=2)
            await session.add_items(users("b"))
            await gate.arrived()  # the listing that decides
            await cut.off()
            gate.hold(skip=1_000)  # all but that listing, which is at the gate
            await other.flush()
            assert texts(emulator.items(conversation))[-2:] == ["39", "b"]
            await other.pop_item()
            await other.aclose()
            for _ in range(35):
                foreign.remove(conversation, -1)
            cut.proxy.come_back()
            gate.open()
            await session.flush()
            await session.add_items(users("c"))
            await session.flush()
            assert texts(emulator.items(conversation)) == ["0", "1", "2", "3", "4", "c"]


async def test_a_backlog_that_gave_way(kind: Make, path: Path) -> None:
    """What waits is sent once, also beside a copy in another cache that closed sessions left."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with Process(emulator, kind(path)) as process:
            first = process.session(conversation)
            plain = beside(process, conversation)
            await first.get_items()
            emulator.faults = lambda request: (
                Fault(FaultKind.RATE_LIMITED, retry_after=0.05) if is_append(request) else None
            )
            await first.add_items(users("b"))
            await until(lambda: first.stats.sending == "offline")
            await first.aclose()
            process.cache = ConversationCache()
            second = process.session(conversation)
            await second.get_items()
            await until(lambda: second.stats.sending == "offline")
            emulator.faults = None
            gate.hold()
            appending = asyncio.create_task(plain.add_items(users("c")))
            await gate.arrived()
            await gate.arrived()
            gate.open()
            await asyncio.gather(appending, second.flush())
            assert sorted(texts(emulator.items(conversation))) == ["a", "b", "c"]
            for session in (second, plain):
                await session.refresh()
                assert await session.get_items() == emulator.items(conversation)


@pytest.mark.parametrize("call", ["pop", "read", "append", "flush"])
async def test_an_outbox_that_comes(call: str, kind: Make, path: Path) -> None:
    """A call without the outbox goes on where a session with it comes to the conversation."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a", "b")
        async with Process(emulator, kind(path)) as process:
            plain = beside(process, conversation)
            calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "pop": plain.pop_item,
                "read": plain.get_items,
                "append": lambda: plain.add_items(users("c")),
                "flush": plain.flush,
            }
            if call == "flush":
                await plain.get_items()
            gate.hold()
            calling = asyncio.create_task(calls[call]())
            if call != "flush":
                await gate.arrived()
            reading = asyncio.create_task(process.session(conversation).get_items())
            await until(lambda: len(process.outbox.backlogs) == 1)
            gate.open()
            await asyncio.gather(calling, reading)
            assert words(await plain.get_items()) == texts(emulator.items(conversation))


class Paced(PostgresOutbox):
    """Keeps its callers waiting before each transaction, once it was told to.

    Attributes:
        goes_on: For what they wait, or None.
        arrived: Whether one waits.
    """

    goes_on: asyncio.Event | None = None
    arrived = False

    async def transact(
        self, work: Callable[[Log], T], applied: Callable[[T], None] | None = None
    ) -> T:
        if self.goes_on is not None:
            self.arrived = True
            await self.goes_on.wait()
        return await super().transact(work, applied)


@pytest.mark.processes
@pytest.mark.parametrize("call", ["pop", "clear"])
async def test_a_turn_that_ends_before_a_removal(
    call: str, postgres: Server, emulator: Emulator
) -> None:
    """Nothing is removed in a turn that is over by then, and that another worker has."""
    conversation = Elsewhere(emulator).conversation("a")
    async with workers(emulator, postgres, Paced) as cut:
        outbox = cut.one.outbox
        session, other = cut.one.session(conversation), cut.two.session(conversation)
        await session.get_items()
        async with session.turn():
            await session.get_items()
            outbox.goes_on = asyncio.Event()
            remove = session.pop_item if call == "pop" else session.clear_session
            removing = asyncio.create_task(remove())
            await until(lambda: outbox.arrived)
            await cut.off()
            async with other.turn(20):
                if call == "clear":
                    emulator.faults = lambda request: (
                        Fault(FaultKind.RATE_LIMITED) if is_append(request) else None
                    )
                await other.add_items(users("b"))
                if call == "pop":
                    await other.flush()
                cut.proxy.come_back()
                outbox.goes_on.set()
                with pytest.raises(TurnLost):
                    await removing
                emulator.faults = None
                await other.flush()
                assert texts(emulator.items(conversation)) == ["a", "b"]


@pytest.mark.processes
async def test_a_pause_that_comes_late(
    postgres: Server, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """What another worker has taken over meanwhile is not paused by the one that had it before."""
    conversation = Elsewhere(emulator).conversation("a")
    async with workers(emulator, postgres) as cut:
        session, other = cut.one.session(conversation), cut.two.session(conversation)
        await session.get_items()
        emulator.faults = Faults.script([FaultKind.RATE_LIMITED_QUOTA], only=is_append)
        paused, go_on = cut.delay("pause")
        await session.add_items(users("b"))
        await until(paused.is_set)
        await cut.over()
        await other.flush()
        go_on.set()
        await session.flush()
        await other.add_items(users("c"))
        await other.flush()
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]
        assert "paused" not in caplog.text


async def test_a_deletion_that_does_not_come_about(kind: Make, path: Path) -> None:
    """What another process sends is not dropped for a deletion that it keeps waiting too long."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with Process(emulator, kind(path)) as one, Process(emulator, kind(path)) as two:
            session = one.session(conversation, retry=RetryPolicy(deadline=0.5))
            other = two.session(conversation)
            await session.get_items()
            emulator.faults = Faults.script([FaultKind.RESET_BEFORE_COMMIT], only=is_append)
            gate.hold()
            await other.add_items(users("b"))
            await gate.arrived()
            with pytest.raises(DeadlineExceeded, match="another process works on it"):
                await session.clear_session()
            gate.open()
            await other.flush()
            assert texts(emulator.items(conversation)) == ["a", "b"]


@pytest.mark.processes
async def test_a_turn_that_ends_before_what_waits_is_dropped(
    postgres: Server, emulator: Emulator
) -> None:
    """What another worker has recorded in its turn is not dropped in one that is over by then."""
    conversation = Elsewhere(emulator).conversation("a")
    async with workers(emulator, postgres) as cut:
        session, other = cut.one.session(conversation), cut.two.session(conversation)
        async with session.turn():
            await session.get_items()
            dropping, go_on = cut.delay("drop")
            clearing = asyncio.create_task(session.clear_session())
            await until(dropping.is_set)
            await cut.over()
            async with other.turn(20):
                emulator.faults = lambda request: (
                    Fault(FaultKind.RATE_LIMITED) if is_append(request) else None
                )
                await other.add_items(users("b"))
                await until(lambda: other.stats.sending == "offline")
                await other.add_items(users("c"))
                go_on.set()
                with pytest.raises(TurnLost):
                    await clearing
                emulator.faults = None
                await other.flush()
                assert texts(emulator.items(conversation)) == ["a", "b", "c"]


@pytest.mark.processes
async def test_a_turn_that_ends_before_an_append(postgres: Server) -> None:
    """An append without the outbox sends nothing in a turn that is over, and another worker has."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with workers(emulator, postgres) as cut:
            session, other = cut.one.session(conversation), cut.two.session(conversation)
            plain = beside(cut.one, conversation)
            await session.get_items()
            async with plain.turn():
                await plain.refresh()
                gate.hold()
                appending = asyncio.create_task(plain.add_items(users("late")))
                await gate.arrived()
                await cut.off()
                gate.hold(skip=1_000)  # all but the listing, which is at the gate
                async with other.turn(20):
                    await other.add_items(users("b"))
                    await other.flush()
                    cut.proxy.come_back()
                    gate.open()
                    with pytest.raises(TurnLost, match="no more was sent") as lost:
                        await appending
                    assert texts(emulator.items(conversation)) == ["a", "b"]
                assert lost.value.__notes__[-1].endswith("nothing was stored")


async def test_a_turn_that_ends_between_two_batches(kind: Make, path: Path) -> None:
    """Nor its later batches; how many items of the first ones are there is told."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation()
        async with Process(emulator, kind(path)) as process:
            session, plain = process.session(conversation), beside(process, conversation)
            await session.get_items()
            async with plain.turn():
                await plain.get_items()
                first = [*map(str, range(20))]
                gate.hold()
                appending = asyncio.create_task(plain.add_items(users(*first, "late")))
                await gate.arrived()
                await process.outbox.let_go()
                gate.open()
                with pytest.raises(TurnLost) as lost:
                    await appending
            assert texts(emulator.items(conversation)) == first
            assert "the first 20 of 21 items are on the server" in lost.value.__notes__[-1]


@pytest.mark.processes
@pytest.mark.parametrize("listings", [1, 2])
async def test_a_listing_that_comes_after_the_claim(listings: int, postgres: Server) -> None:
    """What another worker has sent meanwhile is not shown twice, as listed and as waiting."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with workers(emulator, postgres) as cut:
            session = cut.one.session(conversation, max_staleness=60)
            other = cut.two.session(conversation)
            await session.get_items()
            emulator.faults = Faults.script([FaultKind.RESET_BEFORE_COMMIT] * listings)
            gate.hold(skip=2 * listings)
            await session.add_items(users("b"))
            await gate.arrived()  # the listing that decides
            await session.add_items(users("c"))
            await cut.off()
            gate.hold(skip=1_000)  # all but that listing, which is at the gate
            await other.flush()
            assert texts(emulator.items(conversation)) == ["a", "b", "c"]
            sealing, go_on = cut.delay("seal")
            cut.proxy.come_back()
            gate.open()
            await until(sealing.is_set)
            reading = asyncio.create_task(session.get_items())
            await asyncio.sleep(0)  # it would be answered from memory
            go_on.set()
            assert words(await reading) == ["a", "b", "c"]
            await session.flush()
            assert texts(emulator.items(conversation)) == ["a", "b", "c"]


async def test_a_late_copy_of_an_append_beside_the_outbox(
    kind: Make, path: Path, emulator: Emulator
) -> None:
    """It is removed by whoever has the conversation next, also if another process had it first."""
    foreign = Elsewhere(emulator)
    conversation = foreign.conversation("a")
    async with Process(emulator, kind(path)) as one, Process(emulator, kind(path)) as two:
        session, other = one.session(conversation), two.session(conversation)
        plain = beside(one, conversation)
        await session.get_items()
        await other.get_items()
        emulator.faults = Faults.script([FaultKind.RESET_BEFORE_COMMIT], only=is_append)
        await plain.add_items(users("yes"))
        await until(lambda: not one.outbox.holdings)
        await other.add_items(users("b"))
        await other.flush()
        await other.aclose()
        assert words(await session.get_items()) == ["a", "yes", "b"]
        # The request that was reset is carried out after all.
        foreign.append(conversation, "yes")
        await session.refresh()
        assert words(await session.get_items()) == ["a", "yes", "b"]
        assert texts(emulator.items(conversation)) == ["a", "yes", "b"]
