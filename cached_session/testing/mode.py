"""Whether sessions wait between the attempts at a request."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

from cached_session.server.retrying import Pace, pace, set_pace

# Not 0: what is repeated without end, by an outbox's sender, must leave the others some time.
_SHORTEST = 0.001


class _Restoring(AbstractContextManager[None]):
    """Goes back, at the end of a `with` block, to what was before the call that made it."""

    def __init__(self, before: Pace) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        set_pace(self._before)


def set_testing(
    testing: bool, *, attempts: int | None = None, attempt_timeout: float | None = None
) -> AbstractContextManager[None]:
    """Switches test mode on or off, for every session of the process.

    In test mode a failed request is repeated a millisecond later, whatever the session's
    `RetryPolicy` says, the process's `RetryBudget`, and the server's `Retry-After`. How often it is
    repeated, and what becomes of it, stays as it is. It takes effect at once, also on calls that
    are under way.

    Args:
        testing: Whether to switch it on.
        attempts: Requests at most for one step of an operation, if the policy allows more.
            What an outbox sends in the background is repeated without end all the same.
        attempt_timeout: Seconds for one request at most, if the policy allows more. It is for
            tests of a server that never answers.

    Returns:
        A context manager. At the end of its `with` block the mode is what it was before the call.
        It need not be used.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is not above 0, or is given while test mode is switched off.
    """
    if not isinstance(testing, bool):
        raise TypeError(f"testing must be a bool, not {type(testing).__name__}")
    given = {"attempts": attempts, "attempt_timeout": attempt_timeout}
    for name, value in given.items():
        if value is None:
            continue
        kind = "an int" if name == "attempts" else "a number of seconds"
        if isinstance(value, bool) or not isinstance(
            value, int if name == "attempts" else int | float
        ):
            raise TypeError(f"{name} must be {kind} or None, not {type(value).__name__}")
        if not value > 0:
            raise ValueError(f"{name} must be above 0")
        if not testing:
            raise ValueError(f"{name} is for test mode, which is switched off here")
    before = pace()
    set_pace(
        Pace(
            longest_wait=_SHORTEST,
            max_attempts=math.inf if attempts is None else attempts,
            attempt_timeout=math.inf if attempt_timeout is None else attempt_timeout,
        )
        if testing
        else Pace()
    )
    return _Restoring(before)


def is_testing() -> bool:
    """Tells whether test mode is on."""
    return pace() != Pace()
