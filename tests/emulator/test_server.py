"""Starting, stopping and sharing the emulator; latency, log and use in process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from cached_session.emulator import (
    Emulator,
    Fault,
    FaultKind,
    Faults,
    Habits,
    Service,
    create_app,
)
from tests.emulator.api import Api
from tests.emulator.clients import open_client, post_conversation
from tests.emulator.gate import Gate
from tests.servers import accepts, eventually

KEY = {"authorization": "Bearer key"}


def port_of(emulator: Emulator) -> int:
    port = httpx2.URL(emulator.base_url).port
    assert port is not None
    return port


async def write_and_read(emulator: Emulator, text: str) -> list[str]:
    async with open_client(emulator) as client:
        conversation = (await client.conversations.create()).id
        await client.conversations.items.create(
            conversation, items=[{"role": "user", "content": text}]
        )
        await client.conversations.items.list(conversation)
    return [item["content"][0]["text"] for item in emulator.items(conversation)]


def test_leaves_no_thread_and_no_port() -> None:
    """After the block no thread of the emulator runs and nothing listens on its port."""
    before = set(threading.enumerate())
    with Emulator() as emulator:
        port = port_of(emulator)
        assert set(threading.enumerate()) > before
        assert accepts(port)
    assert set(threading.enumerate()) == before
    assert not accepts(port)


def test_works_inside_and_across_event_loops() -> None:
    """An emulator can be entered in a loop, and one serves several loops one after the other."""

    async def inside() -> list[str]:
        async with Emulator() as emulator:
            return await write_and_read(emulator, "inside")

    assert asyncio.run(inside()) == ["inside"]
    with Emulator() as emulator:
        for text in ("one", "two", "three"):
            assert asyncio.run(write_and_read(emulator, text)) == [text]


def test_serves_several_threads_at_once() -> None:
    """Clients in several threads with loops of their own share one emulator."""
    with Emulator() as emulator, ThreadPoolExecutor(4) as pool:
        names = [str(number) for number in range(12)]
        results = pool.map(lambda name: asyncio.run(write_and_read(emulator, name)), names)
        assert list(results) == [[name] for name in names]
        assert len(emulator.requests) == 36


def test_several_emulators_side_by_side() -> None:
    """Two emulators have ports and conversations of their own."""
    with Emulator() as first, Emulator() as second:
        assert first.base_url != second.base_url
        asyncio.run(write_and_read(first, "x"))
        assert (len(first.store.ids()), len(second.store.ids())) == (1, 0)


def test_can_be_entered_again() -> None:
    """After a stop the emulator starts again on its port with what it held."""
    emulator = Emulator()
    with emulator:
        port = port_of(emulator)
        asyncio.run(write_and_read(emulator, "kept"))
    (conversation,) = emulator.store.ids()
    with emulator:
        assert port_of(emulator) == port
        api = Api(emulator.base_url, "emulator")
        with api.client:
            assert api.texts(conversation) == ["kept"]


def test_stops_while_requests_are_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    """A stop resets connections whose answers are held back, waits for none, logs no error."""
    gate = Gate()
    plan = Faults.script([FaultKind.SLOW, FaultKind.HANG])
    with ThreadPoolExecutor(2) as pool:
        with Emulator(faults=plan, sleep=gate.sleep) as emulator:
            calls = [pool.submit(post_conversation, emulator.base_url) for _ in range(2)]
            gate.arrived()
            eventually(lambda: len(emulator.requests) == 2)
        for call in calls:
            with pytest.raises(httpx2.TransportError):
                call.result()
    assert caplog.records == []


def test_stops_while_it_refuses_connections() -> None:
    """A stop during an outage ends the outage's wait too."""
    gate = Gate()
    plan = Faults.script([Fault(FaultKind.REFUSED, delay=1000)])
    before = set(threading.enumerate())
    with Emulator(faults=plan, sleep=gate.sleep) as emulator:
        with pytest.raises(httpx2.TransportError):
            post_conversation(emulator.base_url)
        gate.arrived()
    assert set(threading.enumerate()) == before


def test_stop_drops_late_requests() -> None:
    """What a fault held back for later is not carried out after a stop."""
    gate = Gate()
    plan = Faults.script([FaultKind.LATE_COMMIT])
    with Emulator(faults=plan, sleep=gate.sleep) as emulator:
        with pytest.raises(httpx2.TransportError):
            post_conversation(emulator.base_url)
        gate.arrived()
    assert emulator.store.ids() == ()


