"""Typed usage: what a checker must accept and infer. mypy and pyright read it, nobody runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never, assert_type

from agents import Agent, OpenAIConversationsSession, Runner, RunResult, TResponseInputItem
from agents.memory import Session, SessionSettings
from cryptography.fernet import Fernet
from openai import AsyncOpenAI

import cached_session.testing
from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    BacklogChanged,
    BacklogSummary,
    CachedSession,
    CachedSessionError,
    CacheStats,
    CallFinished,
    CallStarted,
    Cipher,
    ConversationBusy,
    ConversationCache,
    CopyEvicted,
    DeadlineExceeded,
    Event,
    LateCopyRemoved,
    LateCopySuspected,
    Left,
    MemoryOutbox,
    Observer,
    Outbox,
    OutboxAdmin,
    OutboxError,
    OutboxFull,
    OutboxPaused,
    OutboxUnavailable,
    PostgresOutbox,
    Reconciled,
    Relay,
    RequestFinished,
    RetryBudget,
    RetryPolicy,
    RetryScheduled,
    SendFinished,
    Sending,
    SendStarted,
    SessionClosed,
    SQLiteOutbox,
    StaleRead,
    Standing,
    Stats,
    TurnLost,
    UnexpectedAnswer,
    WaitingItem,
    fernet_cipher,
)
from cached_session.emulator import Emulator, FaultKind, Faults, Habits


def construct(client: AsyncOpenAI, wrapped: OpenAIConversationsSession) -> list[CachedSession]:
    """Every argument, and every form that it takes."""
    return [
        CachedSession(),
        CachedSession(wrapped),
        CachedSession(underlying_session=wrapped, max_staleness=0),
        CachedSession(conversation_id="conv_1", openai_client=client),
        CachedSession(session_settings=SessionSettings(limit=20)),
        CachedSession(session_settings={"limit": 20}),
        CachedSession(cache=ConversationCache(max_bytes=1_000_000, ttl=60)),
        CachedSession(retry=RetryPolicy(max_attempts=3, deadline=10, budget=RetryBudget(10, 1))),
        CachedSession(observer=print, max_staleness=1.5, stale_if_error=60),
        CachedSession(outbox=SQLiteOutbox("agent.db")),
        CachedSession(outbox=MemoryOutbox(), max_staleness=math.inf),
        CachedSession(outbox=None),
    ]


class Backwards:
    """A cipher of one's own."""

    def encrypt(self, data: bytes) -> bytes:
        """Turns it round."""
        return data[::-1]

    def decrypt(self, data: bytes) -> bytes:
        """Turns it back."""
        return data[::-1]


def outboxes(path: Path, cipher: Cipher | None) -> list[Outbox]:
    """All kinds, with every argument, and what they have in common."""
    return [
        SQLiteOutbox(
            path,
            max_items=1000,
            max_bytes=1_000_000,
            max_age=60,
            max_wait=0.5,
            max_window_bytes=0,
            account="prod",
            cipher=fernet_cipher("new", b"old"),
        ),
        SQLiteOutbox(path, cipher=Fernet(b"key")),
        SQLiteOutbox(path, cipher=Backwards()),
        PostgresOutbox(
            "postgresql://app@db/agents",
            account="prod",
            max_items=1000,
            max_bytes=1_000_000,
            max_age=60,
            max_wait=0.5,
            max_window_bytes=0,
            lease=10,
            keep_for=86_400,
            cipher=cipher,
        ),
        MemoryOutbox(max_items=1000, max_bytes=1_000_000, max_age=None, max_wait=0.5, account=None),
    ]


async def close(outbox: SQLiteOutbox, other: Outbox) -> Path:
    """What a caller does with an outbox itself."""
    left: Left = await outbox.aclose(timeout=5)
    if left or await other.aclose():
        assert_type(left.items, int)
        for one in left.conversations:
            assert_type((one.conversation_id, one.items, one.reason), tuple[str, int, str])
    return outbox.path


async def look_after(place: Path, client: AsyncOpenAI) -> None:
    """What somebody does who looks after an outbox, and sends what is left in it."""
    async with (
        OutboxAdmin("postgresql://app@db/agents"),
        OutboxAdmin(place, account="prod") as admin,
    ):
        assert_type(admin.outbox, Outbox)
        for one in await admin.backlogs():
            assert_type(one, BacklogSummary)
            assert_type((one.number, one.conversation_id, one.paused), tuple[int, str, str | None])
            await admin.move(one.number, one.address)
        assert_type((await admin.backlog("conv_1")).oldest, float | None)
        items = await admin.waiting(1)
        assert_type(items, list[WaitingItem])
        assert_type((items[0].item, items[0].data), tuple[dict[str, Any] | None, bytes | None])
        assert_type(await admin.export("conv_1", place), list[bytes])
        assert_type(await admin.retry(1), BacklogSummary)
        assert_type(await admin.discard(1), int)
        assert_type(await admin.move(1, "prod"), BacklogSummary)
        async with Relay(admin.outbox, client, retry=RetryPolicy(), observer=print) as relay:
            await relay.run(every=0.5, once=True)
            assert_type(await relay.standing(), Standing)
            await relay.aclose(grace=1)
            assert_type(relay.sent, int)


def takes_the_place_of(session: CachedSession) -> tuple[OpenAIConversationsSession, Session]:
    """It is what the SDK expects, as a class and as a protocol."""
    # pyright finds no session of the SDK's that has `session_id` as a property to be a `Session`,
    # whose protocol says attribute; its own OpenAIConversationsSession neither. mypy takes both.
    return session, session  # pyright: ignore[reportReturnType]


