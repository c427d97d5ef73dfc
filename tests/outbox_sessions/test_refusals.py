"""A batch that the server refuses: everything pauses, nothing is lost, somebody decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from cached_session import (
    AppendOutcomeUnknown,
    BacklogChanged,
    CachedSession,
    ConversationCache,
    Event,
    MemoryOutbox,
    OutboxError,
    OutboxPaused,
    Sending,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from cached_session.outbox import Log
from tests.faults.line import CUT, LOST, Do, Line, Say, error, policy
from tests.outbox_sessions.support import Process, in_flight, in_virtual_time, opened, raised, words
from tests.session.support import Elsewhere, texts, user, users

SECRET = "the combination is 4711"
BAD: Any = {"type": "no such type", "text": SECRET, "call_id": SECRET}


def decide(*, discard: bool) -> Callable[[Log], bool]:
    """What the command line does with a paused backlog: sends it again, or discards it.

    A work that returns whether it was done: a living process may not have let go of it yet.
    """

    def work(log: Log) -> bool:
        for found in log.summaries():
            if discard and log.discard(found.address) is None:
                return False
            log.resume(found.address)
        return True

    return work


async def test_one_id_twice(new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator) -> None:
    """Of two items that wait with one id the second is refused; it does not replace the first."""
    async with Process(emulator, new_outbox()) as process:
        conversation = Elsewhere(emulator).conversation()
        session = process.session(conversation)
        await session.get_items()
        await session.add_items([{"id": "msg_1", **user(text)} for text in "ab"])
        paused = await raised(session.flush())
        assert isinstance(paused, OutboxPaused)
        assert "code item_already_in_conversation" in str(paused)
        assert paused.waiting == 1
        assert texts(emulator.items(conversation)) == ["a"]
        assert texts(await session.get_items()) == ["a", "b"]


async def test_a_batch_is_refused(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """After a 400 the next append and flush raise `OutboxPaused`; reads show everything."""
    events: list[Event] = []
    async with Process(emulator, new_outbox()) as process:
        conversation = Elsewhere(emulator).conversation("before")
        session = process.session(conversation, observer=events.append)
        await session.get_items()
        await session.add_items([user("a"), BAD, user("b")])
        for call in (session.flush, lambda: session.add_items(users("c")), session.flush):
            paused = await raised(call())
            assert isinstance(paused, OutboxPaused)
            assert isinstance(paused, OutboxError)
            assert isinstance(paused.__cause__, openai.BadRequestError)
            assert paused.conversation_id == conversation
            assert paused.waiting == 3
            for said in ("3 items", "status 400", conversation, "cached-session outbox --help"):
                assert said in str(paused)
            assert SECRET not in str(paused)
        assert session.stats.sending is Sending.PAUSED
        assert session.stats.waiting == 3
        changes = [event for event in events if isinstance(event, BacklogChanged)]
        assert [change.state for change in changes] == [Sending.SENDING, Sending.PAUSED]
        assert (changes[-1].waiting, changes[-1].error) == (3, "BadRequestError")
        assert SECRET not in repr(events)

        emulator.clear_log()
        read: list[Any] = await session.get_items()
        assert words([read[0], read[1], read[3]]) == ["before", "a", "b"]
        assert read[2] == BAD
        assert emulator.requests == []
        assert texts(emulator.items(conversation)) == ["before"]
        assert isinstance(await raised(session.aclose(timeout=60)), OutboxPaused)


@pytest.mark.parametrize("discard", [False, True], ids=["sent again", "discarded"])
async def test_somebody_decides(
    discard: bool, new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """After another process has resumed or discarded the batch, the session goes on by itself."""
    async with Process(emulator, new_outbox()) as process:
        conversation = Elsewhere(emulator).conversation("before")
        session = process.session(conversation)
        emulator.faults = refuse_once()
        await session.add_items(users("a", "b"))
        assert isinstance(await raised(session.flush()), OutboxPaused)
        command = new_outbox()
        async with asyncio.timeout(20):
            while not await command.transact(decide(discard=discard)):
                pass  # the sender lets go of it when it has paused
        await command.let_go()
        await session.add_items(users("c"))
        await session.flush()
        kept = [] if discard else ["a", "b"]
        assert texts(emulator.items(conversation)) == ["before", *kept, "c"]
        assert await session.get_items() == emulator.items(conversation)
        assert session.stats.sending is Sending.IDLE
        await session.aclose()


async def test_refused_once_more(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A batch that is sent again and refused again pauses again."""
    async with Process(emulator, new_outbox()) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.add_items([BAD])
        assert isinstance(await raised(session.flush()), OutboxPaused)
        command = new_outbox()
        await command.transact(decide(discard=False))
        await command.let_go()
        again = await raised(session.flush())
        assert isinstance(again, OutboxPaused)
        assert isinstance(again.__cause__, openai.BadRequestError)
        await raised(session.aclose())


