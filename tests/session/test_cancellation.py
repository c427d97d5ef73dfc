"""A cancelled caller is released at once; what was in flight settles in order behind it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import AbandonedWriteFailed, CachedSession, ConversationCache
from cached_session.emulator import Emulator, Fault, FaultKind
from tests.session.support import Elsewhere, Gate, new_client, numbered, sent, texts, user, users

MOMENTS = pytest.mark.parametrize("skip", [0, 1], ids=["before the commit", "after the commit"])
"""Where the server holds a request: each waits twice, before it is carried out and after."""


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def emulator(gate: Gate) -> Iterator[Emulator]:
    """A server of the test's own, whose waits the test lets go of."""
    with Emulator(latency=1, sleep=gate.sleep) as emulator:
        yield emulator


@pytest.fixture
def client(emulator: Emulator) -> AsyncOpenAI:
    return new_client(emulator)


async def cancelled_in_flight(gate: Gate, skip: int, call: Any) -> None:
    """Cancels a call while the server holds its request; returns with the gate still closed."""
    gate.hold(skip=skip)
    task = asyncio.create_task(call)
    await gate.arrived()
    task.cancel()
    await some_steps()
    assert task.cancelled()


async def some_steps() -> None:
    """Lets whatever is ready happen; what waits for the gate is not."""
    for _ in range(10):
        await asyncio.sleep(0)


async def opened(emulator: Emulator, client: AsyncOpenAI, *messages: str) -> CachedSession:
    """A session that has read a conversation with these messages."""
    session = CachedSession(
        conversation_id=Elsewhere(emulator).conversation(*messages),
        openai_client=client,
        cache=ConversationCache(),
    )
    await session.get_items()
    sent(emulator)
    return session


