"""Connections: they live as long as the client and the event loop, and nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI

from benchmarks.line import LOOPBACK, Line
from cached_session import CachedSession, ConversationCache, RetryPolicy
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, in_threads, new_client, sent, texts, users
from tests.session.wire import Wire, sockets_to, tunnel, wire

pytestmark = pytest.mark.long


@pytest.fixture(name="line")
def _line(emulator: Emulator) -> Iterator[Wire]:
    with wire(emulator) as line:
        yield line
        gc.collect()


def client_on(line: Wire) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=line.base_url, api_key="key", max_retries=0)


@contextmanager
def without_a_warning(*but: str) -> Iterator[None]:
    """Nothing is warned of meanwhile, not even when the garbage is collected."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    said = [str(one.message) for one in caught]
    assert [text for text in said if not any(part in text for part in but)] == []


async def in_a_block(client: AsyncOpenAI, conversation: str) -> None:
    async with CachedSession(conversation_id=conversation, openai_client=client) as session:
        await session.add_items(users("x"))


async def closed(client: AsyncOpenAI, conversation: str) -> None:
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.add_items(users("x"))
    await session.aclose()


async def never_closed(client: AsyncOpenAI, conversation: str) -> None:
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.add_items(users("x"))


@pytest.mark.parametrize("use", [in_a_block, closed, never_closed])
async def test_a_session_for_each_web_request(
    use: Callable[[AsyncOpenAI, str], AsyncIterator[None]], emulator: Emulator
) -> None:
    """A hundred sessions, one after the other on one client, use one connection."""
    with wire(emulator) as line:
        async with client_on(line) as client:
            conversation = Elsewhere(emulator).conversation("a")
            for _ in range(100):
                await use(client, conversation)  # type: ignore[misc]
            assert line.opened == 1
            # Those that are closed send what those send that are not.
            assert sent(emulator) == ["GET items"] + ["POST items"] * 100
        del client
        gc.collect()


def test_run_sync(line: Wire) -> None:
    """Fifteen `run_sync` on one client use one connection, though each ends the generators."""

    def program() -> None:
        session = CachedSession(openai_client=client_on(line))
        for number in range(15):
            model = ScriptedModel([[assistant_message(f"answer {number}")]])
            Runner.run_sync(Agent(name="assistant", model=model), "question", session=session)
        assert len(asyncio.get_event_loop().run_until_complete(session.get_items())) == 30

    # The generators that the loop warns of are those of the HTTP client.
    with without_a_warning("was scheduled after loop.shutdown_asyncgens"):
        with asyncio.Runner() as runner:
            asyncio.set_event_loop(runner.get_loop())
            program()
            asyncio.set_event_loop(None)
        del runner
    assert line.opened == 1
    assert sockets_to(line.base_url) == 0


