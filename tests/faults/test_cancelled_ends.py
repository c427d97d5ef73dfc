"""Making, clearing and closing, cancelled at every step; timeouts, task groups, whole runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from agents.testing import ScriptedModel, assistant_message

from cached_session import SessionClosed
from cached_session.emulator import FaultKind
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST, agrees, any_request, label, policy, words
from tests.faults.trial import (
    BEFORE,
    FAULTS,
    Operation,
    Trial,
    add_two,
    clear,
    close,
    get_all,
    pop,
    refresh,
)
from tests.faults.virtual import at_every_step, now
from tests.session.support import users

pytestmark = pytest.mark.long

QUICK = RunConfig(tracing_disabled=True)


@pytest.mark.parametrize("fault", [None, CUT, LOST, FaultKind.HANG], ids=label)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
@pytest.mark.parametrize("operation", [get_all, add_two], ids=label)
def test_making_a_conversation(operation: Operation, wrapped: bool, fault: Any) -> None:
    """A caller cancelled while the conversation is made leaves no second one behind."""

    async def trial(steps: int) -> bool:
        here = Trial(new=True, wrapped=wrapped)
        here.line.on(any_request, fault)
        await here.act(operation, steps)
        await here.session.add_items(users("next"))
        there = here.line.service.store.ids()
        others = [here.line.texts(one) for one in there if one != here.session.session_id]
        # Of a lost answer nobody knows the id; such a conversation stays empty.
        assert others == [] or (fault is not None and others == [[]])
        await here.ends_well(["next"], ["x", "y", "next"])
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("fault", FAULTS, ids=label)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_clearing(warm: bool, fault: Any) -> None:
    """A cancelled clear has deleted the conversation or not; the session knows which."""

    async def trial(steps: int) -> bool:
        here = Trial()
        if warm:
            await here.session.get_items()
        here.line.on(any_request, fault)
        await here.act(clear, steps)
        await here.session.add_items(users("next"))
        there = here.line.service.store.ids()
        assert there == (here.session.session_id,)
        await here.ends_well(["next"], [*BEFORE, "next"])
        assert (here.session.session_id == here.conversation) == (len(here.texts()) > 1)
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("fault", FAULTS, ids=label)
def test_closing(fault: Any) -> None:
    """A cancelled close leaves the session closed or open, and what was written is there."""

    async def trial(steps: int) -> bool:
        here = Trial()
        await here.session.get_items()
        here.line.on(is_append, fault)
        adding = asyncio.create_task(here.session.add_items(users("x")))
        await asyncio.sleep(0)
        await here.act(close, steps)
        await asyncio.wait({adding})
        assert not adding.exception()
        await here.session.aclose()
        with pytest.raises(SessionClosed):
            await here.session.get_items()
        other = here.line.session(here.conversation, cache=here.cache, retry=here.retry)
        await agrees(other, here.line, here.session.session_id)
        assert here.texts() == [*BEFORE, "x"]
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("operation", [get_all, add_two, pop, refresh], ids=label)
def test_cancelled_twice(operation: Operation) -> None:
    """A second cancellation, some steps after the first, changes nothing."""

    async def trial(steps: int) -> bool:
        here = Trial()
        here.line.on(any_request, LOST)
        task = asyncio.ensure_future(operation(here.session))
        for count in (steps, 2):
            for _ in range(count):
                await asyncio.sleep(0.003)
            task.cancel()
        await asyncio.wait({task})
        after = {add_two: [*BEFORE, "x", "y"], pop: BEFORE[:-1]}
        await here.ends_well(BEFORE, after.get(operation, BEFORE))
        return task.cancelled()

    at_every_step(trial)


@pytest.mark.parametrize("fault", [None, LOST, FaultKind.HANG], ids=label)
async def test_a_timeout_around_it(fault: Any) -> None:
    """`asyncio.timeout` ends an append on time; what was in flight lands whole or not at all."""
    for tenths in range(1, 30):
        here = Trial()
        await here.session.get_items()
        here.line.on(is_append, fault)
        started = now()
        try:
            async with asyncio.timeout(tenths * 0.001):
                await add_two(here.session)
        except TimeoutError:
            assert now() - started == pytest.approx(tenths * 0.001)
        await here.ends_well(BEFORE, [*BEFORE, "x", "y"])


async def test_a_timeout_while_waiting() -> None:
    """A timeout in the queue behind a slow append sends nothing."""
    here = Trial()
    await here.session.get_items()
    here.line.on(is_append, FaultKind.HANG)
    async with asyncio.TaskGroup() as group:
        group.create_task(here.session.add_items(users("slow")))
        await asyncio.sleep(0)
        for operation in (add_two, pop, get_all):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await operation(here.session)
    await here.ends_well([*BEFORE, "slow"])


async def test_a_task_group_that_fails() -> None:
    """When one task of a group fails the others are cancelled; nothing is half applied."""
    here = Trial()
    await here.session.get_items()

    async def fail() -> None:
        await asyncio.sleep(0.012)
        raise ZeroDivisionError

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "xyz":
                group.create_task(here.session.add_items(users(f"{name}1", f"{name}2")))
            group.create_task(here.session.pop_item())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await work()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    # The first was in flight, the others were still waiting for their turn.
    await here.ends_well(BEFORE, [*BEFORE, "x1", "x2"])


# The SDK leaves a coroutine of its own lying when it is cancelled before the first turn.
@pytest.mark.filterwarnings("ignore:coroutine 'run_single_turn' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("fault", [None, LOST, FaultKind.HANG], ids=label)
def test_a_run_that_is_cancelled(fault: Any) -> None:
    """`Runner.run` cancelled anywhere leaves whole saves, and the next run goes on from there."""

    async def trial(steps: int) -> bool:
        here = Trial(new=True)
        model = ScriptedModel([[assistant_message("hello")], [assistant_message("again")]] * 2)
        agent = Agent(name="assistant", model=model)
        here.line.on(is_append, None, fault)
        await here.act(
            lambda session: Runner.run(agent, "hi", session=session, run_config=QUICK), steps
        )
        assert await here.session.get_items() == here.line.service.items(here.session.session_id)
        assert here.texts() in ([], ["hi"], ["hi", "hello"])
        first = here.texts()
        await Runner.run(agent, "next", session=here.session, run_config=QUICK)
        assert here.texts()[: len(first) + 1] == [*first, "next"]
        assert len(here.texts()) == len(first) + 2
        await here.settled(here.texts())
        return here.cancelled

    assert at_every_step(trial) > 10


async def test_what_failed_behind_a_cancelled_caller() -> None:
    """A write that fails after its caller has left tells the observer, and nothing is there."""
    events: list[Any] = []
    here = Trial()
    here.retry = policy(max_attempts=2)
    session = here.line.session(
        here.conversation, cache=here.cache, retry=here.retry, observer=events.append
    )
    await session.get_items()
    here.line.on(is_append, *[FaultKind.RESET_BEFORE_COMMIT] * 2)
    task = asyncio.create_task(session.add_items(users("x")))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await session.get_items() == here.line.service.items(session.session_id)
    assert [type(event).__name__ for event in events].count("AbandonedWriteFailed") == 1
    assert [words(item) for item in await session.get_items()] == BEFORE
