"""Which connections a request goes over, and under whose account.

An HTTP connection belongs to the event loop that opened it. A client that is
used from a second loop (another `asyncio.run`, another thread) finds the first
loop's connections in its pool and fails on them with "Event loop is closed",
after the request may have left. So every loop gets a connection pool of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import httpx2
from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient

from cached_session.forks import Lock, in_child, keep

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


_lock = Lock()
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
        if found is not None:
            return found
        found = _connections[client] = Connections()
        # Nothing tells when an owner closes a client either, and it may not be
        # collected for long. One at most is left open for that.
        closed = [pools for other, pools in list(_connections.items()) if other.is_closed()]
    for pools in closed:
        pools.let_go()
    return found


class Pool:
    """What one event loop sends a client's requests over.

    Attributes:
        client: The client to send them with.
    """

    def __init__(self, client: AsyncOpenAI, http: httpx2.AsyncClient | None = None) -> None:
        """Makes one.

        Args:
            client: The user's.
            http: The pool's own, on whose connections the requests go; None: the client's own.
        """
        # Only now: it builds on what httpx itself loads when a client first connects.
        from cached_session.server.sockets import Sockets

        self._http = http
        self._settings = settings(client)
        self._sockets = Sockets(check_may_be_written)
        self.client: AsyncOpenAI = client
        if http is not None:
            self.client = client.with_options(http_client=http)
            self._sockets.serve(http)
            # Nothing else refers to the pool than who sends over it. So its
            # sockets are closed when the last one lets go of it.
            weakref.finalize(self, self._sockets.close)

    def close(self) -> None:
        """Closes what is open; its loop must not run any more."""
        self._sockets.close()

    def follow(self, client: AsyncOpenAI) -> None:
        """Takes over what was changed on the user's client."""
        if self._http is not None and self._settings != settings(client):
            self._settings = settings(client)
            self.client = client.with_options(http_client=self._http)


class Connections:
    """The pools of one openai client, one an event loop.

    They live as long as the client and the loop, whatever sessions come and go.
    Holds no reference to the client, which it is looked up by, weakly, nor to a
    loop. Nothing tells when a loop is closed by hand. So the pool of a closed
    one goes when the loop is collected, or when another loop needs one. That
    takes no loop: see `Sockets`.
    """

    def __init__(self) -> None:
        self._begin()
        in_child(self, Connections._begin_anew)

    def _begin(self) -> None:
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def _begin_anew(self) -> None:
        """In a forked child: what is open is the parent's."""
        keep([*self._pools.values()])
        self._begin()

    def pool(self, client: AsyncOpenAI) -> Pool:
        """The running loop's pool. Whoever sends over it refers to it until the answer is there.

        A client that was given an `http_client`, or is of a class of its own,
        is used as it is: its transport and its making are the caller's, and so
        is keeping it on one loop.

        Once its owner has closed the client, each request has a connection of
        its own. So what an outbox accepted through it is still sent, and
        nothing stays open.
        """
        if type(client) not in _OWN_CLASSES or not _has_default_http(client):
            return Pool(client)
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.get(loop)
        if pool is None or client.is_closed():
            pool = Pool(client, DefaultAsyncHttpxClient(verify=_ssl_context()))
            self._bury()
            if not client.is_closed():
                with self._lock:
                    self._pools[loop] = pool
        pool.follow(client)
        return pool

    def let_go(self) -> None:
        """Forgets all pools; each is closed when nobody sends over it any more."""
        with self._lock:
            self._pools.clear()

    def _bury(self) -> None:
        """Closes the pools of closed loops, where a request that hangs there may refer to one."""
        with self._lock:
            dead = [self._pools.pop(loop) for loop in list(self._pools) if loop.is_closed()]
        for pool in dead:
            pool.close()


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


# What may not be sent any more when it comes to it


class NotOurs(Exception):
    """What was to be written is another process's to send by now; nothing more was written."""


# Tells for how many seconds what the present task writes is this process's to send.
_left: ContextVar[Callable[[], float] | None] = ContextVar("cached_session_left", default=None)


@contextlib.contextmanager
def writing_while(left: Callable[[], float] | None) -> Iterator[None]:
    """Nothing is written in here when `left` is 0, as far as it goes over these sockets.

    Between the decision to send and the first byte a process may be stopped for as long as it
    likes: only the last step before the socket can tell.
    """
    token = _left.set(left)
    try:
        yield
    finally:
        _left.reset(token)


def check_may_be_written() -> None:
    """Called right before bytes are written.

    Raises:
        NotOurs: They may not be.
    """
    left = _left.get()
    if left is not None and not left():
        raise NotOurs
