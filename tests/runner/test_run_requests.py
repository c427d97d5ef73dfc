"""How many requests runs cost."""

from __future__ import annotations

from collections import Counter

import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator


@function_tool
def look_up(word: str) -> str:
    """Looks a word up."""
    return f"the meaning of {word}"


def requests(emulator: Emulator) -> Counter[str]:
    return Counter(entry.method for entry in emulator.requests)


async def test_fresh_session_without_tools(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A fresh session's run without tools makes 3 requests: the conversation and two appends."""
    agent = Agent(name="assistant", model=ScriptedModel([[assistant_message("hello")]]))
    session = CachedSession(openai_client=client)
    await Runner.run(agent, "hello", session=session)
    assert requests(emulator) == {"POST": 3}


@pytest.mark.campaign
async def test_hundred_runs_with_a_tool_call(emulator: Emulator, client: AsyncOpenAI) -> None:
    """100 runs with one tool call each make 1 + 300 requests, and no GET among them."""
    model = ScriptedModel()
    agent = Agent(name="assistant", model=model, tools=[look_up])
    session = CachedSession(openai_client=client)
    for number in range(100):
        arguments = {"word": str(number)}
        model.enqueue([function_call("look_up", arguments, call_id=f"c{number}", item_id="fc_1")])
        model.enqueue([assistant_message(str(number))])
        await Runner.run(agent, f"question {number}", session=session)
    assert requests(emulator) == {"POST": 301}
    assert len(emulator.items(session.session_id)) == 400
    assert model.last_call is not None
    assert len(model.last_call.input) == 399


async def test_run_on_a_known_conversation(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A run on a conversation that the session has read makes no request but its appends."""
    agent = Agent(
        name="assistant", model=ScriptedModel([[assistant_message("a")], [assistant_message("b")]])
    )
    session = CachedSession(openai_client=client)
    await Runner.run(agent, "a", session=session)
    emulator.clear_log()
    await Runner.run(agent, "b", session=session)
    assert requests(emulator) == {"POST": 2}


async def test_run_with_a_new_session_object(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A run with a new session object on a held conversation makes one request more: its check."""
    agent = Agent(
        name="assistant", model=ScriptedModel([[assistant_message("a")], [assistant_message("b")]])
    )
    first = CachedSession(openai_client=client)
    await Runner.run(agent, "a", session=first)
    emulator.clear_log()
    second = CachedSession(conversation_id=first.session_id, openai_client=client)
    await Runner.run(agent, "b", session=second)
    assert requests(emulator) == {"POST": 2, "GET": 1}
