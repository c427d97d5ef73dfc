"""Connections whose sockets are closed without an event loop.

asyncio's own transports can be closed only while their loop runs. A loop may be
closed by hand at any moment, and nothing is told of it; whoever finds a closed
loop afterwards could not close its transports any more. A plain socket can be
closed from anywhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import select
import socket
import ssl
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohappyeyeballs
import anyio
import anyio.abc
import httpcore2
import httpx2
from aiohappyeyeballs import AddrInfoType, SocketFactoryType, addr_to_addr_infos
from anyio.streams.tls import TLSAttribute, TLSStream

# Seconds until the next of a host's addresses is tried, too; RFC 8305 recommends it.
_HEAD_START = 0.25


class Sockets:
    """The open sockets of one connection pool; safe to use from several threads.

    Args:
        check: Called right before bytes are written; what it raises keeps them from it.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self._open: set[socket.socket] = set()

    def serve(self, http: httpx2.AsyncClient) -> None:
        """Has all that a client connects from now on come in here.

        Neither httpx2 nor openai has a public way to say over what a client
        connects, short of a transport of one's own, for which proxies and
        errors would have to be done again. Where a release has other names for
        it, the client keeps its own connections, and a test says so. So it does
        on Windows, where an event loop binds a socket to itself for good.
        """
        if sys.platform == "win32":
            return
        for transport in (http._transport, *http._mounts.values()):
            pool = getattr(transport, "_pool", None)
            if isinstance(pool, httpcore2.AsyncConnectionPool):
                pool._network_backend = _Backend(self)

    def add(self, sock: socket.socket) -> None:
        """Takes in a socket that was opened."""
        self._open.add(sock)

    def remove(self, sock: socket.socket) -> None:
        """Closes one."""
        self._open.discard(sock)
        sock.close()

    def close(self) -> None:
        """Closes all of them, at once."""
        while self._open:
            self._open.pop().close()


class _Backend(httpcore2.AsyncNetworkBackend):
    """Connects plain sockets.

    httpcore's own does so in cancel scopes of anyio, which keep a task, and so
    its loop, for ever where that loop was closed in between.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        local = None if local_address is None else (local_address, 0)

        async def connect(make: SocketFactoryType) -> socket.socket:
            return await aiohappyeyeballs.start_connection(
                await _addresses(host, port),
                local_addr_infos=local and addr_to_addr_infos(local),
                happy_eyeballs_delay=_HEAD_START,
                interleave=1,
                socket_factory=make,
            )

        # asyncio sets it, too: a request comes in two pieces, its head and its body.
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *(socket_options or ())]
        return await self._wire(connect, options, timeout)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        async def connect(make: SocketFactoryType) -> socket.socket:
            sock = make((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", (path,)))
            await asyncio.get_running_loop().sock_connect(sock, path)
            return sock

        return await self._wire(connect, socket_options or (), timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _wire(
        self,
        connect: Callable[[SocketFactoryType], Awaitable[socket.socket]],
        options: Iterable[Any],
        timeout: float | None,
    ) -> _Wire:
        """What comes of connecting; every failure of it is one before anything was sent."""
        made: list[socket.socket] = []
        connected: socket.socket | None = None

        def make(address: AddrInfoType) -> socket.socket:
            sock = socket.socket(*address[:3])
            made.append(sock)
            self._sockets.add(sock)
            sock.setblocking(False)
            for option in options:
                sock.setsockopt(*option)
            return sock

        try:
            async with asyncio.timeout(timeout):
                try:
                    connected = await connect(make)
                except (OSError, OverflowError) as error:  # a port that cannot be overflows
                    raise httpcore2.ConnectError(str(error)) from error
            return _Wire(_Stream(connected, self._sockets), self._sockets.check)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        finally:
            for sock in made:
                if sock is not connected:
                    self._sockets.remove(sock)


async def _addresses(host: str, port: int) -> Sequence[AddrInfoType]:
    """Where a host is, as `getaddrinfo` says it.

    Raises:
        OSError: It has no address.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Not in a thread: a loop that is closed meanwhile would leave that behind.
    return addr_to_addr_infos((host, port)) or []


class _Wire(httpcore2.AsyncNetworkStream):
    """What HTTP is spoken over: bytes, with a time for each step, and TLS.

    httpcore's own waits in a cancel scope of anyio, which keeps a task, and so
    its loop, for ever where that loop was closed in between. This one does not.
    """

    def __init__(self, stream: anyio.abc.ByteStream, check: Callable[[], None]) -> None:
        self._stream = stream
        self._check = check

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError as error:
            raise httpcore2.ReadTimeout(str(error)) from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        self._check()
        try:
            async with asyncio.timeout(timeout):
                await self._stream.send(buffer)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream) as error:
            raise httpcore2.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return _Wire(
                    await TLSStream.wrap(
                        self._stream,
                        ssl_context=ssl_context,
                        hostname=server_hostname,
                        standard_compatible=False,
                        server_side=False,
                    ),
                    self._check,
                )
        except TimeoutError as error:
            await self.aclose()
            raise httpcore2.ConnectTimeout(str(error)) from error
        except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError) as error:
            await self.aclose()
            raise httpcore2.ConnectError(str(error)) from error
        except BaseException:
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        sock = anyio.abc.SocketAttribute
        if info == "is_readable":
            # On an idle connection: the other side has closed it, or said what nobody asked for.
            return _readable(self._stream.extra(sock.raw_socket))
        attribute: Any = {
            "ssl_object": TLSAttribute.ssl_object,
            "client_addr": sock.local_address,
            "server_addr": sock.remote_address,
            "socket": sock.raw_socket,
        }.get(info)
        return None if attribute is None else self._stream.extra(attribute, None)


def _readable(sock: socket.socket) -> bool:
    if sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class _Stream(anyio.abc.ByteStream):
    """Bytes over a socket that asyncio does not own."""

    def __init__(self, sock: socket.socket, sockets: Sockets) -> None:
        self._sock = sock
        # Weakly: a loop is not to live for what was opened on it.
        self._loop = weakref.ref(asyncio.get_running_loop())
        # One that is dropped is closed, too: a request that is cancelled while
        # it connects leaves one behind.
        self._close = weakref.finalize(self, sockets.remove, sock)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, max_bytes)
        except OSError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, item)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        loop = self._loop()
        if self._close.alive and loop is not None and not loop.is_closed():
            # Or the loop would take the next socket with this number for this one.
            loop.remove_reader(self._sock)
            loop.remove_writer(self._sock)
        self._close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        attribute = anyio.abc.SocketAttribute
        return {
            attribute.raw_socket: lambda: self._sock,
            attribute.local_address: lambda: self._sock.getsockname(),
            attribute.remote_address: lambda: self._sock.getpeername(),
        }
