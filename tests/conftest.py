"""Fixtures that several test packages share; pytest-asyncio runs the tests that are coroutines."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator

import pytest
from openai import AsyncOpenAI

from cached_session.emulator import Emulator
from tests import pgbouncer as poolers
from tests.pgbouncer import Pooler
from tests.postgres import Server, missing, server
from tests.servers import agentic_binary, agentic_server
from tests.session.support import new_client


@pytest.fixture(scope="session", name="agentic_server")
def _agentic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a running `agentic-api`."""
    if agentic_binary() is None:
        pytest.skip("agentic-server is not installed (pip install agentic-api)")
    with agentic_server(tmp_path_factory.mktemp("agentic")) as base_url:
        yield base_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of the tests' own."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with server() as found:
        yield found


@pytest.fixture(scope="session")
def pgbouncer(postgres: Server) -> Iterator[Pooler]:
    """A pgbouncer before that server, in transaction mode."""
    why = poolers.missing()
    if why is not None:
        pytest.skip(why)
    with poolers.pooler(postgres) as found:
        yield found


@pytest.fixture(scope="session", name="running_emulator")
def _running_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running_emulator: Emulator) -> Iterator[Emulator]:
    """A server that many tests share, with an empty request log."""
    running_emulator.clear_log()
    yield running_emulator
    running_emulator.faults = None


@pytest.fixture
def client(emulator: Emulator) -> AsyncOpenAI:
    """A client for the emulator; closed at the end of the test, in its event loop."""
    return new_client(emulator)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects no garbage while modules are imported, nor looks for it among them later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says something at the end of the run, whether or not the test passes, and where it ran."""
    return functools.partial(record_property, "told")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests told: seeds, say."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for name, told in getattr(report, "user_properties", ()):
                if name == "told" and report.when == "call":
                    terminalreporter.write_line(told)


@pytest.fixture(autouse=True)
def _coroutine_tests_end(request: pytest.FixtureRequest) -> None:
    """Looks at what each test that is a coroutine leaves in its loop."""
    if inspect.iscoroutinefunction(request.function):
        # What is set up last is torn down first: a fixture that closes something,
        # an outbox say, would end the tasks that the test forgot.
        for name in request.fixturenames:
            if name != "_coroutine_tests_end":
                request.getfixturevalue(name)
        request.getfixturevalue("nothing_left")


@pytest.fixture
async def nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Closes the openai clients that a test was given; no task may be left in its loop then."""
    yield
    for name in request.fixturenames:
        value = request.node.funcargs.get(name)
        if isinstance(value, AsyncOpenAI):
            await value.close()
    # What the SDK's session and clients without owner leave behind ends by itself.
    for _ in range(10):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks that the test left behind: {left}"
