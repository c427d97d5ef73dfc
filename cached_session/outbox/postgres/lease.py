"""For how long this process is the owner of what it has claimed, by its own clock."""

from __future__ import annotations

import time

# It runs on while the machine or the process is stopped, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """What the engine has granted, counted from when it was asked for.

    The engine counts from when it answers, which is later: others wait for longer than this
    process trusts in it. Written by the outbox's thread, read by any.

    Args:
        seconds: How long it lasts.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # In one tuple, so that nobody reads half of a change.
        self._granted = (0, 0.0)

    @staticmethod
    def now() -> float:
        """Seconds, on a clock that a stopped process cannot stop."""
        return time.clock_gettime(_CLOCK)

    def granted(self, asked: float, *, anew: bool) -> None:
        """Notes that the engine has granted or extended it.

        Args:
            asked: When it was asked for.
            anew: Whether it had run out: what was held under it before may be another's.
        """
        term, until = self._granted
        # The answer that said so may have been lost, and the repeat found it extended.
        self._granted = (term + (anew or asked >= until), asked + self.seconds)

    def ended(self) -> None:
        """Notes that it was given back."""
        term, _ = self._granted
        self._granted = (term + 1, 0.0)

    @property
    def term(self) -> int:
        """The number of the lease; another one after each time that it had run out."""
        return self._granted[0]

    def left(self, term: int) -> float:
        """Seconds for which what was claimed in a term is this process's; 0: no longer."""
        now, until = self._granted
        return max(0.0, until - self.now()) if now == term else 0.0
