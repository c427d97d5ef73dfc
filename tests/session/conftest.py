"""The server and the client that the tests of sessions use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI

from cached_session.emulator import Emulator
from tests.session.support import clean_environment, new_client


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield


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
