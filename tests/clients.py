"""Every HTTP client that openai-python takes, and one whose transport lies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Literal, get_args

import httpx2
from openai import AsyncOpenAI, DefaultAioHttpClient

HttpKind = Literal["default", "aiohttp", "own", "lying", "legacy", "subclass"]
"""Which HTTP client an openai client has: the one that it makes by itself, the
one over aiohttp, a caller's own of httpx2, one of those over a transport that
lies, a caller's own of the older httpx. `subclass`: a client of a class of its own."""

HTTP_KINDS: tuple[HttpKind, ...] = get_args(HttpKind)


class Lying(httpx2.AsyncBaseTransport):
    """Says that it had no connection, whatever went wrong, and sends a DELETE again by itself."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        for last in (request.method != "DELETE", True):
            try:
                response = await self._transport.handle_async_request(request)
                await response.aread()
            except httpx2.TransportError as error:
                if last:
                    raise httpx2.ConnectTimeout("no connection", request=request) from error
            else:
                return response
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        await self._transport.aclose()


class OwnClient(AsyncOpenAI):
    """A client of somebody's own class."""


@contextlib.asynccontextmanager
async def openai_client(
    kind: HttpKind, base_url: str, timeout: float
) -> AsyncIterator[AsyncOpenAI]:
    """An openai client over an HTTP client of that kind."""
    # The SDK's session gets the client's own retries, as a user's would.
    async with _make(kind, base_url, timeout) as client:
        yield client


def _make(kind: HttpKind, base_url: str, timeout: float) -> AsyncOpenAI:
    made = OwnClient if kind == "subclass" else AsyncOpenAI
    http: object = None
    match kind:
        case "aiohttp":
            http = DefaultAioHttpClient()
        case "own":
            http = httpx2.AsyncClient(trust_env=False)
        case "lying":
            http = httpx2.AsyncClient(transport=Lying(httpx2.AsyncHTTPTransport()), trust_env=False)
        case "legacy":
            import httpx

            http = httpx.AsyncClient(trust_env=False)
    return made(base_url=base_url, api_key="key", timeout=timeout, http_client=http)  # type: ignore[arg-type]  # the older httpx is taken, too
