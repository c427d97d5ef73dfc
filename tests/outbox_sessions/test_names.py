"""Local names, ids that come later, and who else may have made the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationBusy,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    OutboxError,
    PostgresOutbox,
    SQLiteOutbox,
    TurnLost,
)
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_create
from tests.faults.line import CUT, Line, policy
from tests.outbox_sessions.support import (
    QUICK,
    Process,
    held,
    in_virtual_time,
    left_by_an_exception,
    raised,
    until,
    words,
)
from tests.session.support import Elsewhere, Gate, new_client, texts, users


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.processes)])
def new(request: pytest.FixtureRequest) -> Callable[[], Outbox]:
    """Makes outboxes in one place, as several processes have them."""
    if request.param == "file":
        made: Callable[[], SQLiteOutbox] = request.getfixturevalue("new_outbox")
        return made
    address = request.getfixturevalue("postgres").with_tables()
    return lambda: PostgresOutbox(address)


def made(emulator: Emulator) -> int:
    """How many conversations the server was asked to make."""
    return sum(entry.path.endswith("/conversations") for entry in emulator.requests)


def local_name(session: CachedSession) -> str:
    """The name of a conversation that the server has not made yet, as it is shown to users."""
    return repr(session).removeprefix("CachedSession(").partition(",")[0]


async def test_a_second_session_by_the_local_name(outbox: Outbox) -> None:
    """The local name leads to the conversation beside the session that made it, at any time."""
    with Emulator() as emulator:
        emulator.stop()
        async with Process(emulator, outbox) as process:
            first = process.session()
            await first.add_items(users("a"))
            name = local_name(first)
            assert name.startswith("local-")
            early = process.session(name)
            await early.add_items(users("b"))
            emulator.start()
            await first.flush()
            late = process.session(name)
            await late.add_items(users("c"))
            for session in (first, early, late):
                assert words(await session.get_items()) == ["a", "b", "c"]
                await session.flush()
                assert session.session_id == first.session_id
            assert texts(emulator.items(first.session_id)) == ["a", "b", "c"]
            for session in (late, early, first):
                await session.aclose()


async def test_the_local_name_is_there_to_be_stored(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """`local_name` opens a conversation begun offline in another process, and goes with its id."""
    with Emulator() as emulator:
        async with Process(emulator, new_outbox()) as process:
            session = process.session()
            assert session.local_name is None
            emulator.stop()
            await session.add_items(users("a"))
            name = session.local_name
            assert name is not None
            with pytest.raises(ValueError, match=name):
                assert session.session_id
            await left_by_an_exception(session)
        for text, stored in (("b", ["a", "b"]), ("c", ["a", "b", "c"])):
            async with Process(emulator, new_outbox()) as process:
                session = process.session(name)
                assert session.local_name == name
                await session.add_items(users(text))
                if text == "b":
                    emulator.start()
                await session.flush()
                assert session.local_name is None
                assert texts(emulator.items(session.session_id)) == stored
                await session.aclose()


async def test_without_an_outbox_there_is_no_local_name(client: AsyncOpenAI) -> None:
    """`local_name` is None where nothing is recorded, before the first use and after it."""
    session = CachedSession(openai_client=client)
    assert session.local_name is None
    await session.get_items()
    assert session.local_name is None


async def test_a_local_name_that_nobody_knows(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A mistyped local name, or the wrong outbox, is refused, and makes no new conversation."""
    async with Process(emulator, new_outbox()) as process:
        session = process.session("local-deadbeef")
        for call in (session.get_items, lambda: session.add_items(users("a")), session.pop_item):
            error = await raised(call())
            assert type(error) is OutboxError
            assert "local-deadbeef" in str(error)
            assert error.conversation_id == "local-deadbeef"
        await raised(session.aclose())
    assert emulator.requests == []


async def test_a_local_name_without_an_outbox(emulator: Emulator) -> None:
    """Without an outbox a local name is refused by the constructor."""
    async with new_client(emulator) as client:
        with pytest.raises(ValueError, match="conversation_id: local-1 is a name"):
            CachedSession(conversation_id="local-1", openai_client=client)


@in_virtual_time
async def test_the_wrapped_session_is_faster() -> None:
    """Where the wrapped session made a conversation first, what waits goes there, behind it."""
    line = Line()
    wrapped = OpenAIConversationsSession(openai_client=line.openai)
    session = CachedSession(
        wrapped, outbox=MemoryOutbox(), cache=ConversationCache(), retry=policy()
    )
    line.always(is_create, CUT)
    await session.add_items(users("waits"))
    assert local_name(session).startswith("local-")
    line.heal()
    await wrapped.add_items(users("direct"))
    await session.flush()
    assert session.session_id == wrapped.session_id
    assert line.texts(session.session_id) == ["direct", "waits"]
    assert await session.get_items() == await wrapped.get_items()
    await session.aclose()


