"""Calls to an engine whose answers are lost, which come late, or which it never hears of."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from cached_session import (
    AppendOutcomeUnknown,
    OutboxAdmin,
    OutboxUnavailable,
    PostgresOutbox,
)
from cached_session.emulator import Emulator
from cached_session.outbox.log import Withdrawn
from cached_session.outbox.postgres import outbox as module
from tests.campaigns.plan import fresh
from tests.outbox.support import ADDRESS, accept, opened, waiting
from tests.outbox_sessions.support import Process, raised, until, words
from tests.postgres import Server
from tests.proxy import Fate, Proxy, before, once
from tests.session.support import Elsewhere, texts, users

LOST_ANSWERS = int(os.environ.get("FLEET_LOST_ANSWERS", "400"))

# They start a PostgreSQL server.
pytestmark = pytest.mark.processes


@pytest.fixture
def address(postgres: Server) -> str:
    """A database of the test's own."""
    return postgres.with_tables()


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    """Somebody between the workers and the server."""
    with before(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an engine that stays away."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)


def through(proxy: Proxy, address: str, **more: Any) -> PostgresOutbox:
    """An outbox that comes to a database by a proxy."""
    place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
    return PostgresOutbox(place, **more)


def recorded(address: str) -> list[Any]:
    """All that a database holds, but for when."""
    with psycopg.connect(address) as connection:
        return [
            connection.execute(
                "SELECT number, conversation, owner, released, claims, doubt, paused "
                "FROM cached_session.conversations ORDER BY number"
            ).fetchall(),
            connection.execute("SELECT seq, sealed, data FROM cached_session.items").fetchall(),
            connection.execute("SELECT * FROM cached_session.window_items").fetchall(),
            connection.execute("SELECT * FROM cached_session.turns").fetchall(),
        ]


class Untrue(Exception):
    """What a call said, or a read showed, is not so."""


async def losing(
    proxy: Proxy,
    address: str,
    emulator: Emulator,
    fate: Fate,
    rng: random.Random,
    most: int,
    function: bytes = b"",
) -> None:
    """Appends, pops, reads and clears, while so many answers of the engine are lost.

    Args:
        function: Only of calls to this function, which are the session's and not its sender's:
            with them the same seed loses the same answers. Or of calls to any.

    Raises:
        Untrue: Something was doubled, lost, or told otherwise than it is.
    """
    lost, number = 0, 0

    def rule(data: bytes) -> Fate:
        nonlocal lost
        if b"cached_session." + function not in data or rng.random() < 0.6:
            return Fate.PASS
        lost += 1
        return fate

    def check(found: list[str], wanted: list[str]) -> None:
        if found != wanted:
            raise Untrue(f"{found} and not {wanted}")

    expected: list[str] = []
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()
        proxy.rule = rule
        while lost < most:
            for _ in range(rng.randint(1, 4)):
                more = [str(number := number + 1) for _ in range(rng.randint(1, 3))]
                await session.add_items(users(*more))
                expected += more
            if rng.random() < 0.5:
                popped = await session.pop_item()
                check(words([popped] if popped else []), [expected.pop()])
            if rng.random() < 0.3:
                check(texts(await session.get_items(5)), expected[-5:])
            if rng.random() < 0.1:
                await session.clear_session()
                expected.clear()
                session = process.session(Elsewhere(emulator).conversation())
        proxy.rule = lambda _: Fate.PASS
        await session.flush()
        check(texts(emulator.items(session.session_id)), expected)


@pytest.mark.parametrize("fate", [Fate.SWALLOW, Fate.DISOWN])
async def test_answers_are_lost(
    fate: Fate, address: str, proxy: Proxy, emulator: Emulator, tell: Callable[[str], None]
) -> None:
    """Each call to the engine that was done and not answered is done once, and its result told."""
    rng = random.Random(fresh("lost answers", tell))
    await losing(proxy, address, emulator, fate, rng, 15)


@pytest.mark.campaign
async def test_many_answers_are_lost(
    address: str, proxy: Proxy, emulator: Emulator, tell: Callable[[str], None]
) -> None:
    """Several hundred of them, or as many as `FLEET_LOST_ANSWERS` says."""
    rng = random.Random(fresh("many lost answers", tell))
    await losing(proxy, address, emulator, Fate.SWALLOW, rng, LOST_ANSWERS)


@pytest.mark.parametrize("function", [b"accept(", b"withdraw("])
async def test_without_numbers(
    function: bytes, address: str, proxy: Proxy, emulator: Emulator
) -> None:
    """With the numbers of calls switched off, what was done and not answered is done twice."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION cached_session.is_new(me text, number_of bigint) "
            "RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
        connection.execute(
            "CREATE OR REPLACE FUNCTION cached_session.done(me text, number_of bigint, "
            "places_of bigint[], item_of bytea DEFAULT NULL, at_of double precision DEFAULT NULL) "
            "RETURNS void LANGUAGE sql AS ''"
        )
    with pytest.raises(Untrue):
        await losing(proxy, address, emulator, Fate.SWALLOW, random.Random(1), 30, function)


@pytest.mark.parametrize("function", ["accept", "withdraw", "drop", "open", "seal", "note"])
async def test_comes_late(function: str, address: str, proxy: Proxy, emulator: Emulator) -> None:
    """A call that reaches the engine after its repeat does nothing."""
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation("before"))
        proxy.rule = once(function, Fate.HOLD)
        await session.get_items()
        await session.add_items(users("a", "b"))
        if function == "withdraw":
            await session.pop_item()
        if function == "drop":
            await session.clear_session()
        else:
            await session.flush()
        await until(lambda: not process.outbox.holdings)
        (held,) = proxy.held
        before = recorded(address)
        await asyncio.to_thread(held.let_through)
        assert recorded(address) == before


async def test_pop_of_nothing_comes_late(address: str, proxy: Proxy) -> None:
    """A withdrawal that found nothing to take does not take what others append after it."""
    outbox = through(proxy, address)
    proxy.rule = once("withdraw", Fate.HOLD)
    try:
        taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), 0))
        assert taken == Withdrawn(None, None)
        other = PostgresOutbox(address)
        await other.transact(accept(b"theirs"))
        await other.let_go()
        (held,) = proxy.held
        await asyncio.to_thread(held.let_through)
        assert await outbox.transact(waiting) == [b"theirs"]
    finally:
        await outbox.let_go()


async def test_pop_behind_what_others_recorded_is_repeated(address: str, proxy: Proxy) -> None:
    """A withdrawal that has met what others recorded says so again, and still takes nothing.

    Also where they have taken theirs back before it is repeated.
    """
    outbox, lost = through(proxy, address), once("withdraw", Fate.SWALLOW)

    def rule(data: bytes) -> Fate:
        fate = lost(data)
        if fate is Fate.PASS and b"cached_session.withdraw(" in data:
            with psycopg.connect(address) as connection:
                connection.execute("DELETE FROM cached_session.items WHERE data = 'theirs'")
        return fate

    try:
        (place,) = await outbox.transact(accept(b"mine"))
        other = PostgresOutbox(address)
        await other.transact(accept(b"theirs"))
        await other.let_go()
        proxy.rule = rule
        taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), place))
        assert taken == Withdrawn(None, ())
        assert await outbox.transact(waiting) == [b"mine"]
    finally:
        await outbox.let_go()


@pytest.mark.usefixtures("hasty")
async def test_comes_after_all(address: str, proxy: Proxy, emulator: Emulator) -> None:
    """What was given up on is not done when the outbox was closed since."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(conversation)
        await session.get_items()
        held_back = once("accept", Fate.HOLD)

        def rule(data: bytes) -> Fate:
            fate = held_back(data)
            if fate is Fate.HOLD:
                proxy.leave()
            return fate

        proxy.rule = rule
        with pytest.raises(AppendOutcomeUnknown):
            await session.add_items(users("a"))
        proxy.come_back()
    (held,) = proxy.held
    assert b"CS003" in await asyncio.to_thread(held.let_through)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fate", [Fate.REFUSE, Fate.SWALLOW])
async def test_stays_away(fate: Fate, address: str, proxy: Proxy, emulator: Emulator) -> None:
    """Of a call after which the engine stays away it is said that its outcome is not known.

    The next read shows it, and other conversations go on as before.
    """
    elsewhere = Elsewhere(emulator)
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(elsewhere.conversation("before"))
        other = process.session(elsewhere.conversation())
        third = process.session(elsewhere.conversation())
        for one in (session, other, third):
            await one.get_items()
        lost = once("accept", fate)

        def rule(data: bytes) -> Fate:
            found = lost(data)
            if found is not Fate.PASS:
                proxy.refusing = True
            return found

        proxy.rule = rule
        with pytest.raises(AppendOutcomeUnknown) as unknown:
            await session.add_items(users("a"))
        assert "nothing was recorded" not in str(unknown.value)
        # From now on nothing is sent, which is certain.
        with pytest.raises(OutboxUnavailable, match="nothing was recorded"):
            await other.add_items(users("not sent"))
        proxy.come_back()
        await third.add_items(users("sent"))
        await other.add_items(users("sent"))
        there = ["a"] if fate is Fate.SWALLOW else []
        assert [*map(str, words(await session.get_items()))][1:] == there
        await session.flush()
        await other.flush()
        assert texts(emulator.items(session.session_id)) == ["before", *there]
        assert texts(emulator.items(other.session_id)) == ["sent"]


@pytest.mark.usefixtures("hasty")
async def test_stays_away_during_a_read(address: str, proxy: Proxy, emulator: Emulator) -> None:
    """A read that has lost its answer says that the engine went away, and nothing of recording."""
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation("a"))
        await session.get_items()
        lost = once("validate", Fate.REFUSE)

        def rule(data: bytes) -> Fate:
            found = lost(data)
            proxy.refusing |= found is not Fate.PASS
            return found

        proxy.rule = rule
        error = await raised(session.get_items())
        proxy.come_back()
        assert isinstance(error, OutboxUnavailable)
        assert "went away during a call" in str(error)
        assert "record" not in str(error)
        assert texts(await session.get_items()) == ["a"]


