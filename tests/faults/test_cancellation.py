"""Every operation, cancelled at every step of the event loop until it ends by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cached_session import AbandonedWriteFailed, AppendOutcomeUnknown, Event
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST, Do, Line, agrees, any_request, label, policy, words
from tests.faults.trial import (
    BEFORE,
    FAULTS,
    FEW,
    LONG,
    Operation,
    Trial,
    add_long,
    add_two,
    close,
    flush,
    get_all,
    get_one,
    pop,
    refresh,
)
from tests.faults.virtual import at_every_step, now
from tests.session.support import users

AFTER: dict[Operation, list[str]] = {
    get_all: BEFORE,
    get_one: BEFORE,
    add_two: [*BEFORE, "x", "y"],
    add_long: [*BEFORE, *LONG],
    pop: ["a", "b"],
    refresh: BEFORE,
    flush: BEFORE,
}
"""What the server holds when an operation was carried out."""

PARTS: dict[Operation, list[str]] = {add_long: [*BEFORE, *LONG[:20]]}
"""What it may hold when one was cancelled between its requests: whole batches."""


def under_faults(*operations: Operation) -> Any:
    """Parametrises a test with operations and faults."""
    return pytest.mark.parametrize(
        ("operation", "fault"),
        [
            pytest.param(operation, fault, id=f"{operation.__name__}-{label(fault)}")
            for operation in operations
            for fault in (FEW if operation is add_long else FAULTS)
        ],
    )


@under_faults(*AFTER)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_nothing_is_half_applied(operation: Operation, warm: bool, fault: Any) -> None:
    """A cancelled operation leaves no half of a request, and the next read shows what it did."""

    async def trial(steps: int) -> bool:
        here = Trial()
        if warm:
            await here.session.get_items()
        here.line.on(any_request, fault)
        await here.act(operation, steps)
        await here.ends_well(BEFORE, AFTER[operation], PARTS.get(operation, BEFORE))
        return here.cancelled

    at_every_step(trial)


# The second of ten requests: 20 items are on the server, 20 are on their way.
TEN_REQUESTS = [str(number) for number in range(200)]


@pytest.mark.parametrize(
    "fault",
    [None, CUT, LOST, FaultKind.LOCKED, Fault(FaultKind.PARTIAL_BATCH, items=7)],
    ids=label,
)
async def test_a_cancelled_append_ends_with_the_request_in_flight(fault: Any) -> None:
    """Of ten requests, cancelled during the second: it settles, and no later one is ever sent."""
    here = Trial()
    events: list[Event] = []
    session = here.line.session(
        here.conversation, cache=here.cache, retry=here.retry, observer=events.append
    )
    await session.get_items()
    second = asyncio.Event()
    here.line.on(is_append, None, Do(second.set, fault))
    adding = asyncio.create_task(session.add_items(users(*TEN_REQUESTS)))
    await second.wait()
    started = now()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert now() == started
    await here.ends_well([*BEFORE, *TEN_REQUESTS[:40]])
    # Whoever was cancelled is owed no more than that, and so nothing has failed.
    assert not [event for event in events if isinstance(event, AbandonedWriteFailed)]
    await session.add_items(users("next"))
    assert here.texts() == [*BEFORE, *TEN_REQUESTS[:40], "next"]


@pytest.mark.parametrize("barrier", [flush, close], ids=label)
async def test_who_closes_waits_for_all_requests_of_an_append(barrier: Operation) -> None:
    """A flush or close in the middle of an append that nobody cancelled comes after all of it."""
    here = Trial()
    await here.session.get_items()
    second = asyncio.Event()
    here.line.on(is_append, None, Do(second.set))
    async with asyncio.TaskGroup() as group:
        adding = group.create_task(here.session.add_items(users(*TEN_REQUESTS)))
        await second.wait()
        await barrier(here.session)
        assert here.texts() == [*BEFORE, *TEN_REQUESTS]
        await asyncio.wait({adding})


async def test_an_append_ends_with_the_request_at_its_deadline() -> None:
    """An append whose deadline passes has sent whole requests, says how many, and sends no more."""
    line = Line(latency=0.01)
    conversation = line.conversation()
    session = line.session(conversation, retry=policy(deadline=2.0))
    await session.get_items()
    line.on(is_append, None, None, *[Fault(FaultKind.SLOW, delay=1.0)] * 8)
    with pytest.raises(AppendOutcomeUnknown) as stopped:
        await session.add_items(users(*TEN_REQUESTS))
    assert (stopped.value.landed, stopped.value.total) == (60, 200)
    assert line.texts(conversation) == TEN_REQUESTS[:80]
    await asyncio.sleep(200)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == TEN_REQUESTS[:80]


@under_faults(add_two, add_long, pop)
def test_the_next_write_comes_after(operation: Operation, fault: Any) -> None:
    """A write after a cancelled one stands behind it, and a pop takes what is last by then."""

    async def trial(steps: int) -> bool:
        here = Trial()
        await here.session.get_items()
        here.line.on(lambda request: request.method != "GET", fault)
        await here.act(operation, steps)
        await here.session.add_items(users("next"))
        first = here.texts()
        allowed = [BEFORE, AFTER[operation], PARTS.get(operation, BEFORE)]
        assert first in [[*texts, "next"] for texts in allowed]
        popped = await here.session.pop_item()
        assert popped is not None
        assert words(popped) == "next"
        await here.settled(first[:-1])
        return here.cancelled

    at_every_step(trial)


@under_faults(get_all, add_two, pop, refresh)
def test_those_who_wait_go_on(operation: Operation, fault: Any) -> None:
    """Others who wait behind a cancelled operation get their turn, in order."""

    async def trial(steps: int) -> bool:
        here = Trial()
        other = here.line.session(here.conversation, cache=here.cache, retry=here.retry)
        here.line.on(any_request, fault)
        async with asyncio.TaskGroup() as group:
            group.create_task(here.act(operation, steps))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            group.create_task(other.add_items(users("one")))
            reading = group.create_task(other.get_items())
            group.create_task(other.add_items(users("two")))
        assert "one" in map(words, reading.result())
        assert here.texts()[-2:] == ["one", "two"]
        await here.ends_well([*BEFORE, "one", "two"], [*AFTER[operation], "one", "two"])
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("fault", [None, LOST], ids=label)
@pytest.mark.parametrize("operation", [add_two, pop, get_all], ids=label)
def test_waiting_for_the_turn(operation: Operation, fault: Any) -> None:
    """Whoever is cancelled while waiting for the turn has done nothing and blocks nobody."""

    async def trial(steps: int) -> bool:
        here = Trial()
        other = here.line.session(here.conversation, cache=here.cache, retry=here.retry)
        await other.get_items()
        here.line.on(is_append, fault)
        async with asyncio.TaskGroup() as group:
            group.create_task(other.add_items(users("first")))
            await asyncio.sleep(0)
            group.create_task(here.act(operation, steps))
        after = {add_two: [*BEFORE, "first", "x", "y"], pop: BEFORE}
        await here.ends_well([*BEFORE, "first"], after.get(operation, []))
        return here.cancelled

    at_every_step(trial)