@MOMENTS
async def test_append(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cancelled append settles behind its caller, and the next read waits for it."""
    session = await opened(emulator, client, "a")
    await cancelled_in_flight(gate, skip, session.add_items(users("b")))
    reading = asyncio.create_task(session.get_items())
    await some_steps()
    assert not reading.done()
    gate.open()
    assert texts(await reading) == ["a", "b"]
    assert texts(emulator.items(session.session_id)) == ["a", "b"]
    assert sent(emulator) == ["POST items"]


@MOMENTS
async def test_append_of_several_batches(
    skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Of a cancelled append of several requests the one in flight settles, and no other is sent."""
    session = await opened(emulator, client)
    await cancelled_in_flight(gate, skip, session.add_items(numbered(0, 45)))
    gate.open()
    assert texts(await session.get_items()) == [str(number) for number in range(20)]
    assert await session.get_items() == emulator.items(session.session_id)
    assert sent(emulator) == ["POST items"]


@MOMENTS
async def test_pop(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cancelled pop removes one item, and the next pop takes the one before it."""
    session = await opened(emulator, client, "a", "b", "c")
    await cancelled_in_flight(gate, skip, session.pop_item())
    popping = asyncio.create_task(session.pop_item())
    gate.open()
    assert texts([await popping]) == ["b"]
    assert texts(await session.get_items()) == texts(emulator.items(session.session_id)) == ["a"]


@MOMENTS
async def test_clear(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cancelled clear deletes the conversation, and the use after it makes a new one."""
    session = await opened(emulator, client, "a")
    before = session.session_id
    await cancelled_in_flight(gate, skip, session.clear_session())
    gate.open()
    await session.flush()
    with pytest.raises(LookupError):
        emulator.items(before)
    await session.add_items(users("b"))
    assert session.session_id != before
    assert texts(await session.get_items()) == ["b"]


@MOMENTS
async def test_read(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A cancelled read leaves no half-filled copy, and holds nobody up."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(350)))
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    await cancelled_in_flight(gate, skip, session.get_items())
    gate.open()
    assert await session.get_items() == emulator.items(conversation)


@pytest.mark.parametrize("page", range(6))
async def test_read_in_the_middle(
    page: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A read that is cancelled after some of its pages leaves no half-filled copy either."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(350)))
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    await cancelled_in_flight(gate, page, session.get_items())
    gate.open()
    assert texts(await session.get_items(3)) == ["347", "348", "349"]
    assert await session.get_items() == emulator.items(conversation)


@MOMENTS
async def test_creation(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A conversation whose creator was cancelled is the one that the next call uses."""
    session = CachedSession(openai_client=client)
    await cancelled_in_flight(gate, skip, session.get_items())
    adding = asyncio.create_task(session.add_items(users("a")))
    gate.open()
    await adding
    assert sent(emulator) == ["POST conversation", "POST items"]
    assert texts(emulator.items(session.session_id)) == ["a"]


async def test_waiting_for_the_turn(gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A call that is cancelled before its turn came sends nothing, and the line moves on."""
    session = await opened(emulator, client)
    gate.hold()
    first = asyncio.create_task(session.add_items(users("a")))
    await gate.arrived()
    waiting: list[Any] = [session.add_items(users("b")), session.pop_item(), session.get_items()]
    tasks = [asyncio.create_task(call) for call in waiting]
    last = asyncio.create_task(session.add_items(users("c")))
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.open()
    await asyncio.gather(first, last)
    assert texts(await session.get_items()) == ["a", "c"]
    assert sent(emulator) == ["POST items", "POST items"]


async def test_order_behind_a_cancelled_append(
    gate: Gate, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Appends that waited behind a cancelled one land after it."""
    session = await opened(emulator, client)
    gate.hold()
    first = asyncio.create_task(session.add_items(users("a")))
    await gate.arrived()
    second = asyncio.create_task(session.add_items(users("b")))
    await asyncio.sleep(0)
    first.cancel()
    gate.open()
    await asyncio.gather(second, session.add_items(users("c")))
    assert texts(emulator.items(session.session_id)) == ["a", "b", "c"]
    assert texts(await session.get_items()) == ["a", "b", "c"]


@MOMENTS
async def test_timeout(skip: int, gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """`asyncio.timeout` ends the wait while the server still holds the request."""
    session = await opened(emulator, client)
    gate.hold(skip=skip)

    async def add() -> None:
        async with asyncio.timeout(None) as timeout, asyncio.TaskGroup() as group:
            group.create_task(_end_when_held(gate, timeout))
            await session.add_items(users("a"))

    with pytest.raises(TimeoutError):
        await add()
    gate.open()
    assert texts(await session.get_items()) == ["a"]
    assert texts(emulator.items(session.session_id)) == ["a"]


async def _end_when_held(gate: Gate, timeout: asyncio.Timeout) -> None:
    """Brings a timeout's end about as soon as a request is held."""
    await gate.arrived()
    timeout.reschedule(asyncio.get_running_loop().time())


async def test_task_group(gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A task group that fails ends at once; the append that it cancelled settles."""
    session = await opened(emulator, client)
    gate.hold()

    async def fail() -> None:
        await gate.arrived()
        raise LookupError

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(session.add_items(users("a")))
            group.create_task(session.add_items(users("b")))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup):
        await work()
    gate.open()
    assert texts(await session.get_items()) == texts(emulator.items(session.session_id)) == ["a"]


async def test_flush_and_close_wait(gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """`flush` and `aclose` wait for a write whose caller was cancelled."""
    session = await opened(emulator, client)
    await cancelled_in_flight(gate, 0, session.add_items(users("a")))
    waiting = [asyncio.create_task(call) for call in (session.flush(), session.aclose())]
    await some_steps()
    assert not any(task.done() for task in waiting)
    gate.open()
    await asyncio.gather(*waiting)
    assert texts(emulator.items(session.session_id)) == ["a"]


async def test_failure_behind_a_cancelled_caller(
    gate: Gate, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A write that fails with nobody left to tell is an event, and the next read is right."""
    events: list[object] = []
    session = CachedSession(openai_client=client, observer=events.append)
    await session.add_items(users("a"))
    emulator.faults = lambda _: Fault(FaultKind.RATE_LIMITED_QUOTA)
    await cancelled_in_flight(gate, 0, session.add_items(users("b")))
    gate.open()
    await session.flush()
    emulator.faults = None
    assert AbandonedWriteFailed(session.session_id, "RateLimitError") in events
    assert texts(await session.get_items()) == ["a"]


async def test_cancelled_at_every_step(gate: Gate, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Whatever loop step a cancellation comes at, the copy is what the server has."""
    session = await opened(emulator, client, "a")
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "add": lambda: session.add_items([user("x"), user("y")]),
        "pop": session.pop_item,
        "read": session.get_items,
    }
    for step, (name, call) in itertools.product(range(0, 40, 3), calls.items()):
        if name == "read":
            await session.refresh()
        task: asyncio.Task[Any] = asyncio.create_task(call())
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        read = await session.get_items()
        assert read == emulator.items(session.session_id), (name, step)
        pairs = texts(read)[1:]
        # A pop may have taken one of a pair; an append lands whole or not at all.
        assert pairs[::2] == ["x"] * len(pairs[::2]), (name, step)
        if pairs and len(pairs) % 2:
            await session.pop_item()
