"""What the outboxes have in common: their limits, and who uses them."""

from __future__ import annotations

import abc
import asyncio
import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from cached_session.outbox.holdings import Holdings
from cached_session.outbox.records import Address, Left, LeftConversation, Summary
from cached_session.outbox.store import Store

T = TypeVar("T")

MIB = 1024 * 1024


class Shared(abc.ABC):
    """The limits of an outbox, checked, and what those who use it keep with it.

    Attributes:
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long, or None.
        max_wait: Seconds that a call waits for room at most.
        max_window_bytes: Bytes for the stored windows of all conversations together.
        users: The open sessions that use the outbox.
        lock: Guards `backlogs`.
        backlogs: The backlogs in use, one a conversation.
        holdings: Those of them that others are kept from sending.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    advice = "See `cached-session outbox --help`"
    """What somebody can do about a backlog that is paused, as a sentence."""

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        max_age: float | None,
        max_wait: float,
        max_window_bytes: int,
    ) -> None:
        _check_count("max_items", max_items, 1)
        _check_count("max_bytes", max_bytes, 1)
        if max_age is not None:
            _check_seconds("max_age", max_age, " or None")
            if max_age == 0:
                raise ValueError("max_age must be above 0, or None")
        _check_seconds("max_wait", max_wait, "")
        _check_count("max_window_bytes", max_window_bytes, 0)
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.max_wait = max_wait
        self.max_window_bytes = max_window_bytes
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.backlogs: weakref.WeakValueDictionary[Address, Any] = weakref.WeakValueDictionary()
        self.holdings = Holdings()
        self._pid = os.getpid()

    @abc.abstractmethod
    async def transact(self, work: Callable[[Store], T]) -> T:
        """Runs `work` in a transaction; see `Outbox.transact`."""

    @abc.abstractmethod
    async def let_go(self) -> None:
        """Lets go of what is open; see `Outbox.let_go`."""

    async def aclose(self, timeout: float | None = None) -> Left:
        """Ends what this process sends of the outbox, in all its event loops, and closes the file.

        For a program's end: one call for all sessions, open or closed. What is
        left stays recorded, and each item is sent once by whoever goes on. The
        outbox can be used again: the next use of a session on it opens it, and
        sends what is left of its conversation.

        Args:
            timeout: Seconds in which what can be sent is sent; a request that
                is in flight then is cut off. None: none is waited for.

        Returns:
            What the outbox still holds, with what other processes and other
            programs have recorded there.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or not finite.
            OutboxError: What is left could not be read. The file is closed.
        """
        if timeout is not None:
            _check_seconds("timeout", timeout, " or None")
        if os.getpid() != self._pid:
            # What is open belongs to the parent, and so does what is sent.
            return Left(())
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        with self.lock:
            backlogs = dict(self.backlogs.items())
        try:
            reasons = await asyncio.gather(*(one.shut(deadline) for one in backlogs.values()))
            found = await self.transact(Store.summaries)
        finally:
            await self.let_go()
        known = dict(zip(backlogs, reasons, strict=True))
        return Left(
            tuple(
                LeftConversation(
                    one.address.conversation, one.items, known.get(one.address) or _why(one)
                )
                for one in found
                if one.items
            )
        )


def _why(summary: Summary) -> str:
    """Why a backlog that no session has used here was not sent."""
    if summary.paused is not None:
        return f"paused: {summary.paused}"
    return "another process sends it" if summary.owned else "no session here was on it"


def _check_count(name: str, value: object, least: int) -> None:
    """Refuses what is no int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}")


def _check_seconds(name: str, value: object, alternative: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be a number of seconds{alternative}, not {type(value).__name__}"
        )
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of seconds, and not negative")
