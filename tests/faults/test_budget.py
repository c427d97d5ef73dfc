"""The budget that repeats draw on, and what a policy takes."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from cached_session import RetryBudget, RetryPolicy
from cached_session.emulator.requests import is_listing
from tests.faults.line import Line, error, policy
from tests.faults.virtual import now


async def test_an_outage_meets_no_storm() -> None:
    """Repeats beyond the budget are paced, across all sessions that share it, and not given up."""
    line, budget = Line(), RetryBudget(capacity=3, refill=2)
    shared = policy(initial_delay=0.001, budget=budget)
    sessions = [line.session(line.conversation("one"), retry=shared) for _ in range(9)]
    line.on(is_listing, *[error(503)] * 9)
    await asyncio.gather(*(session.get_items() for session in sessions))
    repeats = [round(when, 2) for when in line.times[9:]]
    # Three at once. Each of them succeeds and brings its token back, after
    # the others have drawn theirs; those wait for what time brings back.
    assert repeats == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


async def test_the_budget_through_a_long_outage() -> None:
    """While a server is away, all sessions together repeat no faster than the budget refills."""
    line, budget = Line(), RetryBudget(capacity=10, refill=2)
    shared = policy(initial_delay=0.01, max_delay=0.1, max_attempts=1000, budget=budget)
    sessions = [line.session(line.conversation("one"), retry=shared) for _ in range(20)]
    line.always(is_listing, error(503))
    results = await asyncio.gather(
        *(session.get_items() for session in sessions), return_exceptions=True
    )
    assert {type(result) for result in results} == {openai.InternalServerError}
    assert now() <= 60.0
    repeats = line.times[20:]
    assert 100 <= len(repeats) <= 10 + 2 * 60
    for first, eleventh_later in zip(repeats, repeats[11:], strict=False):
        assert eleventh_later - first > 0.2


def test_a_budget_by_itself() -> None:
    """A full bucket gives at once; an empty one says how long; time and successes refill it."""
    budget = RetryBudget(capacity=2, refill=4)
    assert [budget.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]
    assert budget.take(0.75) == 0.0
    assert budget.take(0.75) == 0.25
    budget.give_back()
    budget.give_back()
    assert budget.take(0.75) == 0.0
    # A long time fills it and no more; a clock that starts again earns nothing.
    assert [budget.take(1000.0) for _ in range(3)] == [0.0, 0.0, 0.25]
    assert budget.take(0.0) == 0.5


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), 0.0])
@pytest.mark.parametrize("name", ["capacity", "refill"])
def test_budget_numbers_out_of_range(name: str, value: float) -> None:
    """A budget of nothing is refused, by name."""
    with pytest.raises(ValueError, match=name):
        RetryBudget(**{name: value})


@pytest.mark.parametrize("value", ["1", None, True])
@pytest.mark.parametrize("name", ["capacity", "refill"])
def test_budget_arguments_of_other_types(name: str, value: Any) -> None:
    """A budget's arguments are numbers, or refused by name."""
    with pytest.raises(TypeError, match=name):
        RetryBudget(**{name: value})


SECONDS = ["deadline", "attempt_timeout", "initial_delay", "max_delay"]


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, float("nan"), float("inf"), pytest.param(10**400, id="too large")]
)
@pytest.mark.parametrize("name", SECONDS)
def test_policy_numbers_out_of_range(name: str, value: float) -> None:
    """Each time of a policy is finite and above 0."""
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in SECONDS for value in ("1", None, True, 1j)),
        *(("max_attempts", value) for value in ("1", None, True, 1.0)),
        *(("connect_attempts", value) for value in ("1", None, True, 1.0)),
        *(("budget", value) for value in (None, 5)),
        *(("random", value) for value in (None, 0.5)),
    ],
)
def test_policy_arguments_of_other_types(name: str, value: Any) -> None:
    """A policy's arguments have the right types, or are refused by name."""
    with pytest.raises(TypeError, match=name):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["max_attempts", "connect_attempts"])
def test_a_policy_without_attempts(name: str, value: int) -> None:
    """One attempt is the least."""
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**{name: value})  # type: ignore[arg-type]  # both are ints


def test_a_policy_hides_what_is_not_its_own() -> None:
    """Policies are equal by their numbers and cannot be changed."""
    assert policy() == policy()
    assert "budget" not in repr(policy())
    with pytest.raises(AttributeError):
        policy().deadline = 1.0  # type: ignore[misc]
