"""Which connections a request goes over, and under whose account.

An HTTP connection belongs to the event loop that opened it. A client that is
used from a second loop (another `asyncio.run`, another thread) finds the first
loop's connections in its pool and fails on them with "Event loop is closed",
after the request may have left. So every loop gets a connection pool of its own.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import ssl
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator
from typing import NamedTuple

import httpx2
from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient

_OWN_CLASSES = (AsyncOpenAI, AsyncAzureOpenAI)


class Account(NamedTuple):
    """Whose conversations these are. Copies are never shared across accounts.

    Attributes:
        base_url: The API's base URL.
        organization: The organisation's id, or None.
        project: The project's id, or None.
        credentials: A digest of the API key and of the headers that the client
            adds; never the key itself.
        fixed: Whether the credentials mean the same account in another process.
    """

    base_url: str
    organization: str | None
    project: str | None
    credentials: str
    fixed: bool


_lock = threading.Lock()
_numbers = itertools.count()
_unnamed: weakref.WeakKeyDictionary[AsyncOpenAI, str] = weakref.WeakKeyDictionary()
_connections: weakref.WeakKeyDictionary[AsyncOpenAI, Connections] = weakref.WeakKeyDictionary()


def settings(client: AsyncOpenAI) -> tuple[object, ...]:
    """What of a client decides where its requests go, cheap to compare.

    A key that the client fetches or makes anew is not part of it.
    """
    return (
        _fixed_key(client),
        client.base_url,
        client.organization,
        client.project,
    )


def _fixed_key(client: AsyncOpenAI) -> str | None:
    """The key that a client was given; None: it fetches one, or its class makes it at each look."""
    # A provider's token lands in `api_key`, too. That there is a provider is
    # told by a private attribute only; a release without it would make such a
    # client's copies short-lived, not shared.
    if getattr(client, "_api_key_provider", None) is not None:
        return None
    # Not by looking at it: a property may make a token, or say the same for an hour.
    return vars(client).get("api_key")


def account(client: AsyncOpenAI) -> Account:
    """The account that `client` speaks for.

    A client without a fixed key (a key provider, a property that makes a token,
    workload identity, an Azure token), or whose headers or query are others at
    a second look, shows nothing that tells its account from another's, so it is
    an account of its own.
    """
    digest = hashlib.blake2b(digest_size=16)
    key = _fixed_key(client)
    fixed = bool(key is not None and not key.startswith("<") and client.auth_headers)
    shown = _shown(client) if fixed else b""
    fixed = fixed and shown == _shown(client)
    if fixed:
        digest.update(shown)
    else:
        with _lock:
            token = _unnamed.setdefault(client, f"client {next(_numbers)}")
        digest.update(token.encode())
    return Account(
        str(client.base_url), client.organization, client.project, digest.hexdigest(), fixed
    )


def _shown(client: AsyncOpenAI) -> bytes:
    """What a client adds to its requests that tells whose they are."""
    parts = [
        f"{name}\0{value}\0"
        for name, value in sorted({**client.default_headers, **client.auth_headers}.items())
        # Headers to be left out are no strings.
        if isinstance(value, str) and not _says_which_software(name.lower())
    ]
    return "".join([*parts, repr(sorted(client.default_query.items()))]).encode()


def _says_which_software(header: str) -> bool:
    # The client's own headers change with its version; an account does not.
    return header in ("user-agent", "accept", "content-type") or header.startswith("x-stainless-")


def connections(client: AsyncOpenAI) -> Connections:
    """The connection pools made for `client`, the same object at every call."""
    with _lock:
        found = _connections.get(client)
        if found is None:
            found = _connections[client] = Connections()
        return found


class _Bound(NamedTuple):
    """One event loop's pool, and the client that uses it."""

    client: AsyncOpenAI
    http: httpx2.AsyncClient
    settings: tuple[object, ...]
    closer: AsyncGenerator[None, None]


class Connections:
    """The pools of one openai client, one an event loop.

    Holds no reference to the client: it is looked up by the client, weakly.
    """

    def __init__(self) -> None:
        self._bound: dict[asyncio.AbstractEventLoop, _Bound] = {}
        self._lock = threading.Lock()
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        """The open sessions that use these pools."""

    async def client(self, client: AsyncOpenAI) -> AsyncOpenAI:
        """`client`, on the running loop's own connections.

        A client that was given an `http_client`, or is of a class of its own,
        is used as it is: its transport and its making are the caller's, and so
        is keeping it on one loop.
        """
        if type(client) not in _OWN_CLASSES or not _has_default_http(client):
            return client
        loop = asyncio.get_running_loop()
        bound = self._bound.get(loop)
        if bound is None:
            http = DefaultAsyncHttpxClient(verify=_ssl_context())
            closer = _close_with(weakref.ref(self), loop, http)
            # An async generator that has started is closed by its loop when
            # the loop shuts down. Nothing else runs at that moment in every
            # kind of program, and a pool that stays open then can never be
            # closed: its loop is gone.
            with warnings.catch_warnings():
                # `Runner.run_sync` shuts the generators of its loop down after
                # every run and goes on with the loop. The loop then warns of
                # each new one, and closes it at the end of the next run.
                warnings.filterwarnings("ignore", "asynchronous generator", ResourceWarning)
                await anext(closer)
            bound = _Bound(client.with_options(http_client=http), http, settings(client), closer)
            with self._lock:
                for other in [other for other in self._bound if other.is_closed()]:
                    del self._bound[other]
                self._bound[loop] = bound
        elif bound.settings != settings(client):
            bound = bound._replace(
                client=client.with_options(http_client=bound.http), settings=settings(client)
            )
            with self._lock:
                self._bound[loop] = bound
        return bound.client

    def drop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forgets a loop's pool, which is being closed."""
        with self._lock:
            self._bound.pop(loop, None)

    async def close(self) -> None:
        """Closes the running loop's pool; a later request opens a new one."""
        with self._lock:
            bound = self._bound.pop(asyncio.get_running_loop(), None)
        if bound is not None:
            await bound.closer.aclose()


async def _close_with(
    owner: weakref.ref[Connections], loop: asyncio.AbstractEventLoop, http: httpx2.AsyncClient
) -> AsyncGenerator[None, None]:
    # Refers to its owner weakly: a cycle would leave the pool to the garbage
    # collector, which does not close it first.
    try:
        yield
    finally:
        connections = owner()
        if connections is not None:
            connections.drop(loop)
        await http.aclose()


def _has_default_http(client: AsyncOpenAI) -> bool:
    # The client has no public way to tell whether it was given an HTTP client.
    # The class that it makes by itself is looked for by name: where a release
    # renames it, the client is used as it is, and a test on both ends of the
    # supported range says so.
    return type(getattr(client, "_client", None)).__name__ == "AsyncHttpxClientWrapper"


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # Reading the certificates takes 20 ms, too long to do for every event loop.
    return httpx2.create_ssl_context()
