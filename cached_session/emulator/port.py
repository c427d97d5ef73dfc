"""A TCP port that stays reserved while nothing listens on it."""

from __future__ import annotations

import os
import socket
from typing import Final

__all__ = ["LOOPBACK", "ReservedPort"]

LOOPBACK: Final = "127.0.0.1"

_SHARED: Final[int | None] = getattr(socket, "SO_REUSEPORT", None)


class ReservedPort:
    """A port on the loopback interface.

    A bound socket that does not listen holds the port, so that connections are refused while the
    emulator plays dead and no other program takes the port meanwhile. Where sockets cannot share
    a port (Windows), the port is free for that while.
    """

    def __init__(self, port: int) -> None:
        """Reserves a port.

        Args:
            port: TCP port; 0 picks a free one.

        Raises:
            OSError: The port is taken.
        """
        # The first bind shares with nobody: it is what notices that the port is taken.
        with _bound(port, shared=False) as probe:
            if port == 0:
                port = probe.getsockname()[1]
        self.number: int = port
        self._holder = _bound(port, shared=True) if _SHARED is not None else None

    def listener(self) -> socket.socket:
        """Returns a new bound socket, to be listened on and closed by the caller."""
        return _bound(self.number, shared=True)

    def close(self) -> None:
        """Gives the port up."""
        if self._holder is not None:
            self._holder.close()


def _bound(port: int, *, shared: bool) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named. With it on, an answer
    # written in two parts costs the client 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Without it a port cannot be bound again right after connections on it have ended.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and _SHARED is not None:
            bound.setsockopt(socket.SOL_SOCKET, _SHARED, 1)
        bound.bind((LOOPBACK, port))
    except BaseException:
        bound.close()
        raise
    return bound
