"""A loop that is stopped, not closed, with a write in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cached_session import AbandonedWriteFailed, CachedSession, Event
from cached_session.emulator import Emulator
from tests.servers import eventually
from tests.session.support import Gate, new_client, texts, users


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def emulator(gate: Gate) -> Iterator[Emulator]:
    with Emulator(latency=1.0, sleep=gate.sleep) as emulator:
        yield emulator


@pytest.mark.parametrize("skip", [0, 1], ids=["before the commit", "after the commit"])
def test_another_loop_goes_on(skip: int, gate: Gate, emulator: Emulator) -> None:
    """The next operation on another loop does not wait for a write whose loop is stopped.

    When the first loop runs on, its write finds that it was overtaken, and changes nothing.
    """
    heard: list[AbandonedWriteFailed] = []
    overtaken = asyncio.Event()

    def observer(event: Event) -> None:
        if isinstance(event, AbandonedWriteFailed):
            heard.append(event)
            overtaken.set()

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    session = CachedSession(openai_client=new_client(emulator), observer=observer)

    async def cancelled() -> None:
        gate.hold(skip=skip)
        write = asyncio.create_task(session.add_items(users("b")))
        await gate.arrived()
        write.cancel()
        await asyncio.gather(write, return_exceptions=True)

    try:
        first.run_until_complete(session.add_items(users("a")))
        first.run_until_complete(cancelled())
        gate.open()
        eventually(lambda: len(emulator.items(session.session_id)) == 2)
        assert texts(second.run_until_complete(session.get_items())) == ["a", "b"]
        second.run_until_complete(session.add_items(users("c")))

        first.run_until_complete(overtaken.wait())
        assert texts(emulator.items(session.session_id)) == ["a", "b", "c"]
        assert texts(first.run_until_complete(session.get_items())) == ["a", "b", "c"]
        assert [event.error for event in heard] == ["TurnLost"]
    finally:
        for loop in (first, second):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
