"""Which reads are answered from the copy because the server cannot be asked, and which are not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAIError

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    ConversationCache,
    Event,
    MemoryOutbox,
    Outbox,
    RetryPolicy,
    SQLiteOutbox,
    StaleRead,
)
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from cached_session.emulator.requests import is_append, is_listing
from tests.session.support import Elsewhere, new_client, sent, texts, users
from tests.session.test_staleness import ShiftedLoop, on_shifted_clock

ONCE = RetryPolicy(max_attempts=1, attempt_timeout=5)
HURRIED = RetryPolicy(max_attempts=1, attempt_timeout=0.05)


def a_session(client: AsyncOpenAI, name: str, cache: ConversationCache, **more: Any) -> Any:
    """One that asks at every read, and may answer from a copy of the last minute."""
    settings = {"max_staleness": 0, "stale_if_error": 60, "retry": ONCE, **more}
    return CachedSession(conversation_id=name, openai_client=client, cache=cache, **settings)


def listings(emulator: Emulator, fault: Fault) -> None:
    emulator.faults = lambda request: fault if is_listing(request) else None


@pytest.mark.parametrize(
    ("fault", "policy", "error"),
    [
        (Fault(FaultKind.RESET_BEFORE_COMMIT), ONCE, "APIConnectionError"),
        (
            Fault(FaultKind.HANG),
            RetryPolicy(max_attempts=1, attempt_timeout=0.05),
            "APITimeoutError",
        ),
        (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=500), ONCE, "InternalServerError"),
        (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503), ONCE, "InternalServerError"),
        (
            Fault(FaultKind.RATE_LIMITED, retry_after=0.001),
            RetryPolicy(max_attempts=3, initial_delay=0.001),
            "RateLimitError",
        ),
    ],
    ids=["reset", "silence", "500", "503", "429"],
)
async def test_the_copy_is_the_answer_where_the_server_is_away(
    fault: Fault, policy: RetryPolicy, error: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A read that gets no answer, a 5xx or 429 to its last attempt shows the copy, and says so."""
    elsewhere, cache, events = Elsewhere(emulator), ConversationCache(), list[Event]()
    name = elsewhere.conversation("a", "b")
    session = a_session(client, name, cache, retry=policy, observer=events.append)
    before = await session.get_items()
    elsewhere.append(name, "c")
    listings(emulator, fault)
    sent(emulator)
    assert await session.get_items() == before
    assert sent(emulator) == ["GET items"] * policy.max_attempts
    (told,) = [event for event in events if isinstance(event, StaleRead)]
    assert (told.conversation_id, told.error) == (name, error)
    assert 0 <= told.seconds < 60
    stats = session.stats
    assert (stats.stale, stats.hits, stats.misses) == (1, 0, 2)
    emulator.faults = None
    assert texts(await session.get_items()) == ["a", "b", "c"]
    assert session.stats.stale == 1


async def test_nobody_listens() -> None:
    """A server that refuses connections cannot be asked either; and by default a read says so."""
    server, cache = Emulator(), ConversationCache()
    async with server:
        client = new_client(server)
        name = Elsewhere(server).conversation("a")
        await a_session(client, name, cache).get_items()
    async with client:
        sessions = [a_session(client, name, cache, stale_if_error=age) for age in (60, None, 0)]
        assert texts(await sessions[0].get_items()) == ["a"]
        for session in sessions[1:]:
            with pytest.raises(openai.APIConnectionError):
                await session.get_items()
            assert session.stats.stale == 0


