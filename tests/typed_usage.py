"""Typed usage: what a checker must accept and infer. mypy reads this file, and nobody runs it."""

from __future__ import annotations

from typing import Any, assert_type

from agents import Agent, OpenAIConversationsSession, Runner, RunResult, TResponseInputItem
from agents.memory import Session, SessionSettings
from openai import AsyncOpenAI

from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    ConversationCache,
    DeadlineExceeded,
    Event,
    LateCopyRemoved,
    Observer,
    Reconciled,
    RequestFinished,
    RetryBudget,
    RetryPolicy,
    RetryScheduled,
    SessionClosed,
    Stats,
    TurnLost,
    UnexpectedAnswer,
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
        CachedSession(observer=print, max_staleness=1.5),
    ]


def takes_the_place_of(session: CachedSession) -> tuple[OpenAIConversationsSession, Session]:
    """It is what the SDK expects, as a class and as a protocol."""
    return session, session


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
    await session.aclose()
    assert_type(session.session_id, str)
    session.session_id = "conv_2"
    async with session as entered:
        assert_type(entered, CachedSession)
    stats = session.stats
    assert_type(stats, Stats)
    assert_type(stats.hits + stats.misses + stats.requests + stats.retries, int)
    assert_type(stats.reconciliations + stats.items + stats.bytes, int)


async def run(agent: Agent[None], session: CachedSession) -> RunResult:
    """The Runner takes it as it is."""
    return await Runner.run(agent, "hello", session=session)


def watch() -> Observer:
    """An observer tells the events apart, and the checker knows when all are handled."""

    def observer(event: Event) -> None:
        match event:
            case RequestFinished():
                assert_type(event.seconds, float)
                assert_type(event.error, str | None)
            case RetryScheduled():
                assert_type(event.delay, float)
            case Reconciled():
                assert_type(event.landed, int)
            case LateCopyRemoved():
                assert_type(event.item_id, str)
            case AbandonedWriteFailed():
                assert_type(event.conversation_id, str)

    return observer


def handle(error: Exception) -> int | None:
    """The errors, what they derive from, and what they carry."""
    match error:
        case AppendOutcomeUnknown():
            return error.total - error.landed
        case DeadlineExceeded() | SessionClosed() | TurnLost() | UnexpectedAnswer():
            assert_type(error.conversation_id, str | None)
        case CachedSessionError():
            pass
    return None


BASES: tuple[type[TimeoutError], type[RuntimeError]] = (DeadlineExceeded, SessionClosed)


async def emulate() -> list[dict[str, Any]]:
    """The emulator, with and without faults."""
    faults = Faults(1, {FaultKind.RESET_AFTER_COMMIT: 0.1, FaultKind.LOCKED: 0.1})
    async with Emulator(latency=0.05, faults=faults, habits=Habits(ids_rewritten=True)) as emulator:
        assert_type(emulator.base_url, str)
        assert_type([request.status for request in emulator.requests], list[int | None])
        return emulator.items("conv_1")
