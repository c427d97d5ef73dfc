"""Turns for whole runs: one at a time, in order of arrival, and over when they are over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationBusy,
    ConversationCache,
    SessionClosed,
    TurnLost,
)
from cached_session.emulator import Emulator
from tests.faults import virtual
from tests.faults.line import Line
from tests.session.support import Elsewhere, Gate, in_threads, new_client, sent, texts, users


@pytest.fixture
def emulator() -> Any:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[AsyncOpenAI]:
    async with new_client(emulator) as client:
        yield client


class Sessions:
    """Sessions on one conversation that share a cache."""

    def __init__(self, emulator: Emulator, client: AsyncOpenAI) -> None:
        self.emulator = emulator
        self.conversation = Elsewhere(emulator).conversation("before")
        self._client = client
        self._cache = ConversationCache()

    def session(self, conversation: str | None = "") -> CachedSession:
        named = self.conversation if conversation == "" else conversation
        return CachedSession(conversation_id=named, openai_client=self._client, cache=self._cache)

    @property
    def stored(self) -> list[str]:
        return texts(self.emulator.items(self.conversation))


@pytest.fixture
def sessions(emulator: Emulator, client: AsyncOpenAI) -> Sessions:
    return Sessions(emulator, client)


class Holder:
    """A task of its own that has a turn until it is told to give it back."""

    def __init__(self, session: CachedSession) -> None:
        self._session = session
        self._give_back = asyncio.Event()

    async def _hold(self, taken: asyncio.Event) -> None:
        async with self._session.turn():
            taken.set()
            await self._give_back.wait()

    def give_back(self) -> None:
        self._give_back.set()

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        taken = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hold(taken))
            await taken.wait()
            try:
                yield
            finally:
                self.give_back()


async def test_runs_do_not_mix(sessions: Sessions) -> None:
    """What each of many runs appends stands together, in the order in which they came."""

    async def run(name: str) -> None:
        session = sessions.session()
        async with session.turn():
            for part in range(3):
                await session.add_items(users(f"{name}{part}"))

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(run(f"{number}."))
    assert sessions.stored == [
        "before",
        *(f"{run}.{part}" for run in range(8) for part in range(3)),
    ]


async def test_busy(sessions: Sessions) -> None:
    """Who does not wait is refused while somebody else has the turn; nothing is sent for it."""
    session = sessions.session()
    async with Holder(sessions.session()).holding():
        sent(sessions.emulator)
        with pytest.raises(
            ConversationBusy, match="somebody else has the conversation's turn; nothing"
        ) as caught:
            async with session.turn(wait=0):
                pytest.fail("it is somebody else's turn")
        assert caught.value.conversation_id == sessions.conversation
        assert isinstance(caught.value, TimeoutError)
        assert sent(sessions.emulator) == []
    async with session.turn(wait=0):
        await session.add_items(users("a"))
    assert sessions.stored == ["before", "a"]


def test_waits_so_long() -> None:
    """Who waits is refused when its time is over, and not before; by default, after `deadline`."""

    async def main() -> None:
        line = Line()
        conversation, cache = line.conversation("before"), ConversationCache()
        session = line.session(conversation, cache=cache)
        now = asyncio.get_running_loop().time
        async with Holder(line.session(conversation, cache=cache)).holding():
            for wait, seconds in ((30, 30), (0.5, 0.5), (None, 60)):
                begun = now()
                with pytest.raises(ConversationBusy, match=f"all of the {seconds} s that"):
                    async with session.turn(wait):
                        pytest.fail("it is somebody else's turn")
                assert now() - begun == pytest.approx(seconds)

    virtual.run(main())


async def test_taken_again_by_its_task(sessions: Sessions) -> None:
    """The task that has a turn may take it again; it ends with the outermost one."""
    session, other = sessions.session(), sessions.session()
    async with session.turn():
        async with other.turn(wait=0):
            await other.add_items(users("a"))
        await session.add_items(users("b"))
        waiting = asyncio.create_task(sessions.session().turn(wait=0).__aenter__())
        with pytest.raises(ConversationBusy):
            # Another task, though this one has made it.
            await waiting
    async with Holder(other).holding():
        pass
    assert sessions.stored == ["before", "a", "b"]


@pytest.mark.parametrize("call", ["add", "pop", "clear"])
async def test_over(call: str, sessions: Sessions) -> None:
    """What a task of a run does when its turn is over is refused, and changes nothing."""
    session = sessions.session()
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        if call == "add":
            await session.add_items(users("late"))
        elif call == "pop":
            await session.pop_item()
        else:
            await session.clear_session()

    async with session.turn():
        task = asyncio.create_task(late())
        await session.add_items(users("a"))
    sent(sessions.emulator)
    over.set()
    with pytest.raises(TurnLost, match=r"is over.*nothing was sent or recorded by this call"):
        await task
    assert sent(sessions.emulator) == []
    assert sessions.stored == ["before", "a"]
    # The task that had it is in no run any more.
    await session.add_items(users("b"))
    assert await session.pop_item() is not None
    # And what the other one reads is not its run's to change.
    assert texts(await session.get_items()) == ["before", "a"]


async def test_of_one_conversation(sessions: Sessions, emulator: Emulator) -> None:
    """A turn that is over says nothing of other conversations."""
    session, other = sessions.session(), sessions.session(Elsewhere(emulator).conversation())
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        await other.add_items(users("a"))
        async with other.turn(wait=0), session.turn(wait=0):
            await session.add_items(users("b"))
        with pytest.raises(TurnLost):
            await session.add_items(users("c"))

    async with session.turn():
        task = asyncio.create_task(late())
    over.set()
    await task
    assert texts(emulator.items(other.session_id)) == ["a"]
    assert sessions.stored == ["before", "b"]


async def test_given_back_by_an_exception(sessions: Sessions) -> None:
    """A run that fails, or is cancelled, gives its turn back, and so does a wait that is."""
    session = sessions.session()
    with pytest.raises(KeyError):
        async with session.turn():
            raise KeyError
    holder = Holder(session)
    async with holder.holding():
        waiting = asyncio.create_task(sessions.session().turn().__aenter__())
        behind = asyncio.create_task(Holder(sessions.session())._hold(asyncio.Event()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    for _ in range(10):
        await asyncio.sleep(0)
    behind.cancel()
    with pytest.raises(asyncio.CancelledError):
        await behind
    async with session.turn(wait=0):
        pass


async def test_left_by_a_generator(sessions: Sessions) -> None:
    """A generator that nobody goes on with, as of a stream, gives its turn back."""
    session = sessions.session()

    async def stream() -> AsyncIterator[int]:
        async with session.turn():
            for number in range(3):
                yield number

    async def read_one() -> None:
        async for _ in stream():
            return

    await read_one()
    gc.collect()
    # And the reader goes on in no turn, though another task has closed the generator.
    async with sessions.session().turn(wait=20):
        await session.add_items(users("a"))
    await session.add_items(users("b"))
    async with session.turn(wait=0):
        await session.add_items(users("c"))
    assert sessions.stored == ["before", "a", "b", "c"]


def test_a_loop_that_stands_still(emulator: Emulator) -> None:
    """The turn of an event loop that was stopped is taken over; what it does then is refused."""
    first = asyncio.new_event_loop()
    client = new_client(emulator)
    conversation = Elsewhere(emulator).conversation("before")

    def session() -> CachedSession:
        return CachedSession(conversation_id=conversation, openai_client=client)

    one, taken = session(), asyncio.Event()

    async def begin() -> None:
        async with one.turn():
            await one.add_items(users("a"))
            first.stop()
            await asyncio.sleep(0)
            with pytest.raises(TurnLost):
                await one.add_items(users("late"))
            taken.set()

    run = first.create_task(begin())
    first.run_forever()

    def go_on() -> None:
        async def main() -> None:
            two = session()
            async with two.turn(wait=20):
                await two.add_items(users("b"))
                # On another thread's loop, and its turn is over.
                await asyncio.to_thread(first.run_until_complete, run)
                await two.add_items(users("c"))

        asyncio.run(main())

    in_threads(go_on)
    assert taken.is_set()
    assert texts(emulator.items(conversation)) == ["before", "a", "b", "c"]

    first.run_until_complete(client.close())
    first.run_until_complete(first.shutdown_asyncgens())
    first.run_until_complete(first.shutdown_default_executor())
    first.close()


def test_a_loop_that_was_closed(emulator: Emulator) -> None:
    """The turn of an event loop that was closed is free at once, for one who does not wait, too."""
    client = new_client(emulator)
    conversation = Elsewhere(emulator).conversation("before")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    loop, taken = asyncio.new_event_loop(), asyncio.Event()

    async def hold() -> None:
        async with session.turn():
            taken.set()
            await asyncio.Event().wait()

    holding = loop.create_task(hold())
    loop.run_until_complete(taken.wait())
    # Closed with the task in it. What asyncio says of that is not for this test.
    holding._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()

    async def take() -> None:
        async with session.turn(wait=0):
            await session.add_items(users("a"))
        await client.close()

    asyncio.run(take())
    assert texts(emulator.items(conversation)) == ["before", "a"]


async def test_beside_a_call_in_no_turn() -> None:
    """A call that belongs to no turn, and that the server keeps waiting, keeps nobody from one."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        async with new_client(emulator) as client:
            sessions = Sessions(emulator, client)
            session = sessions.session()
            gate.hold()
            reading = asyncio.create_task(session.get_items())
            await gate.arrived()
            async with session.turn(wait=0):
                gate.open()
                await session.add_items(users("a"))
            assert texts(await reading) == ["before"]
            assert sessions.stored == ["before", "a"]


