"""The socket side: HTTP on a listening socket that can go away and come back.

The emulator has to reset connections and to stop within milliseconds, which no server for ASGI apps
offers. So it has a small one of its own: h11 for the protocol, asyncio's streams for the bytes. It
accepts connections itself too: asyncio's server says nothing of a connection that it has accepted
but not set up yet, and a stop at that moment would leave it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import struct
import sys
from typing import Final
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp, Message, Scope

from .app import CONNECTION, Sleep
from .port import ReservedPort

__all__ = ["Host"]

# struct linger: on, 0 seconds. Closing such a socket sends a reset.
_RESET_ON_CLOSE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_KEEP_ALIVE_SECONDS: Final = 60
_BACKLOG: Final = 512
_CHUNK: Final = 65536
_PHRASES: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}

_CLOSE: Final = (b"connection", b"close")

_log = logging.getLogger(__name__)


class _Connection:
    """One connection, and its requests one after the other, each with this object in its state."""

    def __init__(
        self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)
        self._last = False
        self._without_body = False

    async def serve(self, app: ASGIApp) -> None:
        """Answers requests until either side ends the connection."""
        patience = None  # only a connection that has been used already may be given up
        while not self._last and (scope := await self._request(patience)) is not None:
            try:
                await app(scope, self._receive, self._send)
            except Exception:
                _log.exception("the emulator failed to answer a request")
                return
            if not await self._ended_well():
                return
            patience = _KEEP_ALIVE_SECONDS

    def reset(self) -> None:
        """Ends the connection with a reset."""
        if not self._writer.is_closing():
            connected = self._writer.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    def close(self) -> None:
        """Ends the connection after what was written has gone out."""
        self._writer.close()

    def finish(self) -> None:
        """Ends the connection with the answer to the request that it carries, if there is one."""
        self._last = True
        if self._http.their_state is h11.IDLE:
            self.close()

    def refuse(self, seconds: float) -> None:
        """Resets this connection, closes idle ones, and refuses new ones for some seconds."""
        self.reset()
        self._host.go_away(seconds)

    async def _request(self, patience: float | None) -> Scope | None:
        """The next request; None if there is none any more."""
        self._without_body = False
        try:
            async with asyncio.timeout(patience):
                event = await self._event()
        except TimeoutError:
            return None
        if not isinstance(event, h11.Request):
            return None
        self._without_body = event.method == b"HEAD"
        path, _, query = event.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": event.http_version.decode("ascii"),
            "server": self._writer.get_extra_info("sockname"),
            "client": self._writer.get_extra_info("peername"),
            "scheme": "http",
            "method": event.method.decode("ascii"),
            "root_path": "",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": list(event.headers),
            "state": {CONNECTION: self},
        }

    async def _ended_well(self) -> bool:
        """Whether another request may follow on the connection."""
        while self._http.our_state is h11.DONE and self._http.their_state is h11.SEND_BODY:
            await self._event()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _event(self) -> object:
        """What the client does next. What is no HTTP is refused, and ends the connection."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                if not await self._read():
                    return h11.ConnectionClosed()
        except h11.RemoteProtocolError:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                headers = [(b"content-type", b"text/plain; charset=utf-8"), _CLOSE]
                await self._send({"type": "http.response.start", "status": 400, "headers": headers})
                body = b"Invalid HTTP request received."
                await self._send({"type": "http.response.body", "body": body})
            return h11.ConnectionClosed()
        return event

    async def _read(self) -> bool:
        """Takes what the client has sent; False if the connection has ended."""
        try:
            data = await self._reader.read(_CHUNK)
        except OSError:
            data = b""
        self._http.receive_data(data)
        return data != b""

    async def _receive(self) -> Message:
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        if self._http.their_state is h11.SEND_BODY:
            match await self._event():
                case h11.Data(data=data):
                    return {"type": "http.request", "body": bytes(data), "more_body": True}
                case h11.EndOfMessage():
                    return {"type": "http.request", "body": b"", "more_body": False}
        elif self._http.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):
            # What the client sends meanwhile is its next request.
            while await self._read():
                continue
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status, headers = message["status"], message["headers"]
            reason = _PHRASES.get(status, b"")
            self._write(h11.Response(status_code=status, headers=headers, reason=reason))
            return
        self._write(h11.Data(data=b"" if self._without_body else message["body"]))
        if not message.get("more_body", False):
            self._write(h11.EndOfMessage())
        # That the client has gone is what `_receive` tells.
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and not self._writer.is_closing():
            self._writer.write(data)


class Host:
    """Serves an app on a port for as long as its ``async with`` block runs.

    Everything happens in the event loop that enters it, which has to be one with ``add_reader``.
    """

    def __init__(self, app: ASGIApp, port: ReservedPort, sleep: Sleep) -> None:
        """Creates a host.

        Args:
            app: The app; its lifespan is left to the caller.
            port: Where to listen.
            sleep: Waits some seconds.
        """
        self._app = app
        self._port = port
        self._sleep = sleep
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        self._serving: dict[asyncio.Task[None], socket.socket] = {}
        self._return: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Host:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        for accepted in self._serving.values():
            # Its transport, if it has one yet, may have closed it already.
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        tasks = [*self._serving, *filter(None, [self._return])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def go_away(self, seconds: float) -> None:
        """Refuses new connections for some seconds; the others end with the request they carry."""
        if self._listener is None:
            return
        self._stop_listening()
        for connection in self._connections:
            connection.finish()
        self._return = asyncio.get_running_loop().create_task(self._come_back(seconds))

    async def _come_back(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._listen()

    def _listen(self) -> None:
        listener = self._port.listener()
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            # The client has gone again; the loop calls as long as there is another one.
            return
        accepted.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(accepted))
        self._serving[task] = accepted
        # A task that is cancelled before its first step closes nothing by itself.
        task.add_done_callback(lambda task: self._serving.pop(task).close())

    async def _serve(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.serve(self._app)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            self._connections.discard(connection)
            writer.close()
            # An error here is that of a connection which has ended already.
            with contextlib.suppress(OSError):
                await writer.wait_closed()
