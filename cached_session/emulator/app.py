"""The ASGI skin: reads a request, waits out latency, performs what the outcome says.

All decisions are made in ``faults``, ``service`` and ``outcomes``. What ASGI cannot express, such
as a reset, is asked of the connection that the emulator's own server puts into the scope's state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse
from starlette.responses import Response as StarletteResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from .faults import FaultPlan
from .log import LoggedRequest, RequestLog
from .outcomes import Outcome, Sight, carry_out
from .params import MAX_BODY
from .service import Service
from .wire import ApiError, Request, Response, error_response

__all__ = ["CONNECTION", "RESET_PATH", "Connection", "Sleep", "create_app"]

CONNECTION: Final = "cached_session.connection"
"""Where the scope's state holds the connection, if the server offers one."""

RESET_PATH: Final = "/_emulator/reset"
"""Outside of what the API can have."""

Sleep = Callable[[float], Awaitable[None]]

_TOO_LARGE: Final = f"The body of your request is larger than {MAX_BODY} bytes."


class Connection(Protocol):
    """What the app asks of a connection beyond ASGI."""

    def reset(self) -> None:
        """Ends the connection with a reset."""

    def close(self) -> None:
        """Ends the connection after what was written has gone out."""

    def refuse(self, seconds: float) -> None:
        """Resets this connection, closes idle ones, and refuses new ones for some seconds."""


def create_app(
    service: Service | None = None,
    *,
    latency: float = 0.0,
    faults: FaultPlan | None = None,
    sleep: Sleep = asyncio.sleep,
    log: RequestLog | None = None,
) -> Starlette:
    """Builds the ASGI app: the API, ``GET /health``, and ``POST /_emulator/reset``.

    The last two need no key and meet no fault.

    Args:
        service: Answers the requests; by default a new one.
        latency: Seconds between request and answer, half of them before the request is carried
            out and half after.
        faults: Decides what goes wrong; by default nothing does.
        sleep: Waits some seconds; replaced where time is virtual.
        log: Takes one entry for each request; by default none is kept.

    Returns:
        The app. Its lifespan ends with the requests that were to be carried out late: those are
        dropped. Under a server that offers no connection (see ``CONNECTION``), a reset raises
        ``ConnectionResetError`` and a refusal ``ConnectionRefusedError`` out of the app.
    """
    service, log = service or Service(), log or RequestLog()

    async def reset(request: StarletteRequest) -> StarletteResponse:
        if request.method != "POST":
            # Here, or the API would be asked, which answers that a key is missing.
            return JSONResponse({"status": "use POST"}, 405, {"allow": "POST"})
        try:
            service.reset()
        except OSError as error:
            return JSONResponse({"status": f"not saved: {error.strerror}"}, status_code=500)
        log.clear()
        return JSONResponse({"status": "ok"})

    endpoint = _Endpoint(service, latency, faults, sleep, log)
    routes = [
        Route("/health", _health, methods=["GET"]),
        Route(RESET_PATH, reset, methods=["POST", "GET", "PUT", "DELETE"]),
        Mount("/", app=endpoint),
    ]
    return Starlette(routes=routes, lifespan=endpoint.lifespan)


async def _health(_request: StarletteRequest) -> StarletteResponse:
    return JSONResponse({"status": "ok"})


class _Endpoint:
    def __init__(
        self,
        service: Service,
        latency: float,
        faults: FaultPlan | None,
        sleep: Sleep,
        log: RequestLog,
    ) -> None:
        self._service = service
        self._latency = latency
        self._faults = faults
        self._sleep = sleep
        self._log = log
        self._late: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            late = list(self._late)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = StarletteRequest(scope, receive)
        try:
            body = await _body(incoming)
        except ClientDisconnect:
            return
        request = Request(
            method=scope["method"],
            path=scope["path"],
            query=tuple(incoming.query_params.multi_items()),
            headers=dict(incoming.headers),
            body=body or b"",
        )
        if self._latency:
            await self._sleep(self._latency / 2)
        fault = None
        if body is None:
            outcome = Outcome(Sight.ANSWER, error_response(ApiError(413, _TOO_LARGE)))
        else:
            fault = None if self._faults is None else self._faults(request)
            outcome = carry_out(self._service, request, fault)
        self._log.add(LoggedRequest.of(request, fault, outcome))
        if outcome.late is not None:
            self._commit_later(request, outcome.late)
        wait = self._latency / 2 + (0.0 if outcome.sight is Sight.REFUSED else outcome.delay)
        if wait:
            await self._sleep(wait)
        await _perform(outcome, scope, receive, send)

    def _commit_later(self, request: Request, seconds: float) -> None:
        resets = self._service.resets

        async def commit() -> None:
            await self._sleep(seconds)
            self._service.handle_late(request, resets)

        task = asyncio.create_task(commit())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


async def _body(incoming: StarletteRequest) -> bytes | None:
    """Reads a body; None if it is larger than what is read.

    All of it is taken in all the same: a client that still writes would see a
    reset in place of the answer.
    """
    body = bytearray()
    size = 0
    async for chunk in incoming.stream():
        size += len(chunk)
        if size <= MAX_BODY:
            body += chunk
        else:
            body.clear()
    return bytes(body) if size <= MAX_BODY else None


async def _perform(outcome: Outcome, scope: Scope, receive: Receive, send: Send) -> None:
    connection = _connection(scope)
    match outcome.sight:
        case Sight.ANSWER:
            assert outcome.response is not None
            await _starlette(outcome.response)(scope, receive, send)
            return
        case Sight.TRUNCATED:
            assert outcome.response is not None
            await _send_part(outcome.response, outcome.cut, send)
            if connection is None:
                raise ConnectionResetError("the answer is cut short here")
            connection.close()
        case Sight.RESET:
            if connection is None:
                raise ConnectionResetError("the connection is reset here")
            connection.reset()
        case Sight.REFUSED:
            if connection is None:
                raise ConnectionRefusedError("the server goes away here")
            connection.refuse(outcome.delay)
        case Sight.SILENCE:
            pass
    # The server takes a request as ended well only once the connection is gone.
    while (await receive())["type"] != "http.disconnect":
        continue


def _connection(scope: Scope) -> Connection | None:
    state: Mapping[str, Any] = scope.get("state", {})
    connection: Connection | None = state.get(CONNECTION)
    return connection


def _starlette(response: Response) -> StarletteResponse:
    return StarletteResponse(response.body, response.status, dict(response.headers))


async def _send_part(response: Response, cut: int, send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": _starlette(response).raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": response.body[:cut], "more_body": True})
