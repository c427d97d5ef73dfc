"""Outboxes that are closed at the end of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session.outbox import MemoryOutbox, Outbox, SQLiteOutbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def on_disk(path: Path) -> Iterator[SQLiteOutbox]:
    outbox = SQLiteOutbox(path)
    yield outbox
    asyncio.run(outbox.let_go())


@pytest.fixture(params=["file", "memory"])
def outbox(request: pytest.FixtureRequest) -> Outbox:
    if request.param == "memory":
        return MemoryOutbox()
    found: SQLiteOutbox = request.getfixturevalue("on_disk")
    return found
