"""An environment, and outboxes, for the tests of sessions with an outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import set_tracing_disabled
from cryptography.fernet import Fernet

from cached_session import MemoryOutbox, Outbox, PostgresOutbox, SQLiteOutbox, fernet_cipher
from tests.outbox_sessions.support import Make, Vouching
from tests.pgbouncer import Pooler
from tests.postgres import Server
from tests.session.support import clean_environment


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    set_tracing_disabled(True)
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an outbox in a file is."""
    return tmp_path / "agent.db"


@pytest.fixture
def new_outbox(path: Path) -> Iterator[Callable[[], SQLiteOutbox]]:
    """Makes outboxes on the one file, as processes would; they are closed at the end."""
    made: list[SQLiteOutbox] = []

    def make(**options: Any) -> SQLiteOutbox:
        made.append(SQLiteOutbox(path, **options))
        return made[-1]

    yield make
    for outbox in made:
        asyncio.run(outbox.let_go())


@pytest.fixture
def in_postgres(postgres: Server) -> Iterator[PostgresOutbox]:
    """An outbox in a database of its own."""
    outbox = PostgresOutbox(postgres.with_tables())
    yield outbox
    asyncio.run(outbox.let_go())


@pytest.fixture
def in_pgbouncer(postgres: Server, request: pytest.FixtureRequest) -> Iterator[PostgresOutbox]:
    """The same, through pgbouncer in transaction mode."""
    pgbouncer: Pooler = request.getfixturevalue("pgbouncer")
    outbox = PostgresOutbox(pgbouncer.address(postgres.with_tables()))
    yield outbox
    asyncio.run(outbox.let_go())


@pytest.fixture(
    params=[
        "memory",
        "file",
        pytest.param("encrypted", marks=pytest.mark.long),
        pytest.param("postgres", marks=pytest.mark.processes),
        pytest.param("pgbouncer", marks=pytest.mark.processes),
    ]
)
def outbox(request: pytest.FixtureRequest) -> Outbox:
    """Each kind of outbox."""
    if request.param == "memory":
        return MemoryOutbox()
    if request.param in ("postgres", "pgbouncer"):
        shared: PostgresOutbox = request.getfixturevalue(f"in_{request.param}")
        return shared
    cipher = fernet_cipher(Fernet.generate_key()) if request.param == "encrypted" else None
    found: SQLiteOutbox = request.getfixturevalue("new_outbox")(cipher=cipher)
    return found


@pytest.fixture(
    params=["file", "vouching", pytest.param("postgres", marks=pytest.mark.processes)],
)
def kind(request: pytest.FixtureRequest) -> Make:
    """Makes an outbox on the log that the processes of a test share."""
    if request.param == "postgres":
        postgres: Server = request.getfixturevalue("postgres")
        address = postgres.with_tables()
        return lambda _: PostgresOutbox(address)
    return SQLiteOutbox if request.param == "file" else Vouching