@pytest.mark.parametrize("first", ["ours", "the wrapped session's"])
@in_virtual_time
async def test_both_are_made_at_once(first: str) -> None:
    """Where both sessions make a conversation at the same moment, all of it ends up in one."""
    line = Line(latency=1.0)
    wrapped = OpenAIConversationsSession(openai_client=line.openai)
    session = CachedSession(
        wrapped, outbox=MemoryOutbox(), cache=ConversationCache(), retry=policy()
    )
    line.always(is_create, CUT)
    await session.add_items(users("waits"))
    line.heal()
    if first == "ours":
        while not line.in_flight:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    await wrapped.add_items(users("direct"))
    await session.flush()
    assert session.session_id == wrapped.session_id
    assert sorted(line.texts(session.session_id)) == ["direct", "waits"]
    assert await session.get_items() == await wrapped.get_items()
    await session.aclose()


@pytest.mark.parametrize("first", ["its local name", "its id"])
async def test_both_names_in_one_process(first: str, new: Callable[[], Outbox]) -> None:
    """A process that has a conversation under both names sends each item once, in one order."""
    with held() as (emulator, gate):
        emulator.stop()
        async with Process(emulator, new()) as other, Process(emulator, new()) as process:
            begun = other.session()
            await begun.add_items(users("1", "2"))
            by_name = process.session(begun.local_name)
            if first == "its local name":
                assert words(await by_name.get_items()) == ["1", "2"]
            emulator.start()
            await begun.flush()
            by_id = process.session(begun.session_id)
            assert words(await by_id.get_items()) == ["1", "2"]
            if first == "its id":
                assert words(await by_name.get_items()) == ["1", "2"]
            emulator.stop()
            await by_id.add_items(users("3"))
            await by_name.add_items(users("4"))
            gate.hold()
            emulator.start()
            await gate.arrived()
            # Where there were two who send, both have asked by now.
            for _ in range(20):
                await asyncio.sleep(0.001)
            gate.open()
            await by_id.flush()
            await by_name.flush()
            assert texts(emulator.items(begun.session_id)) == ["1", "2", "3", "4"]
            for session in (begun, by_id, by_name):
                assert words(await session.get_items()) == ["1", "2", "3", "4"]
                await session.aclose()


class Two(NamedTuple):
    """A session by a local name, its process, and the session of another process that gave it."""

    emulator: Emulator
    gate: Gate
    process: Process
    begun: CachedSession
    session: CachedSession


@asynccontextmanager
async def known_by_two(new: Callable[[], Outbox], **options: Any) -> AsyncIterator[Two]:
    """A conversation with a local name of which nothing waits, while the server is away."""
    with held() as (emulator, gate):
        emulator.stop()
        async with Process(emulator, new()) as other, Process(emulator, new()) as process:
            begun = other.session()
            await begun.add_items(users("1"))
            session = process.session(begun.local_name, **options)
            assert words([await session.pop_item()]) == ["1"]
            # Nobody looks any more: only a call hears what becomes of it elsewhere.
            await until(lambda: len(asyncio.all_tasks()) == 1)
            yield Two(emulator, gate, process, begun, session)
            await session.aclose()
            await begun.aclose()


@asynccontextmanager
async def made_elsewhere(new: Callable[[], Outbox], **options: Any) -> AsyncIterator[Two]:
    """The same when the other process has made it, and sent "2"."""
    async with known_by_two(new, **options) as two:
        two.emulator.start()
        await two.begun.add_items(users("2"))
        await two.begun.flush()
        assert two.session.local_name is not None
        yield two


async def test_made_and_sent_by_another_process(new: Callable[[], Outbox]) -> None:
    """A pop by a local name of which nothing waits any more takes what another process has sent."""
    async with made_elsewhere(new) as (emulator, _, _, begun, session):
        assert words([await session.pop_item()]) == ["2"]
        assert emulator.items(begun.session_id) == []


async def test_cleared_by_its_local_name(new: Callable[[], Outbox]) -> None:
    """A clear by the local name deletes the conversation that another process has made."""
    async with made_elsewhere(new) as (emulator, _, _, begun, session):
        await session.clear_session()
        with pytest.raises(LookupError):
            emulator.items(begun.session_id)


async def test_flushed_by_two_processes(new: Callable[[], Outbox]) -> None:
    """Where two processes flush a local name of which nothing waits, one conversation is made."""
    async with known_by_two(new) as (emulator, _, _, begun, session):
        emulator.start()
        await asyncio.gather(begun.flush(), session.flush())
        assert session.session_id == begun.session_id
        assert made(emulator) == 1


