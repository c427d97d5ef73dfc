"""A run that was paused for an approval, resumed while the save of the tool's output fails."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, Runner, RunState, UserError
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI, OpenAIError

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    ConversationCache,
    RetryBudget,
    RetryPolicy,
)
from cached_session.emulator import Emulator, Fault, FaultKind, FaultPlan, Faults, Request
from tests.runner.approvals import delete
from tests.runner.scenarios import call
from tests.session.support import new_client

HISTORY = ["message", "function_call", "function_call_output", "message"]
"""What the conversation holds when the run has ended right."""


def sdk(client: AsyncOpenAI) -> OpenAIConversationsSession:
    return OpenAIConversationsSession(openai_client=client)


def cached(client: AsyncOpenAI) -> CachedSession:
    policy = RetryPolicy(
        max_attempts=3,
        deadline=20.0,
        initial_delay=0.005,
        max_delay=0.02,
        budget=RetryBudget(1000, 100),
    )
    return CachedSession(openai_client=client, cache=ConversationCache(), retry=policy)


def is_save(request: Request) -> bool:
    """Whether a request appends the tool's output."""
    return request.method == "POST" and b"function_call_output" in request.body


@dataclass
class Paused:
    """A run that waits for an approval, which it has by now."""

    emulator: Emulator
    session: OpenAIConversationsSession
    model: ScriptedModel
    agent: Agent[Any]
    state: RunState[Any]

    async def resume(self) -> Any:
        """Goes on with the run, from the state that it was left in."""
        result = await Runner.run(self.agent, self.state, session=self.session)
        return result.final_output

    def stored(self) -> list[str]:
        """The types of what the server holds, oldest first."""
        return [item["type"] for item in self.emulator.items(self.session.session_id)]

    def check_end(self) -> None:
        """The history stands once, and the model was given it once, the tool's output included."""
        assert self.stored() == HISTORY
        given = self.model.calls[-1].input
        assert isinstance(given, list)
        assert [item.get("type", "message") for item in given] == HISTORY[:-1]
        assert len(self.model.calls) == 2


async def pause(emulator: Emulator, session: OpenAIConversationsSession) -> Paused:
    """Runs until the agent asks to delete a file, and approves that."""
    model = ScriptedModel([[call(1, "delete", name="a")], [assistant_message("done")]])
    agent = Agent(name="assistant", model=model, tools=[delete])
    result = await Runner.run(agent, "tidy up", session=session)
    state = result.to_state()
    state.approve(state.get_interruptions()[0])
    return Paused(emulator, session, model, agent, state)


needs_pending_writes = pytest.mark.skipif(
    tuple(map(int, version("openai-agents").split(".")[:2])) < (0, 24),
    reason="a Runner before 0.24 does not remember a save that failed",
)

LOST = pytest.mark.parametrize(
    "fault",
    [FaultKind.RESET_AFTER_COMMIT, FaultKind.ERROR_AFTER_COMMIT, FaultKind.TRUNCATED],
    ids=str,
)


@LOST
@pytest.mark.parametrize("times", [1, 2])
async def test_cached_session_ends_right(
    emulator: Emulator, client: AsyncOpenAI, fault: FaultKind, times: int
) -> None:
    """The run goes on as if nothing had been lost: history once, model input right."""
    run = await pause(emulator, cached(client))
    emulator.faults = Faults.script([fault] * times, only=is_save)
    assert await run.resume() == "done"
    run.check_end()


@needs_pending_writes
@LOST
async def test_sdk_session_cannot_reconcile(
    emulator: Emulator, client: AsyncOpenAI, fault: FaultKind
) -> None:
    """The SDK's session fails the run, and resuming it then raises "Cannot reconcile"."""
    run = await pause(emulator, sdk(client))
    emulator.faults = Faults.script([fault], only=is_save)
    with pytest.raises(OpenAIError):
        await run.resume()
    with pytest.raises(UserError, match="Cannot reconcile"):
        await run.resume()
    assert run.stored() == HISTORY[:-1]


@LOST
async def test_sdk_session_with_client_retries_stores_twice(
    emulator: Emulator, fault: FaultKind
) -> None:
    """On a client that retries, which is its default, the SDK's session stores the output twice."""
    async with new_client(emulator, max_retries=2) as client:
        run = await pause(emulator, sdk(client))
        emulator.faults = Faults.script([fault], only=is_save)
        assert await run.resume() == "done"
    assert run.stored() == [*HISTORY[:3], "function_call_output", "message"]


def outage(fault: FaultKind) -> FaultPlan:
    """From the save of the tool's output on, every request fails."""
    down = Faults(0, {fault: 1.0})
    begun = False

    def decide(request: Request) -> Fault | None:
        nonlocal begun
        begun = begun or is_save(request)
        return down(request) if begun else None

    return decide


@needs_pending_writes
async def test_unknown_and_not_stored(emulator: Emulator, client: AsyncOpenAI) -> None:
    """If the outcome stayed unknown and nothing was stored, resuming again ends right."""
    run = await pause(emulator, cached(client))
    emulator.faults = outage(FaultKind.RESET_BEFORE_COMMIT)
    with pytest.raises(AppendOutcomeUnknown):
        await run.resume()
    emulator.faults = None
    assert await run.resume() == "done"
    run.check_end()


@needs_pending_writes
async def test_unknown_and_stored(emulator: Emulator, client: AsyncOpenAI) -> None:
    """If the output was stored, the Runner cannot reconcile until a pop has taken it away.

    The Runner compares what it sent with what is listed, field by field, and
    the server adds a status. A session cannot answer that otherwise: what it
    reads is what the server lists.
    """
    run = await pause(emulator, cached(client))
    emulator.faults = outage(FaultKind.RESET_AFTER_COMMIT)
    with pytest.raises(AppendOutcomeUnknown):
        await run.resume()
    emulator.faults = None
    with pytest.raises(UserError, match="Cannot reconcile"):
        await run.resume()
    assert run.stored() == HISTORY[:-1]
    await run.session.pop_item()
    assert await run.resume() == "done"
    run.check_end()
