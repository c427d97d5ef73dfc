"""Runs without `await`: `Runner.run_sync`, with one session over several loops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import new_client, texts


@contextmanager
def default_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop that `run_sync` runs on, closed as a program's end would close it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


# `run_sync` shuts down its loop's generators after every run and goes on with the
# loop; the HTTP client's own generators then make the loop warn, in every session.
@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")
def test_run_sync(emulator: Emulator) -> None:
    """Several `run_sync` calls on one session share its history, without a GET."""
    model = ScriptedModel([[assistant_message(text)] for text in ("b", "d", "f")])
    agent = Agent(name="assistant", model=model)
    with default_loop():
        session = CachedSession(openai_client=new_client(emulator))
        for question in ("a", "c", "e"):
            Runner.run_sync(agent, question, session=session)
    assert texts(emulator.items(session.session_id)) == list("abcdef")
    assert [len(call.input) for call in model.calls] == [1, 3, 5]
    assert [entry.method for entry in emulator.requests] == ["POST"] * 7


def test_run_sync_on_several_loops(emulator: Emulator) -> None:
    """A session and a client that live longer than a loop work on the next one."""
    model = ScriptedModel([[assistant_message(text)] for text in ("b", "d", "f")])
    agent = Agent(name="assistant", model=model)
    session = CachedSession(openai_client=new_client(emulator))
    with default_loop():
        Runner.run_sync(agent, "a", session=session)
    with default_loop():
        Runner.run_sync(agent, "c", session=session)
    asyncio.run(Runner.run(agent, "e", session=session))
    assert texts(emulator.items(session.session_id)) == list("abcdef")
    assert [entry.method for entry in emulator.requests] == ["POST"] * 7
