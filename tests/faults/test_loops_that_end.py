"""A loop that ends with a write in flight: what the next loop finds."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator, FaultKind
from cached_session.emulator.requests import is_append
from tests.faults import virtual
from tests.faults.line import LOST, Line, agrees, label, policy
from tests.faults.trial import BEFORE, Operation, add_two, clear, pop
from tests.faults.virtual import VirtualLoop
from tests.session.support import Elsewhere, Gate, new_client, texts, users

pytestmark = pytest.mark.long

End = Callable[[Coroutine[Any, Any, None]], None]


def cancelled(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run` ends: the tasks that are left are cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)
        loop = runner.get_loop()
    assert isinstance(loop, VirtualLoop)
    assert not loop.problems


def abandoned(main: Coroutine[Any, Any, None]) -> None:
    """As a careless program ends: the loop is closed and its tasks are left lying."""
    loop = VirtualLoop()
    loop.run_until_complete(main)
    loop.close()
    # Python itself has a word to say about such tasks, and says it now.
    del loop
    gc.collect()


ENDS = pytest.mark.parametrize(
    "end",
    [
        pytest.param(cancelled, id="cancelled"),
        pytest.param(
            abandoned,
            id="abandoned",
            marks=pytest.mark.filterwarnings(
                "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
            ),
        ),
    ],
)


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """What a test left lying is collected before the next one begins."""
    yield
    gc.collect()


class Shop:
    """A line and a session that several loops use one after the other."""

    def __init__(self) -> None:
        self.line = Line(latency=0.01)
        self.conversation = self.line.conversation(*BEFORE)
        self.cache = ConversationCache()
        self.session = self.session_again()

    def session_again(self) -> CachedSession:
        retry = policy(attempt_timeout=1.0)
        return self.line.session(self.conversation, cache=self.cache, retry=retry)

    async def leave_in_flight(self, operation: Operation, steps: int) -> None:
        """Begins an operation and returns some milliseconds later, with it in flight or not."""
        await self.session.get_items()
        task = asyncio.ensure_future(operation(self.session))
        # Nobody asks for its result any more.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        for _ in range(steps):
            await asyncio.sleep(0.001)

    async def read(self) -> list[str]:
        """What the session reads, which must be what the server holds."""
        session_id = self.session.session_id
        await agrees(self.session, self.line, session_id)
        return self.line.texts(session_id)


@pytest.mark.parametrize("committed", ["never", "before the next read", "after the next read"])
@ENDS
def test_an_append_in_flight(end: End, committed: str) -> None:
    """The next loop asks what became of the append; what its first read shows is how it stays."""
    shop = Shop()
    shop.line.on(is_append, FaultKind.HANG)
    end(shop.leave_in_flight(add_two, 40))
    [sent] = [request for request in shop.line.requests if is_append(request)]
    if committed == "before the next read":
        shop.line.service.handle(sent)
    first = virtual.run(shop.read())
    assert first == ([*BEFORE, "x", "y"] if committed == "before the next read" else BEFORE)
    if committed == "after the next read":
        shop.line.service.handle(sent)
    assert virtual.run(shop.read()) == first
    virtual.run(shop.session.add_items(users("next")))
    assert virtual.run(shop.read()) == [*first, "next"]


@pytest.mark.parametrize("committed", [False, True])
@ENDS
def test_a_pop_in_flight(end: End, committed: bool) -> None:
    """The next loop sees whether the item is gone; one that goes later is not shown any more."""
    shop = Shop()
    shop.line.on(lambda request: request.method == "DELETE", FaultKind.HANG)
    end(shop.leave_in_flight(pop, 40))
    sent = shop.line.requests[-1]
    if committed:
        shop.line.service.handle(sent)
    assert virtual.run(shop.read()) == (BEFORE[:-1] if committed else BEFORE)
    shop.line.service.handle(sent)
    assert virtual.run(shop.read()) == BEFORE[:-1]


@ENDS
def test_a_clear_in_flight(end: End) -> None:
    """A clear that the loop's end cut off, and that was not applied, left everything there."""
    shop = Shop()
    shop.line.on(lambda request: request.method == "DELETE", FaultKind.HANG)
    end(shop.leave_in_flight(clear, 40))
    assert virtual.run(shop.read()) == BEFORE
    virtual.run(shop.session.clear_session())
    assert shop.conversation not in shop.line.service.store.ids()


@pytest.mark.parametrize("fault", [None, LOST], ids=label)
@ENDS
@pytest.mark.parametrize("operation", [add_two, pop], ids=label)
def test_at_every_moment(operation: Operation, end: End, fault: Any) -> None:
    """Whenever the loop ends, the next one reads the truth and its writes stand behind it."""
    for steps in range(30):
        shop = Shop()
        shop.line.on(lambda request: request.method != "GET", fault)
        end(shop.leave_in_flight(operation, steps))
        found = virtual.run(shop.read())
        assert found in (BEFORE, [*BEFORE, "x", "y"], BEFORE[:-1])
        virtual.run(shop.session.add_items(users("next")))
        other = shop.session_again()
        virtual.run(agrees(other, shop.line, shop.conversation))
        assert virtual.run(shop.read()) == [*found, "next"]


@ENDS
def test_while_others_wait(end: End) -> None:
    """Those who waited for their turn on a loop that ended have done nothing and block nobody."""
    shop = Shop()

    async def crowd() -> None:
        shop.line.on(is_append, FaultKind.HANG)
        await shop.session.get_items()
        tasks = [asyncio.ensure_future(one(shop.session)) for one in (add_two, add_two, pop)]
        for task in tasks:
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.sleep(0.05)

    end(crowd())
    assert virtual.run(shop.read()) == BEFORE
    virtual.run(shop.session.add_items(users("next")))
    assert virtual.run(shop.read()) == [*BEFORE, "next"]


def test_over_sockets() -> None:
    """`asyncio.run` ends while an append is on a real connection; the next run goes on."""
    gate = Gate()
    with Emulator(latency=1, sleep=gate.sleep) as emulator:
        conversation = Elsewhere(emulator).conversation("before")
        client = new_client(emulator)
        session = CachedSession(
            conversation_id=conversation, openai_client=client, cache=ConversationCache()
        )

        async def leave() -> None:
            await session.get_items()
            # Carried out, and the answer held back.
            gate.hold(skip=1)
            task = asyncio.ensure_future(session.add_items(users("x")))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            await gate.arrived()

        asyncio.run(leave())
        gate.open()

        async def go_on() -> list[str]:
            await session.add_items(users("next"))
            read = await session.get_items()
            assert read == emulator.items(conversation)
            await client.close()
            return texts(read)

        assert asyncio.run(go_on()) == ["before", "x", "next"]
