"""Pops and clears that the server carries out late: whoever has the conversation then sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from openai import APITimeoutError, NotFoundError

from cached_session import CachedSession, ConversationCache, RetryPolicy
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_item_delete
from tests.faults.line import is_conversation_delete, policy
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import words
from tests.session.support import users

LATE = Fault(FaultKind.LATE_COMMIT, delay=30.0, silent=True)


class Fleet:
    """Two processes with an outbox that is asked in the server's place."""

    def __init__(self, world: OneDisk) -> None:
        self.world = world
        self.processes = [world.process("1"), world.process("2")]
        for process in self.processes:
            process.vouches = True
        self.caches = [ConversationCache() for _ in self.processes]

    def session(self, number: int) -> CachedSession:
        """A session in a process, which makes one attempt at each request."""
        cache = self.caches[number]
        return self.world.session(self.processes[number], cache=cache, retry=policy(max_attempts=1))

    async def shown(self) -> list[list[str]]:
        """What a new session in each process reads."""
        found = []
        for number in range(len(self.processes)):
            session = self.session(number)
            try:
                found.append(words(await session.get_items()))
            finally:
                await session.aclose()
        return found

    async def gives_up(self, call: str, request: Callable[[Any], bool]) -> None:
        """A session gives up on a removal and is closed; all is shown until it is carried out."""
        session = self.session(0)
        await session.get_items()
        self.world.line.on(request, LATE)
        with pytest.raises(APITimeoutError):
            await getattr(session, call)()
        await session.aclose()
        assert await self.shown() == [["a", "b"]] * 2
        await asyncio.sleep(15)


@on_one_disk("a", "b")
async def test_a_pop(world: OneDisk) -> None:
    """An item that goes after its pop was given up on is shown by nobody afterwards."""
    fleet = Fleet(world)
    await fleet.gives_up("pop_item", is_item_delete)
    assert world.line.texts(world.conversation) == ["a"]
    assert await fleet.shown() == [["a"]] * 2


@on_one_disk("a", "b")
async def test_a_pop_beside_sessions_that_stay_open(world: OneDisk) -> None:
    """The same where no session is closed."""
    fleet = Fleet(world)
    sessions = [fleet.session(0), fleet.session(1)]
    world.line.on(is_item_delete, LATE)
    with pytest.raises(APITimeoutError):
        await sessions[0].pop_item()
    for _ in range(2):
        assert [words(await session.get_items()) for session in sessions] == [["a", "b"]] * 2
    await asyncio.sleep(15)
    assert [words(await session.get_items()) for session in sessions] == [["a"]] * 2


@on_one_disk("a", "b")
async def test_a_message_equal_to_what_is_popped_late(world: OneDisk) -> None:
    """It is sent, and stays, though an equal item stood there while its outcome was in doubt."""
    fleet = Fleet(world)
    session = fleet.session(0)
    world.line.on(is_item_delete, LATE)
    with pytest.raises(APITimeoutError):
        await session.pop_item()
    await session.aclose()
    other = fleet.session(1)
    world.line.on(is_append, FaultKind.HANG)
    await other.add_items(users("b"))
    await other.flush(timeout=100)
    await asyncio.sleep(30)
    assert world.line.texts(world.conversation) == ["a", "b"]
    assert await fleet.shown() == [["a", "b"]] * 2


@on_one_disk("a", "b")
async def test_a_clear(world: OneDisk) -> None:
    """A conversation that goes after its clear was given up on is shown by nobody afterwards."""
    fleet = Fleet(world)
    await fleet.gives_up("clear_session", is_conversation_delete)
    for number in range(2):
        reading = fleet.session(number)
        with pytest.raises(NotFoundError):
            await reading.get_items()
        # It is what the clear was for, whoever asks for it again.
        await reading.clear_session()


@pytest.mark.parametrize("call", ["pop_item", "clear_session"])
@on_one_disk("a", "b")
async def test_a_removal_of_a_process_that_dies(world: OneDisk, call: str) -> None:
    """What the server removes for a process that is dead by then is not shown afterwards."""
    fleet = Fleet(world)
    session = fleet.session(0)
    await session.get_items()
    world.line.on(is_item_delete if call == "pop_item" else is_conversation_delete, LATE)
    removing = world.begin(getattr(session, call)())
    await asyncio.sleep(1)
    world.ends(fleet.processes[0])
    removing.cancel()
    reading = fleet.session(1)
    assert words(await reading.get_items()) == ["a", "b"]
    await asyncio.sleep(30)
    if call == "pop_item":
        assert words(await reading.get_items()) == ["a"]
    else:
        with pytest.raises(NotFoundError):
            await reading.get_items()
    # It is watched for no longer than it may come.
    await asyncio.sleep(60)
    if call == "pop_item":
        await reading.get_items()
        world.line.asked()
        assert words(await reading.get_items()) == ["a"]
        assert world.line.asked() == []


DEADLINE = RetryPolicy().deadline


@pytest.mark.parametrize("call", ["add_items", "pop_item"])
@pytest.mark.parametrize("numbers", ["0", "01"], ids=["one process", "two processes"])
@pytest.mark.parametrize("appends", [False, True], ids=["reads", "reads and appends"])
@on_one_disk("a", "b")
async def test_the_watch_ends(world: OneDisk, appends: bool, numbers: str, call: str) -> None:
    """Sessions that are made for each request ask the server for one deadline, and not for ever."""
    fleet = Fleet(world)
    session = fleet.session(0)
    await session.get_items()
    if call == "add_items":
        world.line.on(is_append, LATE)
        await session.add_items(users("x"))
        await session.flush()
    else:
        world.line.on(is_item_delete, LATE)
        with pytest.raises(APITimeoutError):
            await session.pop_item()
    await session.aclose()
    asked = []
    for number in numbers * 40:
        session = fleet.session(int(number))
        world.line.asked()
        await session.get_items()
        asked.append(len(world.line.asked()))
        if appends:
            await session.add_items(users("y"))
            await session.flush()
        await session.aclose()
        await asyncio.sleep(DEADLINE / 20)
    assert asked[0]
    assert not any(asked[25:])
