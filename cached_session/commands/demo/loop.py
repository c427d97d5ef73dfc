"""One agent loop on one kind of session: what it took, and what came of it."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from agents import (
    Agent,
    Model,
    ModelResponse,
    OpenAIConversationsSession,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    TResponseInputItem,
)
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from cached_session.commands.demo.scenario import warehouse_agent
from cached_session.errors import CachedSessionError

MakeSession: TypeAlias = Callable[[AsyncOpenAI], OpenAIConversationsSession]


@dataclass(slots=True)
class LoopResult:
    """What one loop took, and what came of it.

    Attributes:
        name: The kind of session.
        seconds: What each run took, the time inside the model left out.
        requests: Requests to the Conversations API during the runs.
        inputs: What the model was given, call by call.
        responses: What the model answered, call by call.
        history: The conversation afterwards, as the SDK's own session lists it.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    requests: int = 0
    inputs: list[list[Any]] = field(default_factory=list)
    responses: list[ModelResponse] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Seconds for all runs together."""
        return sum(self.seconds)


class Place:
    """The Conversations API that the loops run against.

    Args:
        base_url: Where it is; None: where the openai client looks by itself.
        api_key: The key; None: what the openai client finds by itself.
        local: It is on this machine, so that no proxy stands between.
    """

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, *, local: bool = False
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._local = local

    def client(self, on_request: Callable[[httpx2.Request], Any]) -> AsyncOpenAI:
        """A client with connections of its own that tells of every request it sends."""
        http = DefaultAsyncHttpxClient(
            event_hooks={"request": [on_request]}, trust_env=not self._local
        )
        return AsyncOpenAI(base_url=self._base_url, api_key=self._api_key, http_client=http)


class _Witness(RunHooks[None]):
    """Notes what the model is given and answers, and how long it takes."""

    def __init__(self, result: LoopResult) -> None:
        self._result = result
        self._called_at = 0.0
        self.model_seconds = 0.0

    async def on_llm_start(
        self,
        context: RunContextWrapper[None],
        agent: Agent[None],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        self._result.inputs.append(copy.deepcopy(input_items))
        self._called_at = time.perf_counter()

    async def on_llm_end(
        self, context: RunContextWrapper[None], agent: Agent[None], response: ModelResponse
    ) -> None:
        self.model_seconds += time.perf_counter() - self._called_at
        self._result.responses.append(response)


async def run_loop(
    name: str,
    make_session: MakeSession,
    model: Model,
    questions: Sequence[str],
    place: Place,
    after_run: Callable[[LoopResult], None],
) -> LoopResult:
    """Asks one agent all questions, one run each, on one new conversation.

    Args:
        name: What to call the kind of session.
        make_session: Makes the session.
        model: The agent's model.
        questions: One for each run.
        place: Where the conversation is kept. It is deleted at the end.
        after_run: Called after each run with what there is so far.
    """
    result = LoopResult(name)
    counting = True

    async def count(_: httpx2.Request) -> None:
        result.requests += counting

    agent = warehouse_agent(model)
    # Traces would be sent to the service by a thread of the SDK's.
    config = RunConfig(tracing_disabled=True)
    async with place.client(count) as client:
        session = make_session(client)
        try:
            for question in questions:
                witness = _Witness(result)
                started = time.perf_counter()
                await Runner.run(agent, question, session=session, run_config=config, hooks=witness)
                spent = time.perf_counter() - started
                result.seconds.append(spent - witness.model_seconds)
                after_run(result)
            counting = False
            # A new session of the SDK's own reads the truth from the server.
            reader = OpenAIConversationsSession(
                conversation_id=session.session_id, openai_client=client
            )
            result.history = list(await reader.get_items())
        finally:
            # A demo that fails says why, and not that it could not tidy up.
            with contextlib.suppress(OpenAIError, CachedSessionError):
                await session.clear_session()
    return result
