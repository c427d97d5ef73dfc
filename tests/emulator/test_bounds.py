"""What the emulator makes of requests that nobody expects: an answer in the API's form, no 500."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cached_session.emulator import Emulator, FaultKind, Faults, Request, Service
from cached_session.emulator.params import MAX_BODY, MAX_DEPTH
from tests.core.strategies import json_values

KEY = {"authorization": "Bearer key"}


def client(emulator: Emulator) -> httpx2.Client:
    return httpx2.Client(base_url=emulator.base_url, headers=KEY, trust_env=False, timeout=20)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error of an answer, which has all four fields."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_half_of_a_surrogate_pair() -> None:
    """Half of a pair, escaped, is stored and listed as it is, and so is what is appended after."""
    with Emulator() as emulator, client(emulator) as http:
        path = f"/conversations/{http.post('/conversations', json={}).json()['id']}/items"
        sent = rb'{"items":[{"role":"user","content":"a\ud83db"}]}'
        answered = http.post(path, content=sent)
        assert answered.status_code == 200
        assert rb"a\ud83db" in answered.content
        http.post(path, json={"items": [{"role": "user", "content": "\u00e9"}]})
        listed = http.get(path, params={"order": "asc"})
        assert listed.status_code == 200
        texts = [item["content"][0]["text"] for item in listed.json()["data"]]
        assert texts == ["a\ud83db", "\u00e9"]
        refused = http.post(path, content=sent.replace(b'"user"', rb'"\ud83d"'))
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "items[0].role"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"items":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"metadata":' + b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH + b"}",
        b'{"items":[NaN]}',
        b'{"items":[-Infinity]}',
        b'{"items":[1e999]}',
        b'{"items":[' + b"9" * 5000 + b"]}",
        b'{"items":["\xff"]}',
        b"\x00",
    ],
    ids=str,
)
def test_json_that_is_none(body: bytes) -> None:
    """What is no JSON, or nested too deeply, is 400 in the API's form, and nothing was stored."""
    with Emulator() as emulator, client(emulator) as http:
        made = http.post("/conversations", json={}).json()["id"]
        for path in ("/conversations", f"/conversations/{made}/items"):
            answer = http.post(path, content=body)
            assert answer.status_code == 400
            error_of(answer)
        assert http.get(f"/conversations/{made}/items").json()["data"] == []


def test_as_deep_as_is_allowed() -> None:
    """JSON at the bound is stored and listed."""
    with Emulator() as emulator, client(emulator) as http:
        path = f"/conversations/{http.post('/conversations', json={}).json()['id']}/items"
        # Beside the list: the body, its items, and the item.
        deep = b"[" * (MAX_DEPTH - 3) + b"]" * (MAX_DEPTH - 3)
        item = b'{"role":"user","content":"a","more":' + deep + b"}"
        assert http.post(path, content=b'{"items":[' + item + b"]}").status_code == 200
        assert http.get(path).status_code == 200
        item = item.replace(deep, b"[" + deep + b"]")
        assert http.post(path, content=b'{"items":[' + item + b"]}").status_code == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(chunked: bool) -> None:
    """More than so many bytes are 413 in the API's form, announced or not; it goes on after."""
    block = b" " * (1 << 20)
    blocks = [block] * (MAX_BODY // len(block)) + [b"{"]
    with Emulator() as emulator, client(emulator) as http:
        content: Any = iter(blocks) if chunked else b"".join(blocks)
        answer = http.post("/conversations", content=content)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"
        assert http.post("/conversations", json={}).status_code == 200


def test_headers_that_are_too_large() -> None:
    """Headers of more than 64 KiB, and what is no HTTP, are 400 in the API's form."""
    with Emulator() as emulator, client(emulator) as http:
        answer = http.get("/conversations/conv_x", headers={"x-long": "x" * (1 << 17)})
        assert answer.status_code == 400
        error_of(answer)
        url = httpx2.URL(emulator.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=20) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            head, _, body = raw.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["message"]


def test_health() -> None:
    """Whether it is up is told without a key; no fault befalls that, and no log holds it."""
    faults = Faults(1, {FaultKind.RESET_BEFORE_COMMIT: 1.0})
    with Emulator(faults=faults) as emulator:
        answer = httpx2.get(f"{emulator.base_url.removesuffix('/v1')}/health", trust_env=False)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert emulator.requests == []


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "127.0.0.2"])
def test_where_it_listens(host: str) -> None:
    """It listens where it is told to, and its base URL leads there."""
    with Emulator(host=host) as emulator, client(emulator) as http:
        assert http.post("/conversations", json={}).status_code == 200
        port = httpx2.URL(emulator.base_url).port or 0
        if host == "127.0.0.2":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=20)


def test_a_host_that_is_not_there() -> None:
    """A host that is none of this machine's is an error of the start."""
    with pytest.raises(OSError, match="assign"), Emulator(host="192.0.2.1"):
        pass


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "role", "content", "id", "status", "call_id", "output", "summary"]
        ),
        json_values
        | st.sampled_from(["message", "user", "reasoning", "function_call_output", "\ud83d"])
        | st.lists(st.dictionaries(st.sampled_from(["type", "text", "id"]), json_values)),
    )
)
def test_any_item_at_all(item: dict[str, Any]) -> None:
    """Whatever JSON an item is, it is taken or refused, and listings go on."""
    service = Service()

    def ask(method: str, path: str, body: object = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        return service.handle(Request.parse(method, f"/v1/conversations{path}", KEY, content))

    made = ask("POST", "", {}).json()["id"]
    for body in ({"items": [item]}, {"items": item}, item):
        assert ask("POST", f"/{made}/items", body).status in (200, 400, 404)
    assert ask("POST", "", {"metadata": item, "items": [item]}).status in (200, 400, 404)
    assert ask("GET", f"/{made}/items").status == 200
