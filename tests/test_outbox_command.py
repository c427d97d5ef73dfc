"""The command line: `cached-session outbox`, on real files, with a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, OutboxPaused, RetryPolicy, SQLiteOutbox
from cached_session.backlog import address_of
from cached_session.cache import ConversationCache
from cached_session.cli import main
from cached_session.connections import account
from cached_session.emulator import Emulator, FaultKind, Faults
from cached_session.outbox import LOCAL, Address, Store, StoredItem, StoredWindow
from tests.servers import free_port
from tests.session.support import Elsewhere, clean_environment, new_client, texts, users

KEY = "sk-recorded"
SECRET = "the secret of the cellar"

# Another process that has the backlog of argv[2:] in the file argv[1], until its input ends.
HOLD = """
import asyncio, sys
from cached_session.outbox import Address, SQLiteOutbox
outbox = SQLiteOutbox(sys.argv[1])
print(asyncio.run(outbox.transact(lambda store: store.claim(Address(*sys.argv[2:])))), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator) -> Iterator[Emulator]:
    running.clear_log()
    yield running
    running.faults = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def do(file: Path, work: Callable[[Store], Any]) -> Any:
    """Does something to the outbox in a file, and closes it."""

    async def transact() -> Any:
        outbox = SQLiteOutbox(file)
        try:
            return await outbox.transact(work)
        finally:
            await outbox.close()

    return asyncio.run(transact())


def address(emulator: Emulator, conversation: str, key: str = KEY, **options: Any) -> Address:
    """Where a client with this key finds a conversation in an outbox."""
    client = AsyncOpenAI(base_url=emulator.base_url, api_key=key, **options)
    return address_of(account(client), conversation)


def record(file: Path, to: Address, *words: str, at: float | None = None) -> None:
    """Has messages wait in the file, as `add_items` records them."""
    items = [json.dumps(item, separators=(",", ":")).encode() for item in users(*words)]
    do(file, lambda store: store.accept(to, items, time.time() if at is None else at))


