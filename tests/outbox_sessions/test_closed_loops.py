"""Loops that are closed by hand: nothing of one lives when another has taken over."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, Outbox
from tests.outbox_sessions.support import held
from tests.session.support import Elsewhere, Gate, texts, users
from tests.session.wire import Wire, sockets_to, wire

# What asyncio itself says of the caller's own task, which its loop left lying.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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


CALLS = [CachedSession.add_items, CachedSession.get_items, CachedSession.pop_item]


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
