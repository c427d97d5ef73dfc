"""The commands on an outbox in a database, which a URL names."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from cached_session import CachedSession, OutboxPaused, PostgresOutbox
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.outbox import Address
from cached_session.outbox.log import Epoch
from cached_session.outbox.postgres.log import PostgresLog
from tests.outbox_command.support import KEY, SECRET, address, rows, run, told
from tests.outbox_command.test_relay import begun, ends, relaying
from tests.postgres import Server, missing, server
from tests.servers import eventually, free_port
from tests.session.support import Elsewhere, new_client, texts, users

# They start a PostgreSQL server.
pytestmark = pytest.mark.processes

PASSWORD = "correct-horse"


@pytest.fixture
def url(postgres: Server) -> str:
    """A database with an outbox's tables."""
    return postgres.with_tables()


def do(url: str, work: Callable[[PostgresLog], Any]) -> Any:
    """Does something to the outbox in a database, and closes it."""

    async def transact() -> Any:
        outbox = PostgresOutbox(url)
        try:
            return await outbox.transact(work)  # type: ignore[arg-type]
        finally:
            await outbox.let_go()

    return asyncio.run(transact())


def record(url: str, to: Address, *words: str) -> None:
    """Has messages wait in the database, as `add_items` records them."""
    items = [json.dumps(item, separators=(",", ":")).encode() for item in users(*words)]
    do(url, lambda log: log.accept(to, Epoch(log.token, (0, 0)), 0, items, time.time()))


def pause(url: str, at: Address) -> None:
    do(url, lambda log: log.pause(at, Epoch(log.token, (0, 0)), "reason"))


def waiting(url: str, at: Address) -> list[str]:
    """The texts of what waits."""
    return [json.loads(row.data)["content"] for row in do(url, lambda log: log.mailbox(at).rows)]


def secret(url: str) -> str:
    """The same address, with a password, which the server does not ask for."""
    return url.replace("owner@", f"owner:{PASSWORD}@")


@contextmanager
def living(url: str, of: Address) -> Iterator[None]:
    """Somebody who has the backlog until the end of the block."""
    outbox = PostgresOutbox(url)
    claim = asyncio.run(outbox.transact(lambda log: log.open(of, None, 0, claim=True, first=True)))
    assert claim.held
    try:
        yield
    finally:
        asyncio.run(outbox.let_go())


