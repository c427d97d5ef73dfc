"""What a failed request means: refused for certain, or unknown.

The table of this module in words. *Refused*: there was provably never a
connection; any 4xx but 408 in the service's own envelope.
*Unknown*: everything else, from a timeout to an exception nobody expected, and
any 4xx of somebody in between, who may have passed the request on before.
Whether repeating may help is a second question, with an answer of its own.

What an error of the client proves depends on who carried the request. It was
certainly not sent only if its transport sends each request once, and says truly
that it had no connection. httpx's own transport does. aiohttp's repeats a
request of some methods by itself when a kept connection breaks, and the bridge
to it calls a reset in the middle of an answer a connect timeout. A transport
that nobody knows may do either, and so may a client of a class of its own.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import httpx2
import openai
from openai import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    NotFoundError,
    OpenAIError,
)

from cached_session.core.outcomes import Refused, Unknown

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
    if isinstance(error, ClientClosed):
        return True
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
    it says; or the client is closed. What merely took too long is none of it.
    This says nothing about what may have been sent: see `never_sent`.
    """
    names = ("ConnectError", "ProxyError")
    return isinstance(error, ClientClosed) or (
        isinstance(error, APIConnectionError) and type(error.__cause__).__name__ in names
    )


def is_away(error: Exception) -> bool:
    """Whether an error says that the server cannot be asked at present, whoever asks.

    There was no answer, or a 5xx, or a 429 that time helps. All else is an answer.
    """
    if isinstance(error, APIStatusError):
        return error.status_code >= 500 or (error.status_code == 429 and _retryable(error))
    # One without a cause was about a header: see `classify`.
    causes = (type(None).__name__, "UnsupportedProtocol")
    return isinstance(error, APIConnectionError) and type(error.__cause__).__name__ not in causes


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


# Codes and types of a 429 after which nothing gets better until the user acts:
# the account has no credit, is at a limit that somebody has set, or is closed.
# Sources: OpenAI's help pages and answers quoted in public bug reports (quota,
# billing, deactivated accounts); the credit and spend codes are known from others'
# reports of OpenAI's guide to error codes only.
_USER_HAS_TO_ACT = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
    }
)

# Statuses worth repeating, as the openai client has them (measured). 425 is
# "too early": the server asks for exactly that.
_RETRYABLE = frozenset({408, 409, 425, 429})


class ClientClosed(APIConnectionError):
    """The client's own HTTP client was closed by its owner. Nothing was sent."""

    def __init__(self, method: str, url: str) -> None:
        super().__init__(
            message="the openai client's http_client is closed, and nothing was sent by this "
            "request. Give the session a client that is open, or close it after the session.",
            request=httpx2.Request(method, url),
        )


def as_openai_error(error: Exception, method: str, url: str) -> Exception:
    """Gives a caller who handles the client's exceptions one of those.

    A timeout around the client, and what a transport raises that the client
    does not know, become `APITimeoutError` and `APIConnectionError`.
    """
    wrapped: Exception
    if isinstance(error, TimeoutError):
        wrapped = APITimeoutError(request=httpx2.Request(method, url))
    elif isinstance(error, OpenAIError):
        return error
    elif isinstance(error, OSError | RuntimeError) or of_http_layer(error):
        wrapped = APIConnectionError(request=httpx2.Request(method, url))
    else:
        return error
    wrapped.__cause__ = error
    return wrapped


def classify(error: Exception, by: Carrier = Carrier.UNKNOWN) -> Refused | Unknown:
    """The outcome that an exception of the client stands for.

    Args:
        error: What the openai client, its HTTP layer or a timeout raised.
        by: Who carried the request.

    Returns:
        The outcome, with `error` as the caller is to see it.
    """
    if isinstance(error, APIStatusError):
        return _by_status(error)
    if "Illegal header" in str(error.__cause__) or isinstance(error, UnicodeError):
        # A header that HTTP cannot carry, such as a key with a line break.
        # The cause is cut off: its text quotes the header.
        error.__cause__, error.__suppress_context__ = None, True
        error.add_note("the request could not be written as HTTP; look at the API key and headers")
        return Refused(error, retryable=False)
    if isinstance(error, APIConnectionError):
        if type(error.__cause__).__name__ == "UnsupportedProtocol":
            # A base URL that was changed, or a redirect to one of another kind.
            error.add_note("no request was made of this URL; look at the client's base_url")
            return (Refused if never_sent(error, by) else Unknown)(error, retryable=False)
        if never_sent(error, by):
            return Refused(error, retryable=True)
        return Unknown(error, retryable=True)
    if isinstance(error, APIResponseValidationError):
        # An answer that cannot be read. To a request that a redirect made
        # another one, the next answer would be no better.
        answer = error.response
        asked = answer.history[0].request if answer.history else answer.request
        return Unknown(error, retryable=asked.method == answer.request.method)
    if isinstance(error, OpenAIError) and not isinstance(error, APIError):
        # The client itself gave up before sending: no credentials, say.
        return Refused(error, retryable=False)
    # A bug, or an exception that nobody expected: the request may have left.
    return Unknown(error, retryable=False)


