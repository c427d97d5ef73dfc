"""When the server is asked for what others changed: opening checks, `max_staleness`, `refresh`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, Outbox, SQLiteOutbox
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client, sent, texts, users

NEW_OR_CHECKING = pytest.mark.parametrize("max_staleness", [None, 0], ids=["opening", "every read"])


class ShiftedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test moves forward."""

    shift = 0.0

    def time(self) -> float:
        return super().time() + self.shift


def on_shifted_clock(
    main: Callable[[ShiftedLoop], Coroutine[Any, Any, None]], *, start: float = 0.0
) -> None:
    loop = ShiftedLoop()
    loop.shift = start
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))


async def test_copy_is_trusted_by_default(emulator: Emulator, client: AsyncOpenAI) -> None:
    """With `max_staleness=None` the copy is trusted: what others append is not looked for."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.get_items()
    elsewhere.append(conversation, "b")
    sent(emulator)
    assert texts(await session.get_items()) == ["a"]
    assert sent(emulator) == []


async def test_refresh_asks_the_server(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`refresh` sends nothing; the next read, of any session on it, shows what others did."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a", "b")
    one, two = (CachedSession(conversation_id=conversation, openai_client=client) for _ in "12")
    await one.get_items()
    await two.get_items()
    elsewhere.append(conversation, "c")
    elsewhere.remove(conversation, 0)
    sent(emulator)
    await one.refresh()
    assert sent(emulator) == []
    assert texts(await two.get_items()) == texts(await one.get_items()) == ["b", "c"]
    assert sent(emulator) == ["GET items"]


async def test_refresh_before_first_use(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`refresh` before first use does nothing."""
    await CachedSession(openai_client=client).refresh()
    assert sent(emulator) == []


