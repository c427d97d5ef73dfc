"""What agents do with a session: the scenarios that both kinds of session are played through."""

from __future__ import annotations

from typing import Any

from agents import (
    Agent,
    RunConfig,
    function_tool,
    handoff,
)
from agents.handoffs import HandoffInputData
from agents.memory import SessionSettings
from agents.testing import assistant_message, function_call
from openai.types.responses.response_reasoning_item import ResponseReasoningItem, Summary

from tests.runner.stage import Scenario, Stage

SCENARIOS: dict[str, Scenario] = {}


def scenario(play: Scenario) -> Scenario:
    """Adds a function to the scenarios, under its own name."""
    SCENARIOS[getattr(play, "__name__", repr(play))] = play
    return play


def call(number: int, tool: str = "add", /, **arguments: Any) -> Any:
    """A tool call as the model makes it."""
    return function_call(tool, arguments, call_id=f"call_{number}", item_id=f"fc_{number}")


def reasoning(number: int, **fields: Any) -> ResponseReasoningItem:
    """A reasoning item as the model makes it."""
    summary = [Summary(type="summary_text", text=f"thought {number}")]
    return ResponseReasoningItem(id=f"rs_{number}", type="reasoning", summary=summary, **fields)


async def talk(stage: Stage, agent: Agent[Any], *messages: str, **options: Any) -> None:
    """One run for each message, answered without tools."""
    for message in messages:
        stage.says(assistant_message(f"about {message}"))
        await stage.run(agent, message, **options)


@scenario
async def plain_talk(stage: Stage) -> None:
    """Runs without tools, one after the other."""
    await talk(stage, stage.agent(), "a", "b", "c")
    await stage.read()


@scenario
async def equal_messages(stage: Stage) -> None:
    """The same message and the same answer, several times."""
    for _ in range(3):
        stage.says(assistant_message("yes"))
        await stage.run(stage.agent(), "yes")


@scenario
async def existing_conversation(stage: Stage) -> None:
    """A conversation that is there already, longer than a page."""
    stage.begin_with(*map(str, range(130)))
    await talk(stage, stage.agent(), "a", "b")


@scenario
async def tool_turns(stage: Stage) -> None:
    """One tool call, then three turns of calls, then two calls in one answer."""
    stage.says(call(1, a=1, b=2), assistant_message("3"))
    await stage.run(stage.agent(), "one call")
    stage.says(*(call(number, a=number, b=1) for number in (2, 3, 4)), assistant_message("done"))
    await stage.run(stage.agent(), "three turns")
    stage.says([call(5, a=5, b=5), call(6, a=6, b=6)], assistant_message("done"))
    await stage.run(stage.agent(), "two calls at once")
    await stage.read(4)


@scenario
async def failing_tool(stage: Stage) -> None:
    """A tool that raises, and one that is given nonsense."""
    stage.says(call(1, "fail"), call(2, a="no number"), assistant_message("it failed"))
    await stage.run(stage.agent(), "a")
    await talk(stage, stage.agent(), "b")


@scenario
async def reasoning_items(stage: Stage) -> None:
    """Reasoning before answers and before tool calls, with and without encrypted content."""
    stage.says(
        [reasoning(1, encrypted_content="sealed"), call(1, a=1, b=2)],
        [reasoning(2), assistant_message("3")],
    )
    await stage.run(stage.agent(), "a")
    stage.says([reasoning(3, status="completed"), assistant_message("more")])
    await stage.run(stage.agent(), "b")
    await stage.read()


@scenario
async def reasoning_without_ids(stage: Stage) -> None:
    """Reasoning whose ids the run leaves out of the model's input."""
    omitting = RunConfig(reasoning_item_id_policy="omit")
    for number in (1, 2):
        stage.says(
            [reasoning(number, encrypted_content="sealed"), call(number, a=1, b=2)],
            [reasoning(number + 10), assistant_message("3")],
        )
        await stage.run(stage.agent(), "a", run_config=omitting)


