"""Scenarios in which a run pauses for an approval and is resumed."""

from __future__ import annotations

import json
from typing import Any

from agents import Agent, RunState, function_tool
from agents.testing import assistant_message

from tests.runner.scenarios import call, scenario
from tests.runner.stage import Stage


@function_tool(needs_approval=True)
def delete(name: str) -> str:
    """Deletes a file."""
    return f"deleted {name}"


async def _pause(stage: Stage, agent: Agent[Any], *names: str) -> RunState[Any]:
    """Runs until the agent asks to delete the files, all in one answer."""
    stage.says([call(number, "delete", name=name) for number, name in enumerate(names)])
    result = await stage.run(agent, "tidy up")
    assert result is not None
    assert [item.name for item in result.interruptions] == ["delete"] * len(names)
    await stage.read()
    return result.to_state()


async def _stored(agent: Agent[Any], state: RunState[Any]) -> RunState[Any]:
    """The state as it comes back from storage."""
    return await RunState.from_json(agent, json.loads(json.dumps(state.to_json())))


@scenario
async def approval(stage: Stage) -> None:
    """An approved call runs when the run is resumed, and the next run sees it."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    stage.says(assistant_message("you are welcome"))
    await stage.run(agent, "thanks")
    await stage.read()


@scenario
async def rejection(stage: Stage) -> None:
    """A rejected call is answered with the rejection, and the next run sees that."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    state.reject(state.get_interruptions()[0])
    stage.says(assistant_message("as you like"))
    await stage.run(agent, state)
    stage.says(assistant_message("you are welcome"))
    await stage.run(agent, "thanks")
    await stage.read()


@scenario
async def approval_after_a_restart(stage: Stage) -> None:
    """The state is stored, and resumed with a new session object on the same conversation."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    stage.reopen()
    state = await _stored(agent, state)
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read()


@scenario
async def approval_of_some(stage: Stage) -> None:
    """Of three calls in one answer, two are approved and one is rejected."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a", "b", "c")
    first, second, third = state.get_interruptions()
    state.approve(first)
    state.reject(second)
    state.approve(third)
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read()


@scenario
async def approval_one_by_one(stage: Stage) -> None:
    """Of two calls, one is approved first and the run pauses again for the other."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a", "b")
    state.approve(state.get_interruptions()[0])
    result = await stage.run(agent, state)
    assert result is not None
    await stage.read()
    state = await _stored(agent, result.to_state())
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read()


@scenario
async def approval_in_every_turn(stage: Stage) -> None:
    """A run that pauses, is resumed, and pauses again in its next turn."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    state.approve(state.get_interruptions()[0])
    stage.says(call(10, "delete", name="b"))
    result = await stage.run(agent, state)
    assert result is not None
    await stage.read()
    state = result.to_state()
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read()


@scenario
async def approval_in_a_long_conversation(stage: Stage) -> None:
    """A run that pauses at the end of a conversation of several pages."""
    stage.begin_with(*map(str, range(130)))
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read(10)


@scenario
async def approval_while_others_write(stage: Stage) -> None:
    """Another process appends while the run is paused."""
    agent = stage.agent(tools=[delete])
    state = await _pause(stage, agent, "a")
    stage.write_elsewhere("from elsewhere")
    stage.reopen()
    state.approve(state.get_interruptions()[0])
    stage.says(assistant_message("done"))
    await stage.run(agent, state)
    await stage.read()