async def test_of_a_new_session(sessions: Sessions, emulator: Emulator) -> None:
    """A session without a conversation makes one, once, and has the turn on it."""
    session = sessions.session(None)
    async with session.turn():
        await session.add_items(users("a"))
        with pytest.raises(ConversationBusy):
            await asyncio.create_task(sessions.session(session.session_id).turn(0).__aenter__())
    assert sent(emulator)[-2:] == ["POST conversation", "POST items"]


async def test_cleared_in_a_turn(sessions: Sessions) -> None:
    """Who waited for the turn on a conversation that was deleted goes on with the next one."""
    session = sessions.session()
    taken = asyncio.Event()

    async def wait() -> None:
        async with session.turn():
            await session.add_items(users("b"))
            with pytest.raises(ConversationBusy):
                await asyncio.create_task(sessions.session(session.session_id).turn(0).__aenter__())

    async with session.turn():
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await session.clear_session()
        taken.set()
    await waiting
    assert texts(sessions.emulator.items(session.session_id)) == ["b"]
    assert session.session_id != sessions.conversation


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (-1, ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
async def test_a_wait_that_is_none(wait: Any, error: type[Exception], sessions: Sessions) -> None:
    """What is no number of seconds is refused by name, before anything else."""
    with pytest.raises(error, match="wait must be"):
        sessions.session().turn(wait)


async def test_closed(sessions: Sessions) -> None:
    """A closed session takes no turn; one that is closed in its turn gives it back."""
    session = sessions.session()
    async with session.turn():
        await session.aclose()
        with pytest.raises(SessionClosed):
            await session.turn().__aenter__()
    async with sessions.session().turn(wait=0):
        pass