def test_list_and_show(url: str, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """They show of a database what they show of a file, and no content."""
    at = address(emulator, "conv_1")
    record(url, at, "a", SECRET)
    record(url, address(emulator, "conv_2"), "b")
    pause(url, address(emulator, "conv_2"))
    assert run("list", url) == 0
    output = capsys.readouterr().out
    assert [[row[1], row[2], row[5]] for row in rows(output)] == [
        ["conv_1", "2", "waiting"],
        ["conv_2", "1", "paused: reason"],
    ]
    with living(url, at):
        assert run("list", url, "--json") == 0
        found = json.loads(capsys.readouterr().out)
    assert [one["sent_by_a_living_process"] for one in found] == [True, False]
    assert run("show", url, found[0]["number"]) == 0
    shown = capsys.readouterr().out
    assert "that of the key in OPENAI_API_KEY" in shown
    assert shown.count("  message  user  ") == 2
    assert SECRET not in output + shown
    assert emulator.requests == []


def test_export_and_discard(
    url: str, emulator: Emulator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What waits is written out as it was recorded; then it is removed, if nobody sends it."""
    at = address(emulator, "conv_1")
    record(url, at, "a", "b")
    output = tmp_path / "items.jsonl"
    assert run("export", url, 1, "--output", output) == 0
    lines = output.read_text().splitlines()
    assert [json.loads(line)["content"] for line in lines] == ["a", "b"]
    assert run("discard", url, 1) == 1
    capsys.readouterr()
    with living(url, at):
        assert run("discard", url, 1, "--yes") == 1
        told(capsys, "a living process is sending backlog 1")
    assert waiting(url, at) == ["a", "b"]
    assert run("discard", url, 1, "--yes") == 0
    assert capsys.readouterr().out.endswith("Removed 2 items.\n")
    assert waiting(url, at) == []


def test_retry(url: str, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """A pause is cleared, and what waits is sent, once and in order."""
    name = Elsewhere(emulator).conversation("a")
    at = address(emulator, name)
    record(url, at, "b", "c")
    pause(url, at)
    assert run("retry", url, 1) == 0
    assert "2 items have landed" in capsys.readouterr().out
    assert texts(emulator.items(name)) == ["a", "b", "c"]
    assert waiting(url, at) == []


def test_move(url: str, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """A backlog goes to a named account, and is found there."""
    at = address(emulator, "conv_1")
    record(url, at, "a")
    assert run("move", url, 1, "--account", "prod") == 0
    assert "wait" in capsys.readouterr().out
    assert waiting(url, at._replace(credentials="account:prod")) == ["a"]
    assert waiting(url, at) == []


def test_relay_once(
    url: str,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What nobody living has is sent, of all conversations of the account; the password untold."""
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    names = [Elsewhere(emulator).conversation() for _ in range(3)]
    for name in names:
        record(url, address(emulator, name)._replace(credentials="account:prod"), "a", "b")
    assert run("relay", secret(url), "--account", "prod", "--once", "--every", "0.1") == 0
    for name in names:
        assert texts(emulator.items(name)) == ["a", "b"]
    output = capsys.readouterr().out
    assert f"Sends what is left in {url} to {emulator.base_url}" in output
    assert output.splitlines()[-1] == "Done: 0 conversations wait, 0 paused; 6 items sent in all."
    assert PASSWORD not in output


def unusual(url: str) -> list[tuple[object, ...]]:
    """Command lines that lead to an error, or name the database."""
    nobody = f"postgresql://owner:{PASSWORD}@127.0.0.1:{free_port()}/any"
    return [
        ("show", url, 7),
        ("retry", url, 7),
        ("export", url, 7),
        ("list", nobody),
        ("relay", nobody, "--once"),
        ("migrate", nobody),
        ("migrate", url),
        ("list", f"postgresql://owner:{PASSWORD}@127.0.0.1:port/any"),
        ("list", f"postgresql://owner:{PASSWORD}@127.0.0.1/any?nonsense=1"),
        ("list", f"postgresql://owner:p@{PASSWORD}@127.0.0.1/any"),
        ("list", f"postgresql://owner:p/{PASSWORD}@127.0.0.1/any"),
        ("list", f"password={PASSWORD} nonsense"),
        ("list", f"host=127.0.0.1 port={free_port()} password={PASSWORD} dbname=any"),
        ("list", "agent.db", url),
        ("list", url, f"--more={url}"),
        ("show", 1, url),
        ("show", 1, f"host=127.0.0.1 password='{PASSWORD}'"),
    ]


def test_password_is_never_told(
    url: str, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong, the password of an address is in no output and in no error."""
    record(url, address(emulator, "conv_1"), "a")
    for arguments in [("list", secret(url)), ("show", secret(url), 1), *unusual(secret(url))]:
        try:
            status = run(*arguments)
        except SystemExit as stopped:
            status = int(str(stopped.code))
        output, error = capsys.readouterr()
        assert output if status == 0 else error, arguments
        assert PASSWORD not in output + error, arguments


def test_words_of_libpq(
    url: str,
    postgres: Server,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address in libpq's words is one; what it leaves out comes from libpq's environment."""
    record(url, address(emulator, "conv_1"), "a")
    name = str(conninfo_to_dict(url)["dbname"])
    monkeypatch.chdir(tmp_path)
    assert run("list", f"host=127.0.0.1 port={postgres.port} user=owner dbname={name}") == 0
    assert rows(capsys.readouterr().out)[0][1] == "conv_1"
    services = tmp_path / "services"
    services.write_text(f"[agents]\nhost=127.0.0.1\nport={postgres.port}\nuser=owner\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    assert run("show", f"postgresql:///{name}?service=agents", 9) == 1
    told(capsys, f"there is no backlog 9 in postgresql:///{name}?service=agents. ")
    monkeypatch.setenv("PGSERVICE", "agents")
    assert run("list", f"dbname={name}") == 0
    assert rows(capsys.readouterr().out)[0][1] == "conv_1"


def test_file_with_such_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there is the file, whatever its name is like."""
    file = tmp_path / "host=db"
    file.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run("list", "host=db") == 1
    told(capsys, "host=db is empty")


@pytest.mark.parametrize("command", ["list", "show", "retry", "discard", "export", "move", "relay"])
def test_engine_that_is_away(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine that cannot be reached is told in one line, with the status of a file's trouble."""
    number = () if command in ("list", "relay") else (1,)
    assert run(command, f"postgresql://owner@127.0.0.1:{free_port()}/agents", *number) == 1
    said = told(
        capsys, "cannot be reached", "Connection refused", "could not be read", "tried again"
    )
    assert "recorded" not in said


@pytest.mark.parametrize("command", ["list", "show", "retry", "discard", "export", "move", "relay"])
def test_database_without_tables(
    command: str, postgres: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that is no outbox is left as it is; the line says how it becomes one."""
    url = postgres.new_database()
    number = () if command in ("list", "relay") else (1,)
    assert run(command, secret(url), *number) == 1
    told(capsys, f"{url} has no tables", f"`cached-session outbox migrate {url}`")
    # It fails where there is one.
    postgres.execute("CREATE SCHEMA cached_session", str(conninfo_to_dict(url)["dbname"]))


@pytest.mark.parametrize("arguments", [("list",), ("migrate",)])
def test_missing_extra(
    arguments: tuple[str, ...],
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where psycopg is not installed, one line says how to install it; so does the class."""
    for name in list(sys.modules):
        if name.startswith("cached_session.outbox.postgres."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert run(*arguments, url) == 1
    told(capsys, 'needs psycopg: pip install "cached-session[postgres]"')
    import cached_session

    monkeypatch.delitem(vars(cached_session), "PostgresOutbox", raising=False)
    with pytest.raises(ImportError, match=r"pip install .cached-session\[postgres\]"):
        _ = cached_session.PostgresOutbox


@pytest.mark.processes
def test_relay_outlives_the_engine(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay waits while the engine is away, and sends what was left when it is back."""
    if (why := missing()) is not None:
        pytest.skip(why)
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    name = Elsewhere(emulator).conversation()
    with server() as engine:
        url = engine.with_tables()
        with relaying(url, "--every", "0.1") as process:
            assert begun(process).startswith("Sends what is left in ")
            engine.stop(signal.SIGINT)
            assert process.stdout is not None
            # It may have been amid a call: then that is what it says.
            assert "It is tried again at the next use" in process.stdout.readline()
            engine.start()
            again = f"The engine of PostgresOutbox({url!r}) is there again.\n"
            assert process.stdout.readline() == again
            record(url, address(emulator, name), "a")
            eventually(lambda: texts(emulator.items(name)) == ["a"])
            status, output = ends(process, signal.SIGTERM)
    assert status == 0
    assert output.splitlines()[-1] == "Stopped: 0 conversations wait, 0 paused; 1 item sent in all."


@pytest.mark.processes
def test_relay_is_stopped_while_the_engine_is_away() -> None:
    """A signal ends a relay with status 0 while the engine is away, too."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with server() as engine, relaying(engine.with_tables(), "--every", "0.1") as process:
        assert begun(process).startswith("Sends what is left in ")
        engine.stop(signal.SIGINT)
        # As above.
        assert "It is tried again at the next use" in begun(process)
        status, output = ends(process, signal.SIGTERM)
    assert (status, output.splitlines()[-1]) == (
        0,
        "Stopped: the engine cannot be reached; 0 items sent in all.",
    )


async def test_errors_name_the_commands(url: str, emulator: Emulator) -> None:
    """A pause, and another key's backlog, are told with commands that lead to the database."""
    outbox = PostgresOutbox(secret(url))
    assert outbox.advice.startswith(f"`cached-session outbox list {shlex.quote(url)}`")
    assert f"`cached-session outbox move {shlex.quote(url)} 3`" in outbox.how_to_move(3)
    named = PostgresOutbox(secret(url), account="prod")
    assert named.how_to_move(3).endswith(f"{shlex.quote(url)} 3 --account prod`")
    assert PASSWORD not in repr(outbox) + outbox.advice + outbox.how_to_move(3)
    name = Elsewhere(emulator).conversation()
    emulator.faults = lambda _: Fault(FaultKind.RATE_LIMITED_QUOTA)
    async with (
        new_client(emulator, api_key=KEY) as client,
        CachedSession(conversation_id=name, openai_client=client, outbox=outbox) as session,
    ):
        await session.add_items(users("a"))
        with pytest.raises(OutboxPaused, match="cached-session outbox list") as caught:
            await session.flush()
    assert PASSWORD not in str(caught.value)
    await outbox.aclose()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (
            "postgresql://app:pw@db/agents?sslmode=require&sslpassword=pw",
            "app@db/agents?sslmode=require",
        ),
        ("host=/run/pg dbname=agents password=pw", "/agents?host=/run/pg"),
        ("postgresql://app:pw@a:1,b:2/agents", "app@/agents?host=a,b&port=1,2"),
        ("service=agents password=pw", "/?service=agents"),
        ("user='a b' host=db dbname='x y'", "a%20b@db/x%20y"),
        ("host=::1 port=5433 user=app", "app@/?host=%3A%3A1&port=5433"),
    ],
)
def test_names_lead_to_the_same_database(given: str, name: str) -> None:
    """What a database is called is a URL that leads to it, without any password."""
    called = repr(PostgresOutbox(given))
    assert called == f"PostgresOutbox('postgresql://{name}')"
    before, after = conninfo_to_dict(given), conninfo_to_dict(f"postgresql://{name}")
    assert after == {k: v for k, v in before.items() if k not in ("password", "sslpassword")}


@pytest.mark.parametrize("password", ["p@correct-horse", "p/correct-horse", "p?@correct-horse"])
def test_password_that_is_not_escaped(password: str) -> None:
    """A part of it would be taken for the host or the database, and told: it is refused."""
    with pytest.raises(ValueError, match=r"%40 .* %2F") as caught:
        PostgresOutbox(f"postgresql://app:{password}@db/agents")
    assert PASSWORD not in str(caught.value)
