"""What a ledger in PostgreSQL costs: statements to the engine, and requests to the server."""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from cryptography.fernet import Fernet

from cached_session import CachedSession, MemoryOutbox, PostgresOutbox, fernet_cipher
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from cached_session.outbox import writer
from cached_session.session import adoption
from tests.outbox_sessions.support import Process, batches, until, words
from tests.postgres import Server
from tests.proxy import Fate, Proxy, before
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes

# What a worker does by itself, behind its calls: the look for what others have left, every five
# seconds while it is used, and that for what is old, once an hour.
_BY_ITSELF = ("waiting", "expire")


class Asked:
    """What an engine is asked, a statement each: what is called, or read."""

    def __init__(self, address: str, proxy: Proxy) -> None:
        self.address = psycopg.conninfo.make_conninfo(address, port=proxy.port)
        self.all: list[str] = []
        self.ever: Counter[str] = Counter()
        proxy.rule = self._rule

    def _rule(self, data: bytes) -> Fate:
        # The end of a statement with parameters, and one without.
        if data.endswith(b"S\0\0\0\4") or data.startswith(b"Q"):
            names = [name.decode() for name in re.findall(rb"cached_session\.(\w+)", data)]
            self.all += names
            self.ever.update(names)
        return Fate.PASS

    def since(self) -> list[str]:
        """What it was asked for calls since the last time."""
        asked, self.all = self.all, []
        return [name for name in asked if name not in _BY_ITSELF]


@pytest.fixture
def asked(postgres: Server) -> Iterator[Asked]:
    """A database, and what it is asked."""
    with before(postgres.port) as proxy:
        yield Asked(postgres.with_tables(), proxy)


