"""Every operation, cancelled at every step of the event loop until it ends by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cached_session.emulator.requests import is_append
from tests.faults.line import LOST, any_request, label, words
from tests.faults.trial import (
    BEFORE,
    FAULTS,
    FEW,
    LONG,
    Operation,
    Trial,
    add_long,
    add_two,
    flush,
    get_all,
    get_one,
    pop,
    refresh,
)
from tests.faults.virtual import at_every_step
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
    """A cancelled operation is applied whole or not at all, and the next read shows which."""

    async def trial(steps: int) -> bool:
        here = Trial()
        if warm:
            await here.session.get_items()
        here.line.on(any_request, fault)
        await here.act(operation, steps)
        await here.ends_well(BEFORE, AFTER[operation])
        return here.cancelled

    at_every_step(trial)


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
        allowed = [BEFORE, AFTER[operation]]
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
