"""A chat over HTTP: FastAPI, several worker processes, a session object for each web request.

Without a key and without a network, in two terminals:

    cached-session serve --port 8080

    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=any CHAT_MODEL=scripted
    uvicorn app:app --app-dir examples/web --workers 3 --timeout-graceful-shutdown 15

With `OPENAI_API_KEY` alone the same app uses the real service and a real model. Other settings:

    CHAT_MODEL          the model's name; "scripted" needs none
    CHAT_OUTBOX         the file of an outbox, which all workers share; unset: no outbox
    CHAT_ACCOUNT        a name for the account, the same before and after a key is rotated
    CHAT_DRAIN          seconds that the outbox has at shutdown; 10, unless it is set
    CHAT_MAX_STALENESS  seconds; unset: each web request asks whether somebody else has written

docs/web.md explains it piece by piece.
"""

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import openai
from agents import (
    Agent,
    Model,
    OpenAIProvider,
    RawResponsesStreamEvent,
    RunConfig,
    Runner,
)
from agents.exceptions import AgentsException
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, Field

from cached_session import (
    AppendOutcomeUnknown,
    CachedSession,
    CachedSessionError,
    ConversationBusy,
    OutboxPaused,
    RetryPolicy,
    SQLiteOutbox,
    UnexpectedAnswer,
)

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Chat:
    """What lives as long as the process."""

    client: AsyncOpenAI
    outbox: SQLiteOutbox | None
    max_staleness: float | None
    model: str | None

    def session(self, conversation_id: str | None) -> CachedSession:
        """A session for one web request. It costs nothing to make, and opens no connection."""
        try:
            return CachedSession(
                conversation_id=conversation_id,
                openai_client=self.client,
                outbox=self.outbox,
                max_staleness=self.max_staleness,
                # Nobody waits a minute for a web page.
                retry=RetryPolicy(deadline=15),
            )
        except ValueError as error:
            # Such an id cannot be; one of an outbox, for instance, where there is none.
            raise HTTPException(422, str(error)) from error

    def run(self) -> dict[str, Any]:
        """The agent and its settings, as arguments of `Runner.run`."""
        model: Model | str | None = scripted() if self.model == "scripted" else self.model
        agent = Agent(name="Librarian", instructions="Answer in one sentence.", model=model)
        # The model's calls go over the same client. A scripted model leaves no traces.
        provider = OpenAIProvider(openai_client=self.client)
        offline = self.model == "scripted"
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
    """One client and one outbox for the process; closed when no request is left."""
    get = os.environ.get
    file, staleness = get("CHAT_OUTBOX"), get("CHAT_MAX_STALENESS")
    outbox = SQLiteOutbox(file, account=get("CHAT_ACCOUNT")) if file else None
    async with AsyncOpenAI() as client:
        app.state.chat = Chat(
            client=client,
            outbox=outbox,
            max_staleness=float(staleness) if staleness else None,
            model=get("CHAT_MODEL"),
        )
        yield
        if outbox is not None:
            # Before the client, through which it sends.
            left = await outbox.aclose(timeout=float(get("CHAT_DRAIN", "10")))
            for one in left.conversations:
                log.warning(
                    "%s: %d wait in %s: %s", one.conversation_id, one.items, file, one.reason
                )


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


def id_of(session: CachedSession) -> str:
    """What the client keeps: the conversation's id, or its name in the outbox until it has one."""
    return session.local_name or session.session_id


@app.post("/chat")
async def chat(message: Message, request: Request) -> Answer:
    """Answers when the whole answer is there."""
    service: Chat = request.app.state.chat
    async with service.session(message.conversation_id) as session, session.turn(wait=10):
        result = await Runner.run(**service.run(), input=message.text, session=session)
        return Answer(text=result.final_output, conversation_id=id_of(session))


def event(name: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@app.post("/chat/stream")
async def stream(message: Message, request: Request) -> StreamingResponse:
    """Answers with server-sent events: `conversation`, many `delta`, then `done` or `error`."""
    service: Chat = request.app.state.chat
    session = service.session(message.conversation_id)
    # The check that the run's own read would make, or the new conversation: what
    # goes wrong here still has an HTTP status. Nothing is open yet.
    await session.get_items(limit=1)

    async def events() -> AsyncIterator[str]:
        yield event("conversation", {"conversation_id": id_of(session), "worker": os.getpid()})
        try:
            async with session, session.turn(wait=10):
                result = Runner.run_streamed(**service.run(), input=message.text, session=session)
                try:
                    async for part in result.stream_events():
                        if isinstance(part, RawResponsesStreamEvent) and isinstance(
                            part.data, ResponseTextDeltaEvent
                        ):
                            yield event("delta", {"text": part.data.delta})
                finally:
                    # The reader may have gone away. Does nothing to a run that is complete.
                    result.cancel()
        except EXPECTED as error:
            # The status was sent long ago.
            log.warning("stream: %s", type(error).__name__)
            yield event("error", body_of(error))
        else:
            yield event("done", {})

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/chat/{conversation_id}")
async def history(
    conversation_id: ConversationId, request: Request, limit: int = 20
) -> list[dict[str, Any]]:
    """The newest items, oldest first: for a client that lost its answer and wants to know."""
    service: Chat = request.app.state.chat
    async with service.session(conversation_id) as session:
        return [dict(item) for item in await session.get_items(limit=limit)]


# What may go wrong while a request is answered, and is nobody's mistake in this program.
EXPECTED = (CachedSessionError, openai.APIError, AgentsException)


def status_of(error: Exception) -> tuple[int, str]:
    """The HTTP status for an error, and what the client should do."""
    match error:
        case ConversationBusy():
            return 409, "Another message is being answered. Send it again when that is done."
        case AppendOutcomeUnknown():
            return 409, "Part of it may be stored. Read the conversation before you repeat it."
        case OutboxPaused():
            return 503, "Nothing is sent for this conversation until an operator has looked at it."
        case openai.NotFoundError():
            return 404, "There is no such conversation."
        case UnexpectedAnswer() | openai.APIStatusError() | AgentsException():
            return 502, "Read the conversation before you repeat it."
        case _:
            # DeadlineExceeded, OutboxFull, other trouble with the file, no connection.
            return 503, "Try again later. Read the conversation before you repeat it."


def body_of(error: Exception) -> dict[str, Any]:
    """What the client is told. The text of openai's errors is not: it may quote a key."""
    own = isinstance(error, CachedSessionError)
    return {
        "error": type(error).__name__,
        "detail": str(error) if own else "The service behind this one did not answer as it should.",
        "advice": status_of(error)[1],
    }


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Makes an answer of an error."""
    status, _ = status_of(error)
    log.warning("%s %s: %s", request.method, request.url.path, type(error).__name__)
    wait = status == 503 and not isinstance(error, OutboxPaused)
    return JSONResponse(body_of(error), status, {"Retry-After": "5"} if wait else None)


for kind in EXPECTED:
    app.add_exception_handler(kind, on_error)
