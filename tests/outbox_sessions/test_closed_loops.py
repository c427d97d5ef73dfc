"""Loops that are closed by hand: nothing of one lives when another has taken over."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, Outbox
from cached_session.emulator import Emulator
from tests.faults.line import Line
from tests.outbox_sessions.support import held, until
from tests.session.support import Elsewhere, Gate, texts, users
from tests.session.test_connections import nowhere, resolves
from tests.session.wire import Wire, sockets_to, wire

# What asyncio itself says of the caller's own task, which its loop left lying.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # A task that a loop is left with before the task's first step: Python tells of it when the
    # collector takes it. As an error that would be kept with its traceback until the test's end,
    # and with that the frames of whoever runs then, and their loops.
    pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited:RuntimeWarning"),
]


@pytest.fixture(name="line")
def _line(emulator: Emulator) -> Iterator[Wire]:
    with wire(emulator) as line:
        yield line
        gc.collect()


def session_over(line: Wire, conversation: str, outbox: Outbox | None) -> CachedSession:
    client = AsyncOpenAI(base_url=line.base_url, api_key="key", max_retries=0)
    return CachedSession(
        conversation_id=conversation,
        openai_client=client,
        outbox=outbox,
        cache=ConversationCache(),
    )


def by_hand(
    work: Callable[[], Coroutine[Any, Any, None]],
) -> weakref.ref[asyncio.AbstractEventLoop]:
    """As Celery's and Streamlit's users do: nothing is cancelled, nothing shut down."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work())
    loop.close()
    return weakref.ref(loop)


def living(loops: list[weakref.ref[asyncio.AbstractEventLoop]]) -> int:
    gc.collect()
    return sum(loop() is not None for loop in loops)


def test_loops_that_leave_something_waiting(
    outbox: Outbox, line: Wire, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Of loops that end while items wait nothing lives after the next one; each lands once."""
    conversation = Elsewhere(emulator).conversation()
    session = session_over(line, conversation, outbox)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(20):

            async def work(text: str = str(number)) -> None:
                await session.add_items(users(text))
                # Up to another moment of the sending each time.
                for _ in range(3 * int(text)):
                    await asyncio.sleep(0)

            loops.append(by_hand(work))
        asyncio.run(session.flush())
        assert living(loops) == 0
        assert sockets_to(line.base_url) <= 1
        asyncio.run(session.aclose())
        gc.collect()
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert texts(emulator.items(conversation)) == [str(number) for number in range(20)]


CALLS = [CachedSession.add_items, CachedSession.get_items, CachedSession.pop_item]

EVERY: dict[str, Callable[[CachedSession], Coroutine[Any, Any, object]]] = {
    "add_items": lambda session: session.add_items(users("x")),
    "get_items": lambda session: session.get_items(),
    "pop_item": lambda session: session.pop_item(),
    "clear_session": lambda session: session.clear_session(),
    "flush": lambda session: session.flush(),
    "refresh": lambda session: session.refresh(),
    "aclose": lambda session: session.aclose(),
}


@pytest.mark.parametrize("call", EVERY)
def test_coroutines_that_are_closed(call: str, outbox: Outbox) -> None:
    """Whatever a loop left lying is closed without a word, and without a wait, by the collector."""
    for rounds in (1, 2, 3, 5, 8, 13, 21, 40, 100):
        line = Line()
        conversation = line.conversation("a", "b")
        session = line.session(conversation, outbox=outbox)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(session.get_items())
        loop.run_until_complete(session.add_items(users("c")))
        begun = loop.create_task(EVERY[call](session))
        for _ in range(rounds):
            loop.call_soon(loop.stop)
            loop.run_forever()
        left = [task.get_coro() for task in asyncio.all_tasks(loop)] + [begun.get_coro()]
        for coroutine in left:
            assert isinstance(coroutine, Coroutine)
            coroutine.close()
        loop.close()
        if call == "aclose":
            session = line.session(conversation, outbox=outbox)
        asyncio.run(_all_is_there(session, line))


async def _all_is_there(session: CachedSession, line: Line) -> None:
    await session.add_items(users("last"))
    await session.flush()
    found = texts(await session.get_items())
    assert found == line.texts(session.session_id)
    assert len(found) == len({*found})
    await session.aclose()


@pytest.mark.parametrize("call", CALLS)
def test_loops_that_leave_a_request_in_flight(call: Callable[..., Any]) -> None:
    """Of loops that end with a request in flight nothing lives after the next one."""
    leave_in_flight(None, call)


@pytest.mark.parametrize("call", CALLS)
def test_loops_that_leave_a_call_of_an_outbox(call: Callable[..., Any], outbox: Outbox) -> None:
    """The same with an outbox, whose sender has the request."""
    leave_in_flight(outbox, call)


def leave_in_flight(outbox: Outbox | None, call: Callable[..., Any]) -> None:
    with held() as (emulator, gate), wire(emulator) as line:
        conversation = Elsewhere(emulator).conversation(*"abc")
        session: CachedSession = session_over(line, conversation, outbox)

        async def go_on() -> None:
            await session.refresh()
            await session.get_items()
            await session.flush()

        asyncio.run(go_on())
        loops = [by_hand(lambda: _leave(session, gate, call)) for _ in range(3)]
        gate.open()
        asyncio.run(go_on())
        assert living(loops) == 0
        assert sockets_to(line.base_url) <= 1

        async def end() -> None:
            assert await session.get_items() == emulator.items(conversation)
            await session.aclose()

        asyncio.run(end())
        stored = texts(emulator.items(conversation))
        assert len(stored) == len({*stored})
        gc.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
@pytest.mark.parametrize("addresses", [1, 2])
def test_loops_that_end_while_they_connect(
    addresses: int, line: Wire, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of loops that end while a connection is being made nothing lives after the next one."""
    conversation = Elsewhere(emulator).conversation("a")
    client = AsyncOpenAI(base_url="http://several.example/v1", api_key="key", max_retries=0)
    session = CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )
    with nowhere(silent=True) as port:
        resolves(monkeypatch, *[port] * addresses)
        before = connecting(port)

        async def work() -> None:
            under_way = connecting(port)
            task = asyncio.ensure_future(session.get_items())
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            await until(lambda: bool(connecting(port) - under_way))

        loops = [by_hand(work) for _ in range(3)]
        resolves(monkeypatch, urlsplit(line.base_url).port)
        assert texts(asyncio.run(session.get_items())) == ["a"]
        assert living(loops) == 0
        assert connecting(port) == before


