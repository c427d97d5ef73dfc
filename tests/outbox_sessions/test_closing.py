"""Closing: a session does not wait for the server, and the outbox sends what it has left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError
from psycopg.conninfo import make_conninfo

from cached_session import (
    CachedSession,
    ConversationCache,
    DeadlineExceeded,
    LeftConversation,
    MemoryOutbox,
    Outbox,
    PostgresOutbox,
    SessionClosed,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, policy
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import (
    Gate,
    Process,
    batches,
    held,
    in_virtual_time,
    left_by_an_exception,
    opened,
    raised,
    session_on,
    until,
    words,
)
from tests.outbox_sessions.test_loops import without_a_word
from tests.postgres import Server
from tests.proxy import Fate, before
from tests.servers import eventually
from tests.session.support import Elsewhere, new_client, numbered, texts, users


def is_open(path: Path) -> bool:
    """Whether somebody has the outbox open."""
    return bool(list(path.parent.glob("*-owner-*")))


async def leave_in_flight(
    process: Process, conversation: str, gate: Gate, items: list[Any]
) -> None:
    """A session appends items, and is closed while the gate holds the request that carries them."""
    async with process.session(conversation) as session:
        await session.get_items()
        gate.hold()
        await session.add_items(items)
        await gate.arrived()


@in_virtual_time
async def test_in_an_outage() -> None:
    """Closing takes no time while the server is away; when it is back, all is sent, once."""
    line, session, conversation = await opened("a")
    clock = asyncio.get_running_loop().time
    line.on(is_append, *[CUT] * 5)
    began = clock()
    async with session:
        await session.add_items(numbered(0, 30))
    assert clock() - began < 0.1
    with pytest.raises(SessionClosed):
        await session.get_items()
    await asyncio.sleep(60)
    assert line.texts(conversation) == ["a", *map(str, range(30))]


@pytest.mark.parametrize("leave", ["block", "close", "exception"])
async def test_with_a_request_in_flight(leave: str, path: Path) -> None:
    """However a session is left, it is at once; its items land, and then the file is let go of."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation()
        async with Process(emulator, SQLiteOutbox(path)) as process:
            session = process.session(conversation)
            await session.get_items()
            gate.hold()
            await session.add_items(numbered(0, 30))
            await gate.arrived()
            async with asyncio.timeout(5):
                if leave == "exception":
                    await left_by_an_exception(session)
                elif leave == "close":
                    await session.aclose()
                else:
                    async with session:
                        pass
            assert is_open(path)
            gate.open()
            await until(lambda: not is_open(path))
            assert texts(emulator.items(conversation)) == [str(number) for number in range(30)]


async def test_with_nothing_left(path: Path, emulator: Emulator) -> None:
    """Where nothing waits, the close itself lets go of the file, and sends nothing."""
    async with Process(emulator, SQLiteOutbox(path)) as process:
        session = process.session()
        await session.add_items(users("a"))
        await session.flush()
        emulator.clear_log()
        await session.aclose()
        assert not is_open(path)
        assert not emulator.requests


async def test_the_next_session_goes_on(outbox: Outbox) -> None:
    """A session opened while an earlier one's items are being sent shows them, and sends on."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with Process(emulator, outbox) as process:
            await leave_in_flight(process, conversation, gate, users("b"))
            again = process.session(conversation)
            await again.add_items(users("c"))
            gate.open()
            await again.flush()
            assert texts(await again.get_items()) == ["a", "b", "c"]
            await again.aclose()
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]


async def test_the_next_session_has_another_cache(outbox: Outbox) -> None:
    """With another cache the next one takes over: what is in flight settles first, once."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with Process(emulator, outbox) as process:
            await leave_in_flight(process, conversation, gate, numbered(0, 25))
            process.cache = ConversationCache()
            again = process.session(conversation)
            adding = asyncio.create_task(again.add_items(users("c")))
            for _ in range(20):
                await asyncio.sleep(0)
            gate.open()
            await adding
            await again.flush()
            await again.aclose()
        assert texts(emulator.items(conversation)) == ["a", *map(str, range(25)), "c"]


