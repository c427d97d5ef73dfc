"""Agents on a session with an outbox: the same history, and the same inputs as far as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, Runner
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import APIError, AsyncOpenAI

# Each adds its scenarios.
import tests.runner.approvals
import tests.runner.interruptions  # noqa: F401
from cached_session import CachedSession, ConversationCache, MemoryOutbox, Outbox
from cached_session.emulator import Emulator, Fault, FaultKind, Faults
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import QUICK
from tests.runner.scenarios import SCENARIOS, Scenario
from tests.runner.stage import Record, Stage, add, expected_of
from tests.session.support import new_client

pytestmark = [
    # The SDK's session, where a tool's output is a list, as its own types allow.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


def queued(client: AsyncOpenAI, conversation: str | None) -> OpenAIConversationsSession:
    return CachedSession(
        conversation_id=conversation,
        openai_client=client,
        cache=ConversationCache(),
        outbox=MemoryOutbox(),
    )


class Flushing(Stage):
    """A stage where everything is sent before somebody else comes to the conversation."""

    async def run(self, agent: Any, given: Any, **options: Any) -> Any:
        result = await super().run(agent, given, **options)
        if isinstance(self.session, CachedSession):
            await self.session.flush()
        return result


class Holding(Stage):
    """A stage whose server takes no appends before the end."""

    def __init__(self, emulator: Emulator, *args: Any, **options: Any) -> None:
        super().__init__(emulator, *args, **options)
        self._held = emulator
        busy = Fault(FaultKind.RATE_LIMITED, retry_after=0.001)
        emulator.faults = lambda request: busy if is_append(request) else None

    async def close(self) -> None:
        self._held.faults = None
        await super().close()


async def play(
    scenario: Scenario,
    open_session: Callable[[AsyncOpenAI, str | None], OpenAIConversationsSession],
    *,
    streamed: bool,
    stage: type[Stage] = Stage,
) -> Record:
    """As `tests.runner.stage.play`, on a stage of this page's own."""
    with Emulator(seed=1) as emulator:
        async with new_client(emulator) as client:
            here = stage(emulator, client, open_session, streamed=streamed)
            await scenario(here)
            await here.close()
            return here.end()


_ADDED = frozenset({"id", "status"})


def comparable(value: Any) -> Any:
    """Items without ids, and without what a server may add: empty lists and states."""
    if isinstance(value, dict):
        return {
            name: comparable(inner)
            for name, inner in value.items()
            if name not in _ADDED and inner not in ([], None)
        }
    if isinstance(value, list | tuple):
        return [comparable(inner) for inner in value]
    return value


def _others(name: str, *more: str) -> bool:
    """Whether another writer takes part, who would come before what was not sent yet."""
    names = SCENARIOS[name].__code__.co_names  # type: ignore[attr-defined]
    return bool({"write_elsewhere", "reopen", *more} & set(names))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_same_history(name: str, streamed: bool) -> None:
    """Runs end alike, and the server holds the same; inputs differ in ids and added fields only."""
    stage = Flushing if _others(name) else Stage
    expected = await expected_of(SCENARIOS[name], streamed=streamed)
    actual = await play(SCENARIOS[name], queued, streamed=streamed, stage=stage)
    assert actual.outcomes == expected.outcomes
    assert comparable(actual.histories) == comparable(expected.histories)
    assert comparable(actual.inputs) == comparable(expected.inputs)
    assert comparable(actual.reads) == comparable(expected.reads)
    assert len(actual.requests) < len(expected.requests)


@pytest.mark.parametrize(
    "name", [name for name in SCENARIOS if not _others(name, "pop", "clear_session")]
)
async def test_nothing_sent_before_the_end(name: str) -> None:
    """The same where the model is given nothing but accepted items, from the first to the last."""
    expected = await expected_of(SCENARIOS[name], streamed=False)
    actual = await play(SCENARIOS[name], queued, streamed=False, stage=Holding)
    assert actual.outcomes == expected.outcomes
    assert comparable(actual.histories) == comparable(expected.histories)
    assert comparable(actual.inputs) == comparable(expected.inputs)


async def an_outage(emulator: Emulator, session: OpenAIConversationsSession) -> Any:
    """A run that meets an outage behind its first model call."""
    model = ScriptedModel(
        [
            [assistant_message("hello")],
            [function_call("add", {"a": 1, "b": 2}, call_id="call_1")],
            [assistant_message("three")],
        ]
    )
    agent = Agent(name="assistant", model=model, tools=[add])
    await Runner.run(agent, "hi", session=session)
    emulator.stop()
    return await Runner.run(agent, "1 + 2?", session=session)


async def test_through_an_outage(outbox: Outbox) -> None:
    """A run that meets an outage completes; afterwards the server has its whole history."""
    with Emulator() as emulator:
        async with new_client(emulator) as client:
            session = CachedSession(
                openai_client=client, outbox=outbox, cache=ConversationCache(), retry=QUICK
            )
            result = await an_outage(emulator, session)
            assert result.final_output == "three"
            assert session.stats.waiting > 0
            emulator.start()
            await session.flush()
            kinds = [item["type"] for item in emulator.items(session.session_id)]
            expected = ["message"] * 3 + ["function_call", "function_call_output", "message"]
            assert kinds == expected
            assert await session.get_items() == emulator.items(session.session_id)
            await session.aclose()


async def test_an_outage_with_the_sdks_session() -> None:
    """With the SDK's session the same run fails: that is what the outbox is for."""
    with Emulator() as emulator:
        async with new_client(emulator) as client:
            with pytest.raises(APIError):
                await an_outage(emulator, OpenAIConversationsSession(openai_client=client))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_run_that_begins_without_the_server(streamed: bool, outbox: Outbox) -> None:
    """A first run completes while the server is away; its conversation is created later."""
    emulator = Emulator()
    emulator.start()
    emulator.stop()
    async with new_client(emulator) as client:
        session = CachedSession(
            openai_client=client, outbox=outbox, cache=ConversationCache(), retry=QUICK
        )
        agent = Agent(name="assistant", model=ScriptedModel([[assistant_message("hello")]] * 2))
        for _ in range(2):
            if streamed:
                result = Runner.run_streamed(agent, "hi", session=session)
                async for _ in result.stream_events():
                    pass
            else:
                await Runner.run(agent, "hi", session=session)
        with emulator:
            await session.flush()
            assert len(emulator.items(session.session_id)) == 4
            await session.aclose()


async def test_lost_answers(outbox: Outbox) -> None:
    """Runs whose every second request gets no answer leave each item once."""
    with Emulator() as emulator:
        async with new_client(emulator) as client:
            session = CachedSession(
                openai_client=client, outbox=outbox, cache=ConversationCache(), retry=QUICK
            )
            await session.get_items()
            emulator.faults = Faults(3, {FaultKind.RESET_AFTER_COMMIT: 0.5})
            model = ScriptedModel([[assistant_message(f"answer {n}")] for n in range(10)])
            agent = Agent(name="assistant", model=model)
            for number in range(10):
                await Runner.run(agent, f"question {number}", session=session)
            emulator.faults = None
            await session.flush()
            found = [item["content"][0]["text"] for item in emulator.items(session.session_id)]
            expected = [f"{what} {n}" for n in range(10) for what in ("question", "answer")]
            assert found == expected
            await session.aclose()
