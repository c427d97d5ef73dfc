"""Event loops that come and go while items wait, and threads with loops of their own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    OutboxError,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator
from cached_session.outbox import Log, writer
from tests.outbox_sessions.support import batches, held, session_on, until, words
from tests.runner.stage import add
from tests.session.support import PATIENCE, Elsewhere, Gate, new_client, numbered, texts, users

CONNECTING = "coroutine 'connect_tcp"
"""What anyio has to say where a loop ends in the one step in which a connection is begun.

It says so with any client, and at whichever moment that falls to.
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(f"ignore:{CONNECTING}:RuntimeWarning"),
]


@contextmanager
def without_a_word() -> Iterator[None]:
    """Nothing is warned of meanwhile, not even when the garbage is collected."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    # Once in a while only: the sender lets whoever appended go on first.
    assert sum(CONNECTING in str(one.message) for one in caught) <= 3
    assert [
        text for text in map(str, (one.message for one in caught)) if CONNECTING not in text
    ] == []


@contextmanager
def default_loop() -> Iterator[None]:
    """The loop that `run_sync` runs on, ended as `asyncio.run` ends one."""
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield
    asyncio.set_event_loop(None)


def test_a_loop_ends_while_items_wait(outbox: Outbox, emulator: Emulator) -> None:
    """`asyncio.run` after `asyncio.run` goes on with what the one before left, each item once."""

    def program() -> list[str]:
        session = session_on(emulator, outbox)

        async def append(number: int) -> None:
            await session.add_items(numbered(number, number + 3))

        for number in range(0, 90, 3):
            asyncio.run(append(number), debug=number % 2 == 0)
        asyncio.run(session.flush())
        found = asyncio.run(session.get_items())
        assert found == emulator.items(session.session_id)
        asyncio.run(session.aclose())
        return texts(found)

    with without_a_word():
        assert program() == [str(number) for number in range(90)]


@pytest.mark.parametrize("skip", range(4))
def test_a_loop_ends_with_a_request_in_flight(skip: int, outbox: Outbox) -> None:
    """The same where a request is in flight when the loop ends, whether or not it was applied."""

    def program(emulator: Emulator, gate: Gate) -> list[str]:
        session = session_on(emulator, outbox)
        asyncio.run(session.get_items())

        async def leave() -> None:
            gate.hold(skip=skip)
            await session.add_items(numbered(0, 30))
            await gate.arrived()

        async def go_on() -> None:
            assert words(await session.get_items()) == [str(number) for number in range(30)]
            await session.add_items(users("last"))
            await session.flush()
            assert await session.get_items() == emulator.items(session.session_id)
            await session.aclose()

        asyncio.run(leave())
        gate.open()
        asyncio.run(go_on())
        return texts(emulator.items(session.session_id))

    with held() as (emulator, gate), without_a_word():
        assert program(emulator, gate) == [*map(str, range(30)), "last"]


def test_a_read_sends_what_waits(outbox: Outbox, emulator: Emulator) -> None:
    """On a new loop any call makes the session send again what a loop before left, a read too."""
    session = session_on(emulator, outbox)

    async def append() -> None:
        await session.get_items()
        await session.add_items(users("a"))

    async def read() -> None:
        assert words(await session.get_items()) == ["a"]
        await until(lambda: session.stats.waiting == 0)

    asyncio.run(append())
    asyncio.run(read())
    assert texts(emulator.items(session.session_id)) == ["a"]
    asyncio.run(session.aclose())


CALLS: dict[str, Callable[[CachedSession], Coroutine[Any, Any, Any]]] = {
    "pop_item": CachedSession.pop_item,
    "clear_session": CachedSession.clear_session,
    "flush": CachedSession.flush,
    "aclose": lambda session: session.aclose(timeout=60),
    "refresh": CachedSession.refresh,
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_goes_on(call: str, outbox: Outbox, emulator: Emulator) -> None:
    """Each call finds what a loop before left, and does with it what it says."""
    session = session_on(emulator, outbox)
    asyncio.run(session.add_items(users("a", "b")))
    conversation = session.session_id
    result = asyncio.run(CALLS[call](session))
    if call == "pop_item":
        assert words([result]) == ["b"]
        asyncio.run(session.flush())
        assert texts(emulator.items(conversation)) == ["a"]
    elif call == "clear_session":
        with pytest.raises(LookupError):
            emulator.items(conversation)
    elif call == "refresh":
        assert words(asyncio.run(session.get_items())) == ["a", "b"]
        asyncio.run(session.flush())
    else:
        assert texts(emulator.items(conversation)) == ["a", "b"]
    asyncio.run(session.aclose(timeout=60))


# `run_sync` shuts down its loop's generators after every run and goes on with the
# loop; the HTTP client's own generators then make the loop warn, in every session.
@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")
@pytest.mark.parametrize("loops", [1, 3], ids=["one loop", "several loops"])
def test_run_sync(loops: int, outbox: Outbox, emulator: Emulator) -> None:
    """`Runner.run_sync` with tools, run after run, leaves the whole history on the server."""
    model = ScriptedModel()
    agent = Agent(name="assistant", model=model, tools=[add])
    session = session_on(emulator, outbox)
    for part in range(loops):
        with default_loop():
            for number in range(3):
                model.extend(
                    [
                        [function_call("add", {"a": 1, "b": number}, call_id=f"c{part}{number}")],
                        [assistant_message(f"answer {number}")],
                    ]
                )
                Runner.run_sync(agent, f"question {number}", session=session)
    asyncio.run(session.flush())
    stored = emulator.items(session.session_id)
    kinds = ["message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in stored] == kinds * 3 * loops
    # Every model call was given all that came before it.
    lengths = [len(call.input) for call in model.calls]
    assert lengths == [4 * run + part for run in range(3 * loops) for part in (1, 3)]
    assert asyncio.run(session.get_items()) == stored
    asyncio.run(session.aclose())


PROGRAM = """
import asyncio, sys
from agents import Agent, Runner, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI
from cached_session import CachedSession, SQLiteOutbox

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=sys.argv[1], api_key="any")
session = CachedSession(openai_client=client, outbox=SQLiteOutbox(sys.argv[2]))
for number in range(int(sys.argv[3])):
    model = ScriptedModel([[assistant_message(f"answer {number}")]])
    agent = Agent(name="assistant", model=model)
    Runner.run_sync(agent, f"question {number}", session=session)
