"""Waiting for a condition that another task, event loop or thread brings about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from cached_session.core.looking import LOOK_AFTER


class Signal:
    """Wakes whoever waits, on whichever event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def fire(self) -> None:
        """Makes everybody who waits look at their condition."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # its loop is closed: nobody waits there any more
                continue

    async def until(
        self, condition: Callable[[], bool], deadline: float, look: Callable[[], None]
    ) -> bool:
        """Waits until a condition holds.

        Args:
            condition: Looked at whenever the signal is fired.
            deadline: Until when, on the running loop's clock.
            look: Called before each wait, at least every `LOOK_AFTER` seconds:
                nothing tells when another event loop was stopped.

        Returns:
            Whether it holds; False: the deadline has passed.
        """
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            with self._lock:
                for closed in [one for one, at in self._waiting.items() if at.is_closed()]:
                    del self._waiting[closed]
                self._waiting[future] = loop
            try:
                if condition():
                    return True
                left = deadline - loop.time()
                if left <= 0:
                    return False
                look()
                await asyncio.wait({future}, timeout=min(left, LOOK_AFTER))
            finally:
                with self._lock:
                    self._waiting.pop(future, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
