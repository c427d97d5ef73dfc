"""Keys and contents of items stand in no log line, error text, note, event or repr."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    ConversationCache,
    RetryPolicy,
    SessionClosed,
)
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from tests.faults.line import notes
from tests.session.support import Elsewhere, new_client

KEY = "sk-secret-key"
CONTENT = "secret-content"
ITEM: Any = {"role": "user", "content": CONTENT}
NOBODY: Any = {"role": "nobody", "content": CONTENT}


class Said:
    """Everything that the package said, in whatever way."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, event: object) -> None:
        self.lines += [str(event), repr(event)]

    def error(self, error: BaseException) -> None:
        # Without what pytest and the traceback quote of this file's own source.
        self.lines += traceback.format_exception_only(error)
        self.lines += [repr(error), *getattr(error, "__notes__", [])]
        for link in (
            error.__cause__,
            error.__context__ if not error.__suppress_context__ else None,
        ):
            if link is not None:
                self.error(link)

    def state(self, session: CachedSession, cache: ConversationCache) -> None:
        self.lines += [repr(session), str(session), repr(session.stats), repr(cache)]


def _lose_answers(request: Request) -> Fault | None:
    return Fault(FaultKind.RESET_AFTER_COMMIT)


async def test_nothing_is_told(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Through success, refusal, bad input, lost answers and closing, no secret is told."""
    said = Said()
    cache = ConversationCache()
    caplog.set_level(logging.DEBUG, logger="cached_session")
    async with new_client(emulator, api_key=KEY) as client:
        session = CachedSession(
            openai_client=client,
            cache=cache,
            retry=RetryPolicy(max_attempts=2, initial_delay=0.001),
            observer=said.event,
        )
        await session.add_items([ITEM] * 25)
        await session.get_items()
        await session.pop_item()
        await session.refresh()
        await session.get_items(3)
        said.state(session, cache)
        for items in ([ITEM, {**ITEM, "n": float("nan")}], [{**ITEM, "n": {CONTENT}}], CONTENT):
            with pytest.raises((TypeError, ValueError)) as refused:
                await session.add_items(items)  # type: ignore[arg-type]
            said.error(refused.value)
        with pytest.raises(openai.BadRequestError) as bad_request:
            await session.add_items([ITEM, NOBODY])
        said.error(bad_request.value)
        emulator.faults = _lose_answers
        with pytest.raises(AppendOutcomeUnknown) as unknown:
            await session.add_items([ITEM])
        said.error(unknown.value)
        emulator.faults = lambda _: Fault(FaultKind.NOT_JSON)
        with pytest.raises(openai.OpenAIError) as unreadable:
            await session.get_items()
        said.error(unreadable.value)
        emulator.faults = None
        Elsewhere(emulator).delete(session.session_id)
        with pytest.raises(openai.NotFoundError) as gone:
            await session.get_items()
        said.error(gone.value)
        said.state(session, cache)
        with pytest.raises(openai.NotFoundError):
            await session.aclose()
        with pytest.raises(SessionClosed) as closed:
            await session.get_items()
        said.error(closed.value)
        said.state(session, cache)
    said.lines.append(caplog.text)
    assert len(caplog.records) > 5
    told = "\n".join(said.lines)
    assert session.session_id in told
    for secret in (KEY, CONTENT, "secret"):
        assert secret not in told


async def test_failing_observer(
    emulator: Emulator, client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """An observer that raises is logged and changes nothing, and its log line tells no content."""

    def observe(_: object) -> None:
        raise LookupError("observer")

    caplog.set_level(logging.DEBUG, logger="cached_session")
    session = CachedSession(openai_client=client, observer=observe)
    await asyncio.gather(session.add_items([ITEM]), session.get_items())
    assert len(await session.get_items()) == 1
    assert any(record.exc_info for record in caplog.records)
    assert CONTENT not in caplog.text


async def test_an_observer_that_fails_at_each_event(
    client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first failure in a session is an error in the log, and the others do not flood it."""

    def fails(_: object) -> None:
        raise LookupError("observer")

    heard = list[object]()
    caplog.set_level(logging.DEBUG, logger="cached_session")
    for _ in range(2):
        caplog.clear()
        session = CachedSession(openai_client=client, observer=fails)
        session.observe(heard.append)
        await session.add_items([ITEM])
        told = [one.levelno for one in caplog.records if "the observer failed" in one.message]
        assert told[0] == logging.ERROR
        assert set(told[1:]) == {logging.DEBUG}
        assert len(told) == len(heard)
        heard.clear()


async def test_a_failed_connection_names_the_host_alone() -> None:
    """The error of a connection that fails says which host it was, without user, path or query."""
    url = "http://user:pa55word@127.0.0.1:9/v1/secret?token=s3cret"
    async with AsyncOpenAI(base_url=url, api_key="k") as client:
        session = CachedSession(
            conversation_id="conv_hidden",
            openai_client=client,
            cache=ConversationCache(),
            retry=RetryPolicy(connect_attempts=1),
        )
        with pytest.raises(openai.APIConnectionError) as caught:
            await session.get_items()
    said = notes(caught.value)
    assert "no answer from 127.0.0.1:9" in said.splitlines()
    assert not re.search("user|pa55word|secret|s3cret|conv_hidden: no", said)