@scenario
async def handoffs(stage: Stage) -> None:
    """Two agents hand over to one another, and the next run begins with the first again."""
    poet = stage.agent("poet")
    clerk = stage.agent("clerk", handoffs=[poet])
    stage.says(
        [call(1, "transfer_to_poet")],
        call(2, a=1, b=1),
        assistant_message("a poem"),
    )
    await stage.run(clerk, "write a poem")
    await talk(stage, clerk, "thanks")
    await talk(stage, poet, "another")


@scenario
async def filtered_handoff(stage: Stage) -> None:
    """A handoff that passes on part of the history only."""

    def newest(data: HandoffInputData) -> HandoffInputData:
        history = data.input_history
        return data.clone(input_history=history[-1:] if isinstance(history, tuple) else history)

    poet = stage.agent("poet")
    clerk = stage.agent("clerk", handoffs=[handoff(poet, input_filter=newest)])
    await talk(stage, clerk, "a", "b")
    stage.says(call(1, "transfer_to_poet"), assistant_message("a poem"))
    await stage.run(clerk, "write a poem")
    await talk(stage, clerk, "thanks")


@scenario
async def input_callback(stage: Stage) -> None:
    """A callback that reorders, drops and adds to what the model is given."""

    async def newest_first(history: list[Any], new: list[Any]) -> list[Any]:
        note = {"role": "developer", "content": f"{len(history)} before"}
        return [*reversed(history[-3:]), note, *new]

    def without_answers(history: list[Any], new: list[Any]) -> list[Any]:
        return [item for item in history if item.get("role") != "assistant"] + new

    for callback in (newest_first, without_answers, newest_first):
        await talk(
            stage, stage.agent(), "a", "b", run_config=RunConfig(session_input_callback=callback)
        )


@scenario
async def limits_per_run(stage: Stage) -> None:
    """Runs that read so many items each, in the middle of tool calls too."""
    stage.says(call(1, a=1, b=2), assistant_message("3"))
    await stage.run(stage.agent(), "with a tool")
    for limit in (2, 3, 0, 100, 1):
        settings = SessionSettings(limit=limit)
        await talk(
            stage, stage.agent(), f"limit {limit}", run_config=RunConfig(session_settings=settings)
        )


@scenario
async def limit_of_the_session(stage: Stage) -> None:
    """A limit of the session's own, and one of the run before it."""
    stage.session.session_settings = SessionSettings(limit=3)
    await talk(stage, stage.agent(), "a", "b", "c")
    wider = RunConfig(session_settings=SessionSettings(limit=5))
    await talk(stage, stage.agent(), "d", run_config=wider)


@scenario
async def input_items(stage: Stage) -> None:
    """Lists of items as input: messages of several roles, an image, a file."""
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    document = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,YQ"}
    text = {"type": "input_text", "text": "what is this?"}
    stage.says(assistant_message("an image"), assistant_message("a file"))
    await stage.run(
        stage.agent(),
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [text, image]},
        ],
    )
    await stage.run(stage.agent(), [{"role": "user", "content": [text, document]}])
    await talk(stage, stage.agent(), "go on")


@scenario
async def agent_as_tool(stage: Stage) -> None:
    """An agent that is another one's tool; its own run has no session."""
    poet = stage.agent("poet")
    clerk = stage.agent("clerk", tools=[poet.as_tool("poem", "Writes a poem.")])
    stage.says(call(1, "poem", input="roses"), assistant_message("a poem"), assistant_message("ok"))
    await stage.run(clerk, "a poem, please")
    await talk(stage, clerk, "thanks")


@scenario
async def large_turn(stage: Stage) -> None:
    """More tool calls in one answer than an append request may hold items."""
    stage.says([call(number, a=number, b=1) for number in range(25)], assistant_message("done"))
    await stage.run(stage.agent(), "many calls")
    await talk(stage, stage.agent(), "next")


@scenario
async def tool_that_returns_parts(stage: Stage) -> None:
    """A tool whose output is a list of content parts, an image among them."""

    @function_tool
    def picture() -> Any:
        from agents import ToolOutputImage, ToolOutputText

        return [ToolOutputText(text="a"), ToolOutputImage(image_url="https://example.com/a.png")]

    agent = stage.agent(tools=[picture])
    stage.says(call(1, "picture"), assistant_message("nice"))
    await stage.run(agent, "draw")
    await talk(stage, agent, "again")
