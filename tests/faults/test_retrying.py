"""When a request is repeated: waits, limits and whose word counts."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import httpx2
import openai
import pytest

from cached_session import (
    CachedSessionError,
    ConversationCache,
    DeadlineExceeded,
    MemoryOutbox,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_create, is_listing
from tests.faults.line import Fail, Line, error, notes, policy
from tests.faults.test_outcomes import broken
from tests.faults.virtual import now
from tests.session.support import texts, users


async def waits(
    line: Line, headers: Mapping[str, str] | None = None, **options: Any
) -> list[float]:
    """The seconds between the sends of an append that is refused each time."""
    session = line.session(line.conversation("before"), retry=policy(**options))
    await session.get_items()
    line.asked()
    line.always(is_append, error(409, headers=headers or {}))
    with pytest.raises(openai.ConflictError):
        await session.add_items(users("one"))
    assert set(line.sent) == {"append"}
    return [round(later - earlier, 6) for earlier, later in itertools.pairwise(line.times)]


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (0.0, [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0]),
        (1.0, [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]),
        (0.5, [0.75, 1.5, 3.0, 6.0, 6.0, 6.0, 6.0]),
    ],
)
async def test_waits_double(drawn: float, expected: list[float]) -> None:
    """The wait doubles up to `max_delay` and is drawn between half of it and all of it."""
    options = {"initial_delay": 1.0, "max_delay": 8.0, "random": lambda: drawn}
    assert await waits(Line(), **options) == expected


async def test_each_wait_is_drawn() -> None:
    """Every wait has a draw of its own."""
    draws = itertools.chain([0.0, 1.0], itertools.repeat(0.0))
    options = {"initial_delay": 1.0, "max_attempts": 4, "random": lambda: next(draws)}
    assert await waits(Line(), **options) == [0.5, 2.0, 2.0]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "3.5"}, 3.5),
        ({"retry-after-ms": "1500", "retry-after": "30"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        # Longer than any wait that would be drawn: the server's word counts.
        ({"retry-after": "40"}, 40.0),
        # Shorter, or no number: the draw counts.
        ({"retry-after-ms": "1"}, 0.125),
        ({"retry-after": "0"}, 0.125),
        ({"retry-after": "-5"}, 0.125),
        ({"retry-after": "nan"}, 0.125),
        ({"retry-after": "inf"}, 0.125),
        ({"retry-after": "soon"}, 0.125),
        ({"retry-after": ""}, 0.125),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.125),
        ({"retry-after": "Wed, 99 Foo 2015 07:28:00 GMT"}, 0.125),
    ],
    ids=str,
)
async def test_the_server_says_when(headers: dict[str, str], expected: float) -> None:
    """`retry-after-ms` counts before `retry-after`; the wait is never shorter than the draw."""
    assert await waits(Line(), headers, max_attempts=2) == [expected]


async def test_the_server_names_a_date() -> None:
    """`retry-after` may be a date."""
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    [waited] = await waits(Line(), {"retry-after": date}, max_attempts=2)
    # The header knows whole seconds, and the calendar's clock goes on.
    assert 20 < waited <= 30


@pytest.mark.parametrize("headers", [{"retry-after": "11"}, {"retry-after-ms": "11000"}], ids=str)
async def test_a_wait_that_is_too_long(headers: dict[str, str]) -> None:
    """A wait beyond the deadline is not begun: the caller gets the refusal at once."""
    assert await waits(Line(), headers, deadline=10.0) == []
    assert now() == 0.0


async def test_limited_and_told_when() -> None:
    """A 429 that says when to come back is repeated then."""
    line = Line()
    session = line.session(line.conversation("before"))
    await session.get_items()
    line.on(is_append, Fault(FaultKind.RATE_LIMITED, retry_after=5.0))
    await session.add_items(users("one"))
    assert now() == pytest.approx(5.0)


async def test_the_quota_is_used_up() -> None:
    """A 429 that the user has to act on is not repeated, at no request."""
    line = Line()
    line.always(lambda request: True, FaultKind.RATE_LIMITED_QUOTA)
    session = line.session(line.conversation("before"))
    for action in (session.get_items(), session.add_items(users("one")), session.clear_session()):
        with pytest.raises(openai.RateLimitError) as caught:
            await action
        assert caught.value.code == "insufficient_quota"
    assert line.asked() == ["list", "list", "delete conversation"]
    with pytest.raises(openai.RateLimitError):
        await line.session().get_items()
    assert line.asked() == ["create"]


async def test_another_process_has_the_lock() -> None:
    """`conversation_locked` is waited out, though the client would not repeat a 400."""
    line = Line()
    session = line.session(line.conversation("before"))
    line.on(lambda request: True, *[FaultKind.LOCKED] * 3)
    await session.add_items(users("one"))
    assert line.asked() == ["list"] * 4 + ["append"]
    line.on(lambda request: True, *[FaultKind.LOCKED] * 3)
    assert await session.pop_item() is not None
    assert line.texts(session.session_id) == ["before"]


@pytest.mark.parametrize(("status", "says", "sends"), [(404, "true", 2), (503, "false", 1)])
async def test_the_server_says_whether(status: int, says: str, sends: int) -> None:
    """`x-should-retry` counts before what the status says."""
    line = Line()
    session = line.session(line.conversation("before"), retry=policy(max_attempts=2))
    line.always(is_listing, error(status, headers={"x-should-retry": says}))
    with pytest.raises(openai.APIStatusError):
        await session.get_items()
    assert line.asked() == ["list"] * sends


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_attempts_are_counted(attempts: int) -> None:
    """A step takes `max_attempts` requests at most, and the error says how many there were."""
    line = Line()
    line.always(is_create, error(503))
    with pytest.raises(openai.InternalServerError) as caught:
        await line.session(retry=policy(max_attempts=attempts)).get_items()
    assert line.asked() == ["create"] * attempts
    assert (f"given up after {attempts} attempts" in notes(caught.value)) == (attempts > 1)


async def test_the_clients_own_retries_are_off() -> None:
    """However often the client would repeat by itself, only the policy counts."""
    line = Line()
    line.openai.max_retries = 7
    session = line.session(line.conversation("before"), retry=policy(max_attempts=3))
    line.always(lambda request: True, FaultKind.ERROR_BEFORE_COMMIT)
    with pytest.raises(openai.InternalServerError):
        await session.get_items()
    assert {request.header("x-stainless-retry-count") for request in line.requests} == {"0"}
    assert line.asked() == ["list"] * 3


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.ERROR_BEFORE_COMMIT, FaultKind.LOCKED])
async def test_the_deadline_bounds_the_operation(kind: FaultKind) -> None:
    """However it fails, an operation ends by its deadline, and no request starts after it.

    An append has what its body may take on the slowest line on top.
    """
    line = Line(latency=0.05)
    session = line.session(retry=policy(max_attempts=1000, deadline=30.0, attempt_timeout=7.0))
    session.session_id = line.conversation("before")
    await session.get_items()
    line.always(lambda request: True, kind)
    batch = len(json.dumps(users("one")[0], separators=(",", ":")))
    for action, more in (
        (session.add_items(users("one")), batch / RetryPolicy().slowest_rate),
        (session.pop_item(), 0.0),
        (session.clear_session(), 0.0),
    ):
        started = now()
        with pytest.raises((openai.OpenAIError, CachedSessionError)):
            await action
        assert now() - started <= 30.0 + more + 1e-9
        assert max(line.times) < started + 30.0 + more


@pytest.mark.parametrize(
    ("name", "attempts"),
    [("ConnectError", 4), ("ProxyError", 4), ("ConnectTimeout", 8), ("ReadError", 8)],
)
async def test_nobody_listens(name: str, attempts: int) -> None:
    """A connection that is refused at once is tried for 1 to 2 s, one that takes long for more."""
    line = Line()
    line.always(lambda request: True, Fail(broken(name)))
    for draw in (lambda: 0.0, lambda: 1.0):
        retry = RetryPolicy(random=draw, budget=RetryBudget(1000, 1000))
        session, started = line.session(line.conversation("before"), retry=retry), now()
        with pytest.raises(openai.APIConnectionError) as caught:
            await session.get_items()
        assert line.asked() == ["list"] * attempts
        # The SDK's session, whose client makes three attempts, takes about 1.5 s.
        assert (0.8 < now() - started < 2.0) == (attempts == 4)
        assert "no answer" in notes(caught.value)
        assert "simulated" in notes(caught.value)


async def test_nobody_listens_for_a_while() -> None:
    """`connect_attempts` sits a longer outage out; other failures between do not count for it."""
    line = Line()
    session = line.session(line.conversation("before"), retry=policy(connect_attempts=3))
    nobody, busy = Fail(broken("ConnectError")), error(503)
    line.on(is_listing, nobody, busy, nobody, busy, busy)
    assert texts(await session.get_items()) == ["before"]
    assert line.asked() == ["list"] * 6


async def test_an_outbox_goes_on_where_nobody_listens() -> None:
    """What an outbox holds is tried without end, however its connections fail."""
    line = Line()
    conversation = line.conversation()
    session = line.session(conversation, outbox=MemoryOutbox(), retry=policy())
    await session.get_items()
    line.on(is_append, *[Fail(broken("ConnectError"))] * 10)
    await session.add_items(users("one"))
    await session.flush()
    assert line.texts(conversation) == ["one"]
    await session.aclose()


async def test_waiting_for_the_turn_counts() -> None:
    """The time that an operation waits for the ones before it is part of its deadline."""
    line, cache = Line(), ConversationCache()
    conversation = line.conversation("before")
    session = line.session(conversation, cache=cache)
    hasty = line.session(conversation, cache=cache, retry=policy(deadline=5.0))
    await session.get_items()
    line.on(is_append, Fault(FaultKind.SLOW, delay=15.0))
    async with asyncio.TaskGroup() as group:
        group.create_task(session.add_items(users("slow")))
        await asyncio.sleep(1)
        for action in (hasty.add_items(users("late")), hasty.pop_item(), hasty.get_items()):
            group.create_task(_too_late(action, conversation))
        await asyncio.sleep(6)
        # What came too late left nothing behind, not even its place in the queue.
        await asyncio.wait_for(session.get_items(), 9)
    assert line.texts(conversation) == ["before", "slow"]


async def _too_late(action: Coroutine[Any, Any, Any], conversation: str) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await action
    assert now() == 6.0
    assert caught.value.conversation_id == conversation
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        (600.0, 2.0),
        (None, 2.0),
        (0.5, 0.5),
        (httpx2.Timeout(600.0, read=0.5), 0.5),
        (httpx2.Timeout(None), 2.0),
        (httpx2.Timeout(None, connect=0.5), 2.0),
    ],
    ids=str,
)
async def test_an_attempt_takes_so_long(own: Any, limit: float) -> None:
    """A request without an answer ends after `attempt_timeout`, or the client's own if shorter."""
    line = Line()
    line.openai.timeout = own
    session = line.session(line.conversation("before"), retry=policy(attempt_timeout=2.0))
    line.on(is_listing, FaultKind.HANG)
    await session.get_items()
    assert line.times == [0.0, limit + 0.125]