def by_hand(work: Callable[[], AsyncIterator[None]]) -> weakref.ref[asyncio.AbstractEventLoop]:
    """As Celery's and Streamlit's users do: the generators are not shut down."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work())  # type: ignore[arg-type]
    loop.close()
    return weakref.ref(loop)


def with_run(work: Callable[[], AsyncIterator[None]]) -> weakref.ref[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        runner.run(work())  # type: ignore[arg-type]
        return weakref.ref(runner.get_loop())


def in_a_thread(work: Callable[[], AsyncIterator[None]]) -> weakref.ref[asyncio.AbstractEventLoop]:
    found: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    in_threads(lambda: found.append(by_hand(work)))
    return found[0]


LOOPS = pytest.mark.parametrize("run", [by_hand, with_run, in_a_thread])
Run = Callable[[Callable[[], object]], weakref.ref[asyncio.AbstractEventLoop]]


@LOOPS
def test_loops_that_end(run: Run, line: Wire) -> None:
    """Of a loop that has ended nothing lives when another one has gone on, with no warning."""
    loops = []
    client = client_on(line)
    session = CachedSession(openai_client=client)

    async def work() -> None:
        await session.add_items(users("x"))

    with without_a_warning():
        for _ in range(20):
            loops.append(run(work))
            assert sockets_to(line.base_url) <= 1
    assert sum(loop() is not None for loop in loops) == 0
    assert sockets_to(line.base_url) == 0
    assert line.opened == 20


async def test_a_client_that_its_owner_closes(emulator: Emulator) -> None:
    """When its owner has closed the client, nothing stays open behind what is sent over it."""
    with wire(emulator) as line:
        sessions = []
        for _ in range(5):
            async with client_on(line) as client:
                session = CachedSession(openai_client=client)
                sessions.append(session)
                await session.add_items(users("x"))
            # One may be open until the next client comes: nothing tells of the close.
            assert sockets_to(line.base_url) <= 1
        await sessions[0].add_items(users("y"))
        assert texts(await sessions[0].get_items()) == ["x", "y"]
        assert sockets_to(line.base_url) <= 1
        sessions[-1] = sessions[0]
        del session, client
        gc.collect()
        assert sockets_to(line.base_url) == 0


async def test_a_client_that_is_dropped(emulator: Emulator) -> None:
    """With a client that nobody has any more its connections are closed, while the loop runs."""
    with wire(emulator) as line:

        async def use() -> None:
            await CachedSession(openai_client=client_on(line)).add_items(users("x"))

        with without_a_warning():
            for _ in range(5):
                await use()
        assert line.opened == 5
        assert sockets_to(line.base_url) == 0


async def test_a_request_that_is_cancelled(emulator: Emulator) -> None:
    """Requests that are cancelled at any moment, also while they connect, leave no socket."""
    with wire(emulator) as line:
        conversation = Elsewhere(emulator).conversation("x")
        for steps in range(0, 40, 2):
            async with client_on(line) as client:
                session = CachedSession(
                    conversation_id=conversation, openai_client=client, cache=ConversationCache()
                )
                reading = asyncio.create_task(session.get_items())
                for _ in range(steps):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait({reading})
                await session.aclose()
        del session, client, reading
        gc.collect()
        assert sockets_to(line.base_url) == 0


def test_warning_filters_are_left_alone(emulator: Emulator) -> None:
    """What other threads do to the warning filters while a session connects is not undone."""
    kept = warnings.filters[:]
    copied = threading.Event()

    class Watched(list):  # type: ignore[type-arg]
        """Tells when the filters are copied, as a process-wide change of them begins."""

        def __getitem__(self, index: object) -> object:
            copied.set()
            return super().__getitem__(index)  # type: ignore[index]

    warnings.filters = Watched(kept)  # type: ignore[assignment]
    try:
        before = warnings.filters

        async def use() -> None:
            client = new_client(emulator)
            await CachedSession(openai_client=client).get_items()
            await client.close()

        in_threads(lambda: asyncio.run(use()))
        assert warnings.filters is before
        assert not copied.is_set(), "the filters were put aside and back"
    finally:
        warnings.filters = kept  # type: ignore[assignment]


NESTED = """
import asyncio, gc, importlib, sys
importlib.import_module(sys.argv[2]).apply()
from openai import AsyncOpenAI
from cached_session import CachedSession

def program():
    session = CachedSession(openai_client=AsyncOpenAI(base_url=sys.argv[1], api_key="any"))

    async def main():
        await session.add_items([{"role": "user", "content": "a"}])
        asyncio.get_running_loop().run_until_complete(
            session.add_items([{"role": "user", "content": "b"}])
        )

    asyncio.run(main())
    print(len(asyncio.run(session.get_items())))

program()
gc.collect()
"""


@pytest.mark.processes
@pytest.mark.parametrize("module", ["nest_asyncio", "nest_asyncio2"])
def test_under_nest_asyncio(module: str, emulator: Emulator) -> None:
    """Where loops run inside of loops, an unclosed session is collected without a word."""
    program = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", NESTED, emulator.base_url, module],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (program.stderr, program.stdout, program.returncode) == ("", "2\n", 0)


OVER_TLS = """
import asyncio, sys
from openai import AsyncOpenAI
from cached_session import CachedSession

async def main():
    client = AsyncOpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
    first = CachedSession(openai_client=client)
    await first.add_items([{"role": "user", "content": "x" * 300_000}])
    for number in range(19):
        async with CachedSession(
            conversation_id=first.session_id, openai_client=client
        ) as session:
            await session.add_items([{"role": "user", "content": str(number)}])
    await first.refresh()
    print(len(await first.get_items()))
    await client.close()