@pytest.mark.parametrize("where", ["in another process", "in the same"])
async def test_what_waited_goes_to_a_conversation_that_is_in_use(
    where: str, new: Callable[[], Outbox]
) -> None:
    """What waited under a local name goes behind what others send to the conversation meanwhile."""
    with Emulator() as emulator:
        emulator.stop()
        async with Process(emulator, new()) as one, Process(emulator, new()) as another:
            wrapped = OpenAIConversationsSession(openai_client=one.client)
            session = CachedSession(wrapped, outbox=one.outbox, cache=one.cache, retry=QUICK)
            await session.add_items(users("waits"))
            conversation = Elsewhere(emulator).conversation("direct")
            process = one if where == "in the same" else another
            direct = process.session(conversation)
            await direct.add_items(users("meanwhile"))
            wrapped.session_id = conversation
            emulator.start()
            await session.flush()
            await direct.flush()
            assert texts(emulator.items(conversation)) == ["direct", "meanwhile", "waits"]
            for each in (session, direct):
                assert words(await each.get_items()) == ["direct", "meanwhile", "waits"]
                await each.aclose()
    assert made(emulator) == 0


# A run by the local name, whose copy is given up for the one by the id


@asynccontextmanager
async def run_by_the_local_name(
    new: Callable[[], Outbox],
) -> AsyncIterator[tuple[Emulator, Process, CachedSession, CachedSession]]:
    """In a run by a local name, which another process has made a conversation of.

    Two sessions of the run's process: the run's, whose next call hears of it, and one by the id.
    """
    async with made_elsewhere(new) as (emulator, _, process, begun, session):
        by_id = process.session(begun.session_id)
        assert words(await by_id.get_items()) == ["2"]
        async with session.turn():
            yield emulator, process, session, by_id
        async with by_id.turn(wait=0):
            pass
        await by_id.aclose()


async def test_a_run_goes_on_by_the_id(new: Callable[[], Outbox]) -> None:
    """A run keeps its turn when what it began on becomes known by its id; nobody else has it."""
    async with run_by_the_local_name(new) as (emulator, _, session, by_id):
        assert words(await session.get_items()) == ["2"]
        async with session.turn(wait=0), by_id.turn(wait=0):
            await session.add_items(users("3"))
        for other in (session, by_id):
            with pytest.raises(ConversationBusy):
                await asyncio.create_task(other.turn(wait=0).__aenter__())
        await session.add_items(users("4"))
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["2", "3", "4"]


async def test_a_run_is_over_by_the_id_too(new: Callable[[], Outbox]) -> None:
    """Where a run's turn is lost after its conversation got its id, it records nothing more."""
    async with run_by_the_local_name(new) as (emulator, process, session, by_id):
        assert words(await session.get_items()) == ["2"]
        await process.outbox.aclose()
        for call in (session.add_items(users("3")), session.pop_item(), session.clear_session()):
            with pytest.raises(TurnLost):
                await call
        await by_id.flush()
        assert texts(emulator.items(session.session_id)) == ["2"]


async def test_a_run_by_the_local_name_sees_the_one_before_it(new: Callable[[], Outbox]) -> None:
    """A run by the local name sees what a run by the id did elsewhere, whatever is held of that."""
    async with made_elsewhere(new, max_staleness=3600) as (_, _, process, begun, session):
        by_id = process.session(begun.session_id, max_staleness=3600)
        assert words(await by_id.get_items()) == ["2"]
        async with begun.turn():
            await begun.add_items(users("3"))
            await begun.flush()
        async with session.turn():
            assert words(await session.get_items()) == ["2", "3"]
        await by_id.aclose()


@in_virtual_time
async def test_a_run_where_the_wrapped_session_has_made_it() -> None:
    """Who comes to a conversation by its id waits for a run that began on it by a local name."""
    line = Line()
    outbox, cache = MemoryOutbox(), ConversationCache()
    wrapped = OpenAIConversationsSession(openai_client=line.openai)
    session = CachedSession(wrapped, outbox=outbox, cache=cache, retry=policy())
    line.always(is_create, CUT)
    await session.add_items(users("waits"))
    direct = line.session(line.conversation("direct"), outbox=outbox, cache=cache)
    assert words(await direct.get_items()) == ["direct"]
    waited: list[str] = []

    async def wait_for_it() -> None:
        async with direct.turn(wait=60):
            waited.extend(words(await direct.get_items()))

    async with session.turn():
        wrapped.session_id = direct.session_id
        line.heal()
        await session.flush()
        assert session.session_id == direct.session_id
        with pytest.raises(ConversationBusy):
            await asyncio.create_task(direct.turn(wait=0).__aenter__())
        task = asyncio.create_task(wait_for_it())
        await asyncio.sleep(1)
        assert waited == []
        await session.add_items(users("of the run"))
    await task
    assert waited == ["direct", "waits", "of the run"]
    await session.aclose()
    await direct.aclose()


