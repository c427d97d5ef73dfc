"""A TCP proxy before a PostgreSQL server, which loses, delays and holds back what tests choose."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto

# A server that waits for the next statement, outside of a transaction, says so last.
_READY = b"Z\0\0\0\5I"
# So does a client that has sent all of a statement.
_SYNC = b"S\0\0\0\4"


class Fate(Enum):
    """What becomes of what a client sends."""

    PASS = auto()
    """It is passed on, and so is its answer."""
    REFUSE = auto()
    """The connection is cut, and it is not passed on."""
    SWALLOW = auto()
    """It is passed on and done; then the connection is cut, and nothing of the answer comes."""
    HOLD = auto()
    """The client's connection is cut. It is passed on when the test says so: see `Held`."""
    DISOWN = auto()
    """It is done, and answered as a pooler does that has lost its connection to the server."""


class Held:
    """What a client has sent, and the server has not got yet."""

    def __init__(self, data: bytes, server: socket.socket) -> None:
        self._data = data
        self._server = server

    def let_through(self) -> bytes:
        """Passes it on, and returns the answer, which no client hears."""
        with self._server:
            self._server.sendall(self._data)
            return _answer(self._server)


class Proxy:
    """Stands before a server, on a port of its own, until it is closed.

    Attributes:
        port: Where it listens.
        rule: Says what becomes of each piece that a client sends. Called in another thread.
        held: What was held back, oldest first.
        silent: Whether nothing that a server says comes through.
        deaf: Whether nothing that a client says comes through.
        refusing: Whether no connection is made any more.
        turned_away: How many connections were not made.
    """

    def __init__(self, port: int) -> None:
        """`port` is the server's."""
        self.rule: Callable[[bytes], Fate] = _pass
        self.held: list[Held] = []
        self.silent = self.deaf = False
        self.turned_away = 0
        self._to = port
        self.refusing = False
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """All connections are cut, and none is made, in here."""
        self.leave()
        try:
            yield
        finally:
            self.come_back()

    def leave(self) -> None:
        """Cuts all connections, and lets none be made from now on."""
        self.refusing = True
        self.cut()

    def come_back(self) -> None:
        """Lets connections be made again."""
        self.refusing = False

    def cut(self) -> None:
        """Cuts all connections that there are."""
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it, and waits for its threads."""
        self.refusing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for held in self.held:
            held._server.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    self.turned_away += 1
                    client.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.ExitStack() as closing:
            with self._lock:
                self._clients.add(client)
            try:
                with contextlib.suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self._to))
                    closing.callback(server.close)
                    if self._pump(client, server):
                        closing.pop_all()
            finally:
                with self._lock:
                    self._clients.discard(client)

    def _pump(self, client: socket.socket, server: socket.socket) -> bool:
        """Passes on what comes, until one of both is at its end; whether the server is kept."""
        while True:
            for sock in select.select([client, server], [], [])[0]:
                data = sock.recv(1 << 20)
                if not data:
                    return False
                if sock is server:
                    if not self.silent:
                        client.sendall(data)
                    continue
                if self.deaf:
                    continue
                fate = self.rule(data)
                if fate is Fate.REFUSE:
                    return False
                while fate is not Fate.PASS and not data.endswith(_SYNC):
                    data += client.recv(1 << 20)
                if fate is Fate.HOLD:
                    self.held.append(Held(data, server))
                    return True
                server.sendall(data)
                if fate is not Fate.PASS:
                    _answer(server)
                    if fate is Fate.DISOWN:
                        client.sendall(_error("08P01", "server conn crashed?"))
                    return False


def _pass(_: bytes) -> Fate:
    return Fate.PASS


def _answer(server: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(_READY):
        more = server.recv(1 << 20)
        if not more:
            break
        answer += more
    return answer


def _error(state: str, text: str) -> bytes:
    fields = b"".join(
        kind + value.encode() + b"\0"
        for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", state), (b"M", text))
    )
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


def once(function: str, fate: Fate) -> Callable[[bytes], Fate]:
    """A rule: this becomes of the next call of a function of the schema, and no other one."""
    marker, met = f"cached_session.{function}(".encode(), threading.Event()

    def rule(data: bytes) -> Fate:
        if marker not in data or met.is_set():
            return Fate.PASS
        met.set()
        return fate

    return rule


@contextlib.contextmanager
def before(port: int) -> Iterator[Proxy]:
    """A proxy before a server's port."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
