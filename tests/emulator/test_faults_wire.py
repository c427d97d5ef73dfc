"""Each kind of fault as a real client sees it over a real socket, and what the server holds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from cached_session.emulator import Emulator, Fault, FaultKind, Faults, LoggedRequest
from cached_session.emulator.requests import is_append, is_listing
from tests.emulator.clients import causes, connect, open_client
from tests.emulator.gate import Gate, Watched
from tests.servers import accepts, eventually

Message = dict[str, Any]
BATCH: list[Message] = [
    {"type": "message", "role": "user", "content": text} for text in ("a", "b", "c")
]


def scripted(*decisions: Fault | FaultKind | None, **options: Any) -> Emulator:
    """An emulator whose appends go wrong as told."""
    return Emulator(faults=Faults.script(decisions, only=is_append), **options)


def texts(emulator: Emulator, conversation: str) -> list[str]:
    return [item["content"][0]["text"] for item in emulator.items(conversation)]


# kind, what the client raises (None: it gets an answer), what the server holds, status logged
ROWS: list[tuple[FaultKind, type[Exception] | None, list[str], int | None]] = [
    (FaultKind.RESET_BEFORE_COMMIT, openai.APIConnectionError, [], None),
    (FaultKind.RESET_AFTER_COMMIT, openai.APIConnectionError, ["a", "b", "c"], None),
    (FaultKind.ERROR_BEFORE_COMMIT, openai.InternalServerError, [], 500),
    (FaultKind.ERROR_AFTER_COMMIT, openai.InternalServerError, ["a", "b", "c"], 500),
    (FaultKind.RATE_LIMITED, openai.RateLimitError, [], 429),
    (FaultKind.RATE_LIMITED_QUOTA, openai.RateLimitError, [], 429),
    (FaultKind.LOCKED, openai.BadRequestError, [], 400),
    (FaultKind.TRUNCATED, openai.APIConnectionError, ["a", "b", "c"], 200),
    (FaultKind.NOT_JSON, None, ["a", "b", "c"], 200),
    (FaultKind.WRONG_SHAPE, None, ["a", "b", "c"], 200),
    (FaultKind.PARTIAL_BATCH, openai.APIConnectionError, ["a"], None),
]


@pytest.mark.parametrize(("kind", "raised", "held", "status"), ROWS, ids=[row[0] for row in ROWS])
def test_append_under_a_fault(
    kind: FaultKind, raised: type[Exception] | None, held: list[str], status: int | None
) -> None:
    """The client sees the fault, the server holds what it should, the log says which it was."""
    with scripted(kind) as emulator, connect(emulator) as client:
        conversation = client.conversations.create().id
        if raised is None:
            client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        else:
            with pytest.raises(raised):
                client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        assert texts(emulator, conversation) == held
        assert emulator.requests[-1] == LoggedRequest(
            method="POST",
            path=f"/v1/conversations/{conversation}/items",
            query=(),
            status=status,
            fault=kind,
            conversation_id=conversation,
            items=3,
        )
        # The next request on the same client goes well.
        client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        assert texts(emulator, conversation) == [*held, "a", "b", "c"]


def test_reset_is_a_reset() -> None:
    """A reset reaches the client as ECONNRESET, not as the end of the connection."""
    with scripted(FaultKind.RESET_BEFORE_COMMIT) as emulator:
        port = httpx2.URL(emulator.base_url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/conversations/conv_1/items HTTP/1.1\r\nhost: test\r\n"
                b"authorization: Bearer key\r\ncontent-length: 2\r\n\r\n{}"
            )
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_truncated_answer_has_its_whole_length_in_the_header() -> None:
    """A truncated answer promises more bytes than come before the connection ends."""
    with scripted(FaultKind.TRUNCATED) as emulator:
        port = httpx2.URL(emulator.base_url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/conversations/conv_1/items HTTP/1.1\r\nhost: test\r\n"
                b"authorization: Bearer key\r\ncontent-length: 2\r\n\r\n{}"
            )
            received = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    ]
    assert lengths
    assert 0 < len(body) < lengths[0]


def test_client_that_retries_by_itself_stores_the_batch_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client's own retries double a batch whose answer was lost: no key prevents it."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the client's pause
    with (
        scripted(FaultKind.RESET_AFTER_COMMIT) as emulator,
        connect(emulator, max_retries=2) as client,
    ):
        conversation = client.conversations.create().id
        client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        assert texts(emulator, conversation) == ["a", "b", "c"] * 2


def test_slow_answer_comes_after_the_commit() -> None:
    """A slow answer is held back while the items are stored already."""
    gate = Gate()
    fault = Fault(FaultKind.SLOW, delay=7.5)
    with (
        scripted(fault, sleep=gate.sleep) as emulator,
        connect(emulator) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        conversation = client.conversations.create().id
        answer = pool.submit(
            lambda: client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        )
        gate.arrived()
        assert gate.asked == [7.5]
        assert texts(emulator, conversation) == ["a", "b", "c"]
        assert not answer.done()
        gate.open()
        assert [item.id for item in answer.result().data] == [
            item["id"] for item in emulator.items(conversation)
        ]


def test_late_commit_after_a_reset() -> None:
    """The client sees a reset and nothing stored; later the request is carried out once."""
    gate, service = Gate(), Watched()
    fault = Fault(FaultKind.LATE_COMMIT, delay=3)
    with (
        scripted(fault, sleep=gate.sleep, service=service) as emulator,
        connect(emulator) as client,
    ):
        conversation = client.conversations.create().id
        service.handled()
        with pytest.raises(openai.APIConnectionError):
            client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        gate.arrived()
        assert gate.asked == [3]
        assert texts(emulator, conversation) == []
        gate.open()
        service.handled()
        assert texts(emulator, conversation) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fault", "late"),
    [
        (Fault(FaultKind.HANG), False),
        (Fault(FaultKind.LATE_COMMIT, silent=True), True),
    ],
    ids=["hang", "late_commit"],
)
def test_silence_until_the_client_gives_up(fault: Fault, late: bool) -> None:
    """No answer comes; what the client gave up on is carried out later or never."""
    gate, service = Gate(), Watched()

    async def give_up(emulator: Emulator) -> str:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        on_arrival.append(lambda: loop.call_soon_threadsafe(arrived.set))
        async with open_client(emulator) as client:
            conversation = (await client.conversations.create()).id
            append = asyncio.create_task(
                client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
            )
            await arrived.wait()
            assert not append.done()
            append.cancel()
            with pytest.raises(asyncio.CancelledError):
                await append
        return conversation

    on_arrival: list[Callable[[], object]] = []

    def noticed(entry: LoggedRequest) -> None:
        if entry.fault is not None:
            on_arrival[0]()

    with scripted(fault, sleep=gate.sleep, service=service, on_request=noticed) as emulator:
        conversation = asyncio.run(give_up(emulator))
        service.handled()
        assert texts(emulator, conversation) == []
        if late:
            gate.arrived()
            gate.open()
            service.handled()
            assert texts(emulator, conversation) == ["a", "b", "c"]
        assert emulator.requests[-1].status is None


def test_connections_are_refused_for_a_while() -> None:
    """The request is cut off, new connections are refused, then the server is back."""
    gate = Gate()
    fault = Fault(FaultKind.REFUSED, delay=4)
    with scripted(fault, sleep=gate.sleep) as emulator, connect(emulator) as client:
        port = httpx2.URL(emulator.base_url).port
        assert port is not None
        conversation = client.conversations.create().id
        with pytest.raises(openai.APIConnectionError):
            client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        gate.arrived()
        assert gate.asked == [4]
        with pytest.raises(openai.APIConnectionError) as refused:
            client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        assert any(isinstance(link, httpx2.ConnectError) for link in causes(refused.value))
        assert not accepts(port)
        gate.open()
        eventually(lambda: accepts(port))
        client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        assert texts(emulator, conversation) == ["a", "b", "c"]


def test_cursor_faults_over_http() -> None:
    """A known cursor is refused with 404, or ignored; the next listing is right again."""
    plan = Faults.script([FaultKind.CURSOR_REFUSED, FaultKind.CURSOR_IGNORED], only=is_listing)
    with Emulator(faults=plan) as emulator, connect(emulator) as client:
        conversation = client.conversations.create().id
        created = client.conversations.items.create(conversation, items=BATCH)  # type: ignore[arg-type]
        first = str(created.data[0].id)

        def rest() -> list[str | None]:
            page = client.conversations.items.list(conversation, order="asc", after=first)
            return [item.id for item in page.data]

        ids = [item.id for item in created.data]
        with pytest.raises(openai.NotFoundError):
            rest()
        assert rest() == ids
        assert rest() == ids[1:]


def test_seeded_plan_over_http_is_the_same_each_time() -> None:
    """Two runs with the same seed see the same faults and end with the same items."""

    def run() -> tuple[list[FaultKind | None], list[str]]:
        kinds = ["reset_before_commit", "reset_after_commit", "locked", "partial_batch"]
        plan = Faults(11, dict.fromkeys(kinds, 0.2))
        with Emulator(faults=plan, seed=5) as emulator, connect(emulator) as client:
            path = "/conversations"
            for _ in range(30):
                try:
                    body = client.post(path, body={"items": BATCH}, cast_to=httpx2.Response)
                except openai.OpenAIError:
                    continue
                if path == "/conversations":
                    path = f"/conversations/{body.json()['id']}/items"
            (conversation, *_) = [
                entry.conversation_id for entry in emulator.requests if entry.conversation_id
            ]
            assert conversation is not None
            return [entry.fault for entry in emulator.requests], texts(emulator, conversation)

    first = run()
    assert len(set(first[0])) > 3
    assert run() == first
