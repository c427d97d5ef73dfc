"""What asks a process to end, for commands that go on until then."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals(stop: asyncio.Event) -> Iterator[None]:
    """Within it, what asks a process to end sets the event."""
    loop, asked = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in asked:
        # Where the loop has no such handlers, Ctrl-C interrupts as everywhere.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in asked:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