def test_taken_port_is_an_error_of_the_start() -> None:
    """A port that another server listens on raises OSError, and leaves no thread."""
    before = set(threading.enumerate())
    with Emulator() as emulator:
        port = port_of(emulator)
        second = Emulator(port=port)
        with pytest.raises(OSError, match="in use"):
            second.start()
    assert set(threading.enumerate()) == before


def test_start_twice_and_stop_twice() -> None:
    """A second start is an error, a second stop does nothing."""
    emulator = Emulator()
    emulator.stop()
    with emulator:
        with pytest.raises(RuntimeError):
            emulator.start()
        emulator.stop()
        emulator.stop()


def test_base_url_needs_a_port() -> None:
    """The base URL is known once the emulator was started, or was given a port."""
    with pytest.raises(RuntimeError):
        _ = Emulator().base_url
    assert Emulator(port=8080).base_url == "http://127.0.0.1:8080/v1"


def test_arguments_that_cannot_be() -> None:
    """Arguments out of bounds or against each other are refused at once."""
    bad: list[dict[str, Any]] = [
        {"latency": -1.0},
        {"port": 70000},
        {"service": Service(), "seed": 1},
        {"service": Service(), "habits": Habits()},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=r"negative|65535|belong"):
            Emulator(**options)


def test_ids_of_two_runs_differ_unless_seeded() -> None:
    """No two emulators give out the same ids, unless they were given the same seed."""

    def first_id(seed: int | None) -> str:
        emulator = Emulator(seed=seed)
        return emulator.store.create([], {}).id

    assert first_id(None) != first_id(None)
    assert first_id(1) == first_id(1)


# --- latency, log, in process ---


