"""Calls to an engine whose answers are lost, which come late, or which it never hears of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    OutboxError,
    OutboxUnavailable,
    PostgresOutbox,
)
from cached_session.emulator import Emulator
from cached_session.outbox.postgres import outbox as module
from tests.campaigns.plan import fresh
from tests.outbox_sessions.support import Process, raised, until, words
from tests.postgres import Server
from tests.proxy import Fate, Proxy, before, once
from tests.session.support import Elsewhere, texts, users


@pytest.fixture
def address(postgres: Server) -> str:
    """A database of the test's own."""
    return postgres.with_tables()


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    """Somebody between the workers and the server."""
    with before(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an engine that stays away."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)


def through(proxy: Proxy, address: str, **more: Any) -> PostgresOutbox:
    """An outbox that comes to a database by a proxy."""
    place = psycopg.conninfo.make_conninfo(address, port=proxy.port, connect_timeout=2)
    return PostgresOutbox(place, **more)


async def waiting(session: CachedSession, emulator: Emulator) -> list[str]:
    """What there is in the end, where a new read and the server agree on it."""
    await session.flush()
    shown = texts(await session.get_items())
    assert shown == texts(emulator.items(session.session_id))
    return shown


@pytest.mark.parametrize("fate", [Fate.SWALLOW, Fate.DISOWN])
async def test_answers_are_lost(
    fate: Fate,
    address: str,
    proxy: Proxy,
    emulator: Emulator,
    tell: Callable[[str], None],
) -> None:
    """Each call to the engine that was done and not answered is done once, and its result told."""
    rng = random.Random(seed := fresh("lost answers", tell))
    lost = 0

    def rule(data: bytes) -> Fate:
        nonlocal lost
        # What connects, or asks what became of a call, is not lost each time.
        if b"cached_session." not in data or rng.random() < 0.5:
            return Fate.PASS
        lost += 1
        return fate

    expected: list[str] = []
    async with Process(emulator, through(proxy, address)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()
        proxy.rule = rule
        number = 0
        while lost < 150:
            for _ in range(rng.randint(1, 4)):
                more = [str(number := number + 1) for _ in range(rng.randint(1, 3))]
                await session.add_items(users(*more))
                expected += more
            if rng.random() < 0.5:
                popped = await session.pop_item()
                assert popped is not None, seed
                assert words([popped]) == [expected.pop()], seed
            if rng.random() < 0.3:
                assert texts(await session.get_items(5)) == expected[-5:], seed
            if rng.random() < 0.1:
                await session.clear_session()
                expected.clear()
                session = process.session(Elsewhere(emulator).conversation())
        proxy.rule = lambda _: Fate.PASS
        assert await waiting(session, emulator) == expected, seed
