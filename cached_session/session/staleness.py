"""For how long a session trusts the local copy without asking the server."""

from __future__ import annotations

import math

from cached_session.conversation.operation import Operation
from cached_session.core.ledger import Ledger, Trust


class Staleness:
    """One session's trust in the copy of its conversation.

    A check is a listing that confirms the newest items, whoever of the process
    asked for it. An append's answer is none: other writers' items may stand
    before those that it shows.

    Args:
        seconds: How old the last check may be; None: without end, but one that
            was begun after the session came to the conversation; 0: every read
            checks; infinite: none does.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        # The number of the listing that opens the copy for this session.
        self._opening: int | None = None

    def begin(self) -> None:
        """Notes that the session has come to another conversation: the first read asks."""
        self._opening = None

    def made(self) -> None:
        """Notes that the session has made the conversation: nobody else knows it."""
        self._opening = 0

    def trust(self, ledger: Ledger) -> Trust:
        """For how long what is known is trusted by a read now."""
        now = Operation.now()
        if self._seconds is None:
            if self._opening is None:
                self._opening = ledger.listings + 1
            return Trust(self._opening, -math.inf, now)
        if self._seconds == 0:
            # Not even a check that another caller makes while this one waits:
            # our own writes may come between that and the answer.
            return Trust(0, math.inf, now)
        # Of the copy, not of this session: whoever has checked it.
        return Trust(0, now - self._seconds, now)
