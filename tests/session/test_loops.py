"""Event loops that come and go, and threads with loops of their own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import warnings
from collections.abc import Callable

import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.session.support import PATIENCE, in_threads, new_client, sent, texts, users


def test_three_loops_one_after_the_other(emulator: Emulator) -> None:
    """One session and one client work on three loops in turn, and reads stay without request."""
    session = CachedSession(openai_client=new_client(emulator))

    async def use(text: str) -> list[str]:
        await session.add_items(users(text))
        return texts(await session.get_items())

    reads = [asyncio.run(use(text)) for text in "abc"]
    assert reads == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert sent(emulator) == ["POST conversation", "POST items", "POST items", "POST items"]


def test_operations_on_loops_of_their_own(emulator: Emulator) -> None:
    """Each operation may run on a loop of its own: read, append, pop, clear, refresh, close."""
    session = CachedSession(openai_client=new_client(emulator), cache=ConversationCache())
    asyncio.run(session.add_items(users("a", "b")))
    asyncio.run(session.refresh())
    assert texts(asyncio.run(session.get_items())) == ["a", "b"]
    assert texts([asyncio.run(session.pop_item())]) == ["b"]
    before = session.session_id
    asyncio.run(session.clear_session())
    assert asyncio.run(session.get_items()) == []
    assert session.session_id != before
    asyncio.run(session.aclose())


def test_wrapping_session_on_several_loops(emulator: Emulator) -> None:
    """A session that wraps makes a conversation on whatever loop it is first used."""
    wrapped = OpenAIConversationsSession(openai_client=new_client(emulator))
    session = CachedSession(wrapped)
    made = []
    for text in "abc":
        asyncio.run(session.add_items(users(text)))
        assert texts(asyncio.run(session.get_items())) == [text]
        made.append(wrapped.session_id)
        asyncio.run(session.clear_session())
    assert len(set(made)) == 3


def test_module_level_client_and_session(emulator: Emulator) -> None:
    """Two `asyncio.run` with a client that outlives both leave no warning and nothing open."""

    def program() -> None:
        session = CachedSession(openai_client=new_client(emulator))

        async def main(text: str) -> None:
            await asyncio.gather(*(session.add_items(users(text)) for _ in range(5)))

        asyncio.run(main("a"), debug=True)
        asyncio.run(main("b"), debug=True)

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert sent(emulator).count("POST items") == 10


@pytest.mark.parametrize("own_sessions", [False, True], ids=["one session", "two sessions"])
def test_two_threads_with_a_loop_each(own_sessions: bool, emulator: Emulator) -> None:
    """Two threads write and read at once: nothing is lost or doubled, and both see one order."""
    client = new_client(emulator)
    first = CachedSession(openai_client=client)
    asyncio.run(first.get_items())
    second = (
        CachedSession(conversation_id=first.session_id, openai_client=client)
        if own_sessions
        else first
    )
    start = threading.Barrier(2)

    def work(name: str, session: CachedSession) -> Callable[[], None]:
        async def write(number: int) -> None:
            mine = [f"{name}{number}.{part}" for part in range(3)]
            await session.add_items(users(*mine))
            read = texts(await session.get_items())
            position = read.index(mine[0])
            assert read[position : position + 3] == mine

        async def main() -> None:
            start.wait(PATIENCE)
            await asyncio.gather(*(write(number) for number in range(20)))

        return lambda: asyncio.run(main())

    in_threads(work("a", first), work("b", second))
    stored = emulator.items(first.session_id)
    assert len(stored) == len(set(texts(stored))) == 120
    assert asyncio.run(first.get_items()) == asyncio.run(second.get_items()) == stored


def test_first_calls_of_two_threads_race(emulator: Emulator) -> None:
    """First calls from two threads make one conversation."""
    session = CachedSession(openai_client=new_client(emulator))
    start = threading.Barrier(2)

    def work(text: str) -> Callable[[], None]:
        async def main() -> None:
            start.wait(PATIENCE)
            await session.add_items(users(text))

        return lambda: asyncio.run(main())

    in_threads(work("a"), work("b"))
    assert sent(emulator).count("POST conversation") == 1
    assert sorted(texts(emulator.items(session.session_id))) == ["a", "b"]


def test_reads_in_a_thread_while_another_writes(emulator: Emulator) -> None:
    """A reader in another thread sees prefixes of one order, never half of a batch."""
    client = new_client(emulator)
    writer = CachedSession(openai_client=client)
    asyncio.run(writer.add_items(users("first")))
    reader = CachedSession(conversation_id=writer.session_id, openai_client=client)
    done = threading.Event()
    reads: list[list[str]] = []

    async def write() -> None:
        for number in range(30):
            await writer.add_items(users(f"{number}.0", f"{number}.1"))
        done.set()

    async def read() -> None:
        while not done.is_set():
            reads.append(texts(await reader.get_items()))
            await asyncio.sleep(0)

    in_threads(lambda: asyncio.run(write()), lambda: asyncio.run(read()))
    stored = texts(emulator.items(writer.session_id))
    assert len(stored) == 61
    for earlier, later in itertools.pairwise(reads):
        assert len(earlier) <= len(later)
    for seen in reads:
        assert seen == stored[: len(seen)]
        assert len(seen) % 2 == 1


def test_a_client_is_dropped_while_its_loop_runs(emulator: Emulator) -> None:
    """A session and its client that are let go of unclosed leave no open connection behind."""

    async def use_and_drop() -> None:
        client: AsyncOpenAI = new_client(emulator)
        session = CachedSession(openai_client=client)
        await session.add_items(users("a"))
        await client.close()

    async def main() -> None:
        await use_and_drop()
        gc.collect()
        await use_and_drop()

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_loop_is_closed_with_a_write_in_flight(emulator: Emulator) -> None:
    """A write that its loop did not live to see settled is found out by the next loop's read."""
    session = CachedSession(openai_client=new_client(emulator))
    asyncio.run(session.add_items(users("a")))

    async def leave() -> None:
        task = asyncio.create_task(session.add_items(users("b")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    assert asyncio.run(session.get_items()) == emulator.items(session.session_id)
    asyncio.run(session.add_items(users("c")))
    stored = emulator.items(session.session_id)
    assert texts(stored) in (["a", "c"], ["a", "b", "c"])
    assert asyncio.run(session.get_items()) == stored
