"""`retry`: what waits is sent, under the account that it was recorded for."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session import CachedSession, OutboxPaused, SQLiteOutbox
from cached_session.emulator import Emulator, FaultKind, Faults
from cached_session.outbox import LOCAL
from cached_session.session.cache import ConversationCache
from tests.outbox_command.support import (
    KEY,
    SECRET,
    address,
    do,
    living,
    record,
    rows,
    run,
    told,
    waiting,
)
from tests.servers import free_port
from tests.session.support import Elsewhere, new_client, texts, users


def test_retry_sends_what_was_paused(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server refused once is sent in order when the reason is gone."""

    async def refused() -> str:
        client = new_client(emulator, KEY)
        outbox = SQLiteOutbox(file)
        session = CachedSession(openai_client=client, outbox=outbox, cache=ConversationCache())
        await session.get_items()
        emulator.faults = Faults(1, {FaultKind.RATE_LIMITED_QUOTA: 1.0})
        await session.add_items(users(*map(str, range(45))))
        with pytest.raises(OutboxPaused):
            await session.aclose(timeout=20)
        await client.close()
        return session.session_id

    name = asyncio.run(refused())
    assert run("list", file) == 0
    assert rows(capsys.readouterr().out)[0][5].startswith("paused: RateLimitError, status 429")
    emulator.faults = None
    assert run("retry", file, 1) == 0
    output = capsys.readouterr().out
    assert f"45 items have landed in {name}" in output
    assert texts(emulator.items(name)) == list(map(str, range(45)))
    assert run("list", file, "--all") == 0
    assert rows(capsys.readouterr().out)[0][2:6] == ["0", "0", "-", "nothing waits"]