async def test_a_run_without_the_outbox_goes_on(new: Callable[[], Outbox]) -> None:
    """A run without the outbox keeps its turn where one with it brings a copy from a local name."""
    async with made_elsewhere(new) as (_, _, process, begun, session):
        plain = CachedSession(
            conversation_id=begun.session_id, openai_client=process.client, cache=process.cache
        )
        async with plain.turn():
            assert words(await session.get_items()) == ["2"]
            with pytest.raises(ConversationBusy):
                await asyncio.create_task(session.turn(wait=0).__aenter__())
            async with plain.turn(wait=0):
                await plain.add_items(users("3"))
        async with session.turn(wait=0):
            assert words(await session.get_items()) == ["2", "3"]


# What one copy keeps others from sending, the other does not let go of


async def kept_from_others(outbox: Outbox) -> bool:
    """Whether somebody keeps other processes from sending what the outbox has."""
    return any(one.owned for one in await outbox.transact(lambda log: log.summaries()))


async def test_a_local_name_lets_go_of_nothing_that_is_sent_by_the_id(
    new: Callable[[], Outbox],
) -> None:
    """What is sent by the id stays this process's to send when a session by the old name ends."""
    async with made_elsewhere(new) as (emulator, gate, process, begun, session):
        by_id = process.session(begun.session_id)
        await by_id.get_items()
        gate.hold()
        await by_id.add_items(users("3"))
        await gate.arrived()
        await session.aclose()
        assert await kept_from_others(process.outbox)
        gate.open()
        await by_id.flush()
        assert texts(emulator.items(begun.session_id)) == ["2", "3"]
        assert not await kept_from_others(process.outbox)
        await by_id.aclose()


async def test_a_local_name_lets_go_of_nothing_that_is_removed_by_the_id(
    new: Callable[[], Outbox],
) -> None:
    """While an item is removed by the id, a first read by the local name lets nobody else send."""
    async with known_by_two(new) as (emulator, gate, process, begun, _):
        emulator.start()
        name = begun.local_name
        await begun.add_items(users("2", "3"))
        await begun.flush()
        async with Process(emulator, new()) as third:
            by_id = third.session(begun.session_id)
            await by_id.get_items()
            gate.hold()
            pop = asyncio.create_task(by_id.pop_item())
            await gate.arrived()
            by_name = third.session(name)
            read = asyncio.create_task(by_name.get_items())
            await until(lambda: by_name.local_name is None)
            assert await kept_from_others(process.outbox)
            gate.open()
            assert words([await pop]) == ["3"]
            assert words(await read) == ["2"]
            for each in (by_id, by_name):
                await each.flush()
                await each.aclose()


# A name that was brought together with another record of its conversation


@pytest.mark.parametrize("call", ["append", "pop", "another session"])
async def test_items_that_moved_are_shown_once(call: str, new: Callable[[], Outbox]) -> None:
    """What waits by a local name is shown once where it stands behind what waits by the id now."""
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("direct")
        async with (
            Process(emulator, new()) as one,
            Process(emulator, new()) as two,
            Process(emulator, new()) as third,
        ):
            known = third.session(conversation, max_staleness=3600)
            assert words(await known.get_items()) == ["direct"]
            emulator.stop()
            wrapped = OpenAIConversationsSession(openai_client=one.client)
            session = CachedSession(wrapped, outbox=one.outbox, cache=one.cache, retry=QUICK)
            await session.add_items(users("waits"))
            while not await kept_from_others(two.outbox):  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.001)
            name = session.local_name
            reader = third.session(name, max_staleness=3600)
            assert words(await reader.get_items()) == ["waits"]
            by_id = two.session(conversation)
            await by_id.add_items(users("by the id"))
            # In a batch of its own: what moves behind it would be in that batch, and not be popped.
            await until(lambda: by_id.stats.sending == "offline")
            wrapped.session_id = conversation
            await until(lambda: session.local_name is None)
            expected = ["by the id", "waits"]
            if call == "append":
                await reader.add_items(users("more"))
                expected.append("more")
            elif call == "pop":
                assert words([await reader.pop_item()]) == [expected.pop()]
            else:
                reader = third.session(name, max_staleness=3600)
            assert words(await reader.get_items()) == ["direct", *expected]
            emulator.start()
            for each in (session, by_id, known, reader):
                await each.flush()
                await each.aclose()
            assert texts(emulator.items(conversation)) == ["direct", *expected]
