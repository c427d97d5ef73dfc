"""The web example as it is served: uvicorn, three workers, the emulator over HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from benchmarks.line import LOOPBACK, Line
from benchmarks.serving import EXAMPLE, Serving, serving
from cached_session import (
    AppendOutcomeUnknown,
    ConversationBusy,
    DeadlineExceeded,
    OutboxError,
    OutboxFull,
    OutboxPaused,
    TurnLost,
    UnexpectedAnswer,
)
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from cached_session.emulator.requests import is_append
from tests.session.support import texts

WORKERS = 3
TURNS = 5


@asynccontextmanager
async def browser(web: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that connects anew for each request, so that each may meet another worker."""
    async with httpx2.AsyncClient(
        base_url=web.url,
        trust_env=False,
        timeout=60,
        limits=httpx2.Limits(max_keepalive_connections=0),
    ) as http:
        yield http


async def say(http: httpx2.AsyncClient, text: str, conversation_id: str | None) -> dict[str, Any]:
    """One message; returns the answer."""
    body = {"text": text, "conversation_id": conversation_id}
    answer = await http.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def listen(
    http: httpx2.AsyncClient, text: str, conversation_id: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """One message to the streaming endpoint; returns its events."""
    body = {"text": text, "conversation_id": conversation_id}
    answer = await http.post("/chat/stream", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def dialogue(questions: Sequence[str]) -> list[str]:
    """What stands on the server after these questions, each answered with all of them in view."""
    return [
        line
        for number, text in enumerate(questions, 1)
        for line in (text, f"Question {number}: {text}")
    ]


def ends_well(web: Serving) -> None:
    """Stops the app: it ends as it should, and says nothing that a person would look into."""
    # A worker alone, without a parent, ends by the signal that it got, as programs do.
    assert web.stop() == (0 if "parent process" in web.output else -signal.SIGTERM)
    for complaint in ("Traceback", "never retrieved", "never awaited", "ERROR"):
        assert complaint not in web.output


async def several(http: httpx2.AsyncClient) -> dict[str, list[str]]:
    """Eight conversations at once, each in turn: every turn sees all before it."""

    async def converse(name: str) -> tuple[str, list[str]]:
        conversation, asked = None, [f"{name} {number}" for number in range(TURNS)]
        for number, text in enumerate(asked, 1):
            answer = await say(http, text, conversation)
            assert answer["text"] == f"Question {number}: {text}"
            conversation = answer["conversation_id"]
        return str(conversation), dialogue(asked)

    made = await asyncio.gather(*(converse(f"talk {number}") for number in range(8)))
    assert len(dict(made)) == len(made)
    return dict(made)


async def over_all_workers(http: httpx2.AsyncClient) -> dict[str, list[str]]:
    """One conversation in turn, until each worker has answered twice: every turn sees all."""
    asked: list[str] = []
    conversation, answered = None, list[int]()
    while sum(answered.count(worker) > 1 for worker in set(answered)) < WORKERS:
        assert len(asked) < 200, "a worker gets no requests"
        asked.append(f"message {len(asked)}")
        answer = await say(http, asked[-1], conversation)
        assert answer["text"] == f"Question {len(asked)}: {asked[-1]}"
        conversation = answer["conversation_id"]
        answered.append(answer["worker"])
    shown = (await http.get(f"/chat/{conversation}?limit=2")).json()
    assert texts(shown) == dialogue(asked)[-2:]
    return {str(conversation): dialogue(asked)}


async def streamed(http: httpx2.AsyncClient) -> dict[str, list[str]]:
    """A stream names its conversation first, then come the words, then that it is done."""
    conversation = None
    for number, text in enumerate(["one", "two"], 1):
        first, *words, last = await listen(http, text, conversation)
        assert first[0] == "conversation"
        conversation = first[1]["conversation_id"]
        assert "".join(data["text"] for _, data in words) == f"Question {number}: {text}"
        assert last == ("done", {})
    return {str(conversation): dialogue(["one", "two"])}


async def at_once(http: httpx2.AsyncClient) -> tuple[str, list[str], list[str]]:
    """Runs at once on one conversation: its id, the questions and their answers."""
    conversation = (await say(http, "first", None))["conversation_id"]
    asked = [f"message {number}" for number in range(6)]
    answers = await asyncio.gather(*(say(http, text, conversation) for text in asked))
    return conversation, asked, [answer["text"] for answer in answers]


@pytest.mark.processes
@pytest.mark.parametrize("outbox", [False, True], ids=["no outbox", "outbox"])
async def test_three_workers(emulator: Emulator, outbox: bool, tmp_path: Path) -> None:
    """Many conversations at once, one over all workers, a stream; then SIGTERM: nothing goes wrong.

    Each turn sees all before it, whichever worker has it. The server has everything once and in
    order. With one outbox file for all workers, runs on one conversation take turns. Without
    one they may mix, and all they say is there once.
    """
    settings = {"CHAT_OUTBOX": str(tmp_path / "chat.db")} if outbox else {}
    with serving(emulator.base_url, tmp_path / "log", workers=WORKERS, **settings) as web:
        async with browser(web) as http:
            *told, (mixed, asked, said) = await asyncio.gather(
                several(http), over_all_workers(http), streamed(http), at_once(http)
            )
        ends_well(web)
    for conversations in told:
        for conversation, lines in conversations.items():
            assert texts(emulator.items(conversation)) == lines
    stored = texts(emulator.items(mixed))
    assert sorted(stored) == sorted([*dialogue(["first"]), *asked, *said])
    for question, answer in zip(asked, said, strict=True):
        assert stored.index(question) < stored.index(answer)
    if outbox:
        assert stored == dialogue(stored[::2])


@pytest.mark.processes
@pytest.mark.parametrize("outbox", [False, True], ids=["no outbox", "outbox"])
async def test_clients_that_leave_or_err(emulator: Emulator, outbox: bool, tmp_path: Path) -> None:
    """A reader who leaves in the middle ends that run alone; what cannot be asked is 404 or 422."""
    settings = {"CHAT_OUTBOX": str(tmp_path / "chat.db")} if outbox else {}
    with serving(emulator.base_url, tmp_path / "log", **settings) as web:
        async with browser(web) as http:
            conversation = (await say(http, "one", None))["conversation_id"]
            # The run's own append has no answer yet when the reader goes.
            emulator.faults = lambda request: (
                Fault(FaultKind.SLOW, delay=0.5) if is_append(request) else None
            )
            body = {"text": "two", "conversation_id": conversation}
            async with http.stream("POST", "/chat/stream", json=body) as answer:
                await anext(answer.aiter_raw())
            emulator.faults = None
            last = await say(http, "three", conversation)
            for path in ("/chat", "/chat/stream"):
                for wrong, status in (
                    ({"text": "hello", "conversation_id": "conv_none"}, 404),
                    ({"text": "hello", "conversation_id": "../models"}, 422),
                    ({"text": "hello", "conversation_id": "local-none"}, 503 if outbox else 422),
                    ({"text": ""}, 422),
                ):
                    answer = await http.post(path, json=wrong)
                    assert answer.status_code == status, answer.text
            assert (await http.get("/chat/conv_none")).status_code == 404
        ends_well(web)
    stored = texts(emulator.items(conversation))
    assert stored[:2] == dialogue(["one"])
    assert stored[-2:] == ["three", last["text"]]
    assert stored.count("two") <= 1


@pytest.mark.processes
async def test_the_rest_is_sent_after_the_next_start(emulator: Emulator, tmp_path: Path) -> None:
    """A server that takes nothing until after a shutdown gets all of it later, once, in order.

    The key is another one by then, and the account has a name.
    """
    settings = {
        "CHAT_OUTBOX": str(tmp_path / "chat.db"),
        "CHAT_ACCOUNT": "library",
        "CHAT_DRAIN": "0.2",
    }

    def refuse(request: Request) -> Fault | None:
        return Fault(FaultKind.ERROR_BEFORE_COMMIT) if request.method == "POST" else None

    with serving(emulator.base_url, tmp_path / "log", **settings) as web:
        async with browser(web) as http:
            conversation = (await say(http, "one", None))["conversation_id"]
            emulator.faults = refuse
            await say(http, "two", conversation)
            begun = (await say(http, "here", None))["conversation_id"]
            assert begun.startswith("local-")
        ends_well(web)
        assert " wait in " in web.output
    emulator.faults = None
    settings["OPENAI_API_KEY"] = "another"
    with serving(emulator.base_url, tmp_path / "again", **settings) as web:
        async with browser(web) as http:
            answer = await say(http, "three", conversation)
            assert answer["text"] == "Question 3: three"
            answer = await say(http, "there", begun)
            assert answer["text"] == "Question 2: there"
        ends_well(web)
    assert texts(emulator.items(conversation)) == dialogue(["one", "two", "three"])
    # Which has its id by now, whatever name the last answer gave.
    asked_for = {entry.conversation_id for entry in emulator.requests}
    [made] = [name for name in asked_for - {conversation} if name]
    assert texts(emulator.items(made)) == dialogue(["here", "there"])


@pytest.mark.processes
async def test_one_connection_over_tls(emulator: Emulator, tmp_path: Path) -> None:
    """Over TLS, twenty web requests with a session each open one connection to the API."""
    port = httpx2.URL(emulator.base_url).port
    assert port is not None
    with Line(port) as line:
        base_url = f"https://{LOOPBACK}:{line.port}/v1"
        trust = {"SSL_CERT_FILE": str(line.trust(tmp_path))}
        with serving(base_url, tmp_path / "log", **trust) as web:
            async with browser(web) as http:
                conversation = None
                for number in range(20):
                    answer = await say(http, f"message {number}", conversation)
                    conversation = answer["conversation_id"]
            ends_well(web)
        assert line.connections == 1


@pytest.fixture(name="example")
def _example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's module."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import app

    yield app
    del sys.modules["app"]


_REQUEST = httpx2.Request("POST", "http://any/v1")


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (AppendOutcomeUnknown("unknown"), 409, False),
        (ConversationBusy("busy"), 409, False),
        (DeadlineExceeded("late"), 503, True),
        (OutboxFull("full"), 503, True),
        (OutboxError("no disk"), 503, True),
        (OutboxPaused("paused"), 503, False),
        (TurnLost("lost"), 503, True),
        (UnexpectedAnswer("nonsense"), 502, False),
        (openai.APIConnectionError(request=_REQUEST), 503, True),
        (
            openai.NotFoundError(
                "key sk-1234", response=httpx2.Response(404, request=_REQUEST), body=None
            ),
            404,
            False,
        ),
        (
            openai.AuthenticationError(
                "key sk-1234", response=httpx2.Response(401, request=_REQUEST), body=None
            ),
            502,
            False,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_errors_have_a_status(
    example: Any, error: Exception, status: int, again: bool, path: str
) -> None:
    """Each error of the package is a status and a body that says what to do, without a key."""

    class Failing:
        def session(self, conversation_id: str | None) -> Any:
            raise error

    example.app.state.chat = Failing()
    transport = httpx2.ASGITransport(app=example.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://any") as http:
        answer = await http.post(path, json={"text": "hello"})
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == again
    assert answer.json()["error"] == type(error).__name__
    assert answer.json()["advice"].endswith(".")
    assert "sk-1234" not in answer.text