@in_virtual_time
async def test_with_a_time() -> None:
    """`aclose(timeout)` waits until all is on the server, or so long, and says so."""
    line, session, conversation = await opened("a")
    await session.add_items(numbered(0, 30))
    await session.aclose(timeout=10)
    assert line.texts(conversation) == ["a", *map(str, range(30))]

    line, session, conversation = await opened("a")
    clock = asyncio.get_running_loop().time
    line.on(is_append, *[CUT] * 8)
    await session.add_items(users("b"))
    began = clock()
    with pytest.raises(DeadlineExceeded):
        await session.aclose(timeout=3)
    assert 3 <= clock() - began < 4
    with pytest.raises(SessionClosed):
        await session.get_items()
    await asyncio.sleep(60)
    assert line.texts(conversation) == ["a", "b"]


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
async def test_a_time_that_is_none(timeout: object, outbox: Outbox, emulator: Emulator) -> None:
    """What is no time is refused, and nothing is closed."""
    session = session_on(emulator, outbox)
    for closing in (session.aclose, outbox.aclose):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            await closing(timeout)  # type: ignore[arg-type, operator]
    await session.add_items(users("a"))
    await session.aclose(timeout=10)


def test_the_loop_ends_after_the_block(path: Path, emulator: Emulator) -> None:
    """What a loop did not live to see sent is on record; the next process sends it, once."""
    conversation = Elsewhere(emulator).conversation("a")

    def program(number: int) -> None:
        async def main() -> None:
            session = session_on(emulator, SQLiteOutbox(path), conversation_id=conversation)
            async with session:
                await session.add_items(users(str(number)))

        asyncio.run(main())

    with without_a_word():
        for number in range(10):
            program(number)
        gc.collect()
    eventually(lambda: gc.collect() >= 0 and not is_open(path))

    async def last() -> None:
        session = session_on(emulator, SQLiteOutbox(path), conversation_id=conversation)
        await session.get_items()
        await session.aclose(timeout=20)

    asyncio.run(last())
    assert texts(emulator.items(conversation)) == ["a", *map(str, range(10))]