if sys.argv[4] == "wait":
    asyncio.run(session.flush(20))
asyncio.run(session.aclose())
print(session.session_id)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("runs", "end"),
    [(1, "wait"), (2, "wait"), (3, "wait"), (8, "wait"), (1, "leave"), (3, "leave")],
)
def test_run_sync_ends_without_a_word(runs: int, end: str, path: Path) -> None:
    """A program that closes its session on another loop than that of its runs says nothing."""
    with Emulator(latency=0.02) as emulator:
        program = subprocess.run(
            [sys.executable, "-c", PROGRAM, emulator.base_url, path, str(runs), end],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (program.stderr, program.returncode) == ("", 0)
        said = [f"{kind} {number}" for number in range(runs) for kind in ("question", "answer")]
        there = texts(emulator.items(program.stdout.strip()))
        assert there == (said if end == "wait" else said[: len(there)])


def test_run_sync_meets_no_generator_of_ours(outbox: Outbox, emulator: Emulator) -> None:
    """What makes the loop of `run_sync` warn is the HTTP client's, and nothing of this package."""
    session = session_on(emulator, outbox)
    with warnings.catch_warnings(record=True) as caught, default_loop():
        warnings.simplefilter("always")
        for number in range(3):
            model = ScriptedModel([[assistant_message(f"answer {number}")]])
            agent = Agent(name="assistant", model=model)
            Runner.run_sync(agent, f"question {number}", session=session)
            asyncio.get_event_loop().run_until_complete(session.flush())
        asyncio.get_event_loop().run_until_complete(session.aclose())
    ours = {
        value.__qualname__
        for name, module in sys.modules.items()
        if name.startswith("cached_session.") and "emulator" not in name
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == name
    }
    said = [str(one.message) for one in caught if "asynchronous generator" in str(one.message)]
    makers = {text.split("object ")[1].split(".")[0] for text in said}
    assert makers, "the loop did not warn at all"
    assert makers & ours == set()


def test_dropped_with_its_loop(emulator: Emulator) -> None:
    """A program that ends without a word, while items wait, ends without a word."""

    def program() -> None:
        outbox = MemoryOutbox()

        async def main() -> None:
            client: AsyncOpenAI = new_client(emulator)
            session = CachedSession(openai_client=client, outbox=outbox, cache=ConversationCache())
            for number in range(30):
                await session.add_items(users(str(number)))
            await client.close()

        asyncio.run(main())

    with without_a_word():
        program()


@pytest.mark.parametrize("steps", range(0, 14, 2))
def test_a_loop_ends_with_an_append_under_way(
    steps: int, outbox: Outbox, emulator: Emulator
) -> None:
    """An append that its loop did not live to see recorded is there whole, or not; flush knows."""
    session = session_on(emulator, outbox)
    asyncio.run(session.get_items())

    async def leave() -> None:
        task = asyncio.create_task(session.add_items(users("a", "b")))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    shown = words(asyncio.run(session.get_items()))
    assert shown in ([], ["a", "b"])
    asyncio.run(session.flush())
    assert session.stats.waiting == 0
    stored = emulator.items(session.session_id)
    assert texts(stored) == shown
    assert asyncio.run(session.get_items()) == stored
    asyncio.run(session.aclose())
    assert emulator.items(session.session_id) == stored


@pytest.mark.parametrize("cut", [False, True])
def test_a_stopped_loop_keeps_nobody_from_sending(
    cut: bool, path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process leaves whose event loop stands still, or has ended, another one sends.

    The process lives on, as a worker does that runs a loop for each request.
    """
    monkeypatch.setattr(writer, "LOOK_AFTER", 0.01)
    conversation = Elsewhere(emulator).conversation("a")
    one, two = (
        session_on(emulator, SQLiteOutbox(path), conversation_id=conversation) for _ in range(2)
    )
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        await one.add_items(users("b", "c"))
        while one.stats.sending != "sending":  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        if cut:
            for _ in range(20):
                await asyncio.sleep(0)

    loop.run_until_complete(leave())

    async def go_on() -> None:
        await two.add_items(users("d"))
        await two.flush(timeout=20)
        await two.aclose(timeout=60)

    asyncio.run(go_on())
    assert texts(emulator.items(conversation)) == ["a", "b", "c", "d"]
    # The first one goes on, too, and hears what was done.
    loop.run_until_complete(one.add_items(users("e")))
    loop.run_until_complete(one.aclose(timeout=60))
    loop.close()
    assert texts(emulator.items(conversation)) == ["a", "b", "c", "d", "e"]


async def _append_behind(session: CachedSession, outbox: SQLiteOutbox, go: threading.Event) -> None:
    """An append, and then a transaction that keeps what comes after it waiting until `go`."""
    busy = threading.Event()

    def wait(log: Log) -> None:
        busy.set()
        assert go.wait(PATIENCE)

    await session.add_items(users("b"))
    waiting = asyncio.ensure_future(outbox.transact(wait))
    await asyncio.to_thread(busy.wait)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()


def test_a_loop_that_stops_as_its_claim_is_made(
    path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the loop stands still before the file says that this process sends."""
    monkeypatch.setattr(writer, "LOOK_AFTER", 0.01)
    late = 0.0
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    conversation = Elsewhere(emulator).conversation("a")
    outbox = SQLiteOutbox(path)
    one = session_on(emulator, outbox, conversation_id=conversation)
    two = session_on(emulator, SQLiteOutbox(path), conversation_id=conversation)
    loop = asyncio.new_event_loop()
    go = threading.Event()
    # The claim is put behind what waits, and so its outcome is not heard of here.
    loop.run_until_complete(_append_behind(one, outbox, go))
    late = 1.0  # the file's thread looks for what is abandoned before it goes on
    go.set()

    async def go_on() -> None:
        await two.flush(timeout=PATIENCE)
        await two.aclose()

    asyncio.run(go_on())
    assert texts(emulator.items(conversation)) == ["a", "b"]
    loop.run_until_complete(one.aclose())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.parametrize("stops", [False, True])
def test_a_loop_that_ends_as_its_batch_is_sealed(
    stops: bool, path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loop had sealed that ended, or stopped, and another process has sent, is let be."""
    monkeypatch.setattr(writer, "LOOK_AFTER", 0.01)
    conversation = Elsewhere(emulator).conversation("a")
    outbox = SQLiteOutbox(path)
    one = session_on(emulator, outbox, conversation_id=conversation)
    two = session_on(emulator, SQLiteOutbox(path), conversation_id=conversation)
    go = threading.Event()
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete if stops else asyncio.run
    run(one.get_items())
    emulator.clear_log()
    # The seal is put behind what waits; the loop does not live to hear of it.
    run(_append_behind(one, outbox, go))
    go.set()

    async def append(session: CachedSession, text: str) -> None:
        await session.add_items(users(text))
        await session.flush(timeout=PATIENCE)

    asyncio.run(append(two, "c"))
    assert texts(emulator.items(conversation)) == ["a", "b", "c"]
    run(append(one, "d"))
    # Not even as a late copy, which is removed while somebody watches for it.
    assert batches(emulator) == 3
    assert texts(emulator.items(conversation)) == ["a", "b", "c", "d"]
    asyncio.run(two.aclose())
    run(one.aclose())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_what_a_loop_had_recorded_is_known(
    path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item whose loop did not live to hear of it is shown, and the file is not asked for it."""
    outbox = SQLiteOutbox(path)
    session = session_on(emulator, outbox)
    asyncio.run(session.get_items())
    loop = asyncio.new_event_loop()
    recorded = outbox.transact

    async def begin() -> None:
        appending = asyncio.ensure_future(session.add_items(users("a")))
        # One that waits in the file's thread, and never comes back here.
        for _ in range(3):
            await asyncio.sleep(0)
        begun.append(appending)

    begun: list[asyncio.Future[None]] = []
    loop.run_until_complete(begin())

    async def full(*_: Any) -> Any:
        raise OutboxError("the disk is full")

    async def go_on() -> None:
        await outbox.transact(lambda log: None)  # what was put before this is done
        monkeypatch.setattr(outbox, "transact", full)
        assert words(await session.get_items()) == ["a"]
        monkeypatch.setattr(outbox, "transact", recorded)
        await session.flush()
        await session.aclose()

    asyncio.run(go_on())
    assert texts(emulator.items(session.session_id)) == ["a"]
    for appending in begun:
        appending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(asyncio.gather(*begun))
    loop.close()


def test_dropped_with_its_loop_beside_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is dropped with its loop keeps nobody from sending; its outbox lives on."""
    monkeypatch.setattr(writer, "LOOK_AFTER", 0.01)
    with held() as (emulator, gate):
        conversation = Elsewhere(emulator).conversation("a")
        outbox = SQLiteOutbox(path)

        async def handle() -> None:
            session = session_on(emulator, outbox, conversation_id=conversation)
            await session.get_items()
            gate.hold()
            await session.add_items(users("b"))
            await gate.arrived()

        asyncio.run(handle())
        gate.open()
        gc.collect()
        other = session_on(emulator, SQLiteOutbox(path), conversation_id=conversation)

        async def go_on() -> None:
            await other.add_items(users("c"))
            await other.flush(timeout=20)
            await other.aclose()
            await outbox.let_go()

        asyncio.run(go_on())
        assert texts(emulator.items(conversation)) == ["a", "b", "c"]


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("call", [CachedSession.flush, CachedSession.pop_item])
def test_a_loop_ends_with_a_call_under_way(
    call: Callable[[CachedSession], Coroutine[Any, Any, Any]],
    slowly: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A call that ends with its loop leaves nothing behind of which asyncio would tell."""
    # What earlier tests have left on loops that stand still is theirs.
    gc.collect()
    caplog.clear()
    # In a loop that ends at once it depends on the moment.
    for _ in range(1 if slowly else 6):
        with held() as (emulator, gate):
            session = session_on(emulator, MemoryOutbox())

            async def leave(session: CachedSession = session, gate: Gate = gate) -> None:
                await session.get_items()
                gate.hold()
                await session.add_items(numbered(0, 3))
                await gate.arrived()
                under_way = asyncio.create_task(call(session))
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not under_way.done()
                if slowly:
                    # The loop waits for its threads before it is closed, and its
                    # timers go on meanwhile: those of the cancelled call, too.
                    loop, done = asyncio.get_running_loop(), threading.Event()
                    loop.run_in_executor(None, done.wait)
                    loop.call_later(0.2, done.set)

            asyncio.run(leave())
            gate.open()
            gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
