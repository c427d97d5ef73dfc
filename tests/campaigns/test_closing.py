"""Closing a session whose last write lost its answers."""

from __future__ import annotations

import pytest
from openai import APIConnectionError, AsyncOpenAI

from cached_session import CachedSession, ConversationCache, RetryPolicy
from cached_session.emulator import Emulator, FaultKind, Faults

POLICY = RetryPolicy(
    max_attempts=2, deadline=5.0, attempt_timeout=2.0, initial_delay=0.005, max_delay=0.01
)


async def test_close_after_a_clear_that_came_through() -> None:
    """A session whose clear took effect without an answer closes without an error."""
    with Emulator() as emulator:
        async with AsyncOpenAI(base_url=emulator.base_url, api_key="key") as client:
            session = CachedSession(openai_client=client, cache=ConversationCache(), retry=POLICY)
            await session.add_items([{"role": "user", "content": "a"}])
            conversation = session.session_id
            emulator.faults = Faults(0, {FaultKind.RESET_AFTER_COMMIT: 1.0})
            with pytest.raises(APIConnectionError):
                await session.clear_session()
            emulator.faults = None
            with pytest.raises(LookupError):
                emulator.items(conversation)
            await session.aclose()
