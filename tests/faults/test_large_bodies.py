"""Large items over a slow line: an attempt gets the time that its body takes. In virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from cached_session import CachedSession, ConversationCache, MemoryOutbox, RetryPolicy
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import LOST, Line, error
from tests.faults.virtual import now
from tests.simulation.network import as_httpx_own

RATE = 200_000
SIZE = 9_000_000


class Slow(httpx2.AsyncBaseTransport):
    """A line that carries so many bytes a second, in either direction."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        await asyncio.sleep(len(body) / RATE)
        response = await self._line.handle_async_request(request)
        await asyncio.sleep(len(response.content) / RATE)
        return response


async def opened(**options: Any) -> tuple[Line, CachedSession]:
    line = Line()
    conversation = line.conversation("before")
    session = CachedSession(
        conversation_id=conversation,
        openai_client=line.client(as_httpx_own(Slow(line))),
        cache=ConversationCache(),
        **options,
    )
    await session.get_items()
    line.asked()
    return line, session


@pytest.mark.parametrize("recorded", [False, True], ids=["delivered", "recorded"])
@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
async def test_nine_megabytes(recorded: bool, lost: bool) -> None:
    """An item of 9 MB lands over 200 kB/s with the defaults, sent once."""
    line, session = await opened(**({"outbox": MemoryOutbox()} if recorded else {}))
    if lost:
        line.on(is_append, LOST)
    began = now()
    await session.add_items([{"role": "user", "content": "x" * SIZE}])
    while session.stats.waiting:
        await asyncio.sleep(1)
        assert now() < began + 200
    assert line.asked() == ["append", "list"] if lost else ["append"]
    # There, and back in the answer or the listing.
    assert now() - began == pytest.approx(2 * SIZE / RATE, abs=2)
    assert len(line.texts(session.session_id)) == 2
    await session.aclose()


async def test_the_listing_that_looks_for_nine_megabytes() -> None:
    """A recorded item of 9 MB whose answer is lost is found by a later attempt, and sent once."""
    line, session = await opened(outbox=MemoryOutbox())
    line.on(is_append, LOST)
    line.on(is_listing, error(503))
    await session.add_items([{"role": "user", "content": "x" * SIZE}])
    while session.stats.waiting:
        await asyncio.sleep(1)
        assert now() < 200
    assert line.asked() == ["append", "list", "list"]
    assert len(line.texts(session.session_id)) == 2
    await session.aclose()


async def test_the_rate_bounds_it() -> None:
    """A body that goes slower than `slowest_rate` is given up in the end: a call is bounded."""
    retry = RetryPolicy(slowest_rate=10 * RATE, max_attempts=2, deadline=30.0)
    _, session = await opened(retry=retry)
    with pytest.raises(Exception, match=r"[Tt]imed out|could not be found out"):
        await session.add_items([{"role": "user", "content": "x" * SIZE}])
    assert now() < 30 + SIZE / (10 * RATE) + 1