@pytest.mark.parametrize(
    "fault",
    [
        *(
            Fault(FaultKind.ERROR_BEFORE_COMMIT, status=status)
            for status in (400, 401, 403, 404, 408, 409, 422)
        ),
        Fault(FaultKind.RATE_LIMITED_QUOTA),
        Fault(FaultKind.NOT_JSON),
    ],
    ids=lambda fault: f"{fault.kind}, {fault.status}",
)
async def test_an_answer_is_an_answer(
    fault: Fault, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A key that is not valid, any other 4xx, and what cannot be read are raised as ever."""
    cache = ConversationCache()
    name = Elsewhere(emulator).conversation("a")
    session = a_session(client, name, cache)
    await session.get_items()
    listings(emulator, fault)
    with pytest.raises(OpenAIError):
        await session.get_items()
    assert session.stats.stale == 0


async def test_a_key_that_no_header_can_carry(
    emulator: Emulator, client: AsyncOpenAI, tmp_path: Path
) -> None:
    """Of an account that several keys have, a key that cannot be sent is no server that is away."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    outbox = SQLiteOutbox(tmp_path / "agent.db", account="prod")
    async with new_client(emulator, "line\nbreak") as wrong:
        right, session = (a_session(one, name, cache, outbox=outbox) for one in (client, wrong))
        await right.get_items()
        with pytest.raises(OpenAIError):
            await session.get_items()
        assert session.stats.stale == 0
        await outbox.aclose()


def test_age_counts_from_the_last_confirmation(emulator: Emulator) -> None:
    """Own appends are in the answer, and make the copy no younger; after the time a read raises."""
    name = Elsewhere(emulator).conversation("a")

    async def main(loop: ShiftedLoop) -> None:
        async with new_client(emulator) as client:
            events = list[Event]()
            session = a_session(client, name, ConversationCache(), observer=events.append)
            await session.get_items()
            loop.shift += 50
            await session.add_items(users("b"))
            listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
            assert texts(await session.get_items()) == ["a", "b"]
            (told,) = [event for event in events if isinstance(event, StaleRead)]
            assert 50 <= told.seconds < 60
            loop.shift += 10
            with pytest.raises(openai.APIConnectionError):
                await session.get_items()
            emulator.faults = None
            await session.get_items()
            listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
            assert len(await session.get_items()) == 2

    on_shifted_clock(main)


async def test_too_little_is_held(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A copy that has only the newest items answers for those, and for no more."""
    name, cache = Elsewhere(emulator).conversation(*"abcdefgh"), ConversationCache()
    session = a_session(client, name, cache)
    await session.get_items(2)
    listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
    assert texts(await session.get_items(2)) == ["g", "h"]
    with pytest.raises(openai.APIConnectionError):
        await session.get_items()


async def test_what_is_in_doubt_is_not_shown(emulator: Emulator, client: AsyncOpenAI) -> None:
    """While it is not known what became of a write, the copy is no answer."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    session = a_session(client, name, cache)
    await session.get_items()
    emulator.faults = lambda request: Fault(
        FaultKind.RESET_AFTER_COMMIT if is_append(request) else FaultKind.RESET_BEFORE_COMMIT
    )
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("b"))
    with pytest.raises(openai.APIConnectionError):
        await session.get_items()
    emulator.faults = None
    assert texts(await session.get_items()) == ["a", "b"]


async def test_what_may_come_late_is_doubt(emulator: Emulator, client: AsyncOpenAI) -> None:
    """While a request that was given up may still be carried out, the copy is no answer."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    policy = RetryPolicy(max_attempts=2, initial_delay=0.001)
    session = a_session(client, name, cache, retry=policy)
    await session.get_items()
    faults = iter([Fault(FaultKind.RESET_BEFORE_COMMIT)])
    emulator.faults = lambda request: next(faults, None) if is_append(request) else None
    await session.add_items(users("b"))
    listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
    with pytest.raises(openai.APIConnectionError):
        await session.get_items()
    emulator.faults = None
    assert texts(await session.get_items()) == ["a", "b"]


async def test_what_is_thrown_away_meanwhile(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A copy that is called wrong while a read asks is no answer to that read."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    session = a_session(client, name, cache)
    await session.get_items()

    def outage(request: Request) -> Fault | None:
        cache.invalidate(name)
        return Fault(FaultKind.RESET_BEFORE_COMMIT)

    emulator.faults = outage
    with pytest.raises(openai.APIConnectionError):
        await session.get_items()


@pytest.mark.parametrize("how", ["invalidate", "refresh"])
async def test_what_was_thrown_away_is_not_shown(
    how: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A copy that somebody has called wrong is no answer."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    session = a_session(client, name, cache)
    await session.get_items()
    if how == "refresh":
        await session.refresh()
    else:
        cache.invalidate(name)
    listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
    with pytest.raises(openai.APIConnectionError):
        await session.get_items()


async def test_what_is_changed_is_not_guessed(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`pop_item` needs the server's word for what is the newest item, and raises without."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    name = elsewhere.conversation("a")
    session = a_session(client, name, cache)
    await session.get_items()
    elsewhere.append(name, "b")
    listings(emulator, Fault(FaultKind.RESET_BEFORE_COMMIT))
    with pytest.raises(openai.APIConnectionError):
        await session.pop_item()
    assert texts(emulator.items(name)) == ["a", "b"]
    assert session.stats.stale == 0


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_what_waits_is_shown(
    kind: str, emulator: Emulator, client: AsyncOpenAI, tmp_path: Path
) -> None:
    """With an outbox, what is accepted stands behind the copy, and a first read shows it, too."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    outbox: Outbox = MemoryOutbox() if kind == "memory" else SQLiteOutbox(tmp_path / "agent.db")
    async with a_session(client, name, cache, outbox=outbox) as session:
        await session.get_items()
        emulator.faults = lambda request: Fault(FaultKind.ERROR_BEFORE_COMMIT)
        await session.add_items(users("b"))
        other = a_session(client, name, cache, outbox=outbox, max_staleness=None)
        assert texts(await other.get_items()) == ["a", "b"]
        assert (other.stats.stale, other.stats.waiting) == (1, 1)
        emulator.faults = None
        await session.flush()
        assert texts(emulator.items(name)) == ["a", "b"]
        await other.aclose()
    await outbox.aclose()


async def test_one_read_asks_for_all_that_wait(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Reads that wait for one that finds the server away need not ask again; the next one does."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    sessions = [a_session(client, name, cache, retry=HURRIED) for _ in range(5)]
    strict = a_session(client, name, cache, retry=HURRIED, stale_if_error=None)
    await sessions[0].get_items()
    # Until the first one gives up, the others have come.
    listings(emulator, Fault(FaultKind.HANG))
    sent(emulator)
    found = await asyncio.gather(*(one.get_items() for one in sessions))
    assert [texts(items) for items in found] == [["a"]] * 5
    assert sent(emulator) == ["GET items"]
    assert [one.stats.stale for one in sessions] == [1] * 5
    with pytest.raises(openai.APITimeoutError):
        await strict.get_items()
    assert texts(await sessions[0].get_items()) == ["a"]
    assert sent(emulator) == ["GET items"] * 2


async def test_one_that_need_not_ask(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A read that waits for one that finds the server away, and need not ask, is no stale one."""
    name, cache = Elsewhere(emulator).conversation("a"), ConversationCache()
    asks = a_session(client, name, cache, retry=HURRIED)
    trusts = a_session(client, name, cache, max_staleness=60)
    await asks.get_items()
    listings(emulator, Fault(FaultKind.HANG))
    found = await asyncio.gather(asks.get_items(), trusts.get_items())
    assert [texts(items) for items in found] == [["a"]] * 2
    assert (asks.stats.stale, trusts.stats.stale) == (1, 0)


async def test_one_that_gets_an_answer_ends_it(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Where the server is there again before a read's turn comes, that read asks."""
    elsewhere, cache = Elsewhere(emulator), ConversationCache()
    name = elsewhere.conversation("a")
    sessions = [a_session(client, name, cache) for _ in range(2)]
    strict = [
        a_session(client, name, cache, retry=retry, stale_if_error=None)
        for retry in (HURRIED, ONCE)
    ]
    await sessions[0].get_items()
    faults = iter([Fault(FaultKind.HANG)])
    emulator.faults = lambda request: next(faults, None)
    elsewhere.append(name, "b")
    order = (strict[0], strict[1], sessions[1])
    first, *others = await asyncio.gather(
        *(one.get_items() for one in order), return_exceptions=True
    )
    assert isinstance(first, openai.APITimeoutError)
    assert [texts(items) for items in others] == [["a", "b"]] * 2
    assert sessions[1].stats.stale == 0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        pytest.param(10**400, ValueError, id="too large"),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_what_it_cannot_be(value: Any, error: type[Exception], client: AsyncOpenAI) -> None:
    """What is no number of seconds is refused by its name."""
    with pytest.raises(error, match="stale_if_error"):
        CachedSession(openai_client=client, stale_if_error=value)
