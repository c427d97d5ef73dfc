"""Engines that an outbox in Postgres cannot use as it is, and what it tells of them."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cached_session import OutboxError, OutboxUnavailable, PostgresOutbox
from tests.outbox.support import ADDRESS, accept, waiting
from tests.postgres import Server

# They start a PostgreSQL server.
pytestmark = pytest.mark.processes

SECRET = "s3cret/w0w@qq"


@pytest.fixture
def empty(postgres: Server) -> str:
    """A database without the tables."""
    return postgres.new_database()


@pytest.fixture
def role(postgres: Server) -> Iterator[str]:
    """A role that may do nothing of itself."""
    postgres.execute("CREATE ROLE guest LOGIN")
    yield "guest"
    postgres.execute("DROP OWNED BY guest")
    postgres.execute("DROP ROLE guest")


async def error_of(outbox: PostgresOutbox) -> OutboxError:
    """What the first use raises."""
    with pytest.raises(OutboxError) as raised:
        await outbox.transact(accept(b"1"))
    await outbox.let_go()
    assert str(raised.value).endswith(".")
    return raised.value


async def test_all_at_once(empty: str) -> None:
    """Whoever comes first makes the tables, and the others who come at the same moment use them."""

    def use(number: int) -> None:
        async def once() -> None:
            outbox = PostgresOutbox(empty)
            await outbox.transact(accept(b"%d" % number))
            await outbox.let_go()

        asyncio.run(once())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    outbox = PostgresOutbox(empty)
    assert sorted(await outbox.transact(waiting)) == [b"%d" % number for number in range(8)]
    await outbox.let_go()


async def test_role_that_may_not_make_them(empty: str, role: str) -> None:
    """A role that may not make the tables is told who may, and how."""
    error = await error_of(PostgresOutbox(make_conninfo(empty, user=role)))
    assert "may not make the tables" in str(error)
    assert "cached-session outbox migrate" in str(error)


async def test_role_that_may_not_use_them(postgres: Server, role: str) -> None:
    """A role that may not use the tables is told what to grant; with that it may."""
    address = postgres.with_tables()
    name = address.rpartition("/")[2]
    outbox = PostgresOutbox(make_conninfo(address, user=role))
    assert "may not use the outbox's tables" in str(await error_of(outbox))
    for grant in (
        "USAGE ON SCHEMA cached_session",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cached_session",
    ):
        postgres.execute(f"GRANT {grant} TO {role}", name)
    try:
        await outbox.transact(accept(b"1"))
        await outbox.let_go()
    finally:
        postgres.execute(f"DROP OWNED BY {role}", name)


async def test_newer_tables(postgres: Server) -> None:
    """Tables of a newer release are left as they are, and no connection is left behind."""
    address = postgres.with_tables()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("UPDATE cached_session.schema_version SET version = 99")
    error = await error_of(PostgresOutbox(address))
    assert "newer release" in str(error)
    assert not isinstance(error, OutboxUnavailable)


@pytest.mark.parametrize(
    "conninfo",
    [
        f"postgresql://app:{SECRET}@127.0.0.1:1/agents",
        f"postgresql://app:{SECRET.partition('/')[2]}@127.0.0.1:1/agents",
        f"postgresql://app:{SECRET.partition('@')[0]}@127.0.0.1:1/agents",
        f"postgresql://app:{SECRET}",
        f"host=127.0.0.1 password={SECRET} port",
        f"host=127.0.0.1 password='{SECRET}",
        f"passwort={SECRET}",
    ],
)
def test_no_password_of_what_is_no_address(conninfo: str) -> None:
    """What cannot be read, or reads otherwise than it is meant, is refused without quoting it."""
    with pytest.raises(ValueError, match="conninfo") as raised:
        PostgresOutbox(conninfo)
    assert not any(part in str(raised.value) for part in SECRET.replace("@", "/").split("/"))


async def test_no_password(postgres: Server, empty: str, caplog: pytest.LogCaptureFixture) -> None:
    """A password is in no error, no log line and no repr."""
    caplog.set_level(logging.DEBUG)
    for place in (
        make_conninfo(empty, password=SECRET, port=1),
        make_conninfo(empty, password=SECRET, dbname="nowhere"),
        make_conninfo(empty, password=SECRET, sslmode="require"),
        make_conninfo(empty, password=SECRET, user=SECRET[:6] + "s"),
    ):
        outbox = PostgresOutbox(place)
        error = await error_of(outbox)
        assert isinstance(error, OutboxUnavailable)
        said = "".join(traceback.format_exception(error)) + repr(outbox) + caplog.text
        assert SECRET not in said
    assert ADDRESS.credentials not in caplog.text
