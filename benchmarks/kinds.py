"""The kinds of session that are compared, and how each is opened and put away."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from agents import OpenAIConversationsSession, SQLiteSession
from agents.memory import Session
from openai import AsyncOpenAI, OpenAIError

from benchmarks.sites import Counter, Site
from cached_session import CachedSession, CachedSessionError, ConversationCache, SQLiteOutbox

SDK, OURS = "OpenAIConversationsSession", "CachedSession"
OUTBOX = "CachedSession (outbox)"
MEMORY, FILE, REDIS = "SQLiteSession (memory)", "SQLiteSession (file)", "RedisSession"

REDIS_URL = "redis://127.0.0.1:6379/0"

_numbers = itertools.count(1)
_S = TypeVar("_S")


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


def remote(name: str, option: str, make: MakeSession) -> Kind:
    """A kind that keeps its items on the server, and needs no more than a client."""

    @asynccontextmanager
    async def shelf(site: Site, counter: Counter) -> AsyncIterator[Make]:
        made: list[Session] = []
        async with site.client(counter) as client:
            try:
                yield lambda: _noted(made, make(client, None))
            finally:
                await put_away(site, made)

    return Kind(name, option, make, shelf)


@asynccontextmanager
async def outbox_sessions(
    site: Site, counter: Counter
) -> AsyncIterator[Callable[[], CachedSession]]:
    """Sessions that record what they append in one file, each with a cache of its own."""
    made: list[CachedSession] = []
    async with site.client(counter) as client, AsyncExitStack() as stack:
        outbox = SQLiteOutbox(stack.enter_context(new_file()))
        stack.push_async_callback(outbox.aclose, timeout=60)
        try:
            yield lambda: _noted(
                made,
                CachedSession(
                    openai_client=client, cache=ConversationCache(max_bytes=1 << 30), outbox=outbox
                ),
            )
        finally:
            await put_away(site, made)
            for one in made:
                await one.aclose()


async def put_away(site: Site, made: Iterable[Session]) -> None:
    """Deletes what sessions have stored; on an emulator it ends with the emulator."""
    for session in () if site.own else made:
        # A figure that fails says why, and not that it could not tidy up.
        with contextlib.suppress(OpenAIError, CachedSessionError):
            await session.clear_session()


def _noted(made: list[_S], session: _S) -> _S:
    made.append(session)
    return session


@contextmanager
def new_file() -> Iterator[Path]:
    """A place for a file, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as directory:
        yield Path(directory) / "sessions.db"


def _sqlite(place: Callable[[], AbstractContextManager[Path | str]]) -> Shelf:
    @asynccontextmanager
    async def shelf(_site: Site, _counter: Counter) -> AsyncIterator[Make]:
        made: list[SQLiteSession] = []
        with place() as path:
            try:
                yield lambda: _noted(made, SQLiteSession(f"bench {next(_numbers)}", path))
            finally:
                for one in made:
                    one.close()

    return shelf


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


KIND_SDK = remote(SDK, "sdk", sdk_session)
KIND_OURS = remote(OURS, "cached", cached_session)
KIND_MEMORY = Kind(
    MEMORY, "sqlite-memory", None, _sqlite(lambda: contextlib.nullcontext(":memory:"))
)
KIND_FILE = Kind(FILE, "sqlite-file", None, _sqlite(new_file))
KINDS = (
    KIND_SDK,
    KIND_OURS,
    Kind(OUTBOX, "cached-outbox", None, outbox_sessions),
    KIND_MEMORY,
    KIND_FILE,
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
