"""A line to a server on this machine, on which TLS and distance are real and connections counted.

What stands behind it speaks plain HTTP. What comes in speaks TLS, under a certificate that is made
anew each time, and each byte takes its time in each direction, those of the handshakes included.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme

LOOPBACK = "127.0.0.1"
_CHUNK = 65536


class Line:
    """Serves on a free port of the loopback interface for as long as its `with` block runs.

    Args:
        port: Where the server is.
        delay: Seconds that a byte takes in one direction.

    Attributes:
        port: Where to connect to, with TLS.
        connections: How many were opened so far.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self.port = 0
        self.connections = 0
        self._server_port = port
        self._delay = delay
        self._authority = trustme.CA()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def trust(self, directory: Path) -> Path:
        """Writes the certificate that a client has to trust (`SSL_CERT_FILE`) to a file."""
        path = directory / "authority.pem"
        self._authority.cert_pem.write_to_path(path)
        return path

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert(LOOPBACK).configure_cert(context)
        # TLS ends behind the distance, so that its handshake crosses it, too.
        async with (
            await asyncio.start_server(self._decrypted, LOOPBACK, 0, ssl=context) as inner,
            await asyncio.start_server(self._arrived, LOOPBACK, 0) as outer,
        ):
            self._inner_port = inner.sockets[0].getsockname()[1]
            self.port = outer.sockets[0].getsockname()[1]
            self._ready.set()
            await self._end.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._begin(self._far(reader, writer))

    def _decrypted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._join(reader, writer, self._server_port, 0.0))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _far(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # TCP's own handshake: over the loopback it took no time.
        await asyncio.sleep(2 * self._delay)
        await self._join(reader, writer, self._inner_port, self._delay)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        port: int,
        delay: float,
    ) -> None:
        answers, there = await asyncio.open_connection(LOOPBACK, port)
        await asyncio.gather(_carry(reader, there, delay), _carry(answers, writer, delay))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Carries bytes one way, each `delay` seconds after it came; then closes the other end."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                return
            writer.write(data)

    delivery = loop.create_task(deliver())
    try:
        # A connection that is reset has ended, too.
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                under_way.put_nowait((loop.time() + delay, data))
        under_way.put_nowait((loop.time() + delay, b""))
        await delivery
    finally:
        delivery.cancel()
        writer.close()