def test_latency_is_half_before_and_half_after() -> None:
    """Half of the latency passes before the request is carried out, half before the answer."""
    gate = Gate()
    with (
        Emulator(latency=0.5, sleep=gate.sleep) as emulator,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(post_conversation, emulator.base_url)
        gate.arrived()
        assert emulator.store.ids() == ()
        gate.open()
        gate.arrived()
        assert len(emulator.store.ids()) == 1
        assert not call.done()
        gate.open()
        assert call.result().status_code == 200
        assert gate.asked == [0.25, 0.25]


def test_faults_can_be_set_at_any_time() -> None:
    """A plan set on a running emulator decides from the next request on."""
    with Emulator() as emulator:
        assert post_conversation(emulator.base_url).status_code == 200
        emulator.faults = Faults.script([FaultKind.LOCKED])
        assert post_conversation(emulator.base_url).status_code == 400
        emulator.faults = None
        assert post_conversation(emulator.base_url).status_code == 200


def test_log_holds_every_request_once() -> None:
    """The log names method, path, query, status, conversation and number of items."""
    with Emulator() as emulator:
        api = Api(emulator.base_url, "emulator")
        with api.client:
            conversation = api.conversation("a", "b")
            api.list(conversation, limit=1)
            api.list("conv_x")
        create, append, listing, unknown = emulator.requests
        path = f"/v1/conversations/{conversation}/items"
        assert (create.method, create.path, create.conversation_id) == (
            "POST",
            "/v1/conversations",
            None,
        )
        assert (append.method, append.path, append.items) == ("POST", path, 2)
        assert (listing.query, listing.items, listing.status) == ((("limit", "1"),), 1, 200)
        assert (unknown.status, unknown.conversation_id) == (404, "conv_x")
        assert {entry.fault for entry in emulator.requests} == {None}
        emulator.requests.clear()
        assert len(emulator.requests) == 4
        emulator.clear_log()
        assert emulator.requests == []


def test_items_shows_what_a_listing_shows() -> None:
    """`items` returns the whole conversation, oldest first, without a request."""
    with Emulator() as emulator:
        api = Api(emulator.base_url, "emulator")
        with api.client:
            conversation = api.conversation("a", "b", "c")
            listed = api.list(conversation, order="asc").body["data"]
        emulator.clear_log()
        assert emulator.items(conversation) == listed
        assert emulator.requests == []
        with pytest.raises(LookupError):
            emulator.items("conv_x")


def test_answers_as_asgi_app_in_process() -> None:
    """The app answers in process, without a server, and shares the emulator's store and log."""

    async def run(emulator: Emulator) -> None:
        transport = httpx2.ASGITransport(app=emulator.app)
        http = httpx2.AsyncClient(transport=transport)
        async with AsyncOpenAI(
            base_url="http://emulator/v1", api_key="key", max_retries=0, http_client=http
        ) as client:
            made = await client.conversations.create(items=[{"role": "user", "content": "x"}])
            assert len(emulator.items(made.id)) == 1
            with pytest.raises(ConnectionResetError):
                await http.post("http://emulator/v1/conversations", headers=KEY)
            with pytest.raises(ConnectionRefusedError):
                await http.post("http://emulator/v1/conversations", headers=KEY)
            with pytest.raises(ConnectionResetError):
                await http.post("http://emulator/v1/conversations", headers=KEY)

    plan = Faults.script(
        [None, FaultKind.RESET_BEFORE_COMMIT, FaultKind.REFUSED, FaultKind.TRUNCATED]
    )
    emulator = Emulator(faults=plan)
    asyncio.run(run(emulator))
    assert len(emulator.requests) == 4


def test_create_app_alone() -> None:
    """`create_app` without arguments answers from a new service."""

    async def run() -> int:
        transport = httpx2.ASGITransport(app=create_app())
        async with httpx2.AsyncClient(transport=transport, base_url="http://app/v1") as client:
            return (await client.post("/conversations", headers=KEY)).status_code

    assert asyncio.run(run()) == 200


def posted(emulator: Emulator, body: bytes) -> httpx2.Response:
    url = f"{emulator.base_url}/conversations"
    return httpx2.post(url, content=body, headers=KEY, trust_env=False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"items":[{"role":"user","content":"\\ud83d"}]}',
        b'{"items":[{"role":"user","content":"\\uDE00 and \\uD83D\\uDE00"}]}',
        b'{"items":[{"role":"user","content":"a","\\ud83d":1}]}',
        b'{"metadata":{"a":"\\ud83d"}}',
        b'{"items":[{"role":"user","content":"a","x":NaN}]}',
        b'{"items":[{"role":"user","content":"a","x":-Infinity}]}',
        b'{"items":[{"role":"user","content":"a","x":1e999}]}',
        b'{"items":[{"role":"user","content":"a","x":' + b"9" * 5000 + b"}]}",
        b'{"items":[{"role":"user","content":"a","x":' + b"[" * 120 + b"]" * 120 + b"}]}",
        b"[" * 100_000,
    ],
    ids=[
        "half a pair",
        "second half",
        "in a key",
        "in metadata",
        "nan",
        "infinite",
        "overflow",
        "digits",
        "deep",
        "deeper",
    ],
)
def test_what_cannot_be_listed_is_refused(emulator: Emulator, body: bytes) -> None:
    """A body with what no answer could hold is a 400 of the API, and later requests go well."""
    refused = posted(emulator, body)
    assert refused.status_code == 400
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    whole = posted(emulator, b'{"items":[{"role":"user","content":"\\ud83d\\ude00 \\\\ud83d"}]}')
    assert whole.status_code == 200
    listed = emulator.items(whole.json()["id"])
    assert [item["content"][0]["text"] for item in listed] == ["\U0001f600 \\ud83d"]


def test_body_that_is_too_large_is_refused(emulator: Emulator) -> None:
    """More than 64 MiB are a 413 of the API, which the client gets to see."""
    refused = posted(emulator, b" " * (64 * 1024 * 1024 + 1))
    assert refused.status_code == 413
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert posted(emulator, b"{}").status_code == 200


def test_health_needs_no_key_and_meets_no_fault() -> None:
    """`GET /health` answers without a key, is in no log, and no fault befalls it."""
    with Emulator(faults=lambda _: Fault(FaultKind.LOCKED)) as emulator:
        url = emulator.base_url.removesuffix("/v1") + "/health"
        answer = httpx2.get(url, trust_env=False)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert emulator.requests == []


def test_other_interfaces() -> None:
    """An emulator on another address is reached there and nowhere else; on all, on the loopback."""
    with Emulator(host="127.0.0.2") as emulator:
        assert emulator.base_url.startswith("http://127.0.0.2:")
        assert posted(emulator, b"{}").status_code == 200
        assert not accepts(port_of(emulator))
    with Emulator(host="0.0.0.0") as emulator:
        assert accepts(port_of(emulator))
        assert posted(emulator, b"{}").status_code == 200
