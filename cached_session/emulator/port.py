"""A TCP port that stays reserved while nothing listens on it."""

from __future__ import annotations

import os
import socket
from typing import Final

__all__ = ["LOOPBACK", "ReservedPort"]

LOOPBACK: Final = "127.0.0.1"

_SHARED: Final[int | None] = getattr(socket, "SO_REUSEPORT", None)


class ReservedPort:
    """A port on one network interface.

    A bound socket that does not listen holds the port, so that connections are refused while the
    emulator plays dead and no other program takes the port meanwhile. Where sockets cannot share
    a port (Windows), the port is free for that while.
    """

    def __init__(self, port: int, host: str = LOOPBACK) -> None:
        """Reserves a port.

        Args:
            port: TCP port; 0 picks a free one.
            host: IPv4 address of the interface, or a name of it.

        Raises:
            OSError: The port is taken, or the host is no interface of this machine.
        """
        self._host = host
        # The first bind shares with nobody: it is what notices that the port is taken.
        with _bound(host, port, shared=False) as probe:
            if port == 0:
                port = probe.getsockname()[1]
        self.number: int = port
        self._holder = _bound(host, port, shared=True) if _SHARED is not None else None

    def listener(self) -> socket.socket:
        """Returns a new bound socket, to be listened on and closed by the caller."""
        return _bound(self._host, self.number, shared=True)

    def close(self) -> None:
        """Gives the port up."""
        if self._holder is not None:
            self._holder.close()


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named. With it on, an answer
    # written in two parts costs the client 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Without it a port cannot be bound again right after connections on it have ended.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and _SHARED is not None:
            bound.setsockopt(socket.SOL_SOCKET, _SHARED, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
