"""Threads with event loops of their own, and loops that stand still, on one session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from cached_session import CachedSession, ConversationCache, Outbox
from cached_session.emulator import Emulator
from tests.outbox_sessions.support import QUICK, held, session_on, until, words
from tests.session.support import PATIENCE, in_threads, new_client, numbered, texts, users


@pytest.mark.parametrize("own", [False, True], ids=["one session", "own sessions"])
def test_threads(own: bool, outbox: Outbox, emulator: Emulator) -> None:
    """Threads with loops of their own: everything once, each thread's order kept, calls whole."""
    cache, client = ConversationCache(), new_client(emulator)
    first = CachedSession(openai_client=client, cache=cache, outbox=outbox, retry=QUICK)
    asyncio.run(first.get_items())
    conversation = first.session_id

    def work(name: str) -> Callable[[], None]:
        session = first
        if own:
            session = CachedSession(
                conversation_id=conversation,
                openai_client=client,
                cache=cache,
                outbox=outbox,
                retry=QUICK,
            )

        async def main() -> None:
            for number in range(30):
                await session.add_items(users(f"{name} {number}", f"{name} {number}"))
                mine = [text for text in words(await session.get_items()) if text[0] == name]
                assert mine == [f"{name} {n}" for n in range(number + 1) for _ in range(2)]
            await session.flush()
            if own:
                await session.aclose()

        return lambda: asyncio.run(main())

    in_threads(*(work(name) for name in "xyz"))
    asyncio.run(first.flush())
    stored = texts(emulator.items(conversation))
    assert len(stored) == 180
    # Each call's two items stand next to each other.
    assert stored[::2] == stored[1::2]
    for name in "xyz":
        mine = [text for text in stored[::2] if text[0] == name]
        assert mine == [f"{name} {number}" for number in range(30)]
    assert asyncio.run(first.get_items()) == emulator.items(conversation)
    asyncio.run(first.aclose())


def test_a_thread_ends_while_another_waits(outbox: Outbox) -> None:
    """Where the loop that sends ends, a thread that waits in `flush` takes over."""
    with held() as (emulator, gate):
        session = session_on(emulator, outbox)
        asyncio.run(session.get_items())
        waiting, ended = threading.Event(), threading.Event()

        async def append_and_leave() -> None:
            gate.hold()
            await session.add_items(numbered(0, 50))
            await gate.arrived()
            await asyncio.to_thread(waiting.wait, PATIENCE)

        async def wait() -> None:
            await until(lambda: session.stats.waiting > 0)
            flushing = asyncio.create_task(session.flush())
            await asyncio.sleep(0.01)
            waiting.set()
            await asyncio.to_thread(ended.wait, PATIENCE)
            gate.open()
            await flushing

        def leave() -> None:
            asyncio.run(append_and_leave())
            ended.set()

        in_threads(leave, lambda: asyncio.run(wait()))
        assert texts(emulator.items(session.session_id)) == [str(n) for n in range(50)]
        asyncio.run(session.aclose())


@pytest.mark.parametrize("skip", range(3))
def test_a_loop_stands_still(skip: int, outbox: Outbox) -> None:
    """Where the loop that sends is stopped, another one goes on; when it runs on, nothing is sent.

    That is what becomes of a loop between two calls of `run_sync`.
    """
    with held() as (emulator, gate), asyncio.Runner() as first, asyncio.Runner() as second:
        session = session_on(emulator, outbox)
        first.run(session.get_items())

        async def leave() -> None:
            gate.hold(skip=skip)
            await session.add_items(numbered(0, 30))
            await gate.arrived()

        async def a_while() -> None:
            for _ in range(200):
                await asyncio.sleep(0)

        first.run(leave())
        gate.open()
        second.run(session.add_items(users("last")))
        second.run(session.flush())
        first.run(a_while())
        second.run(session.flush())
        expected = [*map(str, range(30)), "last"]
        assert texts(emulator.items(session.session_id)) == expected
        assert second.run(session.get_items()) == emulator.items(session.session_id)
        second.run(session.aclose())
