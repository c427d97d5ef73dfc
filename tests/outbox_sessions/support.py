"""What the tests of sessions with an outbox share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cached_session import (
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    PostgresOutbox,
    RetryBudget,
    RetryPolicy,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator
from tests.faults import virtual
from tests.faults.line import Line
from tests.session.support import Gate, new_client

QUICK = RetryPolicy(initial_delay=0.001, max_delay=0.01, budget=RetryBudget(10_000, 10_000))
"""A policy that loses no time when the server is away."""


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test on a loop whose clock jumps; with it goes a `Line` and a `MemoryOutbox`."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        virtual.run(test(*args, **kwargs))

    return run


def words(items: list[Any]) -> list[str]:
    """The texts of messages, of accepted ones and of listed ones."""
    return [item["content"][0]["text"] for item in items]


async def opened(
    *texts: str, outbox: MemoryOutbox | None = None, **options: Any
) -> tuple[Line, CachedSession, str]:
    """A line, a session with an outbox that has read its conversation, and the conversation."""
    line = Line()
    conversation = line.conversation(*texts)
    session = line.session(conversation, outbox=outbox or MemoryOutbox(), **options)
    await session.get_items()
    line.asked()
    return line, session, conversation


async def until(condition: Callable[[], bool]) -> None:
    """Goes round the event loop until something has come about that nobody announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)


def batches(emulator: Emulator) -> int:
    """How many appends the server was asked for since the log was cleared."""
    return sum(
        entry.method == "POST" and entry.path.endswith("/items") for entry in emulator.requests
    )


async def in_flight(line: Line) -> None:
    """Goes round the event loop until a request is on its way; no time passes."""
    while not line.in_flight:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)


async def raised(awaitable: Awaitable[Any]) -> BaseException | None:
    """What an awaitable raises, or None."""
    try:
        await awaitable
    except Exception as error:
        return error
    return None


@contextmanager
def held() -> Iterator[tuple[Emulator, Gate]]:
    """A server that answers when a gate lets it."""
    gate = Gate()
    with Emulator(latency=1e-9, sleep=gate.sleep) as emulator:
        yield emulator, gate


def session_on(emulator: Emulator, outbox: Outbox, **options: Any) -> CachedSession:
    """A session with a client and a copy of its own."""
    settings = {"cache": ConversationCache(), "retry": QUICK, **options}
    return CachedSession(openai_client=new_client(emulator), outbox=outbox, **settings)


async def left_by_an_exception(session: CachedSession) -> None:
    """Ends a session as its `async with` block does when something in it raises."""
    await session.__aexit__(KeyError, KeyError(), None)


class Vouching(SQLiteOutbox):
    """One whose log is asked in the server's place."""

    vouches = True


Make = Callable[[Path], SQLiteOutbox | PostgresOutbox]


class Process:
    """What one process of a program has: its client, its cache, its outbox."""

    def __init__(self, emulator: Emulator, outbox: Any) -> None:
        self.client = new_client(emulator)
        self.cache = ConversationCache()
        self.outbox = outbox

    def session(self, conversation_id: str | None = None, **options: Any) -> CachedSession:
        settings = {"retry": QUICK, **options}
        return CachedSession(
            conversation_id=conversation_id,
            openai_client=self.client,
            cache=self.cache,
            outbox=self.outbox,
            **settings,
        )

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        # What was not flushed by then stays recorded.
        await self.outbox.aclose()
        await self.client.close()
