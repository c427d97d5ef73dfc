"""Test mode: how fast and how often sessions repeat, whatever their policies say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError

from cached_session import CachedSession, MemoryOutbox, RetryBudget, RetryPolicy, RetryScheduled
from cached_session.emulator import Emulator
from cached_session.testing import Plan, append, is_testing, set_testing
from tests.session.support import user

PATIENT = RetryPolicy(initial_delay=1000, max_delay=1000, deadline=10_000)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Test mode belongs to the process: no test leaves it on."""
    yield
    assert not is_testing()


async def test_nobody_waits(emulator: Emulator, client: AsyncOpenAI) -> None:
    """In test mode a repeat comes at once, whatever policy, budget and Retry-After ask for."""
    emulator.faults = Plan(append(1).fails(), append(2).is_rate_limited(retry_after=1000))
    budget = RetryBudget(capacity=0.001, refill=0.001)
    waits: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, RetryScheduled):
            waits.append(event.delay)

    retry = RetryPolicy(initial_delay=1000, max_delay=1000, deadline=10_000, budget=budget)
    session = CachedSession(openai_client=client, retry=retry, observer=note)
    with set_testing(True):
        await session.add_items([user("one")])
    assert waits == [0.001, 0.001]
    assert len(emulator.items(session.session_id)) == 1
    # The waits that nobody made have used up nothing.
    assert budget.take(asyncio.get_running_loop().time()) < 2000


async def test_an_outbox_does_not_wait_either(emulator: Emulator, client: AsyncOpenAI) -> None:
    """What is sent in the background is repeated at once, too, and is not limited in number."""
    emulator.faults = Plan(append(1, 2, 3).never_arrives())
    outbox = MemoryOutbox()
    session = CachedSession(openai_client=client, retry=PATIENT, outbox=outbox)
    with set_testing(True, attempts=1):
        await session.add_items([user("one")])
        await session.flush()
    assert len(emulator.items(session.session_id)) == 1
    await outbox.aclose()


async def test_attempts(emulator: Emulator, client: AsyncOpenAI) -> None:
    """With `attempts` a call gives up sooner, never later than its policy says."""
    emulator.faults = Plan(append().fails())
    for attempts, allowed, expected in ((2, 8, 2), (8, 3, 3)):
        session = CachedSession(
            openai_client=client, retry=RetryPolicy(max_attempts=allowed, initial_delay=1000)
        )
        emulator.clear_log()
        with set_testing(True, attempts=attempts), pytest.raises(InternalServerError):
            await session.add_items([user("one")])
        assert len([one for one in emulator.requests if one.items]) == expected


async def test_attempt_timeout(emulator: Emulator, client: AsyncOpenAI) -> None:
    """With `attempt_timeout` a server that never answers is given up soon, and asked again."""
    emulator.faults = Plan(append(1).hangs())
    patient = RetryPolicy(attempt_timeout=1000, deadline=10_000, initial_delay=1000)
    session = CachedSession(openai_client=client.with_options(timeout=1000), retry=patient)
    with set_testing(True, attempt_timeout=0.3):
        await session.add_items([user("one")])
    assert len(emulator.items(session.session_id)) == 1


def test_nesting() -> None:
    """A `with` block restores the mode that was there before, on or off; a plain call stays."""
    with set_testing(True):
        with set_testing(False):
            assert not is_testing()
        assert is_testing()
    assert not is_testing()
    set_testing(True)
    assert is_testing()
    set_testing(False)
    assert not is_testing()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"testing": 1}, TypeError, "testing must be a bool"),
        ({"testing": True, "attempts": 1.5}, TypeError, "attempts must be an int"),
        ({"testing": True, "attempts": 0}, ValueError, "attempts must be above 0"),
        ({"testing": True, "attempt_timeout": "1"}, TypeError, "attempt_timeout must be a number"),
        ({"testing": True, "attempt_timeout": float("nan")}, ValueError, "above 0"),
        ({"testing": False, "attempts": 1}, ValueError, "switched off"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    """A wrong argument is refused by name, and changes nothing."""
    with pytest.raises(error, match=words):
        set_testing(**arguments)
    assert not is_testing()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: append(0), ValueError, "counted from 1"),
        (lambda: append("2"), TypeError, "append: a request's number is an int, not str"),
        (lambda: append(1).suffers("sleepy"), ValueError, "none of the faults: reset_before"),
        (lambda: append(1).fails(404), ValueError, "5xx"),
        (lambda: append(1).is_rate_limited("2"), TypeError, "retry_after must be a number, not s"),
        (lambda: append(1).is_rate_limited(-1), ValueError, "retry_after must be finite, and not"),
        (lambda: append(1).suffers("slow", delay="x"), TypeError, "delay must be a number, not s"),
        (lambda: append(1).suffers("slow", delay=math.inf), ValueError, "delay must be finite"),
        (lambda: append(1).suffers("slow", items=1.5), TypeError, "items must be an int, not flo"),
        (lambda: append(1).suffers("slow", status=True), TypeError, "status must be an int, not b"),
        (lambda: append(1).suffers("slow", silent=1), TypeError, "silent must be a bool, not int"),
        (lambda: append(1).suffers("slow", late=1), TypeError, "'late'"),
        (lambda: Plan(append(1)), TypeError, r"not append\(1\)"),
    ],
)
def test_wrong_sentences(make: Any, error: type[Exception], words: str) -> None:
    """A sentence that means nothing is refused where it is written."""
    with pytest.raises(error, match=words):
        make()
