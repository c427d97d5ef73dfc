"""Scenarios in which something ends a run early, or the history changes between runs."""

from __future__ import annotations

from typing import Any

from agents import GuardrailFunctionOutput, input_guardrail, output_guardrail
from agents.testing import assistant_message

from tests.runner.scenarios import call, scenario, talk
from tests.runner.stage import Stage


def _trips(given: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="forbidden" in str(given))


@input_guardrail(run_in_parallel=False)
async def _input_guard(_context: Any, _agent: Any, given: Any) -> GuardrailFunctionOutput:
    last = given[-1] if isinstance(given, list) else given
    return _trips(last)


@output_guardrail
async def _output_guard(_context: Any, _agent: Any, output: Any) -> GuardrailFunctionOutput:
    return _trips(output)


@scenario
async def input_guardrail_trips(stage: Stage) -> None:
    """A guardrail stops a run before its model call; the runs around it go on."""
    agent = stage.agent(input_guardrails=[_input_guard])
    await talk(stage, agent, "a")
    await stage.run(agent, "forbidden")
    await stage.read()
    await talk(stage, agent, "b")


@scenario
async def output_guardrail_trips(stage: Stage) -> None:
    """A guardrail stops a run after its tool calls and its answer; the next run goes on."""
    agent = stage.agent(output_guardrails=[_output_guard])
    stage.says(call(1, a=1, b=2), assistant_message("forbidden"))
    await stage.run(agent, "a")
    await stage.read()
    await talk(stage, agent, "b")


@scenario
async def failing_model(stage: Stage) -> None:
    """A model that fails at once, and one that fails after a tool ran; the next run goes on."""
    stage.model.extend([RuntimeError("no model")])
    await stage.run(stage.agent(), "a")
    stage.says(call(1, a=1, b=2))
    stage.model.extend([RuntimeError("no model")])
    await stage.run(stage.agent(), "b")
    await stage.read()
    await talk(stage, stage.agent(), "c")


@scenario
async def too_many_turns(stage: Stage) -> None:
    """A run that is ended because it takes too many turns; the next one goes on."""
    stage.says(call(1, a=1, b=1), call(2, a=2, b=2))
    await stage.run(stage.agent(), "a", max_turns=2)
    await stage.read()
    await talk(stage, stage.agent(), "b")


@scenario
async def taking_back(stage: Stage) -> None:
    """Pops between runs, as for a user who corrects a question."""
    await talk(stage, stage.agent(), "a", "b")
    await stage.pop()
    await stage.pop()
    await talk(stage, stage.agent(), "b, corrected")
    for _ in range(5):
        await stage.pop()
    await talk(stage, stage.agent(), "from the start")


@scenario
async def clearing(stage: Stage) -> None:
    """A clear between runs: the next one is on a new conversation."""
    await talk(stage, stage.agent(), "a")
    await stage.session.clear_session()
    await talk(stage, stage.agent(), "b")
    await stage.read()


@scenario
async def restarts(stage: Stage) -> None:
    """New session objects between runs, and another process that writes in the meantime."""
    await talk(stage, stage.agent(), "a")
    stage.reopen()
    await talk(stage, stage.agent(), "b")
    stage.write_elsewhere("from elsewhere")
    stage.reopen()
    await talk(stage, stage.agent(), "c")
