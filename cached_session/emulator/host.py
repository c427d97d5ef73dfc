"""The socket side: uvicorn's HTTP protocol on a listening socket that can go away and come back.

Uvicorn's own server polls ten times a second and says nothing of its transports. The emulator has
to reset connections and to stop within milliseconds, so it hosts uvicorn's protocol itself. It
accepts connections itself too: asyncio's server says nothing of a connection that it has accepted
but not set up yet, and a stop at that moment would leave it open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from types import TracebackType
from typing import Final

import h11
from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .app import CONNECTION, Sleep
from .port import ReservedPort
from .wire import ApiError, error_response

__all__ = ["Host"]

# struct linger: on, 0 seconds. Closing such a socket sends a reset.
_RESET_ON_CLOSE: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_KEEP_ALIVE_SECONDS: Final = 60
_BACKLOG: Final = 512


class _Protocol(H11Protocol):
    """Uvicorn's HTTP protocol, with itself in the state of every scope."""

    def __init__(self, host: Host, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {CONNECTION: self})
        self._host = host
        self._refused = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Uvicorn leaves this timer running when a connection ends with an error.
        self._unset_keepalive_if_required()
        self._host.connection_ended()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, or has headers that are too large, in the API's form."""
        refusal = error_response(ApiError(400, msg.removesuffix(".") + "."))
        headers = [*refusal.headers.items(), ("connection", "close")]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=refusal.body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event))
        # What the client still sends is read and dropped until it has closed: a socket that is
        # closed before is reset, and the client would see no answer.
        self._refused = True
        self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def reset(self) -> None:
        """Ends the connection with a reset."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None and not self.transport.is_closing():
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def close(self) -> None:
        """Ends the connection after what was written has gone out."""
        self.transport.close()

    def refuse(self, seconds: float) -> None:
        """Resets this connection, closes idle ones, and refuses new ones for some seconds."""
        self.reset()
        self._host.go_away(seconds)


class Host:
    """Serves an app on a port for as long as its ``async with`` block runs.

    Everything happens in the event loop that enters it, which has to be one with ``add_reader``.
    """

    def __init__(self, app: Starlette, port: ReservedPort, sleep: Sleep) -> None:
        """Creates a host.

        Args:
            app: The app; its lifespan is left to the caller.
            port: Where to listen.
            sleep: Waits some seconds.
        """
        self._port = port
        self._sleep = sleep
        self._state = ServerState()
        self._config = Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._listener: socket.socket | None = None
        self._accepting: set[asyncio.Task[object]] = set()
        self._return: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Host:
        self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._return is not None:
            self._return.cancel()
            await asyncio.gather(self._return, return_exceptions=True)
        self._stop_listening()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        while self._state.connections:
            self._changed.clear()
            for connection in list(self._state.connections):
                assert isinstance(connection, _Protocol)
                connection.reset()
            await self._changed.wait()
        # With its connection gone, a request in flight has nobody left to answer.
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def connection_ended(self) -> None:
        """Notes that the number of connections has changed."""
        self._changed.set()

    def go_away(self, seconds: float) -> None:
        """Refuses new connections for some seconds; the others end with the request they carry."""
        if self._listener is None:
            return
        self._stop_listening()
        for connection in list(self._state.connections):
            assert isinstance(connection, _Protocol)
            if not connection.transport.is_closing():
                connection.shutdown()
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
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(
                lambda: _Protocol(self, self._config, self._state), accepted
            )
        )
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
