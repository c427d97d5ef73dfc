"""Calls on a session with an outbox, cancelled at every step: at once, and nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cached_session import CachedSession, MemoryOutbox, SQLiteOutbox
from cached_session.emulator import Emulator
from cached_session.emulator.requests import is_append
from tests.faults.line import CUT, LOST, Line, any_request, label, policy
from tests.faults.trial import Operation, Trial, add_two, clear, flush, get_all, get_one, pop
from tests.faults.virtual import at_every_step
from tests.outbox_sessions.support import Process, words
from tests.session.support import texts, users

BEFORE = ["a", "b", "c", "w"]
"""What the server has, and what waits."""

AFTER: dict[Operation, list[str]] = {
    get_all: BEFORE,
    get_one: BEFORE,
    add_two: [*BEFORE, "x", "y"],
    pop: ["a", "b", "c"],
    flush: BEFORE,
}


class OutboxTrial(Trial):
    """A trial on a session with an outbox."""

    def __init__(self, *, new: bool = False) -> None:
        super().__init__(new=new)
        self.outbox = MemoryOutbox()
        self.session = self.another()

    def another(self) -> CachedSession:
        return self.line.session(
            self.conversation, cache=self.cache, retry=self.retry, outbox=self.outbox
        )

    async def begin(self, *, warm: bool) -> None:
        if warm:
            await self.session.get_items()
            await self.session.add_items(users("w"))

    async def end(self) -> list[str]:
        """Everything is sent; reads show what the server has, and that stays so."""
        self.line.heal()
        await self.session.flush(timeout=200)
        assert await self.session.get_items() == self.line.service.items(self.session.session_id)
        found = self.texts()
        await asyncio.sleep(100)
        await self.session.refresh()
        assert words(await self.session.get_items()) == found == self.texts()
        assert await self.outbox.transact(lambda log: log.summaries()) == []
        await self.session.aclose()
        return found


@pytest.mark.parametrize("fault", [None, CUT, LOST], ids=label)
@pytest.mark.parametrize("operation", AFTER, ids=label)
def test_whole_or_not_at_all(operation: Operation, fault: Any) -> None:
    """A cancelled call lets go at once; its effect is there whole, or not at all."""

    async def trial(steps: int) -> bool:
        here = OutboxTrial()
        await here.begin(warm=True)
        here.line.on(any_request, fault)
        await here.act(operation, steps)
        if not here.cancelled:
            assert words(await here.session.get_items()) == AFTER[operation]
        assert await here.end() in (BEFORE, AFTER[operation])
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("operation", [get_all, add_two, pop, flush, clear], ids=label)
def test_a_first_call(operation: Operation) -> None:
    """The same for the first call of a session, which makes the conversation."""

    async def trial(steps: int) -> bool:
        here = OutboxTrial(new=True)
        await here.act(operation, steps)
        await here.session.add_items(users("next"))
        assert await here.end() in (["next"], ["x", "y", "next"])
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("operation", [add_two, pop, flush], ids=label)
def test_while_the_server_is_away(operation: Operation) -> None:
    """The same for a first call while the server is away."""

    async def trial(steps: int) -> bool:
        here = OutboxTrial(new=True)
        here.line.on(any_request, CUT, CUT)
        await here.act(operation, steps)
        await here.session.add_items(users("next"))
        assert await here.end() in (["next"], ["x", "y", "next"])
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("fault", [None, LOST], ids=label)
def test_a_cancelled_clear(fault: Any) -> None:
    """A clear that is cancelled leaves the conversation or the next one, and goes on working."""

    async def trial(steps: int) -> bool:
        here = OutboxTrial()
        await here.begin(warm=True)
        conversation = here.session.session_id
        here.line.on(any_request, fault)
        await here.act(clear, steps)
        await here.session.add_items(users("next"))
        found = await here.end()
        if here.session.session_id == conversation:
            # What had been sent stays; what waited was dropped, or was not.
            assert found in (["a", "b", "c", "next"], [*BEFORE, "next"])
        else:
            assert found == ["next"]
        return here.cancelled

    at_every_step(trial)


@pytest.mark.parametrize("operation", [get_all, add_two, pop, flush], ids=label)
def test_those_who_wait_go_on(operation: Operation) -> None:
    """Others on the conversation are neither held up nor overtaken by a call that is cancelled."""

    async def trial(steps: int) -> bool:
        here = OutboxTrial()
        await here.begin(warm=True)
        other = here.another()
        here.line.on(is_append, LOST)
        async with asyncio.TaskGroup() as group:
            group.create_task(here.act(operation, steps))
            await asyncio.sleep(0)
            group.create_task(other.add_items(users("one")))
            group.create_task(other.add_items(users("two")))
        assert words(await other.get_items())[-2:] == ["one", "two"] or operation is pop
        await other.flush()
        await other.aclose()
        found = await here.end()
        if operation is pop:
            # It may have come first or last, and taken what was newest then.
            everything = [*BEFORE, "one", "two"]
            assert found == everything or [one for one in everything if one not in found] in (
                ["w"],
                ["one"],
                ["two"],
            )
        else:
            assert found in ([*BEFORE, "one", "two"], [*AFTER[operation], "one", "two"])
        return here.cancelled

    at_every_step(trial)


async def test_recorded_in_a_file(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator
) -> None:
    """An append to a file that is cancelled is recorded whole or not at all, and known to be."""
    async with Process(emulator, new_outbox()) as process:
        session = process.session()
        await session.get_items()
        expected: list[str] = []
        for steps in range(12):
            task = asyncio.create_task(session.add_items(users(f"{steps}", f"{steps}")))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await session.flush()
            shown = words(await session.get_items())
            expected += [f"{steps}", f"{steps}"] if f"{steps}" in shown else []
            assert shown == expected == texts(emulator.items(session.session_id))
        assert session.stats.waiting == 0
        await session.aclose()


def test_the_sender_is_nobodys_child() -> None:
    """Cancelling the call that made the sender begin does not stop the sender."""

    async def trial(steps: int) -> bool:
        line = Line()
        conversation = line.conversation()
        session = line.session(conversation, outbox=MemoryOutbox(), retry=policy())
        task = asyncio.create_task(session.add_items(users("a")))
        for _ in range(steps):
            await asyncio.sleep(0)
        going_on = not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        accepted = words(await session.get_items())
        await asyncio.sleep(10)
        assert line.texts(conversation) == accepted
        assert accepted in ([], ["a"])
        await session.aclose()
        return going_on

    at_every_step(trial)
