"""A chat over HTTP whose workers share one ledger: FastAPI, any number of machines, PostgreSQL.

Any worker may get any message. One run at a time has a conversation; a message that
comes meanwhile waits for ten seconds, and then gets a 409.

    DATABASE_URL     the ledger, as postgresql://app@db/agents; PGPASSWORD may hold its password
    CHAT_MODEL       the model's name; "scripted" needs none
    CHAT_WAIT        seconds that a message waits for another one's run; 10, unless it is set

docs/fleet.md says what is behind it, docs/web.md more of what a web application needs.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from agents import Agent, Model, OpenAIProvider, RunConfig, Runner
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    ConversationBusy,
    PostgresOutbox,
    RetryPolicy,
)

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Chat:
    """What lives as long as the process: one client, one outbox, one connection to the engine."""

    client: AsyncOpenAI
    outbox: PostgresOutbox
    model: str | None
    wait: float

    def session(self, conversation_id: str | None) -> CachedSession:
        """A session for one web request."""
        return CachedSession(
            conversation_id=conversation_id,
            openai_client=self.client,
            outbox=self.outbox,
            retry=RetryPolicy(deadline=15),
        )

    def run(self) -> dict[str, Any]:
        """The agent and its settings, as arguments of `Runner.run`."""
        offline = self.model == "scripted"
        model: Model | str | None = scripted() if offline else self.model
        agent = Agent(name="Librarian", instructions="Answer in one sentence.", model=model)
        provider = OpenAIProvider(openai_client=self.client)
        config = RunConfig(model_provider=provider, tracing_disabled=offline)
        return {"starting_agent": agent, "run_config": config}


def scripted() -> Model:
    """A model that says how many questions it was shown, and the last one."""

    def answer(call: ModelCall) -> list[Any]:
        questions = [item["content"] for item in call.input if item.get("role") == "user"]
        # A stored message has parts, a new one is a plain text.
        last = questions[-1] if isinstance(questions[-1], str) else questions[-1][0]["text"]
        return [assistant_message(f"Question {len(questions)}: {last}")]

    return ScriptedModel([ModelStep.respond(answer)])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """In each worker, before its first request and after its last."""
    get = os.environ.get
    # One name for all workers, whatever key each has: keys can be rotated one by one.
    outbox = PostgresOutbox(os.environ["DATABASE_URL"], account="prod")
    async with AsyncOpenAI() as client:
        app.state.chat = Chat(client, outbox, get("CHAT_MODEL"), float(get("CHAT_WAIT", "10")))
        yield
        # Before the client, through which it sends. Other workers send what is left.
        left = await outbox.aclose(timeout=10)
        if left:
            log.warning("%d items are left to other workers", left.items)


app = FastAPI(title="Chat", lifespan=lifespan)

ConversationId = Annotated[str, Field(pattern="^(conv_|local-)[A-Za-z0-9]{1,100}$")]


class Message(BaseModel):
    """What the user says, and where. Without an id it begins a conversation."""

    text: str = Field(min_length=1, max_length=20_000)
    conversation_id: ConversationId | None = None


class Answer(BaseModel):
    """What the model says. The client keeps the id, and sends it with the next message."""

    text: str
    conversation_id: str
    worker: int = Field(default_factory=os.getpid)


@app.post("/chat")
async def chat(message: Message, request: Request) -> Answer:
    """Answers when the run is over, and what was said is in the ledger."""
    service: Chat = request.app.state.chat
    async with (
        service.session(message.conversation_id) as session,
        session.turn(wait=service.wait),
    ):
        result = await Runner.run(**service.run(), input=message.text, session=session)
        name = session.local_name or session.session_id
        return Answer(text=result.final_output, conversation_id=name)


@app.get("/chat/{conversation_id}")
async def history(
    conversation_id: ConversationId, request: Request, limit: int = 20
) -> list[dict[str, Any]]:
    """The newest items, oldest first."""
    service: Chat = request.app.state.chat
    async with service.session(conversation_id) as session:
        return [dict(item) for item in await session.get_items(limit=limit)]


@app.exception_handler(CachedSessionError)
async def on_error(request: Request, error: CachedSessionError) -> JSONResponse:
    """What a client can do: send it again later, or look first."""
    match error:
        case ConversationBusy():
            status, advice = 409, "Another message is being answered. Send it again after that."
        case AppendOutcomeUnknown():
            status, advice = 409, "It may be stored. Read the conversation before you repeat it."
        case _:
            # OutboxUnavailable, OutboxFull, OutboxPaused, DeadlineExceeded, TurnLost ...
            status, advice = 503, "Try again later. Read the conversation before you repeat it."
    log.warning("%s %s: %s", request.method, request.url.path, type(error).__name__)
    body = {"error": type(error).__name__, "detail": str(error), "advice": advice}
    return JSONResponse(body, status, {"Retry-After": "5"} if status == 503 else None)
