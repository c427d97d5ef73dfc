"""What holds for each part of the command: what it cannot do, and what it does without."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from tests.outbox_command.support import address, do, record, run, told


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
