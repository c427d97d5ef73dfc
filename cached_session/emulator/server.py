"""The emulator: the service behind a real HTTP server in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from starlette.applications import Starlette

from .app import Sleep, create_app
from .faults import Fault, FaultPlan
from .habits import Habits
from .host import Host
from .log import LoggedRequest, RequestLog
from .port import LOOPBACK, ReservedPort
from .service import Service
from .snapshot import Snapshot
from .state import StateFile, read_initial
from .store import ConversationStore, random_ids, seeded_ids
from .wire import API_ROOT, Request

__all__ = ["Emulator"]


class Emulator:
    """A Conversations API server, on the loopback interface unless told otherwise.

    Use it as ``async with Emulator() as emulator`` or ``with Emulator() as emulator``. It serves
    from a thread with an event loop of its own, so clients in any loop, in any thread and without
    a loop can use it. It may be entered again after it was left, then on the same port and with
    the conversations that it held.

    Attributes:
        service: Answers the requests; usable without HTTP.
        app: The ASGI app, for use in process; it needs no running server.
        faults: Decides what goes wrong with each request, or None; may be set at any time.
    """

    def __init__(
        self,
        latency: float = 0.0,
        faults: FaultPlan | None = None,
        habits: Habits | None = None,
        port: int = 0,
        *,
        seed: int | None = None,
        service: Service | None = None,
        sleep: Sleep = asyncio.sleep,
        on_request: Callable[[LoggedRequest], None] | None = None,
        host: str = LOOPBACK,
        initial: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        """Creates an emulator that does not serve yet.

        Args:
            latency: Seconds between each request and its answer.
            faults: Decides for each request whether and how it goes wrong, for instance
                ``Faults(seed, rates)``.
            habits: Differences from the real service.
            port: TCP port; 0 picks a free one.
            seed: Makes ids the same in every run; by default no two runs share an id.
            service: Service to use in place of a new one; ``habits`` and ``seed`` are then its
                own matter.
            sleep: Waits some seconds, in the server's event loop.
            on_request: Called with each new log entry, in the server's thread.
            host: IPv4 address of the interface to listen on, or a name of it; ``0.0.0.0`` for
                all of them. Anybody who reaches the port can use the server with any key.
            initial: Conversations to begin with, and to go back to at a `reset`: the path of a JSON
                file, or what such a file holds.
            state: Path of a file that each change is kept in. If there is one, the emulator goes
                on with what it holds, not with ``initial``.

        Raises:
            OSError: A file cannot be read, or that of ``state`` cannot be written, or another
                emulator that serves keeps its state there. Nothing of it was changed.
            SnapshotError: A file, or ``initial``, does not hold what it should, or is damaged. It
                is a ``ValueError``.
            ValueError: ``latency`` is negative or not finite, ``port`` is not a TCP port, ``host``
                is empty, or ``service`` is given with ``habits``, ``seed``, ``initial`` or
                ``state``.
        """
        if not 0 <= port <= 65535:
            raise ValueError("port is not between 0 and 65535")
        if latency < 0:
            raise ValueError("latency is negative")
        if not math.isfinite(latency):
            raise ValueError("latency is not a finite number of seconds")
        if not host:
            raise ValueError("host is empty; 0.0.0.0 stands for all interfaces")
        if service is not None and any(one is not None for one in (habits, seed, initial, state)):
            raise ValueError("habits, seed, initial and state belong to the service that was given")
        self._state = None if state is None else StateFile(state)
        if service is None:
            service = _service(habits or Habits(), seed, initial, self._state)
        self.service = service
        self.faults = faults
        self._sleep = sleep
        self._log = RequestLog(on_request)
        self.app: Starlette = create_app(
            service, latency=latency, faults=self._decide, sleep=sleep, log=self._log
        )
        self._host = host
        self._wanted_port = port
        self._running: _Running | None = None

    @property
    def store(self) -> ConversationStore:
        """The store behind the service."""
        return self.service.store

    @property
    def base_url(self) -> str:
        """Base URL for clients, for instance ``http://127.0.0.1:8080/v1``.

        Raises:
            RuntimeError: The emulator has not been started yet, so its port is not known.
        """
        if self._wanted_port == 0:
            raise RuntimeError("the emulator has no port before it is started")
        # All interfaces are no place to connect to; the loopback is one of them.
        host = LOOPBACK if self._host == "0.0.0.0" else self._host
        return f"http://{host}:{self._wanted_port}{API_ROOT}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """Every request since the start or the last ``clear_log``, oldest first; a copy."""
        return self._log.snapshot()

    def clear_log(self) -> None:
        """Forgets the requests logged so far."""
        self._log.clear()

    def reset(self) -> None:
        """Goes back to ``initial``, or to no conversations, and empties the log.

        A request that a fault holds back for later is not carried out any more. ``faults`` stays.

        Raises:
            OSError: The file of ``state`` cannot be written. It was reset all the same.
        """
        self.service.reset()
        self.clear_log()

    def items(
        self, conversation_id: str, *, include: Set[str] = frozenset()
    ) -> list[dict[str, Any]]:
        """Returns what a listing of a whole conversation shows, oldest first, without HTTP.

        Args:
            conversation_id: The conversation.
            include: Values of the ``include`` parameter.

        Raises:
            LookupError: There is no such conversation.
        """
        return self.service.items(conversation_id, include=include)

    def start(self) -> None:
        """Starts to serve; returns when connections are accepted.

        Raises:
            OSError: The port is taken, the host is no interface of this machine, or the file of
                ``state`` cannot be read, or another emulator that serves keeps its state there.
            SnapshotError: That file was damaged since the emulator was made.
            RuntimeError: It is serving already.
        """
        if self._running is not None:
            raise RuntimeError("the emulator is serving already")
        if self._state is not None:
            self._state.lock()
        try:
            if self._state is not None:
                # Another one may have served since this one has read it.
                kept = self._state.load(self.service.habits)
                if kept is not None:
                    self.store.restore(kept)
            port = ReservedPort(self._wanted_port, self._host)
            self._wanted_port = port.number
            self._running = _Running(self, port)
        except BaseException:
            if self._state is not None:
                self._state.unlock()
            raise

    def stop(self) -> None:
        """Stops serving; returns when the thread has ended. Open connections are reset.

        Requests in flight are dropped, as are those that a fault holds back for later. Does
        nothing if it is not serving.
        """
        running, self._running = self._running, None
        if running is not None:
            running.stop()
            if self._state is not None:
                self._state.unlock()

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Starting and stopping wait for the server's thread, which takes milliseconds and depends on
    # nothing in the caller's loop. A blocking wait cannot be cancelled halfway.
    async def __aenter__(self) -> Emulator:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def _decide(self, request: Request) -> Fault | None:
        return None if self.faults is None else self.faults(request)

    async def _serve(self, port: ReservedPort, ready: Callable[[asyncio.Event], None]) -> None:
        stopping = asyncio.Event()
        async with (
            self.app.router.lifespan_context(self.app),
            Host(self.app, port, self._sleep),
        ):
            ready(stopping)
            await stopping.wait()


def _service(
    habits: Habits,
    seed: int | None,
    initial: Mapping[str, Any] | str | os.PathLike[str] | None,
    file: StateFile | None,
) -> Service:
    new_id = random_ids() if seed is None else seeded_ids(seed)
    store = ConversationStore(new_id=new_id, now=lambda: int(time.time()))
    first = Snapshot() if initial is None else read_initial(initial, habits)
    if file is None:
        store.restore(first)
        return Service(store, habits=habits, initial=first)
    with file.locked():
        kept = file.load(habits)
        store.restore(first if kept is None else kept)
        # At once: that it cannot be written is told at the start, not at the first change.
        file.save(store.snapshot())
    return Service(
        store, habits=habits, initial=first, on_change=lambda: file.save(store.snapshot())
    )


class _Running:
    """The thread that serves, from its start to its end."""

    def __init__(self, emulator: Emulator, port: ReservedPort) -> None:
        self._port = port
        self._ready: concurrent.futures.Future[Callable[[], None]] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(emulator,), name=f"emulator-{port.number}", daemon=True
        )
        self._thread.start()
        try:
            self._request_stop = self._ready.result()
        except BaseException:
            self._thread.join()
            raise

    def stop(self) -> None:
        self._request_stop()
        self._thread.join()

    def _run(self, emulator: Emulator) -> None:
        # The default loop of Windows cannot wait for a listening socket to be readable.
        with (
            self._reporting(),
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        ):
            runner.run(emulator._serve(self._port, self._note_ready))

    def _note_ready(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        self._ready.set_result(lambda: _call(loop, stopping.set))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Hands an error of the start to the thread that waits for it."""
        try:
            yield
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            self._port.close()


def _call(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    # A loop that has ended by itself needs no stopping.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(action)
