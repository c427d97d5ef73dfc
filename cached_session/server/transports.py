"""What carries a client's requests, and what its errors prove.

A request was certainly not sent only if its transport sends each request once,
and says truly that it had no connection. httpx's own transport does. aiohttp's
repeats a request of some methods by itself when a kept connection breaks, and
the bridge to it calls a reset in the middle of an answer a connect timeout. A
transport that nobody knows may do either, and so may a client of a class of
its own.
"""

from __future__ import annotations

import sys
from enum import Enum, auto
from typing import Any

import httpx2
import openai
from openai import APIConnectionError, AsyncAzureOpenAI, AsyncOpenAI

# What the bridge is called: the class has no public name.
_BRIDGE = "openai._vendor.httpx_aiohttp.transport"

# Errors of the older httpx and its core bear the same names.
_BEFORE_SENDING = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)

# aiohttp's own, from `ClientSession._request` and its connector: of a name that
# is not resolved, a connection, TLS or tunnel that does not come about in time
# or at all. `ServerDisconnectedError` and `ClientOSError` are none of them.
_BEFORE_SENDING_AIOHTTP = frozenset(
    {
        "ClientConnectorError",
        "ClientConnectorCertificateError",
        "ClientHttpProxyError",
        "ConnectionTimeoutError",
    }
)

# RFC 9110, 9.2.2. aiohttp repeats these by itself on a connection that it kept.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class Carrier(Enum):
    """Who carries the requests of a client."""

    HTTPX = auto()
    """httpx's own transport, of either generation: each request is sent once."""
    AIOHTTP = auto()
    """The client's bridge to aiohttp: a DELETE may be sent twice."""
    UNKNOWN = auto()
    """Nobody knows: anything may have been sent, as often as it likes."""


def carrier(client: AsyncOpenAI) -> Carrier:
    """Who carries the requests of `client`.

    There is no public way to ask. Where a release keeps its transport somewhere
    else, or wraps it, nobody is known, which costs a listing, never an item.
    """
    http: Any = getattr(client, "_client", None)
    if type(client) not in (AsyncOpenAI, AsyncAzureOpenAI) or _resends(client, http):
        return Carrier.UNKNOWN
    mounts = getattr(http, "_mounts", {})
    transports = {getattr(http, "_transport", None), *mounts.values()}
    # A mount without a transport stands for the client's main one.
    kinds = {type(transport) for transport in transports if transport is not None}
    if _is_plain(http) and kinds and kinds <= set(_named("AsyncHTTPTransport")):
        return Carrier.HTTPX
    if type(http) is openai.DefaultAioHttpClient and all(
        transport is None or _is_plain_bridge(transport) for transport in transports
    ):
        return Carrier.AIOHTTP
    return Carrier.UNKNOWN


def _resends(client: AsyncOpenAI, http: Any) -> bool:
    """Whether something above the transport may send a request again."""
    # After a 401 with a new token; or as it likes.
    above = ("_workload_identity_auth", "_provider_runtime")
    # An authentication may take several requests. A password of a base URL,
    # which is sent at once, is none of it.
    return any(getattr(client, name, None) is not None for name in above) or (
        getattr(http, "auth", None) is not None
    )


def _named(name: str) -> list[type]:
    """The classes of that name in the httpx libraries that are loaded."""
    modules = (httpx2, sys.modules.get("httpx"))
    return [getattr(module, name) for module in modules if hasattr(module, name)]


def _is_plain(http: Any) -> bool:
    made_by_itself = type(http).__name__ == "AsyncHttpxClientWrapper"
    return made_by_itself or type(http) in (openai.DefaultAsyncHttpxClient, *_named("AsyncClient"))


def _is_plain_bridge(transport: Any) -> bool:
    # Middlewares may send again; so may a session of a class of its own.
    session: Any = getattr(transport, "client", None)
    return type(transport).__module__ == _BRIDGE and (
        session is None
        or (
            type(session).__module__ == "aiohttp.client"
            and not getattr(session, "_middlewares", ())
        )
    )


def never_sent(error: APIConnectionError, by: Carrier) -> bool:
    """Whether nothing of a request can have reached the server.

    Args:
        error: What the client raised.
        by: Who carried the request.
    """
    cause = error.__cause__
    # After a redirect the cause tells of another request; the first was sent.
    if by is Carrier.UNKNOWN or cause is None or _request_of(cause) is not error.request:
        return False
    # Whoever else raises an error of that name, such as an event hook, has no
    # reason of the transport's for it.
    reasons = type(cause.__cause__).__mro__
    if by is Carrier.AIOHTTP:
        return error.request.method not in _IDEMPOTENT and any(
            _root(reason) == "aiohttp" and reason.__name__ in _BEFORE_SENDING_AIOHTTP
            for reason in reasons
        )
    return type(cause).__name__ in _BEFORE_SENDING and any(
        _root(reason) in ("httpcore", "httpcore2") for reason in reasons
    )


def found_nobody(error: Exception) -> bool:
    """Whether a request failed at once for want of a connection.

    The server's host has no address, refuses to be connected to, or is not who
    it says. What merely took too long is none of it. This says nothing about
    what may have been sent: see `never_sent`.
    """
    return isinstance(error, APIConnectionError) and type(error.__cause__).__name__ in (
        "ConnectError",
        "ProxyError",
    )


def of_http_layer(error: Exception) -> bool:
    """Whether an exception comes from an HTTP library, whichever it is."""
    libraries = ("httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")
    return any(_root(kind) in libraries for kind in type(error).__mro__)


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _request_of(error: BaseException) -> object:
    try:
        return getattr(error, "request", None)
    except RuntimeError:
        return None  # httpx's errors raise it where no request was set