async def test_the_client_is_closed_before_all_is_sent(outbox: Outbox) -> None:
    """What was accepted through a client that its owner has closed since is sent all the same."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        async with new_client(emulator) as client:
            process = Process(emulator, outbox)
            await process.client.close()
            process.client = client
            async with process.session(conversation) as session:
                await session.get_items()
                gate.hold()
                await session.add_items(numbered(0, 50))
        gate.open()
        left = await outbox.aclose(timeout=20)
        assert not left
        assert texts(emulator.items(conversation)) == ["a", *map(str, range(50))]


async def test_closing_the_outbox(outbox: Outbox, path: Path) -> None:
    """One call sends what all sessions have left, open ones and closed ones, and lets go."""
    with held() as (emulator, gate):
        async with Process(emulator, outbox) as process:
            conversations = [Elsewhere(emulator).conversation() for _ in range(5)]
            sessions = [process.session(conversation) for conversation in conversations]
            gate.hold()
            for session in sessions:
                await session.add_items(numbered(0, 30))
            for session in sessions[:3]:
                await session.aclose()
            gate.open()
            left = await outbox.aclose(timeout=20)
            assert (bool(left), left.items, left.conversations) == (False, 0, ())
            assert not is_open(path)
            for conversation in conversations:
                assert texts(emulator.items(conversation)) == [*map(str, range(30))]


async def test_closing_the_outbox_in_an_outage(
    new_outbox: Callable[[], SQLiteOutbox], path: Path
) -> None:
    """What can't be sent in time stays, and is told with its reason; the next use sends it."""
    with Emulator() as emulator:
        outbox = new_outbox()
        async with Process(emulator, outbox) as process:
            one, two = (Elsewhere(emulator).conversation("x") for _ in range(2))
            session, other = process.session(one), process.session(two)
            await session.get_items()
            await other.get_items()
            emulator.stop()
            await session.add_items(numbered(0, 3))
            await other.add_items(users("b"))
            await other.aclose()
            await until(lambda: session.stats.sending == "offline")
            left = await outbox.aclose(timeout=0.1)
            assert left
            assert left.items == 4
            assert {(each.conversation_id, each.items) for each in left.conversations} == {
                (one, 3),
                (two, 1),
            }
            for each in left.conversations:
                assert "could not be reached" in each.reason
            assert not is_open(path)
            assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_the_outbox_cuts_off_a_request(path: Path) -> None:
    """A request that the server holds does not hold up the end; what it did is found out later."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        outbox = SQLiteOutbox(path)
        async with Process(emulator, outbox) as process:
            session = process.session(conversation)
            await session.get_items()
            gate.hold(skip=1)
            await session.add_items(numbered(0, 3))
            await gate.arrived()
            async with asyncio.timeout(5):
                left = await outbox.aclose()
            assert [(each.items, each.reason) for each in left.conversations] == [
                (3, "there was no time to send it")
            ]
            assert not is_open(path)
            gate.open()
            # It can be used again, by a session that was open all the time, too.
            await session.add_items(users("b"))
            await session.flush()
            assert texts(emulator.items(conversation)) == ["a", "0", "1", "2", "b"]
            assert not await outbox.aclose(timeout=20)
            await session.aclose()


async def test_closing_the_outbox_says_what_others_left(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """What is left names what the server refused, and what nobody here has opened."""
    with Emulator() as emulator:
        one, two = (Elsewhere(emulator).conversation("x") for _ in range(2))
        outbox = new_outbox()
        async with Process(emulator, outbox) as first:
            session = first.session(one)
            await session.get_items()
            Elsewhere(emulator).delete(one)
            await session.add_items(users("a"))
            await until(lambda: session.stats.sending == "paused")
            left = await outbox.aclose(timeout=5)
            assert [each.reason.split(",")[0] for each in left.conversations] == [
                "paused: NotFoundError"
            ]
            await session.aclose()
        async with Process(emulator, new_outbox()) as second:
            await second.session(two).add_items(users("b"))
            left = await second.outbox.aclose(timeout=5)
            assert [(each.conversation_id, each.items) for each in left.conversations] == [(one, 1)]
            assert left.conversations[0].reason.startswith("paused: NotFoundError")
            assert batches(emulator) >= 1


async def test_what_is_refused_while_the_outbox_is_closed_is_told_as_that(
    new_outbox: Callable[[], SQLiteOutbox],
) -> None:
    """No other process is named for it, where its session was closed before."""
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("x")
        async with Process(emulator, new_outbox()) as process:
            session = process.session(conversation)
            await session.get_items()
            Elsewhere(emulator).delete(conversation)
            await session.add_items(users("a"))
            await session.aclose()
            left = await process.outbox.aclose(timeout=5)
        assert [(each.items, each.reason.split(",")[0]) for each in left.conversations] == [
            (1, "paused: NotFoundError")
        ]


@in_virtual_time
async def test_closing_a_memory_outbox_in_an_outage() -> None:
    """It takes the time that it was given, and no more; what is left is sent by the next use."""
    outbox = MemoryOutbox()
    line, session, conversation = await opened("a", outbox=outbox)
    clock = asyncio.get_running_loop().time
    line.always(is_append, CUT)
    async with session:
        await session.add_items(numbered(0, 3))
    began = clock()
    left = await outbox.aclose(timeout=7)
    assert clock() - began == pytest.approx(7, abs=0.1)
    assert left.conversations == (
        LeftConversation(conversation, 3, "the server could not be reached: APIConnectionError"),
    )
    line.heal()
    line.asked()
    await asyncio.sleep(100)
    assert line.asked() == []  # nobody sends any more
    async with line.session(conversation, outbox=outbox) as again:
        await again.get_items()
    assert not await outbox.aclose(timeout=7)
    assert line.texts(conversation) == ["a", "0", "1", "2"]


async def test_an_outbox_object_for_each_session(path: Path) -> None:
    """A new outbox on the same file takes over what a closed session's own still sends."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        process = Process(emulator, SQLiteOutbox(path))
        await leave_in_flight(process, conversation, gate, numbered(0, 25))
        async with Process(emulator, SQLiteOutbox(path)) as another:
            another.cache, another.client = process.cache, process.client
            again = another.session(conversation)
            adding = asyncio.create_task(again.add_items(users("b")))
            for _ in range(20):
                await asyncio.sleep(0)
            gate.open()
            await adding
            await again.aclose(timeout=20)
        assert not is_open(path)
        assert texts(emulator.items(conversation)) == ["a", *map(str, range(25)), "b"]


