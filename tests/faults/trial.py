"""One operation on a conversation of its own, cancelled after some steps of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agents import OpenAIConversationsSession
from openai import OpenAIError

from cached_session import CachedSession, CachedSessionError, ConversationCache
from cached_session.emulator import Fault, FaultKind
from tests.faults import virtual
from tests.faults.line import CUT, LOST, Line, agrees, policy
from tests.session.support import numbered, users

Operation = Callable[[CachedSession], Awaitable[Any]]

BEFORE = ["a", "b", "c"]
LONG = [str(number) for number in range(25)]
FAULTS: list[Any] = [
    None,
    CUT,
    LOST,
    FaultKind.HANG,
    FaultKind.LOCKED,
    Fault(FaultKind.PARTIAL_BATCH, items=1),
    Fault(FaultKind.LATE_COMMIT, delay=0.2),
    Fault(FaultKind.LATE_COMMIT, delay=2.0, silent=True),
]
# The copy of a long batch goes item by item, which takes a while.
FEW = [None, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)]


async def get_all(session: CachedSession) -> Any:
    return await session.get_items()


async def get_one(session: CachedSession) -> Any:
    return await session.get_items(1)


async def add_two(session: CachedSession) -> None:
    await session.add_items(users("x", "y"))


async def add_long(session: CachedSession) -> None:
    await session.add_items(numbered(0, 25))


async def pop(session: CachedSession) -> Any:
    return await session.pop_item()


async def clear(session: CachedSession) -> None:
    await session.clear_session()


async def refresh(session: CachedSession) -> None:
    await session.refresh()


async def flush(session: CachedSession) -> None:
    await session.flush()


async def close(session: CachedSession) -> None:
    await session.aclose()


class Trial:
    """One operation on a conversation of its own, cancelled after some steps of the loop.

    Attributes:
        line: The line to the server.
        conversation: The conversation, None where the session is to make it.
        session: The session that is cancelled.
        other: Another session on the same local copy.
        cancelled: Whether the operation was cancelled before it ended.
    """

    def __init__(self, *, new: bool = False, wrapped: bool = False) -> None:
        self.line = Line(latency=0.01)
        self.conversation = None if new else self.line.conversation("a", "b", "c")
        self.cache = ConversationCache()
        self.retry = policy(attempt_timeout=1.0)
        if wrapped:
            inner = OpenAIConversationsSession(openai_client=self.line.openai)
            self.session = CachedSession(inner, cache=self.cache, retry=self.retry)
        else:
            self.session = self.line.session(self.conversation, cache=self.cache, retry=self.retry)
        self.cancelled = False

    async def act(self, operation: Operation, steps: int) -> None:
        """Runs the operation and cancels it after so many steps; it must let go at once."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual.VirtualLoop)
        task = asyncio.ensure_future(operation(self.session))
        cancelled_at: list[float] = []

        def cancel() -> None:
            if task.cancel():
                cancelled_at.append(loop.time())

        loop.interrupt(steps, cancel)
        try:
            await task
        except asyncio.CancelledError:
            self.cancelled = True
            assert [loop.time()] == cancelled_at
            # How many rounds it takes to unwind the client's own frames.
            assert loop.iterations - steps < 20
        except (OpenAIError, CachedSessionError):
            pass
        loop.interrupt(1 << 60, lambda: None)

    def texts(self) -> list[str]:
        """What the server holds of the conversation that the session is on by now."""
        return self.line.texts(self.session.session_id)

    async def ends_well(self, *allowed: list[str]) -> None:
        """What comes next waits for what is in flight, and sees the truth, which then stays."""
        await agrees(self.session, self.line, self.session.session_id)
        assert self.line.in_flight == 0
        assert self.texts() in allowed
        await self.settled(self.texts())

    async def settled(self, expected: list[str]) -> None:
        """Nothing changes any more, not even when all that is late has come."""
        await asyncio.sleep(200)
        await agrees(self.session, self.line, self.session.session_id)
        assert self.texts() == expected
        assert self.line.in_flight == 0
