"""HTTP as the emulator's own server speaks it, byte by byte, over a real socket."""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from cached_session.emulator import Emulator, Fault, FaultKind, Faults
from tests.emulator.gate import Gate
from tests.servers import eventually

HEAD = b"host: test\r\nauthorization: Bearer key\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n"
CREATE = b"POST /v1/conversations HTTP/1.1\r\n" + HEAD


@pytest.fixture(name="emulator")
def _emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


def connected(emulator: Emulator) -> socket.socket:
    """A connection to the emulator."""
    port = httpx2.URL(emulator.base_url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer(connection: socket.socket, *, body: bool = True) -> tuple[int, bytes]:
    """Reads one answer, and not a byte more: its status and its body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1) or pytest.fail(f"the answer ended: {head!r}")
    lines = head.lower().split(b"\r\n")
    length = sum(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    read = b""
    while body and len(read) < length:
        read += connection.recv(length - len(read)) or pytest.fail("the body ended")
    return int(head.split()[1]), read


def with_body(body: bytes, *headers: bytes) -> bytes:
    """A request that makes a conversation."""
    return b"".join([CREATE, *headers, b"content-length: %d\r\n\r\n" % len(body), body])


def test_a_connection_is_used_again(emulator: Emulator) -> None:
    """One connection carries one request after the other, of different kinds."""
    with connected(emulator) as connection:
        for sent, status in ((HEALTH, 200), (with_body(b"{}"), 200), (with_body(b"x"), 400)) * 2:
            connection.sendall(sent)
            assert answer(connection)[0] == status


def test_pipelined_requests_are_answered_in_order(emulator: Emulator) -> None:
    """What is sent without waiting for answers is answered all the same, in the order sent."""
    sent = [json.dumps({"metadata": {"number": str(number)}}).encode() for number in range(20)]
    with connected(emulator) as connection:
        connection.sendall(b"".join(map(with_body, sent)))
        answers = [json.loads(answer(connection)[1]) for _ in sent]
    assert [one["metadata"]["number"] for one in answers] == [str(n) for n in range(20)]
    assert len(emulator.requests) == 20


def test_a_body_may_come_in_chunks_and_in_pieces(emulator: Emulator) -> None:
    """A body without a length, of which each byte comes alone, is read whole."""
    body = json.dumps({"metadata": {"k": "v" * 50}}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (10, body[at : at + 10]) for at in range(0, 60, 10))
    rest = body[60:]
    chunks += b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest)
    with connected(emulator) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in CREATE + b"transfer-encoding: chunked\r\n\r\n" + chunks:
            connection.sendall(bytes([byte]))
        status, made = answer(connection)
    assert (status, json.loads(made)["metadata"]) == (200, {"k": "v" * 50})


def test_a_client_may_ask_first_whether_it_should_send(emulator: Emulator) -> None:
    """`Expect: 100-continue` is answered before the body comes."""
    head, _, body = with_body(b"{}", b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with connected(emulator) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert answer(connection)[0] == 100
        connection.sendall(body)
        assert answer(connection)[0] == 200


def test_head_has_no_body(emulator: Emulator) -> None:
    """HEAD is answered with the length of a body that does not come."""
    with connected(emulator) as connection:
        connection.sendall(HEALTH.replace(b"GET", b"HEAD") + HEALTH)
        assert answer(connection, body=False)[0] == 200
        assert answer(connection) == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("ending", [b"connection: close\r\n", b""], ids=["asked", "http/1.0"])
def test_a_connection_ends_when_the_client_wants(emulator: Emulator, ending: bytes) -> None:
    """Where the client asks for one answer only, the connection ends behind it."""
    version = b"HTTP/1.1" if ending else b"HTTP/1.0"
    with connected(emulator) as connection:
        connection.sendall(b"GET /health " + version + b"\r\n" + HEAD + ending + b"\r\n")
        assert answer(connection)[0] == 200
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "sent",
    [b"no request at all\r\n\r\n", CREATE + b"transfer-encoding: chunked\r\n\r\nno length\r\n"],
    ids=["head", "body"],
)
def test_what_is_no_http_is_refused(emulator: Emulator, sent: bytes) -> None:
    """What cannot be read as HTTP is answered with 400, and the connection ends; others go on."""
    with connected(emulator) as connection, connected(emulator) as other:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
        assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        other.sendall(HEALTH)
        assert answer(other)[0] == 200
    assert emulator.requests == []


def test_a_client_that_leaves_halfway_is_no_error(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that goes away in a head, in a body or before its answer leaves no log behind."""
    for sent in (CREATE, CREATE + b"content-length: 9\r\n\r\n{", with_body(b"{}")):
        with connected(emulator) as connection:
            connection.sendall(sent)
    eventually(lambda: len(emulator.requests) == 1)
    with connected(emulator) as connection:
        connection.sendall(HEALTH)
        assert answer(connection)[0] == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_app_that_fails_answers_with_500(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the program that uses the emulator is logged, answered with 500, and the end."""

    def failing(_: object) -> Fault:
        raise ZeroDivisionError

    with Emulator(faults=failing) as emulator, connected(emulator) as connection:
        connection.sendall(with_body(b"{}"))
        assert answer(connection)[0] == 500
        assert connection.recv(1) == b""
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_stop_resets_whatever_is_open() -> None:
    """A stop resets connections: fresh, idle, half a request, an answer that nobody reads."""
    before = set(threading.enumerate())
    emulator = Emulator()
    emulator.start()
    conversation = json.loads(post(emulator, "/v1/conversations", {}))["id"]
    path = f"/v1/conversations/{conversation}/items"
    for _ in range(5):
        large = [{"role": "user", "content": "x" * 200_000}] * 20
        post(emulator, path, {"items": large})
    with (
        ThreadPoolExecutor(1) as pool,
        connected(emulator) as full,
        connected(emulator) as half,
        connected(emulator) as idle,
    ):
        full.sendall(f"GET {path}?limit=100 HTTP/1.1\r\n".encode() + HEAD + b"\r\n")
        # Its answer has begun, and is far longer than what the way can hold.
        full.recv(1)
        half.sendall(CREATE)
        idle.sendall(HEALTH)
        assert answer(idle)[0] == 200
        with connected(emulator) as fresh:
            pool.submit(emulator.stop).result(30)
            for connection in (fresh, full, half, idle):
                with pytest.raises(ConnectionResetError):
                    b"".join(iter(lambda: connection.recv(1 << 20), b""))  # noqa: B023  # at once
    assert set(threading.enumerate()) == before


def post(emulator: Emulator, path: str, body: object) -> bytes:
    """A request with a client of its own; returns the answer."""
    answer = httpx2.post(
        emulator.base_url.removesuffix("/v1") + path,
        json=body,
        headers={"authorization": "Bearer key"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text[:200]
    return answer.content


def test_what_comes_behind_a_silent_request_does_not_end_it(emulator: Emulator) -> None:
    """A request that gets no answer goes on while its client sends the next one."""
    emulator.faults = Faults.script([FaultKind.HANG])
    with connected(emulator) as silent, connected(emulator) as other:
        silent.sendall(with_body(b"{}"))
        eventually(lambda: len(emulator.requests) == 1)
        silent.sendall(HEALTH)
        # One loop serves both: what came before these was seen before their answers left.
        for _ in range(3):
            other.sendall(HEALTH)
            assert answer(other)[0] == 200
        readable, _, _ = select.select([silent], [], [], 0)
        assert readable == []


def test_a_connection_in_use_ends_with_its_answer_when_new_ones_are_refused() -> None:
    """In an outage an idle connection ends at once, and one in use behind its answer."""
    gate = Gate()
    plan = Faults.script([FaultKind.SLOW, Fault(FaultKind.REFUSED, delay=1)])
    with (
        Emulator(faults=plan, sleep=gate.sleep) as emulator,
        connected(emulator) as used,
        connected(emulator) as idle,
        connected(emulator) as cut,
    ):
        idle.sendall(HEALTH)
        assert answer(idle)[0] == 200
        used.sendall(with_body(b"{}"))
        gate.arrived()
        cut.sendall(with_body(b"{}"))
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        assert idle.recv(1) == b""
        gate.open()
        assert answer(used)[0] == 200
        assert used.recv(1) == b""
