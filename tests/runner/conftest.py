"""The server and the client that the tests of the Runner use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import set_tracing_disabled
from openai import AsyncOpenAI

from cached_session.emulator import Emulator
from tests.session.support import clean_environment, new_client


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Nothing is taken from the environment, and no trace leaves the process."""
    set_tracing_disabled(True)
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield


@pytest.fixture(scope="module", name="running_emulator")
def _running_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running_emulator: Emulator) -> Iterator[Emulator]:
    """A server that the tests of a module share, with an empty request log."""
    running_emulator.clear_log()
    yield running_emulator
    running_emulator.faults = None


@pytest.fixture
def client(emulator: Emulator) -> AsyncOpenAI:
    """A client for the emulator; closed at the end of the test, in its event loop."""
    return new_client(emulator)
