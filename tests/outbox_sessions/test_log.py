"""What is logged: what needs a person as a warning, once; recoveries as information."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cached_session import CachedSession, ConversationCache, MemoryOutbox, OutboxError, SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from cached_session.emulator.requests import is_append
from cached_session.outbox import Log
from cached_session.outbox.sqlite.log import SQLiteLog
from tests.faults.line import LOST, Do, Line
from tests.outbox_sessions.support import (
    QUICK,
    Process,
    in_virtual_time,
    left_by_an_exception,
    opened,
    raised,
    until,
)
from tests.session.support import Elsewhere, new_client, texts, user, users

SECRET = "the combination is 4711"
KEY = "sk-secret"
BAD: Any = {"type": "no such type", "text": SECRET, "call_id": SECRET}


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="cached_session")
    yield
    for secret in (SECRET, KEY):
        assert secret not in caplog.text


def full(*_: object, **__: object) -> None:
    """In the place of a verb of a log: there is no room for it."""
    raise OutboxError("The outbox has no room: the disk is full.")


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[tuple[str, str]]:
    """Level and text of what was logged since the last call, from a level on."""
    found = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "cached_session" and record.levelno >= level
    ]
    caplog.clear()
    return found


def resume(log: Log) -> None:
    """What `cached-session outbox retry` does first."""
    for found in log.summaries():
        log.resume(found.address)


async def test_a_pause_is_warned_of_once(
    new_outbox: Callable[[], SQLiteOutbox], emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A pause is one warning, whatever is used after it; its end is one line, the next one new."""
    outbox = new_outbox()
    conversation = Elsewhere(emulator).conversation("before")
    async with Process(emulator, outbox) as process:
        session = process.session(conversation)
        await session.add_items([user("a"), BAD])
        await raised(session.flush())
        for _ in range(3):
            await raised(session.add_items(users("b")))
            await session.get_items()
            other = process.session(conversation)
            await raised(other.flush())
            await left_by_an_exception(other)
        await raised(session.aclose())
        again = process.session(conversation)
        await again.get_items()
        [(level, text)] = logged(caplog)
        assert level == "WARNING"
        for part in (conversation, "2 items", "status 400", "refused", "cached-session outbox"):
            assert part in text
        # Another process says so, too, once.
        async with Process(emulator, new_outbox()) as second:
            for _ in range(2):
                found = second.session(conversation)
                await found.get_items()
                await left_by_an_exception(found)
        [(level, other_text)] = logged(caplog)
        assert (level, other_text.count("2 items")) == ("WARNING", 1)
        # Somebody tries it again, and the server refuses it again.
        await outbox.transact(resume)
        await raised(again.flush())
        (first, resumed), (second_level, _) = logged(caplog)
        assert (first, second_level) == ("INFO", "WARNING")
        assert conversation in resumed
        await again.clear_session()
        assert logged(caplog) == []
        await again.aclose()


@in_virtual_time
async def test_recoveries_are_information(caplog: pytest.LogCaptureFixture) -> None:
    """A lost answer that was made up for is one line, and so is a late copy that was removed."""
    line, session, conversation = await opened("before")
    line.on(is_append, LOST)
    await session.add_items(users("a"))
    await session.flush()
    [(level, text)] = logged(caplog)
    assert level == "INFO"
    assert conversation in text
    line.heal()
    line.on(is_append, FaultKind.RESET_BEFORE_COMMIT, again(line))
    await session.add_items(users("b"))
    await session.flush()
    lines = logged(caplog)
    assert {level for level, _ in lines} == {"INFO"}
    [removed] = [text for _, text in lines if "late" in text]
    assert conversation in removed
    assert line.texts(conversation) == ["before", "a", "b"]
    await session.aclose()
    assert logged(caplog) == []


def again(line: Line) -> Do:
    """Carries out the last append, just before the one that is on its way."""

    def repeat() -> None:
        [*_, request] = [request for request in line.requests[:-1] if is_append(request)]
        line.service.handle(request)

    return Do(repeat)


async def test_what_passes_is_no_news(
    new_outbox: Callable[[], SQLiteOutbox], caplog: pytest.LogCaptureFixture
) -> None:
    """An outage, a session that is left in it, and the next one that goes on need no person."""
    with Emulator() as emulator:
        async with Process(emulator, new_outbox()) as process:
            session = process.session()
            await session.add_items(users("a"))
            emulator.stop()
            await session.add_items(users("b"))
            await until(lambda: session.stats.sending == "offline")
            await left_by_an_exception(session)
            emulator.start()
            session = process.session(session.session_id)
            await session.add_items(users("c"))
            await session.flush()
            assert texts(emulator.items(session.session_id)) == ["a", "b", "c"]
            await session.aclose()
    assert logged(caplog) == []