async def opened(asked: Asked, emulator: Emulator, process: Process) -> tuple[CachedSession, str]:
    """A session that has read a conversation of two items, and it; nothing is counted yet."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = process.session(conversation)
    await session.get_items()
    emulator.clear_log()
    asked.since()
    return session, conversation


async def test_a_session_for_each_web_request(asked: Asked, emulator: Emulator) -> None:
    """Sessions that come one after the other share a connection; none has one to itself."""
    conversation = Elsewhere(emulator).conversation("a", "b")
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        async with process.session(conversation) as session:
            await session.get_items()
        for _ in range(3):
            asked.since()
            async with process.session(conversation) as session:
                assert words(await session.get_items()) == ["a", "b"]
            # It asks what has changed, and goes on from what the one before it has read. Nobody
            # connects, looks for the tables or ends a lease.
            assert asked.since() == ["mailbox", "validate"]
        assert [request.method for request in emulator.requests].count("GET") == 1


async def test_a_session_after_one_that_was_closed(asked: Asked, emulator: Emulator) -> None:
    """It shows what was done on the conversation since by others, and by those without an outbox.

    What another worker was told is kept for all, whoever has closed its sessions.
    """
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    async with (
        Process(emulator, PostgresOutbox(asked.address)) as process,
        Process(emulator, PostgresOutbox(asked.address)) as other,
    ):
        expected = ["a"]
        for number, outbox in enumerate((other, process, other, other, process, other)):
            for word in (f"{number}", f"{number}."):
                async with outbox.session(conversation) as session:
                    await session.add_items(users(word))
                    expected.append(word)
                    if number % 2:
                        await session.flush()
                async with process.session(conversation) as session:
                    assert words(await session.get_items()) == expected
            if number == 3:
                async with outbox.session(conversation) as session:
                    assert words([await session.pop_item()]) == [expected.pop()]
        async with process.session(conversation) as session:
            assert words(await session.get_items()) == expected
            await session.flush()
        await until(lambda: texts(emulator.items(conversation)) == expected)


async def test_a_session_after_one_with_another_outbox(asked: Asked, emulator: Emulator) -> None:
    """It reads its own outbox anew where sessions that were dropped had used another one since."""
    conversation = Elsewhere(emulator).conversation("a")
    async with (
        Process(emulator, PostgresOutbox(asked.address)) as process,
        Process(emulator, PostgresOutbox(asked.address)) as other,
    ):
        async with process.session(conversation) as session:
            await session.get_items()
        beside = CachedSession(
            conversation_id=conversation,
            openai_client=process.client,
            cache=process.cache,
            outbox=MemoryOutbox(),
        )
        for word in ("b", "c", "d"):
            await beside.add_items(users(word))
        await beside.flush()
        del beside
        gc.collect()
        emulator.faults = lambda request: (
            Fault(FaultKind.RATE_LIMITED) if request.method == "POST" else None
        )
        await other.session(conversation).add_items(users("e"))
        async with process.session(conversation) as session:
            assert words(await session.get_items())[-1] == "e"
        emulator.faults = None


async def test_steady_read(asked: Asked, emulator: Emulator) -> None:
    """A read of what has not changed asks the engine once, and the server nothing."""
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        session, _ = await opened(asked, emulator, process)
        for _ in range(3):
            assert words(await session.get_items()) == ["a", "b"]
            assert asked.since() == ["validate"]
        assert not emulator.requests


async def test_read_of_what_another_one_has_done(asked: Asked, emulator: Emulator) -> None:
    """A read of what has changed asks the engine once, and so does the one after it."""
    async with (
        Process(emulator, PostgresOutbox(asked.address)) as one,
        Process(emulator, PostgresOutbox(asked.address)) as two,
    ):
        session, conversation = await opened(asked, emulator, one)
        other = two.session(conversation)
        await other.add_items(users("c"))
        await other.flush()
        asked.since()
        for _ in range(2):
            assert texts(await session.get_items())[-1] == "c"
        found = asked.since()
        # Somebody else has had it: what was read is taken in when nobody works on it here.
        assert found in (["validate"] * 2, ["validate"] * 3)


async def test_batch(asked: Asked, emulator: Emulator) -> None:
    """An append asks the engine once; with all that follows three times, and the server once."""
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        session, conversation = await opened(asked, emulator, process)
        for number in range(3):
            await session.add_items(users(f"c{number}"))
            await until(lambda: session.stats.waiting == 0 and not process.outbox.holdings)
            assert asked.since() == ["accept", "seal", "note"]
            assert [request.method for request in emulator.requests] == ["POST"]
            emulator.clear_log()
        await session.add_items(users("d"))
        await session.flush()
        assert asked.since() == ["accept", "seal", "note"]
        assert [request.method for request in emulator.requests] == ["POST"]
        assert texts(emulator.items(conversation)) == ["a", "b", "c0", "c1", "c2", "d"]


async def test_pop_of_what_waits(asked: Asked, emulator: Emulator, postgres: Server) -> None:
    """A pop asks the engine once; twice, where another worker has recorded something meanwhile."""
    hangs = Fault(FaultKind.HANG)
    keys = {"cipher": fernet_cipher(Fernet.generate_key())}
    directly = psycopg.conninfo.make_conninfo(asked.address, port=postgres.port)

    def pops() -> list[str]:
        # What is being sent meanwhile is held by a lease, which is extended.
        return [name for name in asked.since() if name != "renew"]

    async with (
        Process(emulator, PostgresOutbox(asked.address, **keys)) as process,
        Process(emulator, PostgresOutbox(directly, **keys)) as other,
    ):
        session, conversation = await opened(asked, emulator, process)
        theirs = other.session(conversation)
        emulator.faults = lambda request: hangs if is_append(request) else None
        await session.add_items(users("c"))
        # From here on its sender waits, and asks nothing.
        await until(lambda: batches(emulator) > 0)
        await session.add_items(users("d", "e"))
        asked.since()
        assert words([await session.pop_item() or {}]) == ["e"]
        assert pops() == ["withdraw"]
        await theirs.add_items(users("f"))
        assert words([await session.pop_item() or {}]) == ["f"]
        assert pops() == ["withdraw", "withdraw"]
        emulator.faults = None
        emulator.stop()
        emulator.start()
        await session.flush()
        assert texts(emulator.items(conversation)) == ["a", "b", "c", "d"]
        await theirs.aclose()
        await session.aclose()


async def test_cold_worker(asked: Asked, emulator: Emulator) -> None:
    """A worker that has never seen a conversation asks the engine twice, and the server nothing."""
    async with Process(emulator, PostgresOutbox(asked.address)) as first:
        _, another = await opened(asked, emulator, first)
        _, conversation = await opened(asked, emulator, first)
    asked.since()
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        assert words(await process.session(conversation).get_items()) == ["a", "b"]
        assert asked.since() == ["schema_version", "open"]
        # The worker is at work by now, and the conversation new to it.
        assert words(await process.session(another).get_items()) == ["a", "b"]
        assert asked.since() == ["open"]
        assert not emulator.requests


@function_tool
def stock(item: str) -> str:
    """Says how many of an item there are."""
    return f"31 {item}"


async def test_run(asked: Asked, emulator: Emulator) -> None:
    """A run on a cold worker asks the engine once for each call; to come to it, once more."""
    async with Process(emulator, PostgresOutbox(asked.address)) as first:
        _, conversation = await opened(asked, emulator, first)
    asked.since()
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        session = process.session(conversation)
        model = ScriptedModel(
            [[function_call("stock", {"item": "maps"}, call_id="c")], [assistant_message("Plenty")]]
        )
        agent = Agent(name="Warehouse", model=model, tools=[stock])
        async with session.turn(wait=5):
            await Runner.run(agent, "How many maps are there?", session=session)
        found = asked.since()
        # By the sender, beside the run.
        calls = [name for name in found if name not in ("seal", "note")]
        assert calls == ["schema_version", "open", "line_up", "open", *["accept"] * 3, "step_out"]
        await session.flush()
        assert len(emulator.items(conversation)) == 6
        assert all(request.method == "POST" for request in emulator.requests)


async def test_idle(asked: Asked, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that holds nothing asks the engine nothing, and looks once for what is old."""
    # A second lasts a hundredth of one.
    monkeypatch.setattr(writer, "LOOK_AFTER", 0.01)
    monkeypatch.setattr(adoption, "AGAIN_AFTER", 0.05)
    async with Process(emulator, PostgresOutbox(asked.address)) as process:
        session, _ = await opened(asked, emulator, process)
        await session.add_items(users("c"))
        await session.flush()
        # What was waiting when it looked last it looks for once more.
        async with asyncio.timeout(20):
            while asked.all or not asked.ever["expire"]:
                asked.since()
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert asked.all == []
        assert asked.ever["expire"] == 1
        assert words(await session.get_items()) == ["a", "b", "c"]


async def test_what_is_old_goes(postgres: Server, emulator: Emulator) -> None:
    """What is kept of conversations that nobody has used for long goes behind the calls."""
    address = postgres.with_tables()
    old = Elsewhere(emulator).conversation("a")
    async with Process(emulator, PostgresOutbox(address)) as process:
        await process.session(old).get_items()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "UPDATE cached_session.conversations SET touched = touched - interval '1 h'"
        )

        def kept() -> int:
            found = connection.execute(
                "SELECT count(*) FROM cached_session.conversations"
            ).fetchone()
            assert found is not None
            return int(found[0])

        async with Process(emulator, PostgresOutbox(address, keep_for=600)) as process:
            new = Elsewhere(emulator).conversation("b")
            await process.session(new).get_items()
            assert kept() == 2
            await until(lambda: kept() == 1)