async def test_a_new_process_finds_it_paused(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """The pause outlives the process; the next one says so, too, and sends nothing."""
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.add_items([BAD])
        await raised(session.aclose(timeout=60))
    emulator.clear_log()
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        for call in (session.flush, lambda: session.add_items(users("c"))):
            paused = await raised(call())
            assert isinstance(paused, OutboxPaused)
            assert "status 400" in str(paused)
        assert await session.get_items() == [BAD]
        assert not any(entry.method == "POST" for entry in emulator.requests)
        await raised(session.aclose(timeout=60))


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.add_items(users("c")),
        lambda session: session.flush(),
        lambda session: session.get_items(),
    ],
    ids=["add_items", "flush", "get_items"],
)
async def test_who_only_looks_holds_nothing(
    call: Callable[[CachedSession], Any], new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """A process that came to a paused backlog leaves it free for whoever decides about it."""
    conversation = Elsewhere(emulator).conversation("before")
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.get_items()
        emulator.faults = refuse_once()
        await session.add_items(users("a", "b"))
        await raised(session.aclose(timeout=60))
        await process.outbox.let_go()
    async with Process(emulator, new_outbox()) as process:
        looking = process.session(conversation, max_staleness=float("inf"))
        await raised(call(looking))
        command = new_outbox()
        (found,) = await command.transact(lambda log: log.summaries())
        assert (found.items, found.owned) == (2, False)
        async with Process(emulator, command) as other:
            session = other.session(conversation)
            assert words(await session.get_items()) == ["before", "a", "b"]
            await command.transact(decide(discard=False))
            await session.add_items(users("c"))
            await session.flush()
            assert texts(emulator.items(conversation)) == ["before", "a", "b", "c"]
            await session.aclose(timeout=60)
        await looking.aclose(timeout=60)


@in_virtual_time
async def test_who_waits_hears_of_it() -> None:
    """Whoever waits in flush, pop or for room when the batch is refused is told at once."""
    line, session, _ = await opened("before")
    line.on(is_append, error(400, "invalid_value"))
    await session.add_items(users("a"))
    await in_flight(line)
    results = await asyncio.gather(session.flush(), session.pop_item(), return_exceptions=True)
    assert [type(result) for result in results] == [OutboxPaused, OutboxPaused]
    await raised(session.aclose())


@in_virtual_time
async def test_a_refusal_that_quotes() -> None:
    """What the server says of an item may quote it; that stays in the cause, out of our words."""
    line, session, _ = await opened("before")
    events: list[Event] = []
    other = line.session(line.conversation(), outbox=MemoryOutbox(), observer=events.append)
    said = {"error": {"message": f"no: {SECRET}", "type": "invalid_request_error", "code": None}}
    line.on(is_append, Say(400, said))
    await other.add_items(users(SECRET))
    paused = await raised(other.flush())
    assert isinstance(paused, OutboxPaused)
    assert SECRET in str(paused.__cause__)
    for words_of_ours in (str(paused), repr(events), repr(other), repr(other.stats)):
        assert SECRET not in words_of_ours
    await raised(other.aclose())
    await session.aclose()


@in_virtual_time
async def test_clear_ends_a_pause() -> None:
    """`clear_session` drops what was refused, with the rest; the next conversation is free."""
    line, session, conversation = await opened("before")
    line.on(is_append, error(400, "invalid_value"))
    await session.add_items(users("a"))
    assert isinstance(await raised(session.flush()), OutboxPaused)
    await session.clear_session()
    await session.add_items(users("b"))
    await session.flush()
    assert session.session_id != conversation
    assert line.texts(session.session_id) == ["b"]
    await session.aclose()


@in_virtual_time
async def test_a_conversation_that_is_gone() -> None:
    """A conversation that somebody else deleted pauses, too: what waits is kept."""
    line, session, conversation = await opened("before")
    line.delete(conversation)
    await session.add_items(users("a"))
    paused = await raised(session.flush())
    assert isinstance(paused, OutboxPaused)
    assert isinstance(paused.__cause__, openai.NotFoundError)
    assert paused.waiting == 1
    # Nothing of it is shown any more, as without an outbox.
    assert isinstance(await raised(session.get_items()), openai.NotFoundError)
    await raised(session.aclose())


@in_virtual_time
async def test_an_outcome_that_stays_unknown() -> None:
    """A batch of which nobody can tell whether it landed pauses; it is not called a refusal."""
    line = Line()
    conversation = line.conversation(*map(str, range(20)))
    session = line.session(conversation, outbox=MemoryOutbox())
    # It knows the newest items, and not whether there are others.
    assert words(await session.get_items(2)) == ["18", "19"]
    line.on(is_append, LOST)
    line.on(is_listing, Do(lambda: line.remove(conversation, *map(str, range(20)))))
    await session.add_items(users("ours"))
    paused = await raised(session.flush())
    assert isinstance(paused, OutboxPaused)
    assert isinstance(paused.__cause__, AppendOutcomeUnknown)
    assert "whether a recorded batch is on the server cannot be found out" in str(paused)
    assert "refused" not in str(paused)
    # No command can look into this process's memory.
    assert "cached-session outbox" not in str(paused)
    assert "clear_session" in str(paused)
    assert paused.waiting == 1
    await raised(session.aclose())


@in_virtual_time
async def test_a_read_finds_that_nobody_can_tell() -> None:
    """Where a read finds that out, a sender that waits for its turn sends nothing either."""
    line = Line(latency=1.0)
    conversation = line.conversation(*map(str, range(20)))
    # It tries again, and waits for its turn, while the read below takes its second.
    often = policy(max_delay=0.5)
    session = line.session(conversation, outbox=MemoryOutbox(), retry=often)
    assert words(await session.get_items(2)) == ["18", "19"]
    line.on(is_append, LOST)
    line.always(is_listing, CUT)
    await session.add_items(users("ours"))
    while session.stats.sending is not Sending.OFFLINE:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.1)
    line.heal()
    line.remove(conversation, *map(str, range(20)))
    assert line.texts(conversation) == ["ours"]
    # What is there is shown before what waits: nothing tells that they are one.
    read = await session.get_items()
    assert read[:-1] == line.service.items(conversation)
    assert "id" not in read[-1]
    await asyncio.sleep(60)
    paused = await raised(session.flush())
    assert isinstance(paused, OutboxPaused)
    assert paused.waiting == 1
    assert line.texts(conversation) == ["ours"]
    await raised(session.aclose())