async def test_zero_checks_every_read_in_one_request(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """With `max_staleness=0` every read asks once, and shows what others did by then."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation(*map(str, range(150)))
    session = CachedSession(conversation_id=conversation, openai_client=client, max_staleness=0)
    await session.get_items()
    sent(emulator)
    for number in range(150, 153):
        elsewhere.append(conversation, str(number))
        assert texts(await session.get_items()) == [str(text) for text in range(number + 1)]
        assert sent(emulator) == ["GET items"]
    assert texts(await session.get_items(limit=1)) == ["152"]
    assert sent(emulator) == ["GET items"]


async def test_zero_checks_before_a_pop(emulator: Emulator, client: AsyncOpenAI) -> None:
    """With `max_staleness=0` a pop asks first, and so removes the true newest item."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client, max_staleness=0)
    await session.get_items()
    elsewhere.append(conversation, "b")
    assert texts([await session.pop_item()]) == ["b"]
    assert texts(await session.get_items()) == ["a"]


def test_seconds_of_trust(emulator: Emulator) -> None:
    """With `max_staleness` in seconds a copy is trusted that long after its last check."""

    async def main(loop: ShiftedLoop) -> None:
        elsewhere = Elsewhere(emulator)
        conversation = elsewhere.conversation("a")
        async with new_client(emulator) as client:
            session = CachedSession(
                conversation_id=conversation, openai_client=client, max_staleness=60
            )
            await session.get_items()
            elsewhere.append(conversation, "b")
            sent(emulator)
            loop.shift += 55
            assert texts(await session.get_items()) == ["a"]
            assert sent(emulator) == []
            loop.shift += 10
            assert texts(await session.get_items()) == ["a", "b"]
            assert sent(emulator) == ["GET items"]
            loop.shift += 55
            assert texts(await session.get_items()) == ["a", "b"]
            assert sent(emulator) == []

    on_shifted_clock(main)


def test_seconds_of_trust_after_creation(emulator: Emulator) -> None:
    """A conversation that was just made counts as checked at that moment, and ages from then."""

    async def main(loop: ShiftedLoop) -> None:
        async with new_client(emulator) as client:
            session = CachedSession(openai_client=client, max_staleness=60)
            await session.add_items(users("a"))
            await session.get_items()
            assert sent(emulator) == ["POST conversation", "POST items"]
            Elsewhere(emulator).append(session.session_id, "b")
            loop.shift += 65
            assert texts(await session.get_items()) == ["a", "b"]
            assert sent(emulator) == ["GET items"]

    on_shifted_clock(main)


def test_an_append_is_no_check(emulator: Emulator) -> None:
    """An append's answer shows nothing of others' items, so it does not renew the trust."""

    async def main(loop: ShiftedLoop) -> None:
        elsewhere = Elsewhere(emulator)
        conversation = elsewhere.conversation("a")
        async with new_client(emulator) as client:
            session = CachedSession(
                conversation_id=conversation, openai_client=client, max_staleness=60
            )
            await session.get_items()
            loop.shift += 55
            elsewhere.append(conversation, "b")
            await session.add_items(users("c"))
            loop.shift += 10
            assert texts(await session.get_items()) == ["a", "b", "c"]

    on_shifted_clock(main)


@pytest.mark.parametrize("kept", ["alone", "with an outbox"])
@pytest.mark.parametrize(
    ("max_staleness", "checks"),
    [
        pytest.param(None, 10, id="each object's first read"),
        pytest.param(30, 1, id="seconds"),
        pytest.param(0, 20, id="each read"),
        # Nothing is held at first.
        pytest.param(math.inf, 1, id="never"),
    ],
)
async def test_a_session_object_for_each_request(
    max_staleness: float | None, checks: int, kept: str, emulator: Emulator, tmp_path: Path
) -> None:
    """Of ten session objects in a row, `max_staleness` says how many ask: it is about the copy."""
    conversation = Elsewhere(emulator).conversation("a")
    outbox = SQLiteOutbox(tmp_path / "agent.db") if kept == "with an outbox" else None
    cache = ConversationCache()
    async with new_client(emulator) as client:
        sent(emulator)
        for _ in range(10):
            async with CachedSession(
                conversation_id=conversation,
                openai_client=client,
                cache=cache,
                max_staleness=max_staleness,
                outbox=outbox,
            ) as session:
                assert texts(await session.get_items()) == ["a"]
                assert texts(await session.get_items()) == ["a"]
    assert sent(emulator) == ["GET items"] * checks


@pytest.mark.parametrize("kept", ["alone", "with an outbox"])
def test_new_objects_see_others_when_the_time_is_over(
    kept: str, emulator: Emulator, tmp_path: Path
) -> None:
    """What another worker appends shows once the copy's last check is older than the seconds.

    Our own appends between do not count as checks.
    """

    async def main(loop: ShiftedLoop) -> None:
        elsewhere, cache = Elsewhere(emulator), ConversationCache()
        conversation = elsewhere.conversation("a")
        outbox: Outbox | None = None
        if kept == "with an outbox":
            outbox = SQLiteOutbox(tmp_path / "agent.db")
        async with new_client(emulator) as client:

            async def request(*appended: str) -> list[str]:
                async with CachedSession(
                    conversation_id=conversation,
                    openai_client=client,
                    cache=cache,
                    max_staleness=30,
                    outbox=outbox,
                ) as session:
                    read = texts(await session.get_items())
                    await session.add_items(users(*appended))
                    await session.flush()
                    return read

            assert await request("b") == ["a"]
            elsewhere.append(conversation, "from elsewhere")
            sent(emulator)
            loop.shift += 20
            assert await request("c") == ["a", "b"]
            assert sent(emulator) == ["POST items"]
            loop.shift += 11
            assert await request() == ["a", "b", "from elsewhere", "c"]
            assert sent(emulator) == ["GET items"]
            loop.shift += 29
            assert await request() == ["a", "b", "from elsewhere", "c"]
            assert sent(emulator) == []

    on_shifted_clock(main)


@pytest.mark.parametrize(
    ("start", "asked"),
    [
        pytest.param(0.0, [], id="the same clock"),
        pytest.param(-1e6, [], id="a clock that is behind"),
        pytest.param(1e6, ["GET items"], id="a clock that is ahead"),
    ],
)
def test_seconds_of_trust_across_event_loops(
    start: float, asked: list[str], emulator: Emulator
) -> None:
    """A check on another event loop counts for its seconds, and no longer, whatever the clocks."""
    conversation = Elsewhere(emulator).conversation("a")
    cache = ConversationCache()

    async def main(loop: ShiftedLoop) -> None:
        async with new_client(emulator) as client:
            session = CachedSession(
                conversation_id=conversation, openai_client=client, cache=cache, max_staleness=30
            )
            assert texts(await session.get_items()) == ["a"]

    on_shifted_clock(main)
    sent(emulator)
    on_shifted_clock(main, start=start)
    assert sent(emulator) == asked


def test_a_check_is_too_old_on_a_clock_that_is_behind(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked on another event loop ages by the system's clock, too."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    conversation = elsewhere.conversation("a")
    seen: list[list[str]] = []

    async def main(loop: ShiftedLoop) -> None:
        async with new_client(emulator) as client:
            session = CachedSession(
                conversation_id=conversation, openai_client=client, cache=cache, max_staleness=30
            )
            seen.append(texts(await session.get_items()))

    on_shifted_clock(main)
    elsewhere.append(conversation, "b")
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 31)
    on_shifted_clock(main, start=-1e6)
    assert seen == [["a"], ["a", "b"]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_check_before_a_fork_is_the_parents(emulator: Emulator) -> None:
    """In a forked process the copy counts as unchecked: the parent writes on, and nobody tells."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    conversation = elsewhere.conversation("a")

    async def read() -> list[str]:
        async with new_client(emulator) as client:
            session = CachedSession(
                conversation_id=conversation, openai_client=client, cache=cache, max_staleness=3600
            )
            return texts(await session.get_items())

    assert asyncio.run(read()) == ["a"]
    elsewhere.append(conversation, "b")
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if asyncio.run(read()) == ["a", "b"] else 2
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert asyncio.run(read()) == ["a"]


async def test_many_readers_of_an_old_copy_ask_once(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Session objects that find the copy too old at the same moment make do with one check."""
    conversation = Elsewhere(emulator).conversation("a")
    sessions = [
        CachedSession(conversation_id=conversation, openai_client=client, max_staleness=30)
        for _ in range(20)
    ]
    sent(emulator)
    await asyncio.gather(*(session.get_items() for session in sessions))
    assert sent(emulator) == ["GET items"]


@NEW_OR_CHECKING
@pytest.mark.parametrize(
    ("gone", "added", "expected"),
    [
        pytest.param([], ["x"], "abcdx", id="appended"),
        pytest.param([3], [], "abc", id="newest removed"),
        pytest.param([3, 2], ["x"], "abx", id="newest removed, then appended"),
        pytest.param([1], [], "acd", id="an older one removed"),
        pytest.param([0], ["x"], "bcdx", id="the oldest removed, then appended"),
        pytest.param([3, 2, 1, 0], [], "", id="all removed"),
        pytest.param([3, 2, 1, 0], ["x", "y"], "xy", id="all replaced"),
        pytest.param([], list(map(str, range(150))), None, id="more than a page appended"),
    ],
)
async def test_check_sees_what_others_did(
    gone: list[int],
    added: list[str],
    expected: str | None,
    max_staleness: int | None,
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """A check shows what another writer appended, and what it removed close to the end."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation(*"abcd")
    first = CachedSession(
        conversation_id=conversation, openai_client=client, max_staleness=max_staleness
    )
    await first.get_items()
    for position in gone:
        elsewhere.remove(conversation, position)
    elsewhere.append(conversation, *added)
    session = (
        CachedSession(conversation_id=conversation, openai_client=client)
        if max_staleness is None
        else first
    )
    assert texts(await session.get_items()) == (
        [*"abcd", *added] if expected is None else list(expected)
    )
    assert await first.get_items() == await session.get_items() == emulator.items(conversation)


@pytest.mark.parametrize("count", [1, 45, 130])
@NEW_OR_CHECKING
async def test_check_sees_what_stands_between(
    max_staleness: int | None, count: int, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A check finds another writer's items between what was read and what was appended since."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a")
    first = CachedSession(
        conversation_id=conversation, openai_client=client, max_staleness=max_staleness
    )
    await first.get_items()
    elsewhere.append(conversation, "from elsewhere")
    added = [str(number) for number in range(count)]
    await first.add_items(users(*added))
    session = (
        CachedSession(conversation_id=conversation, openai_client=client)
        if max_staleness is None
        else first
    )
    assert texts(await session.get_items()) == ["a", "from elsewhere", *added]
    assert texts(await first.get_items()) == ["a", "from elsewhere", *added]


async def test_first_read_checks_even_where_another_session_reads(
    emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Each new session object checks once, with one request, and then trusts the copy."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("0")
    for number in range(1, 4):
        session = CachedSession(conversation_id=conversation, openai_client=client)
        elsewhere.append(conversation, str(number))
        sent(emulator)
        assert texts(await session.get_items()) == [str(text) for text in range(number + 1)]
        await session.get_items()
        assert sent(emulator) == ["GET items"]


async def test_pop_of_an_item_that_is_gone(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A pop whose item somebody removed reads again and pops the true newest item, one only."""
    elsewhere = Elsewhere(emulator)
    conversation = elsewhere.conversation("a", "b", "c")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.get_items()
    elsewhere.remove(conversation, 2)
    assert texts([await session.pop_item()]) == ["b"]
    assert texts(emulator.items(conversation)) == texts(await session.get_items()) == ["a"]