async def test_another_outbox_while_one_sends() -> None:
    """Another file, or another outbox in memory, is refused as long as the first one sends."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        first = MemoryOutbox()
        async with Process(emulator, first) as process:
            await leave_in_flight(process, conversation, gate, users("b"))
            process.outbox = MemoryOutbox()
            refused = process.session(conversation)
            with pytest.raises(ValueError, match="another outbox"):
                await refused.get_items()
            gate.open()
            assert not await first.aclose(timeout=20)
            assert texts(await refused.get_items()) == ["a", "b"]
            await refused.aclose()


@pytest.mark.parametrize("call", ["get_items", "refresh", "add_items"])
async def test_closed_beside_a_call(call: str, path: Path, emulator: Emulator) -> None:
    """A call that is under way when its session is closed ends, and then the file is let go of."""
    conversation = Elsewhere(emulator).conversation("a")
    async with Process(emulator, SQLiteOutbox(path)) as process:
        session = process.session(conversation)
        arguments = [users("b")] if call == "add_items" else []
        calling = asyncio.create_task(getattr(session, call)(*arguments))
        await asyncio.sleep(0)
        await session.aclose()
        await calling
        await until(lambda: not is_open(path))
        expected = ["a", "b"] if call == "add_items" else ["a"]
        assert texts(emulator.items(conversation)) == expected


async def test_every_conversation_that_a_session_was_on(path: Path, emulator: Emulator) -> None:
    """A session that went from one conversation to another lets go of both."""
    one, two = (Elsewhere(emulator).conversation() for _ in range(2))
    async with Process(emulator, SQLiteOutbox(path)) as process:
        session = process.session(one)
        await session.add_items(users("a"))
        session.session_id = two
        await session.add_items(users("b"))
        await session.aclose()
        await until(lambda: not is_open(path))
        assert texts(emulator.items(one)) == ["a"]
        assert texts(emulator.items(two)) == ["b"]


def test_closing_the_outbox_on_another_loop(outbox: Outbox, emulator: Emulator) -> None:
    """What a loop that has ended left is sent by the one on which the outbox is closed."""
    session = session_on(emulator, outbox, conversation_id=Elsewhere(emulator).conversation("a"))

    async def leave() -> None:
        async with session:
            await session.add_items(users("b"))

    asyncio.run(leave())
    assert not asyncio.run(outbox.aclose(timeout=20))
    assert texts(emulator.items(session.session_id)) == ["a", "b"]


def test_closing_the_outbox_of_several_loops(outbox: Outbox) -> None:
    """What is sent on another thread's loop ends, too; nothing is left there."""
    left: list[set[object]] = []
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        cache, closed, accepted = ConversationCache(), threading.Event(), threading.Event()

        async def worker() -> None:
            session = session_on(emulator, outbox, conversation_id=conversation, cache=cache)
            async with session:
                await session.get_items()
                gate.hold()
                await session.add_items(users("b"))
            await gate.arrived()
            accepted.set()
            await asyncio.to_thread(closed.wait, 20)
            left.append(asyncio.all_tasks() - {asyncio.current_task()})

        thread = threading.Thread(target=asyncio.run, args=[worker()])
        thread.start()
        assert accepted.wait(20)
        found = asyncio.run(outbox.aclose())
        closed.set()
        thread.join()
        gate.open()
        assert [each.items for each in found.conversations] == [1]
        assert left == [set()]


@on_one_disk("a")
async def test_another_process_beside_what_is_still_sent(world: OneDisk) -> None:
    """A new session reads what another process recorded, also while an earlier one's is sent."""
    one, two = world.process("1"), world.process("2")
    cache = ConversationCache()
    world.line.always(is_append, CUT)
    async with world.session(one, cache=cache) as session:
        await session.get_items()
        await session.add_items(users("b"))
    await asyncio.sleep(0.1)
    await world.session(two).add_items(users("c"))
    async with world.session(one, cache=cache) as session:
        assert words(await session.get_items()) == ["a", "b", "c"]
    assert world.line.texts(world.conversation) == ["a"]
    world.line.heal()
    await asyncio.sleep(20)
    assert world.line.texts(world.conversation) == ["a", "b", "c"]


