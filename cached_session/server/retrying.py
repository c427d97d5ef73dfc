"""Repeating what may be repeated. The one module that imports tenacity."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cached_session.core.outcomes import Applied, Attempt, Outcome, Refused, Unknown
from cached_session.errors import DeadlineExceeded
from cached_session.events import Meter, RetryScheduled
from cached_session.forks import Lock
from cached_session.server.classify import found_nobody

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0")


class RetryBudget:
    """A limit on how often a process repeats requests, so that an outage meets no storm.

    A token bucket. Each repeat takes a token, each success brings one back,
    and time brings them back slowly. When none is left, repeats are not given
    up but paced: they wait for the next token.

    Args:
        capacity: Tokens in a full bucket.
        refill: Tokens that come back a second.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not a finite number above 0.
    """

    def __init__(self, capacity: float = 100.0, refill: float = 10.0) -> None:
        _check_positive("capacity", capacity)
        _check_positive("refill", refill)
        self._capacity = capacity
        self._refill = refill
        self._tokens = capacity
        self._updated = -math.inf
        self._lock = Lock()

    def __reduce__(self) -> Any:
        # A policy that is copied or sent to another process keeps its limits;
        # the process's own budget stays the one of the process.
        if self is PROCESS_BUDGET:
            return "PROCESS_BUDGET"
        return RetryBudget, (self._capacity, self._refill)

    def take(self, now: float) -> float:
        """Takes a token; returns how many seconds to wait until it is there."""
        with self._lock:
            if self._updated < now:
                earned = (now - self._updated) * self._refill
                self._tokens = min(self._capacity, self._tokens + earned)
            # A clock that starts again (a new event loop under test) earns nothing.
            self._updated = now
            self._tokens -= 1
            return max(0.0, -self._tokens / self._refill)

    def give_back(self) -> None:
        """Returns a token: a request succeeded, or a repeat was not made."""
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + 1)


PROCESS_BUDGET = RetryBudget()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how fast and how long a request is repeated. Seconds throughout.

    Attributes:
        max_attempts: Requests at most for one step of an operation, the first
            included. A listing that decides a lost answer belongs to the
            attempt that follows it. What an outbox sends in the background is
            repeated without end.
        connect_attempts: Requests at most, of those `max_attempts`, that find
            no connection at once: it is refused, or the host has no address.
            Where nobody listens, the next second rarely changes it, and a web
            worker that waits for 20 s is worse off than one that fails. With
            the defaults such a call fails after 1 to 2 s, about when the SDK's
            session does. Raise it to sit out the restart of a gateway.
        deadline: What a whole operation may take, waiting for its turn
            included. Also for how long a request that was given up is watched
            for. What waits in an outbox has no deadline; there this bounds one
            attempt at a batch. An append gets more, as `slowest_rate` says.
        attempt_timeout: What one request may take, but for the time that
            `slowest_rate` gives its body. The client's own timeout counts where
            it is shorter.
        slowest_rate: Bytes a second that a line is taken to carry at least. For
            each batch that an append sends, its requests and its deadline get
            the batch's size divided by this on top: 10 s for each MB by default.
        initial_delay: The longest wait before the first repeat. It doubles
            from repeat to repeat; the wait is drawn between half of it and
            all of it.
        max_delay: The longest wait that is drawn. A server that asks for a
            longer one gets it, as long as the deadline allows.
        budget: What limits the repeats of everyone who shares it; the
            process's by default.
        random: Where the draw comes from: returns a number from 0 to 1.

    Raises:
        TypeError: A number is no number.
        ValueError: A number is out of its range.
    """

    max_attempts: int = 8
    connect_attempts: int = 4
    deadline: float = 60.0
    attempt_timeout: float = 20.0
    slowest_rate: float = 100_000.0
    initial_delay: float = 0.25
    max_delay: float = 8.0
    budget: RetryBudget = field(default=PROCESS_BUDGET, repr=False, compare=False)
    random: Callable[[], float] = field(default=random.random, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("max_attempts", "connect_attempts"):
            attempts = getattr(self, name)
            if not isinstance(attempts, int) or isinstance(attempts, bool):
                raise TypeError(f"{name} must be an int")
            if attempts < 1:
                raise ValueError(f"{name} must be at least 1")
        numbers = ("deadline", "attempt_timeout", "slowest_rate", "initial_delay", "max_delay")
        for name in numbers:
            _check_positive(name, getattr(self, name))
        if not isinstance(self.budget, RetryBudget):
            raise TypeError("budget must be a RetryBudget")
        if not callable(self.random):
            raise TypeError("random must be callable")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the `attempt`-th attempt (from 1) failed."""
        # Capped exponent: 2.0 ** 1024 overflows.
        longest: float = min(self.max_delay, self.initial_delay * 2.0 ** min(attempt - 1, 64))
        return longest * (0.5 + 0.5 * self.random())


@dataclass(frozen=True, slots=True)
class Pace:
    """What bounds every policy of the process: nothing, unless a test must not wait.

    Attributes:
        longest_wait: Seconds between two attempts at most, whoever asks for more.
        max_attempts: Attempts at one step at most, where attempts are counted.
        attempt_timeout: Seconds for one attempt at most.
    """

    longest_wait: float = math.inf
    max_attempts: float = math.inf
    attempt_timeout: float = math.inf


_pace = Pace()


def pace() -> Pace:
    """What bounds every policy of the process now."""
    return _pace


def set_pace(value: Pace) -> None:
    """Bounds every policy of the process, from the next attempt and the next wait on."""
    global _pace
    _pace = value


class Retrier:
    """Runs attempts under one policy, counted by one session."""

    def __init__(self, policy: RetryPolicy, meter: Meter) -> None:
        self.policy = policy
        self._meter = meter

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the `attempt`-th attempt (from 1) failed, whatever is asked for."""
        return min(self.policy.delay(attempt), _pace.longest_wait)

    def deadline(self) -> float:
        """The deadline of an operation that begins now, on the running loop's clock."""
        return asyncio.get_running_loop().time() + self.policy.deadline

    async def run(
        self,
        attempt: Callable[[Attempt], Awaitable[Outcome[T]]],
        *,
        deadline: float | None,
        conversation_id: str | None,
        transfer: float = 0.0,
    ) -> Outcome[T]:
        """Repeats an attempt until it is applied, or repeating cannot help any more.

        Args:
            attempt: Makes one attempt; is given the seconds it may take, and its number.
            deadline: When the operation ends, on the running loop's clock; None: never, and
                attempts are not counted.
            conversation_id: Named in events and notes.
            transfer: Seconds that an attempt gets on top, for a large body.

        Returns:
            The last attempt's outcome. The error of one that was repeated
            carries a note that says how often.
        """
        clock = asyncio.get_running_loop().time
        policy, number = self.policy, 0

        async def once() -> Outcome[T]:
            nonlocal number
            number += 1
            left = math.inf if deadline is None else deadline - clock()
            if left <= 0:
                return Refused(too_late(conversation_id), retryable=False)
            seconds = min(policy.attempt_timeout + transfer, left, _pace.attempt_timeout)
            outcome = await attempt(Attempt(seconds, number))
            if isinstance(outcome, Applied):
                policy.budget.give_back()
            return outcome

        first: Outcome[T] | None = await once()
        assert first is not None
        if isinstance(first, Applied) or not first.retryable:
            return first  # the common case, without what repeating needs
        # Only now: a process whose requests all succeed need not load it.
        from tenacity import AsyncRetrying

        async def next_one() -> Outcome[T]:
            nonlocal first
            outcome, first = first, None
            return await once() if outcome is None else outcome

        def again(state: RetryCallState) -> bool:
            failure = _failure(state)
            return failure is not None and failure.retryable

        # tenacity's own waits and stops read the system's clock and the global
        # random state. These read the loop's clock and the policy's.
        def wait(state: RetryCallState) -> float:
            asked = getattr(_failure(state), "delay", None) or 0.0
            wanted = max(asked, policy.budget.take(clock()))
            if wanted > _pace.longest_wait:
                # Who is not made to wait uses up nothing that makes others wait.
                policy.budget.give_back()
                wanted = _pace.longest_wait
            return max(wanted, self.delay(state.attempt_number))

        nobody = 0

        def stop(state: RetryCallState) -> bool:
            nonlocal nobody
            failure = _failure(state)
            nobody += failure is not None and found_nobody(failure.error)
            over = deadline is not None and (
                state.attempt_number >= min(policy.max_attempts, _pace.max_attempts)
                or nobody >= policy.connect_attempts
                or clock() + state.upcoming_sleep >= deadline
            )
            if over:
                policy.budget.give_back()
            return over

        def announce(state: RetryCallState) -> None:
            self._meter.retries += 1
            error = getattr(_failure(state), "error", None)
            self._meter.tell(
                RetryScheduled(
                    conversation_id,
                    state.attempt_number,
                    state.upcoming_sleep,
                    type(error).__name__,
                )
            )

        def give_up(state: RetryCallState) -> Outcome[T]:
            outcome: Outcome[T] = state.outcome.result()  # type: ignore[union-attr]  # never None here
            if not isinstance(outcome, Applied) and state.attempt_number > 1:
                outcome.error.add_note(
                    f"{conversation_id or 'new conversation'}: given up after "
                    f"{state.attempt_number} attempts"
                )
            return outcome

        retrying = AsyncRetrying(
            sleep=asyncio.sleep,
            retry=again,
            wait=wait,
            stop=stop,
            before_sleep=announce,
            retry_error_callback=give_up,
        )
        outcome: Outcome[T] = await retrying(next_one)
        return outcome


def _failure(state: RetryCallState) -> Refused | Unknown | None:
    """The attempt's failed outcome; None if it was applied, cancelled or raised."""
    if state.outcome is None or state.outcome.failed:
        return None
    outcome = state.outcome.result()
    return outcome if isinstance(outcome, Refused | Unknown) else None


def too_late(conversation_id: str | None) -> DeadlineExceeded:
    """The error of an operation that ran out of time before a request."""
    return DeadlineExceeded(
        f"{conversation_id or 'new conversation'}: the operation's deadline passed "
        "before its next request; that request was not sent",
        conversation_id=conversation_id,
    )
