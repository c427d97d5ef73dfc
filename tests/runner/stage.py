"""Plays one scenario on one kind of session and records what the model and the server got."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agents import (
    Agent,
    AgentsException,
    OpenAIConversationsSession,
    Runner,
    RunResult,
    RunResultStreaming,
    RunState,
    function_tool,
)
from agents.testing import ScriptedModel
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client

OpenSession: TypeAlias = Callable[[AsyncOpenAI, str | None], OpenAIConversationsSession]


def sdk(client: AsyncOpenAI, conversation: str | None) -> OpenAIConversationsSession:
    return OpenAIConversationsSession(conversation_id=conversation, openai_client=client)


def cached(client: AsyncOpenAI, conversation: str | None) -> OpenAIConversationsSession:
    return CachedSession(
        conversation_id=conversation, openai_client=client, cache=ConversationCache()
    )


def wrapping(client: AsyncOpenAI, conversation: str | None) -> OpenAIConversationsSession:
    return CachedSession(sdk(client, conversation), cache=ConversationCache())


def checking(client: AsyncOpenAI, conversation: str | None) -> OpenAIConversationsSession:
    return CachedSession(
        conversation_id=conversation,
        openai_client=client,
        cache=ConversationCache(),
        max_staleness=0,
    )


@dataclass
class Record:
    """What a scenario came to. The servers give out the same ids, so records compare whole.

    Attributes:
        inputs: What the model was given, call by call.
        outcomes: Each run's final output, or the name of what it raised.
        histories: Every conversation that is on the server at the end.
        reads: What the scenario itself read from its session.
        requests: How many requests the server got, by method; no part of the comparison.
    """

    inputs: list[Any] = field(default_factory=list)
    outcomes: list[Any] = field(default_factory=list)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)
    requests: list[str] = field(default_factory=list, compare=False)


class Stage:
    """A server, a scripted model and a session, for one scenario.

    Attributes:
        session: The session that `run` uses.
        record: What happened so far.
    """

    def __init__(
        self, emulator: Emulator, client: AsyncOpenAI, open_session: OpenSession, *, streamed: bool
    ) -> None:
        self._emulator = emulator
        self._client = client
        self._open = open_session
        self._streamed = streamed
        self._sessions: list[OpenAIConversationsSession] = []
        self.model = ScriptedModel()
        self._open_on(None)
        self.record = Record()

    def agent(self, name: str = "assistant", **options: Any) -> Agent[Any]:
        """An agent on the scripted model, by default with the tools `add` and `fail`."""
        return Agent(
            name=name,
            model=self.model,
            instructions=f"You are {name}.",
            **{"tools": [add, fail], **options},
        )

    def says(self, *steps: Any) -> None:
        """Adds to what the model answers: each step one answer of one or several items."""
        self.model.extend([step if isinstance(step, list) else [step] for step in steps])

    async def run(
        self, agent: Agent[Any], given: str | list[Any] | RunState[Any], **options: Any
    ) -> RunResult | RunResultStreaming | None:
        """Runs an agent on the session; None if the run raised."""
        result: RunResult | RunResultStreaming
        try:
            if self._streamed:
                result = Runner.run_streamed(agent, given, session=self.session, **options)
                async for _ in result.stream_events():
                    pass
            else:
                result = await Runner.run(agent, given, session=self.session, **options)
        except (AgentsException, RuntimeError) as error:
            self.record.outcomes.append(type(error).__name__)
            return None
        self.record.outcomes.append(result.final_output)
        return result

    async def read(self, limit: int | None = None) -> None:
        """Reads the session's items into the record."""
        self.record.reads.append(await self.session.get_items(limit))

    async def pop(self) -> None:
        """Pops an item into the record."""
        self.record.reads.append(await self.session.pop_item())

    def begin_with(self, *messages: str) -> None:
        """Goes to a conversation that another process made, with these messages."""
        self._open_on(Elsewhere(self._emulator).conversation(*messages))

    def write_elsewhere(self, *messages: str) -> None:
        """Has another process append to the session's conversation."""
        Elsewhere(self._emulator).append(self.session.session_id, *messages)

    def reopen(self) -> None:
        """Goes on with a new session object on the same conversation, as after a restart."""
        self._open_on(self.session.session_id)

    def _open_on(self, conversation: str | None) -> None:
        self.session = self._open(self._client, conversation)
        self._sessions.append(self.session)

    async def close(self) -> None:
        """Closes every session that the scenario used, where sessions can be closed."""
        for session in self._sessions:
            if isinstance(session, CachedSession):
                # With an outbox, when all of it is on the server.
                await session.aclose(timeout=60)

    def end(self) -> Record:
        """The record of the whole scenario."""
        self.model.assert_complete()
        self.record.inputs = [(call.system_instructions, call.input) for call in self.model.calls]
        made = [entry.conversation_id for entry in self._emulator.requests if entry.conversation_id]
        for conversation in dict.fromkeys(made):
            self.record.histories.append(_history(self._emulator, conversation))
        self.record.requests = [entry.method for entry in self._emulator.requests]
        return self.record


def _history(emulator: Emulator, conversation: str) -> list[dict[str, Any]]:
    try:
        return emulator.items(conversation, include=frozenset({"message.input_image.image_url"}))
    except LookupError:
        return [{"deleted": conversation}]


Scenario: TypeAlias = Callable[[Stage], Awaitable[None]]


async def play(scenario: Scenario, open_session: OpenSession, *, streamed: bool = False) -> Record:
    """Plays a scenario on a server of its own, which gives out the same ids every time."""
    with Emulator(seed=1) as emulator:
        async with new_client(emulator) as client:
            stage = Stage(emulator, client, open_session, streamed=streamed)
            await scenario(stage)
            await stage.close()
            return stage.end()


_expected: dict[tuple[Scenario, bool], Record] = {}


async def expected_of(scenario: Scenario, *, streamed: bool) -> Record:
    """What a scenario comes to with the SDK's session; each is played once in a process."""
    key = scenario, streamed
    if key not in _expected:
        _expected[key] = await play(scenario, sdk, streamed=streamed)
        assert _expected[key].inputs
        assert any(_expected[key].histories)
    return _expected[key]


@function_tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@function_tool
def fail() -> str:
    """Does not work."""
    raise LookupError("it does not work")
