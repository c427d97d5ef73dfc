"""The server, and where the outbox is, for the tests of the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from tests.outbox_command.support import KEY
from tests.session.support import clean_environment


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


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
def file(tmp_path: Path) -> Path:
    """Where the outbox is."""
    return tmp_path / "agent.db"
