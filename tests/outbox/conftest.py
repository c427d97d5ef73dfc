"""Outboxes that are closed at the end of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session import PostgresOutbox
from cached_session.outbox import MemoryOutbox, Outbox, SQLiteOutbox
from tests.postgres import Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def on_disk(path: Path) -> Iterator[SQLiteOutbox]:
    outbox = SQLiteOutbox(path)
    yield outbox
    asyncio.run(outbox.let_go())


@pytest.fixture
def in_postgres(postgres: Server) -> Iterator[PostgresOutbox]:
    outbox = PostgresOutbox(postgres.with_tables())
    yield outbox
    asyncio.run(outbox.let_go())


@pytest.fixture(
    params=["file", "memory", pytest.param("postgres", marks=pytest.mark.processes)],
)
def outbox(request: pytest.FixtureRequest) -> Outbox:
    if request.param == "memory":
        return MemoryOutbox()
    kind = {"file": "on_disk", "postgres": "in_postgres"}[request.param]
    found: SQLiteOutbox | PostgresOutbox = request.getfixturevalue(kind)
    return found