async def use(session: CachedSession, items: list[TResponseInputItem]) -> None:
    """Every method and what it returns."""
    assert_type(await session.get_items(), list[TResponseInputItem])
    assert_type(await session.get_items(limit=3), list[TResponseInputItem])
    await session.add_items(items)
    await session.add_items([{"role": "user", "content": "hello"}])
    assert_type(await session.pop_item(), TResponseInputItem | None)
    await session.clear_session()
    await session.refresh()
    await session.flush()
    await session.flush(5)
    await session.flush(timeout=0.5)
    await session.flush(None)
    async with session.turn(), session.turn(0), session.turn(wait=0.5) as nothing:
        assert_type(nothing, None)
    await session.aclose()
    assert_type(session.session_id, str)
    session.session_id = "conv_2"
    assert_type(session.local_name, str | None)
    async with session as entered:
        assert_type(entered, CachedSession)
    stats = session.stats
    assert_type(stats, Stats)
    assert_type(stats.hits + stats.misses + stats.requests + stats.retries, int)
    assert_type(
        stats.reconciliations + stats.items + stats.bytes + stats.waiting + stats.stale, int
    )
    assert_type(stats.waiting_bytes + stats.waiting_seconds, float)
    assert_type(stats.sending, Sending)
    assert_type(session.observe(print), Callable[[], None])


async def run(agent: Agent[None], session: CachedSession) -> RunResult:
    """The Runner takes it as it is."""
    # As above: it says the same of the SDK's own session.
    return await Runner.run(agent, "hello", session=session)  # pyright: ignore[reportArgumentType]


def whole_cache(cache: ConversationCache) -> CacheStats:
    """What a cache says of all its sessions, and drops."""
    assert_type(cache.invalidate("conv_1") + cache.clear() + cache.bytes + len(cache), int)
    stats = cache.stats
    assert_type(stats.hits + stats.misses + stats.evictions, int)
    assert_type(stats.conversations + stats.bytes, int)
    return stats


def watch() -> Observer:
    """An observer tells the events apart, and the checker knows when all are handled."""

    def observer(event: Event) -> None:
        match event:
            case CallStarted():
                assert_type(event.conversation_id, str | None)
            case CallFinished():
                assert_type(event.started, CallStarted)
                assert_type((event.hit, event.items), tuple[bool | None, int | None])
            case SendStarted():
                assert_type(event.calls, tuple[CallStarted, ...])
            case SendFinished():
                assert_type(event.started, SendStarted)
                assert_type(event.landed, int)
            case CopyEvicted():
                assert_type(event.bytes, int)
            case StaleRead():
                assert_type((event.seconds, event.error), tuple[float, str])
            case RequestFinished():
                assert_type(event.attempt, int)
                assert_type((event.status, event.request_id), tuple[int | None, str | None])
                assert_type(event.seconds, float)
                assert_type(event.error, str | None)
            case RetryScheduled():
                assert_type(event.delay, float)
            case Reconciled():
                assert_type(event.landed, int)
            case LateCopyRemoved():
                assert_type(event.item_id, str)
            case LateCopySuspected():
                assert_type(event.item_ids, tuple[str, ...])
            case AbandonedWriteFailed():
                assert_type(event.conversation_id, str)
            case BacklogChanged():
                assert_type(event.waiting, int)
                assert_type(event.error, str | None)
                told(event.state)
            case _:
                assert_never(event)

    return observer


def told(state: Sending) -> str:
    """The states are told apart by name; each is a str, too."""
    match state:
        case Sending.IDLE | Sending.SENDING | Sending.ELSEWHERE:
            return state
        case Sending.OFFLINE | Sending.PAUSED | Sending.FAILED:
            return state.upper()
        case _:
            assert_never(state)


def handle(error: Exception) -> int | None:
    """The errors, what they derive from, and what they carry."""
    match error:
        case AppendOutcomeUnknown():
            return error.total - error.landed
        case OutboxPaused():
            return error.waiting
        case OutboxFull() | OutboxUnavailable() | OutboxError():
            assert_type(error.conversation_id, str | None)
        case DeadlineExceeded() | SessionClosed() | TurnLost() | UnexpectedAnswer():
            assert_type(error.conversation_id, str | None)
        case ConversationBusy():
            assert_type(error.conversation_id, str | None)
        case CachedSessionError() | _:
            pass
    return None


BASES: tuple[type[TimeoutError], type[RuntimeError]] = (DeadlineExceeded, SessionClosed)
BUSY: type[TimeoutError] = ConversationBusy
OUTBOX_ERRORS: list[type[OutboxError]] = [OutboxFull, OutboxPaused, OutboxUnavailable]


async def emulate() -> list[dict[str, Any]]:
    """The emulator, with and without faults."""
    faults = Faults(1, {FaultKind.RESET_AFTER_COMMIT: 0.1, FaultKind.LOCKED: 0.1})
    async with Emulator(latency=0.05, faults=faults, habits=Habits(ids_rewritten=True)) as emulator:
        assert_type(emulator.base_url, str)
        assert_type([request.status for request in emulator.requests], list[int | None])
        return emulator.items("conv_1")


def misspelt() -> None:
    """A name that is not there is an error, although the names are imported when asked for."""
    assert cached_session.CachedSesion  # type: ignore[attr-defined]  # pyright: ignore
    assert cached_session.emulator.Emulater  # type: ignore[attr-defined]  # pyright: ignore
    assert cached_session.testing.apend  # type: ignore[attr-defined]  # pyright: ignore