asyncio.run(main())
"""


def port_of(emulator: Emulator) -> int:
    port = urlsplit(emulator.base_url).port
    assert port is not None
    return port


@pytest.mark.processes
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a proxy"])
def test_over_tls(proxied: bool, emulator: Emulator, tmp_path: Path) -> None:
    """Over TLS twenty sessions write and read on one connection, through a proxy's tunnel, too."""
    with Line(port_of(emulator)) as line, tunnel(line.port) as proxy:
        # Which certificates are trusted is read once a process.
        environment = {**os.environ, "SSL_CERT_FILE": str(line.trust(tmp_path))}
        if proxied:
            environment |= {"HTTPS_PROXY": proxy.base_url, "NO_PROXY": "", "no_proxy": ""}
        program = subprocess.run(
            [sys.executable, "-W", "error", "-c", OVER_TLS, f"https://{LOOPBACK}:{line.port}/v1"],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
        assert (program.stderr, program.stdout, program.returncode) == ("", "20\n", 0)
        assert line.connections == 1
        assert proxy.opened == int(proxied)


async def test_a_certificate_that_is_not_trusted(emulator: Emulator) -> None:
    """To a server whose certificate is not trusted nothing is sent, and the error says so."""
    emulator.clear_log()
    with Line(port_of(emulator)) as line:
        await refuses(f"https://{LOOPBACK}:{line.port}/v1", lambda: line.connections)
    assert sent(emulator) == []


async def test_a_server_that_leaves_in_the_handshake() -> None:
    """A connection that ends in the TLS handshake is one that never was: nothing was stored."""
    with hanging_up() as (port, opened):
        await refuses(f"https://{LOOPBACK}:{port}/v1", lambda: len(opened))


@pytest.mark.parametrize("first", ["refuses", "is silent"])
async def test_a_host_with_several_addresses(
    first: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of a host's addresses leads nowhere, the next is taken, on one connection."""
    conversation = Elsewhere(emulator).conversation("a")
    with nowhere(silent=first == "is silent") as port, wire(emulator) as line:
        resolves(monkeypatch, port, urlsplit(line.base_url).port)
        with without_a_warning():
            async with AsyncOpenAI(
                base_url="http://several.example/v1", api_key="key", max_retries=0
            ) as client:
                session = CachedSession(
                    conversation_id=conversation, openai_client=client, cache=ConversationCache()
                )
                assert texts(await session.get_items()) == ["a"]
                await session.add_items(users("b"))
            del session, client
        assert line.opened == 1
        assert sockets_to(line.base_url) == 0


async def test_a_host_whose_addresses_all_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every address of a host refuses, nothing was stored, and the error says so."""
    with nowhere(silent=False) as one, nowhere(silent=False) as other:
        resolves(monkeypatch, one, other)
        await refuses("http://several.example:80/v1")


async def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a host's name leads to no address, nothing was stored, and the error says so."""
    resolves(monkeypatch)
    await refuses("http://several.example:80/v1")


def resolves(monkeypatch: pytest.MonkeyPatch, *ports: int | None) -> None:
    """Has a host's name lead to these ports of this machine, in this order."""
    resolve = socket.getaddrinfo

    def found(host: object, *arguments: Any, **named: Any) -> list[Any]:
        if host != "several.example":
            return resolve(host, *arguments, **named)  # type: ignore[arg-type]
        if not ports:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@contextmanager
def nowhere(*, silent: bool) -> Iterator[int]:
    """A port that refuses connections; or at which they neither come about nor fail."""
    with contextlib.ExitStack() as kept:
        bound = kept.enter_context(socket.socket())
        bound.bind((LOOPBACK, 0))
        if silent:
            # Nobody accepts any, so that the queue of those that wait is full.
            bound.listen(0)
            for _ in range(2):
                waiting = kept.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(bound.getsockname())
        yield bound.getsockname()[1]


async def refuses(base_url: str, opened: Callable[[], int] | None = None) -> None:
    """An append over a connection that never comes about fails after so many attempts."""
    async with AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0) as client:
        session = CachedSession(
            conversation_id="conv_x",
            openai_client=client,
            cache=ConversationCache(),
            retry=RetryPolicy(connect_attempts=3, initial_delay=0.001, max_delay=0.01),
        )
        with pytest.raises(openai.APIConnectionError) as caught:
            await session.add_items(users("x"))
        assert "nothing was stored" in "".join(caught.value.__notes__)
        assert opened is None or opened() == 3
        assert sockets_to(base_url) == 0


@contextmanager
def hanging_up() -> Iterator[tuple[int, list[bytes]]]:
    """A server that closes each connection when it has heard something; its port, what it heard."""
    heard: list[bytes] = []
    with socket.create_server((LOOPBACK, 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):  # shut down at the end
                while True:
                    client, _ = listening.accept()
                    with client:
                        heard.append(client.recv(65536))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], heard
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