@in_virtual_time
async def test_a_session_without_an_outbox_beside_it() -> None:
    """Beside a paused backlog a plain append raises, too, and does not overtake what waits."""
    cache = ConversationCache()
    line, session, conversation = await opened("before", cache=cache)
    plain = line.session(conversation, cache=cache)
    line.on(is_append, error(400, "invalid_value"))
    await session.add_items(users("a"))
    assert isinstance(await raised(session.flush()), OutboxPaused)
    line.asked()
    assert isinstance(await raised(plain.add_items(users("b"))), OutboxPaused)
    assert line.asked() == []
    assert words(await plain.get_items()) == ["before", "a"]
    await plain.clear_session()
    await session.aclose()
    await plain.aclose()


@pytest.mark.parametrize("status", [401, 403], ids=str)
@in_virtual_time
async def test_a_key_that_is_refused(status: int) -> None:
    """A key that the server does not take pauses; no key is in the error's text."""
    line, session, _ = await opened("before")
    line.on(is_append, error(status, "invalid_api_key"))
    await session.add_items(users("a"))
    paused = await raised(session.flush())
    assert isinstance(paused, OutboxPaused)
    assert f"status {status}" in str(paused)
    assert "simulated" not in str(paused)
    await raised(session.aclose())


def refuse_once() -> Any:
    """A plan that refuses the first append, as for an account that has run out of money."""
    left = [Fault(FaultKind.RATE_LIMITED_QUOTA)]
    return lambda request: left.pop() if left and is_append(request) else None
