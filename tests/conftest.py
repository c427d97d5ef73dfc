"""Fixtures that several test packages share, and a runner for tests that are coroutines."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session.emulator import Emulator
from tests.servers import agentic_binary, agentic_server
from tests.session.support import new_client


@pytest.fixture(scope="session", name="agentic_server")
def _agentic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a running `agentic-api`."""
    if agentic_binary() is None:
        pytest.skip("agentic-server is not installed (pip install agentic-api)")
    with agentic_server(tmp_path_factory.mktemp("agentic")) as base_url:
        yield base_url


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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is a coroutine function in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(_run(pyfuncitem.obj, arguments))
    return True


async def _run(test: Callable[..., Awaitable[None]], arguments: dict[str, Any]) -> None:
    """Runs a test, closes the openai clients that it was given, and looks for leftover tasks."""
    try:
        await test(**arguments)
    finally:
        for value in arguments.values():
            if isinstance(value, AsyncOpenAI):
                await value.close()
    # What the SDK's session and clients without owner leave behind ends by itself.
    for _ in range(10):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks that the test left behind: {left}"
