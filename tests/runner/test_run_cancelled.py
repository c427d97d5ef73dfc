"""A run that is cancelled while it saves."""

from __future__ import annotations

import asyncio

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import Gate, new_client, texts


@pytest.mark.parametrize("held", range(4))
async def test_run_cancelled_while_saving(held: int) -> None:
    """A run that is cancelled while it saves leaves whole messages, and the next run goes on."""
    gate = Gate()
    model = ScriptedModel([[assistant_message("b")], [assistant_message("d")]])
    agent = Agent(name="assistant", model=model)
    # Each request waits twice, before it is carried out and after; a run saves twice.
    with Emulator(latency=1, sleep=gate.sleep) as emulator:
        async with new_client(emulator) as client, CachedSession(openai_client=client) as session:
            await session.get_items()
            gate.hold(skip=held)
            run = asyncio.create_task(Runner.run(agent, "a", session=session))
            await gate.arrived()
            run.cancel()
            await asyncio.wait({run}, timeout=1)
            assert run.cancelled()
            gate.open()
            saved = texts(await session.get_items())
            assert saved == texts(emulator.items(session.session_id))
            assert saved == (["a"] if held < 2 else ["a", "b"])
            answer = "b" if held < 2 else "d"
            await Runner.run(agent, "c", session=session)
            assert texts(emulator.items(session.session_id)) == [*saved, "c", answer]
            assert await session.get_items() == emulator.items(session.session_id)
