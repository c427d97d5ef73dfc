"""`migrate`: the tables of an outbox in a database, and the roles that use them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from openai import AsyncOpenAI
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cached_session import CachedSession, OutboxError, PostgresOutbox
from tests.outbox_command.support import run, told
from tests.pages import ROOT, blocks
from tests.postgres import Server
from tests.session.support import texts, users

# They start a PostgreSQL server.
pytestmark = pytest.mark.processes

FLEET = ROOT / "docs" / "fleet.md"


@pytest.fixture
def url(postgres: Server) -> str:
    """A database without tables."""
    return postgres.new_database()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def as_role(url: str, role: str) -> str:
    """The same database, as another role, which is made if there is none."""
    execute(
        url,
        f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    )
    return url.replace("owner@", f"{role}@")


async def use(url: str, client: AsyncOpenAI) -> list[str]:
    """What a program does with an outbox: two appends, a turn, a read, the end."""
    outbox = PostgresOutbox(url, account="prod")
    async with CachedSession(openai_client=client, outbox=outbox) as session, session.turn(wait=9):
        await session.add_items(users("a"))
        await session.add_items(users("b"))
        await session.flush()
        found = texts(await session.get_items())
        assert await session.pop_item() is not None
        await session.clear_session()
    assert not await outbox.aclose(timeout=9)
    return found


def test_makes_the_tables_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one makes the tables, each later one says that they are there."""
    assert run("migrate", url) == 0
    output = capsys.readouterr().out
    assert output == f"Made the tables: schema cached_session, version 1, in {url}.\n"
    assert run("migrate", url) == 0
    output = capsys.readouterr().out
    assert output.startswith("The tables are there already: schema cached_session, version 1, in ")
    assert run("list", url) == 0
    assert capsys.readouterr().out == "Nothing waits.\n"


def test_tables_of_a_newer_release_are_left(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables that this release does not know are named, and left as they are."""
    assert run("migrate", url) == 0
    execute(url, "UPDATE cached_session.schema_version SET version = 99")
    capsys.readouterr()
    assert run("migrate", url) == 1
    told(capsys, "newer release", "schema 99", "left as they are")


async def test_prints_the_statements(
    url: str,
    client: AsyncOpenAI,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--print-sql` connects to nothing; what it prints makes tables that an outbox takes."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it connects")

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "connect", refuse)
        assert await asyncio.to_thread(run, "migrate", "--print-sql") == 0
        printed = capsys.readouterr().out
        assert await asyncio.to_thread(run, "migrate", url, "--print-sql") == 0
        assert capsys.readouterr().out == printed
    execute(url, printed)
    assert await use(url, client) == ["a", "b"]


def test_needs_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a database, or with a file, one line says what is meant."""
    assert run("migrate") == 1
    told(capsys, "name a database", "--print-sql")
    assert run("migrate", "agent.db") == 1
    told(capsys, "only a database is migrated")


async def test_a_role_that_may_not_make_them(
    url: str, client: AsyncOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    """A role without rights is told what it lacks; with the page's grants alone it works."""
    app = as_role(url, "app")
    assert await asyncio.to_thread(run, "migrate", app) == 1
    told(capsys, f"{app} has no tables", "cached-session outbox migrate", "a role that may")
    with pytest.raises(OutboxError, match="as a role that may make them"):
        await use(app, client)
    assert await asyncio.to_thread(run, "migrate", url) == 0
    capsys.readouterr()
    assert await asyncio.to_thread(run, "list", app) == 1
    told(capsys, "Grant it USAGE on the schema cached_session, and SELECT")
    [grants] = blocks(FLEET, "sql")
    execute(url, *filter(str.strip, grants.text.split(";")))
    assert await use(app, client) == ["a", "b"]
    assert await asyncio.to_thread(run, "migrate", app) == 0
    assert "are there already" in capsys.readouterr().out


def test_a_role_that_may_make_no_tables_in_words_of_libpq(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that says what to run leads to the same database, as the same role."""
    said = conninfo_to_dict(as_role(url, "app"))
    assert run("migrate", make_conninfo(**said, password="untold")) == 1
    told(capsys, f"`cached-session outbox migrate {as_role(url, 'app')}`")
