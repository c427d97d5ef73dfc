"""Context variables, such as those of tracing: whose they are where a request is sent."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from openai import DefaultAsyncHttpxClient

from cached_session import CachedSession, Outbox
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client, texts, users

caller = contextvars.ContextVar[str]("caller", default="nobody")


class Noting:
    """A client that notes in whose context each append is sent."""

    def __init__(self, emulator: Emulator) -> None:
        self.callers: list[str] = []
        hooks = {"request": [self._note]}
        self.client = new_client(emulator, http_client=DefaultAsyncHttpxClient(event_hooks=hooks))

    async def _note(self, request: Any) -> None:
        if request.method == "POST":
            self.callers.append(caller.get())

    async def append(self, session: CachedSession, text: str) -> None:
        caller.set(text)
        await session.add_items(users(text))


async def test_what_is_sent_for_all_is_in_nobodys_context(
    outbox: Outbox, emulator: Emulator
) -> None:
    """What an outbox sends shows no caller's context variables, neither the first's nor its own."""
    noting = Noting(emulator)
    async with noting.client as client:
        conversation = Elsewhere(emulator).conversation()
        async with CachedSession(
            conversation_id=conversation, openai_client=client, outbox=outbox
        ) as session:
            await asyncio.gather(*(noting.append(session, text) for text in "abc"))
            await session.flush()
            caller.set("later")
            await noting.append(session, "d")
            await session.flush()
        assert texts(emulator.items(conversation)) == [*"abcd"]
    assert set(noting.callers) == {"nobody"}


async def test_what_is_sent_for_one_caller_is_in_its_context(emulator: Emulator) -> None:
    """Without an outbox an append is sent in the context of whoever appends."""
    noting = Noting(emulator)
    async with noting.client as client:
        conversation = Elsewhere(emulator).conversation()
        session = CachedSession(conversation_id=conversation, openai_client=client)
        await asyncio.gather(*(noting.append(session, text) for text in "abc"))
        await session.aclose()
    assert noting.callers == [*"abc"]
