"""Connections whose sockets are closed without an event loop.

asyncio's own transports can be closed only while their loop runs. A loop may be
closed by hand at any moment, and nothing is told of it; whoever finds a closed
loop afterwards could not close its transports any more. A plain socket can be
closed from anywhere.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio
import anyio.abc
import httpcore2
import httpx2
from anyio.streams.tls import TLSAttribute, TLSStream


class Sockets:
    """The open sockets of one connection pool; safe to use from several threads."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()

    def serve(self, http: httpx2.AsyncClient) -> None:
        """Has all that a client connects from now on come in here.

        Neither httpx2 nor openai has a public way to say over what a client
        connects, short of a transport of one's own, for which proxies and
        errors would have to be done again. Where a release has other names for
        it, the client keeps its own connections, and a test says so.
        """
        for transport in (http._transport, *http._mounts.values()):
            pool = getattr(transport, "_pool", None)
            if isinstance(pool, httpcore2.AsyncConnectionPool):
                pool._network_backend = _Backend(pool._network_backend, self)

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
    """Connects as another one does, and takes over the socket."""

    def __init__(self, connector: httpcore2.AsyncNetworkBackend, sockets: Sockets) -> None:
        self._connector = connector
        self._sockets = sockets

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._connector.connect_tcp(
            host, port, timeout, local_address, socket_options
        )
        return await self._taken_over(stream)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._connector.connect_unix_socket(path, timeout, socket_options)
        return await self._taken_over(stream)

    async def sleep(self, seconds: float) -> None:
        await self._connector.sleep(seconds)

    async def _taken_over(
        self, stream: httpcore2.AsyncNetworkStream
    ) -> httpcore2.AsyncNetworkStream:
        if sys.platform == "win32":
            # The event loop there has bound the socket to itself for good.
            return stream
        sock: socket.socket | None = None
        try:
            sock = socket.socket(fileno=os.dup(stream.get_extra_info("socket").fileno()))
            self._sockets.add(sock)
            sock.setblocking(False)
            own = _Stream(sock, self._sockets)
            sock = None
        except OSError as error:
            # It was closed by the other side before anything was written.
            raise httpcore2.ConnectError(str(error)) from error
        finally:
            if sock is not None:
                self._sockets.remove(sock)
            await stream.aclose()
        return _Wire(own)


class _Wire(httpcore2.AsyncNetworkStream):
    """What HTTP is spoken over: bytes, with a time for each step, and TLS.

    httpcore's own waits in a cancel scope of anyio, which keeps a task, and so
    its loop, for ever where that loop was closed in between. This one does not.
    """

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream

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
                    )
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
