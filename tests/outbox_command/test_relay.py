"""`relay`: a process that sends what nobody who lives sends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached_session import Relay
from cached_session.commands.outbox.relay import run as run_relay
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from cached_session.outbox import LOCAL
from cached_session.outbox.sqlite import schema
from tests.faults.line import CUT
from tests.outbox_command.support import (
    KEY,
    SECRET,
    address,
    do,
    living,
    record,
    run,
    told,
    waiting,
)
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import batches, held
from tests.servers import eventually
from tests.session.support import Elsewhere, texts, users

OUTAGE = Fault(FaultKind.RESET_BEFORE_COMMIT)


@pytest.fixture(autouse=True)
def _server(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)


@contextmanager
def relaying(
    file: Path | str, *options: str, base_url: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A relay in a process of its own, as in a container: without a terminal and a home."""
    names = ("PATH", "PYTHONPATH", "OPENAI_API_KEY", "OPENAI_BASE_URL", "NO_PROXY", "SSL_CERT_DIR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    if base_url is not None:
        environment["OPENAI_BASE_URL"] = base_url
    code = "import sys; from cached_session.commands.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, "outbox", "relay", str(file), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def begun(process: subprocess.Popen[str]) -> str:
    """The next line that a relay says; with the first one it can be stopped."""
    assert process.stdout is not None
    return process.stdout.readline()


def ends(process: subprocess.Popen[str], sent: signal.Signals | None = None) -> tuple[int, str]:
    """Stops a relay, or waits for its end: its status and what it still says, without complaint."""
    if sent is not None:
        process.send_signal(sent)
    output, complaints = process.communicate(timeout=60)
    assert complaints == ""
    return process.returncode, output


def test_once(file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left of all conversations is sent, in order; nothing is left, and no content told."""
    names = [Elsewhere(emulator).conversation("a") for _ in range(6)]
    for name in names:
        record(file, address(emulator, name), *map(str, range(25)), SECRET)
    assert run("relay", file, "--once", "--every", "0.1") == 0
    for name in names:
        assert texts(emulator.items(name)) == ["a", *map(str, range(25)), SECRET]
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == (
        "Done: 0 conversations wait, 0 paused; 156 items sent in all."
    )
    assert output.count("nobody was left to send 26 items") == 6
    assert SECRET not in output
    assert KEY not in output


def test_once_with_nothing(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing waits it ends at once, and asks the server for nothing."""
    do(file, lambda log: None)
    assert run("relay", file, "--once", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert emulator.requests == []


def test_once_leaves_what_is_paused(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is paused stays as it is; the status says that something is left."""
    paused, sent = (Elsewhere(emulator).conversation() for _ in range(2))
    at = address(emulator, paused)
    record(file, at, "a")
    do(file, lambda log: log.store.pause(at, "reason"))
    record(file, address(emulator, sent), "b")
    assert run("relay", file, "--once") == 3
    assert texts(emulator.items(sent)) == ["b"]
    assert waiting(file, at) == ["a"]
    assert do(file, lambda log: log.mailbox(at)).paused == "reason"
    assert capsys.readouterr().out.endswith(
        "Done: 1 conversation waits, 1 paused; 1 item sent in all.\n"
    )


def test_once_meets_a_refusal(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server refuses is paused, which is told even by a relay that is quiet."""
    record(file, address(emulator, "conv_unknown"), SECRET)
    assert run("relay", file, "--once", "--quiet") == 3
    output = capsys.readouterr().out
    assert output.startswith("conv_unknown: the server refused a recorded batch (NotFoundError")
    assert output.count("\n") == 1
    assert SECRET not in output


@pytest.mark.processes
def test_once_beside_a_living_worker(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a living process has is not taken; the status says that something is left."""
    owned, left = (Elsewhere(emulator).conversation() for _ in range(2))
    record(file, address(emulator, owned), "a")
    record(file, address(emulator, left), "b")
    with living(file, address(emulator, owned)):
        assert run("relay", file, "--once") == 3
        assert texts(emulator.items(owned)) == []
        assert texts(emulator.items(left)) == ["b"]
    capsys.readouterr()
    assert run("relay", file, "--once") == 0
    assert texts(emulator.items(owned)) == ["a"]


def test_another_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another key has recorded is not sent, and counted apart."""
    name = Elsewhere(emulator).conversation()
    at = address(emulator, name, "sk-another")
    record(file, at, "a")
    assert run("relay", file, "--once") == 0
    assert waiting(file, at) == ["a"]
    assert "0 conversations wait, 0 paused, 1 of other accounts" in capsys.readouterr().out


def test_a_named_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the account's name it sends what any key of that account has recorded."""
    name = Elsewhere(emulator).conversation()
    at = address(emulator, name)._replace(credentials="account:prod")
    record(file, at, "a")
    assert run("relay", file, "--once") == 0
    assert texts(emulator.items(name)) == []
    assert run("relay", file, "--once", "--account", "prod") == 0
    assert texts(emulator.items(name)) == ["a"]
    assert "any of the account 'prod'" in capsys.readouterr().out


def test_a_local_name(file: Path, emulator: Emulator) -> None:
    """A conversation that has only a local name is made, once."""
    record(file, address(emulator, f"{LOCAL}1"), "a", "b")
    assert run("relay", file, "--once") == 0
    made = [entry for entry in emulator.requests if entry.path == "/v1/conversations"]
    assert len(made) == 1
    assert batches(emulator) == 1


def test_files_that_cannot_be_used(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is none, or is of a newer release, ends it with another status than the rest."""
    assert run("relay", file) == 1
    told(capsys, "there is no file")
    do(file, lambda log: log.store._connection.execute("PRAGMA user_version = 9"))
    assert schema.VERSION < 9
    assert run("relay", file) == 1
    told(capsys, "newer release")


def test_without_a_key(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key, or with a base URL that is none, nothing is begun."""
    do(file, lambda log: None)
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp://example.com")
    assert run("relay", file) == 1
    told(capsys, "OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run("relay", file) == 1
    told(capsys, "OPENAI_API_KEY")


@pytest.mark.parametrize(
    ("option", "allowed"),
    [(("--every", value), "more than 0") for value in ("0", "-1", "x", "nan")]
    + [(("--grace", "-1"), "0 or more")],
)
def test_wrong_options(
    file: Path, option: tuple[str, str], allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interval that is none is refused, with the status of a wrong command line."""
    with pytest.raises(SystemExit) as ended:
        run("relay", file, *option)
    assert ended.value.code == 2
    assert f"must be a number of seconds, {allowed}" in capsys.readouterr().err


@on_one_disk("a")
async def test_a_line_a_minute(world: OneDisk, capsys: pytest.CaptureFixture[str]) -> None:
    """Once a minute it says how many conversations wait, and what was sent since the last line."""
    sent, away = world.conversation, world.line.conversation("x")
    dead = world.process("dead")
    sessions = [world.session(dead, name) for name in (sent, away)]
    for session in sessions:
        await session.get_items()
    world.line.always(is_append, CUT)
    for session in sessions:
        await session.add_items(users("b", "c"))
    world.ends(dead)
    world.line.heal()
    world.line.always(lambda request: away in request.path, CUT)
    options = Namespace(every=1.0, grace=8.0, once=False, quiet=False)
    stop = asyncio.Event()
    made = Relay(world.process("relay"), world.line.openai)
    relaying = world.begin(run_relay(made, "agent.db", stop, options))
    await asyncio.sleep(150)
    stop.set()
    assert await relaying == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Sends what is left in agent.db to http://simulated/v1/ (key: digest ")
    assert lines == [
        "1 conversation waits, 0 paused; 2 items sent in the last minute.",
        "1 conversation waits, 0 paused; 0 items sent in the last minute.",
        "Stopping: waits 8 s at most for requests in flight.",
    ]
    assert last == "Stopped: 1 conversation waits, 0 paused; 2 items sent in all."


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_it_is_stopped(number: signal.Signals, file: Path, emulator: Emulator) -> None:
    """It sends what comes while it runs; a signal ends it with status 0, and nothing stays open."""
    do(file, lambda log: None)
    name = Elsewhere(emulator).conversation()
    with relaying(file, "--every", "0.05") as process:
        assert begun(process) == (
            f"Sends what is left in {file} to {emulator.base_url}/ "
            f"(key: digest {address(emulator, name).credentials[:8]}...)\n"
        )
        record(file, address(emulator, name), "a", "b")
        eventually(lambda: texts(emulator.items(name)) == ["a", "b"])
        record(file, address(emulator, name), "c")
        eventually(lambda: texts(emulator.items(name)) == ["a", "b", "c"])
        status, output = ends(process, number)
    assert status == 0
    assert output.splitlines()[-1] == (
        "Stopped: 0 conversations wait, 0 paused; 3 items sent in all."
    )
    assert not list(file.parent.glob("*-owner-*"))


@pytest.mark.processes
def test_an_outage(file: Path, emulator: Emulator) -> None:
    """While the server is away it waits, and then sends all of it, once."""
    do(file, lambda log: None)
    name = Elsewhere(emulator).conversation()
    record(file, address(emulator, name), *map(str, range(25)))
    emulator.faults = lambda request: OUTAGE
    with relaying(file, "--once") as process:
        eventually(lambda: len(emulator.requests) > 2)
        emulator.faults = None
        status, output = ends(process)
    assert (status, output.splitlines()[-1]) == (
        0,
        "Done: 0 conversations wait, 0 paused; 25 items sent in all.",
    )
    assert texts(emulator.items(name)) == [*map(str, range(25))]


@pytest.mark.processes
def test_stopped_in_an_outage(file: Path, emulator: Emulator) -> None:
    """A signal ends it while the server is away, too; what is left stays recorded."""
    name = Elsewhere(emulator).conversation()
    record(file, address(emulator, name), "a")
    emulator.faults = lambda request: OUTAGE
    with relaying(file) as process:
        eventually(lambda: len(emulator.requests) > 1)
        status, output = ends(process, signal.SIGTERM)
    assert (status, output.splitlines()[-1]) == (
        0,
        "Stopped: 1 conversation waits, 0 paused; 0 items sent in all.",
    )
    assert waiting(file, address(emulator, name)) == ["a"]


@pytest.mark.processes
@pytest.mark.parametrize("grace", ["30", "0"])
def test_a_request_in_flight(grace: str, file: Path) -> None:
    """A request that is in flight at the signal settles within the grace; no other one is begun."""
    with held() as (emulator, gate):
        name = Elsewhere(emulator).conversation()
        record(file, address(emulator, name), *map(str, range(25)))
        emulator.faults = lambda request: gate.hold() if is_append(request) else None
        with relaying(file, "--grace", grace, base_url=emulator.base_url) as process:
            eventually(lambda: batches(emulator) == 1)
            process.send_signal(signal.SIGTERM)
            # Until it says so it may hear of an answer before it hears of the signal.
            said = f"Stopping: waits {grace} s at most for requests in flight.\n"
            assert said in iter(lambda: begun(process), "")
            if grace == "30":
                gate.open()
                emulator.faults = None
            status, output = ends(process)
            gate.open()
        assert status == 0
        sent = 20 if grace == "30" else 0
        assert output.splitlines()[-1] == (
            f"Stopped: 1 conversation waits, 0 paused; {sent} items sent in all."
        )
        assert batches(emulator) == 1
        assert len(waiting(file, address(emulator, name))) == 25 - sent


WORKER = """
import asyncio, sys
from openai import AsyncOpenAI
from cached_session import CachedSession, SQLiteOutbox

path, conversation = sys.argv[1:]

async def main():
    client = AsyncOpenAI(max_retries=0)
    outbox = SQLiteOutbox(path)
    session = CachedSession(conversation_id=conversation, openai_client=client, outbox=outbox)
    for number in range(60):
        await session.add_items([{"role": "user", "content": str(number)}])
        if number % 7 == 3:
            await session.flush()
        await asyncio.sleep(0)
    print("accepted", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.processes
def test_workers_that_are_killed(file: Path, emulator: Emulator) -> None:
    """What workers had accepted that are killed beside it is sent, each item once and in order."""
    names = [Elsewhere(emulator).conversation() for _ in range(3)]
    do(file, lambda log: None)
    with relaying(file, "--every", "0.05") as process:
        begun(process)
        for name in names:
            arguments = [sys.executable, "-c", WORKER, str(file), name]
            with subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as worker:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "accepted\n"
                worker.kill()
        numbers = [*map(str, range(60))]
        eventually(lambda: all(texts(emulator.items(name)) == numbers for name in names))
        assert ends(process, signal.SIGTERM)[0] == 0