@contextmanager
def living(file: Path, of: Address) -> Iterator[subprocess.Popen[str]]:
    """A process that has the backlog, alive until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), *of],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Claim.")
            yield process
        finally:
            process.kill()


def run(*arguments: object) -> int:
    return main(("outbox", *map(str, arguments)))


def rows(output: str) -> list[list[str]]:
    """The cells of a list, without its head."""
    return [re.split(" {2,}", line.strip()) for line in output.splitlines()][1:]


def waiting(file: Path, at: Address) -> list[str]:
    """The texts of what waits."""
    found = do(file, lambda store: store.mailbox(at).rows)
    return [json.loads(row.data)["content"] for row in found]


def told(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Checks what went to standard error: one line that says all of it, and no traceback."""
    error = capsys.readouterr().err
    assert error.startswith("cached-session outbox: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


# list and show


def test_list_has_a_line_for_each_backlog(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each backlog has one line, with what waits, since when, and why it is not sent."""
    one, local, other = (address(emulator, name) for name in ("conv_1", f"{LOCAL}2", "conv_3"))
    record(file, one, SECRET, SECRET, at=time.time() - 7300)
    record(file, local, SECRET)
    window = StoredWindow((StoredItem("msg_1", SECRET.encode()),), True, 0)
    do(file, lambda store: store.replace_window(other, window))
    do(file, lambda store: store.pause(one, "BadRequestError, status 400"))
    assert run("list", file) == 0
    output = capsys.readouterr().out
    size = len(json.dumps(users(SECRET)[0], separators=(",", ":")))
    assert rows(output) == [
        ["1", "conv_1", "2", str(2 * size), "2 h", "paused: BadRequestError, status 400", "0"],
        ["2", f"{LOCAL}2 (not created yet)", "1", str(size), "0 s", "waiting", "0"],
        ["3", "conv_3", "0", "0", "-", "nothing waits", str(len(SECRET) + 5)],
    ]
    assert SECRET not in output
    assert KEY not in output
    assert one.credentials not in output


def test_list_shows_who_sends(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backlog that a living process sends says so, and no longer once that process is dead."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    with living(file, at):
        assert run("list", file) == 0
        assert rows(capsys.readouterr().out)[0][5] == "being sent by a living process"
    assert run("list", file) == 0
    assert rows(capsys.readouterr().out)[0][5] == "waiting"


def test_list_of_an_empty_outbox(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An outbox that holds nothing is no error."""
    do(file, lambda store: None)
    assert run("list", file) == 0
    assert capsys.readouterr().out == "Nothing waits, and no window is stored.\n"


def test_show_has_a_line_for_each_item(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """One backlog in full: its address without the key's digest, and one line an item."""
    at = address(emulator, "conv_1", organization="org-1")
    record(file, at, SECRET, at=86400.0)
    output = {"type": "function_call_output", "call_id": "1", "output": SECRET}
    odd = {"type": SECRET, "role": ["x"]}
    more = [json.dumps(item).encode() for item in (output, odd)]
    do(file, lambda store: store.accept(at, more, 86401.5))
    do(file, lambda store: store.seal(at, 1, None))
    assert run("show", file, 1) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    facts = dict(re.split(" {2,}", line, maxsplit=1) for line in lines[:10])
    assert facts["conversation"] == "conv_1"
    assert facts["server"] == at.base_url
    assert facts["organization"] == "org-1"
    assert facts["project"] == "-"
    assert facts["items"] == "3, 1 of them may have been sent"
    size = len(json.dumps(users(SECRET)[0], separators=(",", ":")))
    first, second = "1970-01-02 00:00:00 UTC", "1970-01-02 00:00:01 UTC"
    sealed, sizes = "sealed, may have been sent", [len(item) for item in more]
    assert [re.split(" {2,}", line) for line in lines[10:]] == [
        ["1", "message", "user", f"{size} bytes", first, sealed],
        ["2", "function_call_output", "-", f"{sizes[0]} bytes", second, "not sent"],
        ["3", "-", "-", f"{sizes[1]} bytes", second, "not sent"],
    ]
    assert SECRET not in printed
    assert at.credentials not in printed


def test_show_has_content_when_asked(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --content each item is there as JSON, and cannot control the terminal."""
    words = ["\x1b[2Jgrüße", "\x9b\u202e\U000e0001"]
    items = [json.dumps(item, ensure_ascii=False).encode() for item in users(*words)]
    do(file, lambda store: store.accept(address(emulator, "conv_1"), items, 1.0))
    assert run("show", file, 1, "--content") == 0
    output = capsys.readouterr().out
    assert "grüße" in output
    assert all(character.isprintable() for line in output.splitlines() for character in line)
    shown = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert shown == users(*words)


# retry


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
            await session.aclose()
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
    assert run("list", file) == 0
    assert rows(capsys.readouterr().out)[0][2:6] == ["0", "0", "-", "nothing waits"]


def test_retry_leaves_it_to_a_living_process(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a living process has the backlog, the pause is cleared and nothing is sent."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    do(file, lambda store: store.pause(at, "reason"))
    with living(file, at):
        assert run("retry", file, 1) == 0
        assert "It goes on at its next use" in capsys.readouterr().out
        assert do(file, lambda store: store.mailbox(at)).paused is None
    assert emulator.requests == []


def test_retry_refuses_another_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another key nothing is sent and nothing is changed, unless that is asked for."""
    name = Elsewhere(emulator).conversation("0")
    at = address(emulator, name, "sk-other", organization="org-1")
    record(file, at, "1", "2")
    do(file, lambda store: store.pause(at, "reason"))
    emulator.clear_log()
    assert run("retry", file, 1) == 1
    told(capsys, "another key", "--any-account", "Nothing was changed")
    assert emulator.requests == []
    assert do(file, lambda store: store.mailbox(at)).paused == "reason"
    assert run("retry", file, 1, "--any-account") == 0
    assert texts(emulator.items(name)) == ["0", "1", "2"]
    [moved] = do(file, lambda store: store.summaries())
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
    told(capsys, "NotFoundError", "1 items are kept")
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
    do(file, lambda store: store.pause(at, "reason"))
    assert run("retry", file, 1) == 0
    assert "Nothing waits" in capsys.readouterr().out
    assert do(file, lambda store: store.mailbox(at)).paused is None
    assert emulator.requests == []


# discard and export


def test_discard_removes_what_it_said(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing goes without --yes; with it the items and the pause go, and no other backlog."""
    at, other = address(emulator, "conv_1"), address(emulator, "conv_2")
    record(file, at, "1", "2")
    record(file, other, "3")
    do(file, lambda store: store.seal(at, 1, b"{}"))
    do(file, lambda store: store.pause(at, "reason"))
    assert run("discard", file, 1) == 1
    told(capsys, "would remove 2 items", "conv_1", "1 of them may be on the server", "--yes")
    assert waiting(file, at) == ["1", "2"]
    assert run("discard", file, 1, "--yes") == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("Removing 2 items")
    assert output[1] == "Removed 2 items."
    mailbox = do(file, lambda store: store.mailbox(at))
    assert (mailbox.rows, mailbox.doubt, mailbox.paused) == ((), None, None)
    assert waiting(file, other) == ["3"]


def test_discard_refuses_while_a_process_sends(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a living process sends is not taken from under it, and the command says what to do."""
    at = address(emulator, "conv_1")
    record(file, at, "1")
    with living(file, at):
        for yes in ((), ("--yes",)):
            assert run("discard", file, 1, *yes) == 1
            told(capsys, "nothing was removed", "clear_session()")
    assert waiting(file, at) == ["1"]


def test_discard_is_seen_by_a_session_that_was_paused(file: Path, emulator: Emulator) -> None:
    """A session of another process whose backlog was discarded goes on with its next append."""

    async def scenario() -> None:
        client = new_client(emulator, KEY)
        session = CachedSession(
            openai_client=client,
            outbox=SQLiteOutbox(file),
            cache=ConversationCache(),
            retry=RetryPolicy(deadline=10),
        )
        await session.get_items()
        emulator.faults = Faults(1, {FaultKind.RATE_LIMITED_QUOTA: 1.0})
        await session.add_items(users("refused"))
        with pytest.raises(OutboxPaused):
            await session.flush()
        emulator.faults = None
        assert await asyncio.to_thread(run, "discard", file, 1, "--yes") == 0
        await session.add_items(users("next"))
        await session.aclose()
        assert texts(emulator.items(session.session_id)) == ["next"]
        await client.close()

    asyncio.run(scenario())


def test_export_writes_what_waits(
    file: Path, emulator: Emulator, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The waiting items come out as JSON lines, in order, byte for byte as they were recorded."""
    items = [b'{"role":"user","content":"1"}', '{"n":1.0,"ü":"\x7f"}'.encode()]
    do(file, lambda store: store.accept(address(emulator, "conv_1"), items, 1.0))
    assert run("export", file, 1) == 0
    assert capfdbinary.readouterr().out == b"".join(item + b"\n" for item in items)
    assert [row.items for row in do(file, lambda store: store.summaries())] == [2]


def test_export_makes_a_file_of_its_own(
    file: Path, emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is made by it is for its owner alone, and one that exists is left as it is."""
    record(file, address(emulator, "conv_1"), SECRET)
    output = tmp_path / "items.jsonl"
    assert run("export", file, 1, "--output", output) == 0
    written = output.read_bytes()
    assert json.loads(written)["content"] == SECRET
    assert SECRET not in capsys.readouterr().out
    if sys.platform != "win32":
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
    record(file, address(emulator, "conv_1"), "more")
    assert run("export", file, 1, "--output", output) == 1
    told(capsys, str(output), "exists already")
    assert output.read_bytes() == written
    assert run("export", file, 1, "--output", tmp_path / "no" / "where") == 1
    told(capsys, "No such file or directory")


# What cannot be done


@pytest.mark.parametrize("command", ["list", "show", "retry", "discard", "export"])
def test_missing_file_is_not_made(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there is an error and is not made; an empty one stays empty."""
    number = () if command == "list" else (1,)
    assert run(command, tmp_path / "missing.db", *number) == 1
    told(capsys, "there is no file", "missing.db")
    assert os.listdir(tmp_path) == []
    (tmp_path / "empty").touch()
    assert run(command, tmp_path / "empty", *number) == 1
    told(capsys, "is empty")
    assert (tmp_path / "empty").stat().st_size == 0


@pytest.mark.parametrize("command", ["show", "retry", "discard", "export"])
def test_unknown_number_is_explained(
    command: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that stands for nothing is an error that says where to look."""
    do(file, lambda store: None)
    assert run(command, file, 7) == 1
    told(capsys, "there is no backlog 7", "cached-session outbox list")


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another program, or a directory, is named as such, without a traceback."""
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = other.read_bytes()
    assert run("list", other) == 1
    told(capsys, "another program")
    assert other.read_bytes() == before
    assert run("list", tmp_path) == 1
    told(capsys, "is a directory")


@pytest.mark.parametrize(
    "arguments", [(), ("show", "agent.db"), ("show", "agent.db", "x"), ("retry", "a", "1", "--t=x")]
)
def test_wrong_command_line_ends_with_status_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line that lacks something, or has something else in its place, is explained."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert "usage: cached-session outbox" in capsys.readouterr().err


def test_needs_no_extra(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command works where nothing is installed but the package itself."""
    do(file, lambda store: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run("list", file) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks in another way")
def test_reader_that_leaves_is_no_error_to_tell_of(file: Path, emulator: Emulator) -> None:
    """When whoever reads the output has left, the command ends without a word."""
    record(file, address(emulator, "conv_1"), *["x" * 1000] * 200)
    with subprocess.Popen(
        [sys.executable, "-m", "cached_session", "outbox", "export", str(file), "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