def connecting(port: int) -> set[str]:
    """The local ends of what is on the way to a port of this machine, and has not come there."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return {row[1] for row in rows if row[2:4] == [f"0100007F:{port:04X}", "02"]}


async def _leave(session: CachedSession, gate: Gate, call: Callable[..., Any]) -> None:
    gate.open()
    await session.refresh()
    # The answer: a request that is let go of then comes to the gate no more.
    gate.hold(skip=1)
    arguments = [users(f"x{id(asyncio.get_running_loop())}")] if "add" in call.__name__ else []
    task = asyncio.ensure_future(call(session, *arguments))
    # Nobody asks what became of it.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await gate.arrived()


class Collecting(asyncio.SelectorEventLoop):
    """Whoever asks whether it runs has the collector run, as it may in any step of anybody."""

    def is_running(self) -> bool:
        """Whether it runs."""
        gc.collect()
        return super().is_running()


def test_closed_by_the_collector_in_a_step_of_others() -> None:
    """Whoever finds that a turn was lost goes on, also if its coroutine is closed just then."""
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        client = AsyncOpenAI(base_url=emulator.base_url, api_key="key", max_retries=0)
        session = CachedSession(
            conversation_id=conversation, openai_client=client, cache=ConversationCache()
        )
        loop, shown = Collecting(), list[str]()

        async def leave() -> None:
            gate.hold()
            reading = asyncio.create_task(session.get_items())
            await gate.arrived()
            assert not reading.done()

        def go_on() -> None:
            shown.extend(texts(asyncio.run(session.get_items())))

        gc.disable()
        try:
            loop.run_until_complete(leave())
            loop.close()
            gate.open()
            # It would wait for itself, for ever.
            thread = threading.Thread(target=go_on, daemon=True)
            thread.start()
            thread.join(20)
        finally:
            gc.enable()
        assert shown == ["a"]


def test_loops_that_end_in_a_turn(outbox: Outbox, line: Wire, emulator: Emulator) -> None:
    """Of loops that end in a turn, or waiting for one, nothing lives, and nobody waits for them."""
    conversation = Elsewhere(emulator).conversation()
    session = session_over(line, conversation, outbox)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    taken: list[str] = []

    async def hold(name: str) -> None:
        async with session.turn():
            await session.add_items(users(name))
            taken.append(name)
            await asyncio.Event().wait()

    async def work() -> None:
        before = len(taken)
        tasks = [asyncio.create_task(hold(name)) for name in ("holds", "waits")]
        await until(lambda: len(taken) > before)
        assert not any(task.done() for task in tasks)

    for _ in range(5):
        loops.append(by_hand(work))

    async def last() -> None:
        async with session.turn(wait=20):
            await session.add_items(users("last"))
        await session.flush()
        await session.aclose()
        await outbox.aclose(timeout=20)

    asyncio.run(last())
    assert living(loops) == 0
    assert taken == ["holds"] * 5
    assert texts(emulator.items(conversation)) == [*taken, "last"]
