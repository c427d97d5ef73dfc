"""Waits that a test opens by hand, in place of waits on the clock."""

from __future__ import annotations

import asyncio
import threading

from cached_session.emulator import Request, Response, Service

PATIENCE = 20.0
"""Seconds after which a test gives up on something that should have happened at once."""


class Gate:
    """Stands in for `asyncio.sleep` in the emulator: every wait lasts until the gate opens.

    Attributes:
        asked: Seconds that each wait asked for, in order.
    """

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._arrived = threading.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        opened = asyncio.Event()
        self.asked.append(seconds)
        self._waiting.append((asyncio.get_running_loop(), opened))
        self._arrived.release()
        await opened.wait()

    def arrived(self) -> None:
        """Returns when somebody waits at the gate."""
        assert self._arrived.acquire(timeout=PATIENCE), "nobody came to the gate"

    def open(self) -> None:
        """Lets everybody through who waits now."""
        waiting, self._waiting = self._waiting, []
        for loop, opened in waiting:
            loop.call_soon_threadsafe(opened.set)


class Watched(Service):
    """A service that tells how many requests it has handled."""

    def __init__(self) -> None:
        super().__init__()
        self._count = threading.Semaphore(0)

    def handle(self, request: Request) -> Response:
        response = super().handle(request)
        self._count.release()
        return response

    def handled(self) -> None:
        """Returns when one more request was handled than at the last call."""
        assert self._count.acquire(timeout=PATIENCE), "no request was handled"