async def test_a_look_at_what_others_have_left(outbox: Outbox, emulator: Emulator) -> None:
    """The last session that is closed leaves no look behind, however far the look has come."""
    conversation = Elsewhere(emulator).conversation("a")
    left, clients = set[asyncio.Task[Any]](), []
    for steps in range(40):
        # An account of its own: what each one's sessions have left is looked for once.
        clients.append(client := new_client(emulator, f"key {steps}"))
        async with CachedSession(
            conversation_id=conversation,
            openai_client=client,
            cache=ConversationCache(),
            outbox=outbox,
        ) as session:
            await session.get_items()
            for _ in range(steps):
                await asyncio.sleep(0)
        left |= asyncio.all_tasks() - {asyncio.current_task()}
    for client in clients:
        await client.close()
    assert {task.get_name() for task in left} == set()


@contextlib.contextmanager
def held_up(engine: Server, function: str) -> Iterator[tuple[PostgresOutbox, HeldUp]]:
    """An outbox on an engine that gets the calls of a function when the test says so."""
    with before(engine.port) as proxy:
        call = HeldUp()

        def rule(data: bytes) -> Fate:
            if call.waited_for and f"cached_session.{function}(".encode() in data:
                call.came.set()
                call.goes_on.wait()
            return Fate.PASS

        proxy.rule = rule
        try:
            yield PostgresOutbox(make_conninfo(engine.with_tables(), port=proxy.port)), call
        finally:
            call.goes_on.set()


class HeldUp:
    """A call of a function that is on its way to an engine."""

    def __init__(self) -> None:
        self.waited_for = False
        self.came = threading.Event()
        self.goes_on = threading.Event()

    async def arrives(self, caller: asyncio.Task[Any]) -> None:
        """Returns when it is made."""
        await until(lambda: self.came.is_set() or caller.done())
        assert self.came.is_set()


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancels a task, and waits for it."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.processes
async def test_what_a_cancelled_request_has_left_to_be_recorded(
    postgres: Server, emulator: Emulator
) -> None:
    """Closing the outbox sends what is being recorded for a request that was cancelled."""
    conversation = Elsewhere(emulator).conversation("a")
    with held_up(postgres, "accept") as (outbox, call):
        process = Process(emulator, outbox)

        async def request() -> None:
            async with process.session(conversation) as session:
                await session.get_items()
                call.waited_for = True
                await session.add_items(users("b"))

        caller = asyncio.create_task(request())
        await call.arrives(caller)
        await cancelled(caller)
        closing = asyncio.create_task(outbox.aclose(timeout=60))
        for _ in range(20):
            await asyncio.sleep(0)
        call.goes_on.set()
        assert (await closing).conversations == ()
        assert texts(emulator.items(conversation)) == ["a", "b"]
        await process.client.close()


@pytest.mark.processes
async def test_a_close_that_is_cancelled(postgres: Server, emulator: Emulator) -> None:
    """Who is cancelled as a session is closed takes no other conversation's turn with it."""
    conversation, another = (Elsewhere(emulator).conversation("a") for _ in range(2))
    with held_up(postgres, "note") as (outbox, call):
        process = Process(emulator, outbox)

        async def request() -> None:
            async with process.session(another, retry=policy(max_attempts=1)) as session:
                await session.get_items()
                # What became of it is recorded as the session is closed.
                emulator.faults = lambda one: (
                    Fault(FaultKind.RESET_AFTER_COMMIT) if one.method == "DELETE" else None
                )
                assert isinstance(await raised(session.pop_item()), APIConnectionError)
                call.waited_for = True

        async with process.session(conversation) as session:
            async with session.turn():
                await session.add_items(users("b"))
                caller = asyncio.create_task(request())
                await call.arrives(caller)
                await cancelled(caller)
                call.goes_on.set()
                await session.add_items(users("c"))
            await session.flush()
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]
        await outbox.aclose()
        await process.client.close()