@pytest.mark.usefixtures("hasty")
async def test_first_use(address: str, proxy: Proxy, emulator: Emulator) -> None:
    """An engine that is away at the first use says so by its class, and is used when it is back."""
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        with proxy.away():
            error = await raised(session.add_items(users("a")))
        assert isinstance(error, OutboxUnavailable), error
        await session.add_items(users("a"))
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["a"]


@pytest.mark.usefixtures("hasty")
async def test_never_answers(address: str, emulator: Emulator) -> None:
    """A call that an engine does not answer ends, and what becomes of it is seen by the next."""
    async with Process(emulator, PostgresOutbox(address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()
        with psycopg.connect(address) as connection:
            connection.execute("LOCK TABLE cached_session.conversations")
            async with asyncio.timeout(10):
                with pytest.raises(AppendOutcomeUnknown):
                    await session.add_items(users("a"))
        shown = words(await session.get_items())
        await session.flush()
        assert texts(emulator.items(session.session_id)) == shown


@pytest.mark.usefixtures("hasty")
async def test_goes_on_by_itself(address: str, proxy: Proxy, emulator: Emulator) -> None:
    """While the engine is away writes are refused, and what waits is sent when it is back."""
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()

        def rule(data: bytes) -> Fate:
            if b"cached_session.seal(" not in data:
                return Fate.PASS
            proxy.refusing = True
            return Fate.REFUSE

        proxy.rule = rule
        await session.add_items(users("a"))
        await until(lambda: proxy.refusing)
        assert isinstance(await raised(session.add_items(users("b"))), OutboxUnavailable)
        assert not emulator.items(session.session_id)
        proxy.rule = lambda _: Fate.PASS
        proxy.come_back()
        await until(lambda: bool(emulator.items(session.session_id)))
        await session.add_items(users("b"))
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["a", "b"]


@pytest.mark.parametrize("opened", [False, True], ids=["at its first use", "since"])
async def test_reading_while_it_is_away(opened: bool, address: str, proxy: Proxy) -> None:
    """Who only reads is told that the engine could not be read, and what happens next."""
    place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
    other = PostgresOutbox(address)
    await other.transact(accept(b"1"))
    await other.let_go()
    async with OutboxAdmin(place) as admin:
        if opened:
            await admin.backlogs()
        with proxy.away():
            for reading in (
                admin.backlogs(),
                admin.backlog(1),
                admin.waiting(1),
                admin.lines(1),
                admin.unreadable(1),
            ):
                error = await raised(reading)
                assert isinstance(error, OutboxUnavailable)
                for part in ("cannot be reached", "could not be read", "tried again at the next"):
                    assert part in str(error)
        assert len(await admin.backlogs()) == 1


async def test_read_only(address: str, emulator: Emulator, postgres: Server) -> None:
    """An engine that only lets read is told of, and used when it lets write: after a promotion."""
    name = address.rpartition("/")[2]
    async with Process(emulator, PostgresOutbox(address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await process.outbox.aclose()
        for _ in range(2):
            with pytest.raises(OutboxUnavailable, match="is read-only, a standby perhaps"):
                await session.add_items(users("a"))
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        await session.add_items(users("b"))
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["b"]


async def test_place_in_the_line_comes_late(address: str, proxy: Proxy) -> None:
    """A call for a place in the line that comes late takes none, which nobody would give up."""
    outbox = through(proxy, address)
    try:
        ticket = await outbox.transact(lambda log: log.line_up(ADDRESS, None))
        proxy.rule = once("line_up", Fate.HOLD)
        ticket = await outbox.transact(lambda log: log.line_up(ADDRESS, ticket))
        await outbox.transact(lambda log: log.step_out(ticket))
        (held,) = proxy.held
        before = recorded(address)
        await asyncio.to_thread(held.let_through)
        assert recorded(address) == before
    finally:
        await outbox.let_go()


@pytest.mark.parametrize(
    ("block", "last"), [("turn", b"cached_session.step_out"), ("session", b"cached_session.note")]
)
async def test_the_end_of_a_block(
    address: str,
    proxy: Proxy,
    hasty: None,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
    block: str,
    last: bytes,
) -> None:
    """It does not raise that nothing was recorded: who believes it appends the same once more."""
    conversation = Elsewhere(emulator).conversation()
    async with (
        Process(emulator, PostgresOutbox(address)) as other,
        Process(emulator, through(proxy, address, lease=3.0)) as process,
    ):
        session = process.session(conversation)
        async with session.turn() if block == "turn" else session:
            await session.add_items(users("a"))
            # The last call of the block, and all of its kind after it, are not heard of.
            proxy.rule = lambda data: Fate.REFUSE if last in data else Fate.PASS
            await until(lambda: session.stats.waiting == 0)
        assert f"a {block} " in caplog.text
        proxy.rule = lambda _: Fate.PASS
        # Others go on with what they could not be given.
        behind = other.session(conversation)
        async with behind.turn(wait=20):
            await behind.add_items(users("b"))
        await behind.flush()
        assert texts(emulator.items(conversation)) == ["a", "b"]
