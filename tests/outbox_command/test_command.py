"""What holds for each part of the command: what it cannot do, and what it does without."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from tests.outbox_command.support import address, apart, do, record, run, told


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
    do(file, lambda log: None)
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
    told(capsys, str(other), "no outbox")
    assert other.read_bytes() == before
    assert run("list", tmp_path) == 1
    told(capsys, "is a directory")


@pytest.mark.parametrize("command", ["list", "show", "retry", "discard", "export"])
@pytest.mark.parametrize("kind", ["no tables", "another program's", "no database"])
def test_what_is_no_outbox_is_not_touched(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no outbox keeps its bytes, its permissions and the directory that it is in."""
    other = tmp_path / "other"
    if kind == "no database":
        other.write_text("notes\n" * 200)
    else:
        with sqlite3.connect(other) as connection:
            # Without tables; only the header says that this is somebody's.
            number = 0 if kind == "no tables" else 7
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {number}")
            connection.execute("VACUUM")
        connection.close()
    other.chmod(0o644)
    before = other.read_bytes(), other.stat().st_mode, other.stat().st_mtime_ns
    assert run(command, other, *(() if command == "list" else (1,))) == 1
    told(capsys, str(other), "was left as it is")
    assert (other.read_bytes(), other.stat().st_mode, other.stat().st_mtime_ns) == before
    assert os.listdir(tmp_path) == ["other"]


def test_log_of_another_database_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another program has not yet moved from its log into its database stays in the log."""
    other, kept = tmp_path / "other", tmp_path / "kept"
    kept.mkdir()
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (x)")
    # As it is when that program ends all of a sudden.
    for name in ("other", "other-wal"):
        shutil.copy(tmp_path / name, kept)
    connection.close()
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert run("list", kept / "other") == 1
    told(capsys, "no outbox")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_path_that_cannot_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it cannot be told whether there is a file, nobody is told that there is none."""
    # A user who may enter every directory meets only this one.
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert run("list", loop) == 1
    told(capsys, str(loop), "cannot be looked at")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        assert run("list", closed / "agent.db") == 1
        who_may = hasattr(os, "geteuid") and os.geteuid() == 0
        told(capsys, "there is no file" if who_may else "cannot be looked at: Permission denied")
    finally:
        closed.chmod(0o700)


def test_help_says_what_a_pause_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The help that errors point to says what a pause is, and what can be done about it."""
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert "A backlog is paused when the server refused" in output
    for command in ("retry", "discard", "export"):
        assert re.search(rf"^  {command} +\S.*(sends|removes|writes)", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ((), "COMMAND"),
        (("show", "agent.db"), "show"),
        (("show", "agent.db", "x"), "show"),
        (("retry", "a", "1", "--t=x"), "retry"),
        (("list", "agent.db", "extra"), "list"),
    ],
)
def test_wrong_command_line_ends_with_status_2(
    arguments: tuple[str, ...], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line with a thing too few, too many or in the wrong place shows what it may be."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.match(rf"usage: cached-session outbox (\[-h\] )?{usage}\b", error)


def test_needs_no_extra(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command works where nothing is installed but the package itself."""
    do(file, lambda log: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run("list", file) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.processes
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


@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize("command", ["list", "show", "export"])
def test_full_output_is_named(command: str, size: int, file: Path, emulator: Emulator) -> None:
    """Where the standard output has no room, it is named, and not the outbox's file."""
    record(file, address(emulator, "conv_1"), "x" * size)
    number = () if command == "list" else (1,)
    more = ("--content",) if command == "show" else ()
    assert apart(command, file, *number, *more, redirected=">/dev/full") == (
        1,
        "cached-session outbox: standard output: No space left on device\n",
    )


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such shell")
@pytest.mark.parametrize("command", ["list", "show", "export", "discard", "retry"])
def test_closed_output_is_told(command: str, file: Path, emulator: Emulator) -> None:
    """Without a standard output nothing is done, and one line says so."""
    at = address(emulator, "conv_1")
    record(file, at, "1")
    number = () if command == "list" else (1,)
    more = ("--yes",) if command == "discard" else ()
    assert apart(command, file, *number, *more, redirected=">&-") == (
        1,
        "cached-session outbox: the standard output is closed. Nothing was done.\n",
    )
    assert [row.items for row in do(file, lambda log: log.summaries())] == [1]
    assert emulator.requests == []