@pytest.mark.processes
def test_retry_leaves_it_to_a_living_process(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a living process has the backlog, the pause is cleared and nothing is sent."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    do(file, lambda log: log.store.pause(at, "reason"))
    with living(file, at):
        assert run("retry", file, 1) == 0
        assert "It goes on at its next use" in capsys.readouterr().out
        assert do(file, lambda log: log.mailbox(at)).paused is None
    assert emulator.requests == []


@pytest.mark.processes
def test_retry_leaves_what_is_being_sent(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a living process sends the backlog by itself, that is said, and nothing is done."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    with living(file, at):
        assert run("retry", file, 1) == 0
    output = capsys.readouterr().out
    assert output == "A living process sends backlog 1 by itself. Nothing was changed.\n"
    assert emulator.requests == []


def test_retry_counts_one_as_one(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single item is spoken of as one."""
    name = Elsewhere(emulator).conversation()
    record(file, address(emulator, name), "1")
    assert run("retry", file, 1) == 0
    output = capsys.readouterr().out
    assert f"Sending 1 item to {emulator.base_url}" in output
    assert f"1 item has landed in {name}" in output


def test_retry_leaves_credentials_out_of_the_base_url(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it sends is said without the user, the password and the query of the base URL."""
    record(file, address(emulator, "conv_1"), "1")
    base_url = f"{emulator.base_url.replace('://', '://user:PASS@')}?api_key=PASS"
    assert run("retry", file, 1, "--any-account", "--base-url", base_url) == 1
    captured = capsys.readouterr()
    assert f"Sending 1 item to {emulator.base_url}" in captured.out
    assert "PASS" not in captured.out + captured.err


def test_retry_refuses_another_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another key nothing is sent and nothing is changed, unless that is asked for."""
    name = Elsewhere(emulator).conversation("0")
    at = address(emulator, name, "sk-other", organization="org-1")
    record(file, at, "1", "2")
    do(file, lambda log: log.store.pause(at, "reason"))
    emulator.clear_log()
    assert run("retry", file, 1) == 1
    told(capsys, "another key", at.credentials[:8], "--any-account", "Nothing was changed")
    assert emulator.requests == []
    assert do(file, lambda log: log.mailbox(at)).paused == "reason"
    assert run("retry", file, 1, "--any-account") == 0
    assert texts(emulator.items(name)) == ["0", "1", "2"]
    [moved] = do(file, lambda log: log.summaries())
    assert moved.address == address(emulator, name)


def test_retry_knows_the_recorded_organization(file: Path, emulator: Emulator) -> None:
    """The organisation and project that were recorded are those of the request, without a word."""
    name = Elsewhere(emulator).conversation()
    record(file, address(emulator, name, organization="org-1", project="proj_1"), "1")
    assert run("retry", file, 1) == 0
    assert texts(emulator.items(name)) == ["1"]


def test_retry_of_a_client_without_a_fixed_key(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no key was recorded, nothing tells whose the backlog is, and the command says so."""
    record(file, address(emulator, "conv_1")._replace(credentials=""), "1")
    assert run("retry", file, 1) == 1
    told(capsys, "without a fixed key", "--any-account")


def test_retry_creates_a_conversation_that_had_a_local_name(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was accepted before its conversation could be created gets one, known by both names."""
    local = f"{LOCAL}1"
    record(file, address(emulator, local), *map(str, range(25)))
    assert run("retry", file, 1) == 0
    found = re.search(r"25 items have landed in (conv_\w+)", capsys.readouterr().out)
    assert found is not None
    assert texts(emulator.items(found[1])) == list(map(str, range(25)))

    async def taken_up() -> None:
        client = new_client(emulator, KEY)
        outbox = SQLiteOutbox(file)
        async with CachedSession(
            conversation_id=local, openai_client=client, outbox=outbox, cache=ConversationCache()
        ) as session:
            assert len(await session.get_items()) == 25
            assert session.session_id == found[1]
        await client.close()

    asyncio.run(taken_up())


def test_session_takes_a_local_name_up(file: Path, emulator: Emulator) -> None:
    """A session of a later process on a local name shows what waits, and sends it first."""
    local = f"{LOCAL}1"
    record(file, address(emulator, local), "0", "1")

    async def taken_up() -> None:
        client = new_client(emulator, KEY)
        outbox = SQLiteOutbox(file)
        session = CachedSession(
            conversation_id=local, openai_client=client, outbox=outbox, cache=ConversationCache()
        )
        assert texts(await session.get_items()) == ["0", "1"]
        await session.add_items(users("2"))
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["0", "1", "2"]
        assert texts(await session.get_items()) == ["0", "1", "2"]
        await session.aclose()
        await client.close()

    asyncio.run(taken_up())


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks in another way")
def test_retry_goes_on_when_nobody_reads_its_progress(file: Path) -> None:
    """When whoever reads the output has left, what was begun is sent, without a word of it."""
    with Emulator(latency=0.7) as emulator:
        name = Elsewhere(emulator).conversation()
        record(file, address(emulator, name), *map(str, range(25)))
        with subprocess.Popen(
            [sys.executable, "-m", "cached_session", "outbox", "retry", str(file), "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OPENAI_API_KEY": KEY},
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"Sending 25 items")
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1
        assert texts(emulator.items(name)) == list(map(str, range(25)))


def test_retry_at_another_base_url(file: Path, emulator: Emulator) -> None:
    """A server that has moved is named on the command line, and the backlog moves with it."""
    name = Elsewhere(emulator).conversation()
    gone = address(emulator, name)._replace(base_url=f"http://127.0.0.1:{free_port()}/v1/")
    record(file, gone, "1")
    assert run("retry", file, 1, "--base-url", emulator.base_url) == 0
    assert texts(emulator.items(name)) == ["1"]


def test_retry_without_a_server_keeps_all(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the server stays out of reach, the command says what has landed, and the rest waits."""
    name = Elsewhere(emulator).conversation()
    at = address(emulator, name)
    record(file, at, *map(str, range(25)))
    emulator.faults = Faults.script(
        [None, *[FaultKind.ERROR_BEFORE_COMMIT] * 100],
        only=lambda request: request.method == "POST",
    )
    assert run("retry", file, 1, "--timeout", "0.5") == 1
    captured = capsys.readouterr()
    assert "20 items have landed, 5 wait." in captured.out
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert waiting(file, at) == list(map(str, range(20, 25)))
    assert len(emulator.items(name)) == 20


def test_retry_says_that_the_server_refused_again(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that is refused again stays, with the reason, and without what the server quotes."""
    at = address(emulator, "conv_gone")
    record(file, at, SECRET)
    assert run("retry", file, 1) == 1
    told(capsys, "NotFoundError")
    assert waiting(file, at) == [SECRET]
    assert run("show", file, 1) == 0
    assert "paused: NotFoundError" in capsys.readouterr().out


def test_retry_needs_a_key(
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a key nothing is begun, and the message names the variable."""
    monkeypatch.delenv("OPENAI_API_KEY")
    record(file, address(emulator, "conv_1"), "1")
    assert run("retry", file, 1) == 1
    told(capsys, "OPENAI_API_KEY")


def test_retry_of_nothing_clears_the_pause(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pause with nothing behind it is cleared without a request or a key."""
    at = address(emulator, "conv_1", "sk-other")
    do(file, lambda log: log.store.pause(at, "reason"))
    assert run("retry", file, 1) == 0
    assert "Nothing waits" in capsys.readouterr().out
    assert do(file, lambda log: log.mailbox(at)).paused is None
    assert emulator.requests == []
