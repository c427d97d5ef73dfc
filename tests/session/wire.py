"""What a test sees of the connections that clients open."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from cached_session.emulator import Emulator


class Wire:
    """Passes bytes between clients and a server, and counts connections.

    Attributes:
        opened: How many connections clients have opened.
        base_url: Where clients find it.
    """

    def __init__(self, base_url: str, *, tunnel: bool = False) -> None:
        server = urlsplit(base_url)
        assert server.hostname is not None
        assert server.port is not None
        self._server = (server.hostname, server.port)
        self._tunnel = tunnel
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)
        self.opened = 0
        self.base_url = f"http://127.0.0.1:{self._listening.getsockname()[1]}{server.path}"

    def _begin(self, *work: object) -> None:
        thread = threading.Thread(target=work[0], args=work[1:], daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                client, _ = self._listening.accept()
                self.opened += 1
                if self._tunnel:
                    _agree(client)
                server = socket.create_connection(self._server)
                # A request comes in two pieces: its head, then its body. Without this
                # the second waits 40 ms for the first's acknowledgement.
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._begin(_pass_on, client, server)
                self._begin(_pass_on, server, client)

    def close(self) -> None:
        """Ends it; connections end with their clients."""
        # A thread that waits in `accept` does not notice a mere close.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a connection was left open"


def _agree(client: socket.socket) -> None:
    """Answers a client that asks a proxy for a tunnel."""
    asked = b""
    while not asked.endswith(b"\r\n\r\n"):
        data = client.recv(65536)
        assert data
        asked += data
    assert asked.startswith(b"CONNECT ")
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with source:
        # One that is reset has ended, too, and the other side is to hear of it.
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def wire(emulator: Emulator) -> Iterator[Wire]:
    """A `Wire` to a server; at the end every connection over it is closed."""
    made = Wire(emulator.base_url)
    yield made
    made.close()


@contextlib.contextmanager
def tunnel(port: int) -> Iterator[Wire]:
    """A `Wire` that is a proxy, and leads to one port wherever a client wants to be led."""
    made = Wire(f"http://127.0.0.1:{port}", tunnel=True)
    yield made
    made.close()


def sockets_to(base_url: str) -> int:
    """How many sockets of this process are connected to a server, or are on the way to be."""
    port = urlsplit(base_url).port
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    count += sock.family == socket.AF_INET and sock.getpeername()[1] == port
    return count
