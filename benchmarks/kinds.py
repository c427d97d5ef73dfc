"""The kinds of session that are compared, and how each is opened and put away."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
from agents import OpenAIConversationsSession, SQLiteSession
from agents.memory import Session
from openai import AsyncOpenAI, OpenAIError

from benchmarks.sites import Site
from cached_session.cache import ConversationCache
from cached_session.errors import CachedSessionError
from cached_session.outbox import SQLiteOutbox
from cached_session.session import CachedSession

SDK, OURS = "OpenAIConversationsSession", "CachedSession"
OUTBOX = "CachedSession (outbox)"
MEMORY, FILE, REDIS = "SQLiteSession (memory)", "SQLiteSession (file)", "RedisSession"

REDIS_URL = "redis://127.0.0.1:6379/0"

_numbers = itertools.count(1)


class Counter:
    """Counts the requests of a client.

    Attributes:
        requests: How many were sent.
    """

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, _: httpx2.Request) -> None:
        """Counts one."""
        self.requests += 1


# Makes a session on a client; the id is that of an existing conversation.
MakeSession: TypeAlias = Callable[[AsyncOpenAI, str | None], Session]
Shelf: TypeAlias = Callable[[Site, Counter], AbstractAsyncContextManager["Make"]]
Make: TypeAlias = Callable[[], Session]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of session.

    Attributes:
        name: What figures call it.
        option: What the command line calls it.
        session: Makes one on a client, for the kinds that keep their items on
            the server; None for the others.
        shelf: Opens what its sessions share and puts all of them away at the
            end; inside, each call makes a new session.
    """

    name: str
    option: str
    session: MakeSession | None
    shelf: Shelf


def sdk_session(client: AsyncOpenAI, conversation_id: str | None = None) -> Session:
    """The session that the SDK brings."""
    return OpenAIConversationsSession(conversation_id=conversation_id, openai_client=client)


def cached_session(client: AsyncOpenAI, conversation_id: str | None = None) -> Session:
    """A session with a cache of its own: no figure profits from another's work."""
    return CachedSession(
        conversation_id=conversation_id,
        openai_client=client,
        cache=ConversationCache(max_bytes=1 << 30),
    )


def outbox_session(client: AsyncOpenAI, outbox: SQLiteOutbox) -> CachedSession:
    """A session that records what it appends, with a cache of its own."""
    return CachedSession(
        openai_client=client, cache=ConversationCache(max_bytes=1 << 30), outbox=outbox
    )


@asynccontextmanager
async def _by_outbox(site: Site, counter: Counter) -> AsyncIterator[Make]:
    made: list[CachedSession] = []
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as directory:
        outbox = SQLiteOutbox(Path(directory) / "outbox.db")
        async with site.client(counter) as client:

            def session() -> Session:
                made.append(outbox_session(client, outbox))
                return made[-1]

            try:
                yield session
            finally:
                await put_away(site, made)
                for one in made:
                    await one.aclose()
                await outbox.aclose(timeout=60)


def _remote(make: MakeSession) -> Shelf:
    @asynccontextmanager
    async def shelf(site: Site, counter: Counter) -> AsyncIterator[Make]:
        made: list[Session] = []
        async with site.client(counter) as client:

            def session() -> Session:
                made.append(make(client, None))
                return made[-1]

            try:
                yield session
            finally:
                await put_away(site, made)

    return shelf


async def put_away(site: Site, made: Iterable[Session]) -> None:
    """Deletes what sessions have stored; on an emulator it ends with the emulator."""
    for session in () if site.own else made:
        # A figure that fails says why, and not that it could not tidy up.
        with contextlib.suppress(OpenAIError, CachedSessionError):
            await session.clear_session()


@asynccontextmanager
async def _in_memory(_site: Site, _counter: Counter) -> AsyncIterator[Make]:
    made: list[SQLiteSession] = []

    def session() -> Session:
        made.append(SQLiteSession(f"bench {next(_numbers)}"))
        return made[-1]

    try:
        yield session
    finally:
        for one in made:
            one.close()


@asynccontextmanager
async def _in_a_file(_site: Site, _counter: Counter) -> AsyncIterator[Make]:
    made: list[SQLiteSession] = []
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as directory:
        path = Path(directory) / "sessions.db"

        def session() -> Session:
            made.append(SQLiteSession(f"bench {next(_numbers)}", path))
            return made[-1]

        try:
            yield session
        finally:
            for one in made:
                one.close()


@asynccontextmanager
async def _in_redis(_site: Site, _counter: Counter) -> AsyncIterator[Make]:
    from agents.extensions.memory import RedisSession

    made: list[Any] = []

    def session() -> Session:
        name = f"cached-session-bench-{next(_numbers)}"
        one: Session = RedisSession.from_url(name, url=REDIS_URL, ttl=3600)
        made.append(one)
        return one

    try:
        yield session
    finally:
        for one in made:
            await one.clear_session()
            await one.close()


KINDS = (
    Kind(SDK, "sdk", sdk_session, _remote(sdk_session)),
    Kind(OURS, "cached", cached_session, _remote(cached_session)),
    Kind(OUTBOX, "cached-outbox", None, _by_outbox),
    Kind(MEMORY, "sqlite-memory", None, _in_memory),
    Kind(FILE, "sqlite-file", None, _in_a_file),
    Kind(REDIS, "redis", None, _in_redis),
)


async def redis_answers() -> bool:
    """Whether the redis package is installed and a server answers on loopback."""
    try:
        from agents.extensions.memory import RedisSession
    except ImportError:
        return False
    session = RedisSession.from_url("cached-session-bench", url=REDIS_URL)
    try:
        return bool(await session.ping())
    finally:
        await session.close()