def _by_status(error: APIStatusError) -> Refused | Unknown:
    status, headers = error.status_code, error.response.headers
    delay = retry_delay(headers)
    retryable = _retryable(error)
    # A proxy may say 408 after it passed the request on, in whatever words.
    if 400 <= status < 500 and status != 408 and is_own(error):
        return Refused(error, retryable, delay)
    return Unknown(error, retryable, delay)


def _retryable(error: APIStatusError) -> bool:
    # The server's own word counts before everything (not a standard header;
    # measured on the openai client).
    asked = error.response.headers.get("x-should-retry")
    if asked in ("true", "false"):
        return asked == "true"
    if is_locked(error):
        return True
    if error.status_code == 429:
        return _USER_HAS_TO_ACT.isdisjoint((error.code, error.type))
    return error.status_code in _RETRYABLE or error.status_code >= 500


def is_own(error: APIStatusError) -> bool:
    """Whether an answer is the service's own: in the envelope that its errors have (recorded).

    A firewall, a proxy or a wrong base URL answers in other words, and may have
    passed the request on before. One that writes the same envelope cannot be
    told from the service.
    """
    try:
        body = json.loads(error.response.content)
    except (ValueError, RecursionError, httpx2.StreamError):
        return False
    inner = _field(body, "error")
    return isinstance(_field(inner, "message"), str) and isinstance(_field(inner, "type"), str)


def says_gone(error: Exception) -> bool:
    """Whether the service says that what was asked for is not there."""
    return isinstance(error, NotFoundError) and is_own(error)


def is_locked(error: Exception) -> bool:
    """Whether another process is operating on the conversation (public reports)."""
    return isinstance(error, APIStatusError) and "conversation_locked" in (
        error.code,
        _field(error.body, "code"),
        _field(error.body, "type"),
    )


def is_duplicate_id(error: Exception) -> bool:
    """Whether an append was refused because its ids stand there already (recorded)."""
    return isinstance(error, APIStatusError) and error.code == "item_already_in_conversation"


def is_unknown_cursor(error: Exception) -> bool:
    """Whether a listing was refused because its `after` is gone (recorded)."""
    return isinstance(error, APIStatusError) and error.status_code == 404 and error.param == "after"


def smaller_page(error: Exception, size: int) -> int | None:
    """The size to ask for next, where a page of `size` items was refused as too large, or None.

    The largest one that is allowed, if the refusal names it; or else half of it.
    """
    if not isinstance(error, APIStatusError) or error.status_code not in (400, 422) or size < 2:
        return None
    said = f"{error.message} {error.body}"
    if error.param != "limit" and not re.search(r"\blimit\b", said):
        return None
    # "Expected a value <= 50": the service's own words (recorded, for 100).
    told = re.search(r"<= ?(\d{1,6})\b", said)
    if told is not None and 1 <= int(told[1]) < size:
        return int(told[1])
    named = [int(number) for number in re.findall(r"\b\d{1,6}\b", said)]
    return max((number for number in named if 1 < number < size), default=size // 2)


def _field(body: object, name: str) -> Any:
    return body.get(name) if isinstance(body, Mapping) else None


def retry_delay(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait, in seconds, or None.

    `retry-after-ms` counts before `retry-after`, which may be seconds or a
    date, as in the openai client (measured).
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            delay = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(delay) and delay >= 0:
            return delay
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None:
        return None
    try:
        # A date can only be compared with the calendar's clock.
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):
        return None