async def test_an_outbox_that_cannot_be_written(
    new_outbox: Callable[[], SQLiteOutbox],
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sender that cannot write its file is one warning until it can; then that is said."""

    outbox = new_outbox()
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, outbox) as process:
        session = process.session(conversation)
        await session.get_items()
        with monkeypatch.context() as broken:
            broken.setattr(SQLiteLog, "seal", full)
            await session.add_items(users("a"))
            for _ in range(3):
                assert type(await raised(session.flush())) is OutboxError
        [(level, text)] = logged(caplog)
        assert level == "WARNING"
        for part in (conversation, "1 item ", "the disk is full"):
            assert part in text
        await session.flush()
        [(level, text)] = logged(caplog)
        assert (level, conversation in text) == ("INFO", True)
        await session.aclose()


async def test_a_refusal_that_cannot_be_written(
    new_outbox: Callable[[], SQLiteOutbox],
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person hears that the server refuses a batch also where the file cannot be written."""

    monkeypatch.setattr(SQLiteLog, "pause", full)
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.get_items()
        await session.add_items([BAD])
        await raised(session.flush())
        # Whoever waits for it may hear so before all of it is logged.
        await until(lambda: sum(one.levelno == logging.WARNING for one in caplog.records) == 2)
        refused, failed = logged(caplog)
        for level, text in (refused, failed):
            assert level == "WARNING"
            assert conversation in text
        assert "status 400" in refused[1]
        assert "the disk is full" in failed[1]
        await raised(session.aclose())


def test_what_a_loop_leaves_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Items that only a `MemoryOutbox` has when their loop ends are warned of, once."""
    outbox, cache = MemoryOutbox(), ConversationCache()
    # No second attempt is under way when the loop ends: its answer would be lost.
    once = dataclasses.replace(QUICK, initial_delay=60.0, max_delay=60.0)
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation()

        async def main(*appended: str) -> None:
            async with new_client(emulator, api_key=KEY) as client:
                session = CachedSession(
                    conversation_id=conversation,
                    openai_client=client,
                    outbox=outbox,
                    cache=cache,
                    retry=once,
                )
                await session.get_items()
                if not appended:
                    await session.flush()
                    await session.aclose()
                    return
                emulator.stop()
                await session.add_items(users(*appended))
                await until(lambda: session.stats.sending == "offline")

        asyncio.run(main("a", SECRET))
        [(level, text)] = logged(caplog)
        assert level == "WARNING"
        for part in (conversation, "2 items", "MemoryOutbox", "flush"):
            assert part in text
        emulator.start()
        asyncio.run(main())
        assert texts(emulator.items(conversation)) == ["a", SECRET]
    assert logged(caplog) == []


async def test_what_an_outbox_takes_with_it(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Items of a `MemoryOutbox` that nobody has any more are lost, which is a warning."""
    outbox = MemoryOutbox()
    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, outbox) as process:
        session = process.session(conversation)
        await session.get_items()
        emulator.faults = lambda _: Fault(FaultKind.RATE_LIMITED_QUOTA)
        await session.add_items(users("a", SECRET))
        await raised(session.flush())
        await raised(session.aclose())
        # What other tests have left is told of by now.
        gc.collect()
        logged(caplog)
        emulator.faults = None
    del outbox, session, process
    gc.collect()
    [(level, text)] = logged(caplog)
    assert level == "WARNING"
    for part in (conversation, "2 items", "lost", "MemoryOutbox"):
        assert part in text


SCRIPT = """
import asyncio, sys
from openai import AsyncOpenAI
from cached_session import CachedSession, MemoryOutbox
outbox = MemoryOutbox()
async def main():
    client = AsyncOpenAI(base_url=sys.argv[1], api_key="key")
    session = CachedSession(openai_client=client, outbox=outbox)
    await session.add_items([{"role": "user", "content": "the combination is 4711"}])
asyncio.run(main())
"""


@pytest.mark.processes
def test_what_a_process_takes_with_it() -> None:
    """A program that ends without `flush` says on standard error what it has lost, once."""
    with Emulator() as emulator:
        emulator.stop()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, emulator.base_url],
            capture_output=True,
            text=True,
            check=True,
        )
    [line] = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("local-")
    assert "1 item " in line
    assert "flush" in line
    assert SECRET not in line


async def test_a_recording_that_fails_behind_its_caller(
    new_outbox: Callable[[], SQLiteOutbox],
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Items whose caller was cancelled and that could not be recorded are a warning."""

    conversation = Elsewhere(emulator).conversation()
    async with Process(emulator, new_outbox()) as process:
        session = process.session(conversation)
        await session.get_items()
        with monkeypatch.context() as broken:
            broken.setattr(SQLiteLog, "accept", full)
            for step in range(10):
                task = asyncio.create_task(session.add_items(users("a")))
                for _ in range(step):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OutboxError):
                    await task
                await until(lambda: len(asyncio.all_tasks()) == 1)
        lines = logged(caplog)
        assert lines
        for level, text in lines:
            assert level == "WARNING"
            assert conversation in text
            assert "OutboxError" in text
        await session.aclose()


async def test_a_write_that_fails_behind_its_caller(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that fails with nobody left to tell is a warning, without an outbox as well."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def refuse(_: Request) -> Fault:
        loop.call_soon_threadsafe(arrived.set)
        return Fault(FaultKind.RATE_LIMITED_QUOTA)

    async with new_client(emulator, api_key=KEY) as client:
        session = CachedSession(openai_client=client)
        await session.add_items(users("a"))
        emulator.faults = refuse
        task = asyncio.create_task(session.add_items(users(SECRET)))
        await arrived.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        await session.flush()
        emulator.faults = None
        [(level, text)] = logged(caplog)
        assert level == "WARNING"
        for part in (session.session_id, "RateLimitError", "next read"):
            assert part in text
        await session.aclose()
