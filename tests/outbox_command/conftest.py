"""The key, and where the outbox is, for the tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.outbox_command.support import KEY
from tests.session.support import clean_environment


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the outbox is."""
    return tmp_path / "agent.db"
