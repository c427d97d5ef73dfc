"""`watch`: a live table on a terminal, and a plain one, once, elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from tests.outbox_command.support import SECRET, address, do, living, record, rows, run, told

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def test_without_a_terminal_it_is_one_plain_table(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What somebody has to decide about comes first, with its error; and no content."""
    record(file, address(emulator, "conv_1"), SECRET, "2", at=1.0)
    refused = address(emulator, "conv_2")
    record(file, refused, "3")
    do(file, lambda log: log.store.pause(refused, "BadRequestError, status 400"))
    assert run("watch", file) == 0
    output = capsys.readouterr().out
    assert [[row[1], row[2], *row[5:]] for row in rows(output)] == [
        ["conv_2", "1", "paused", "BadRequestError, status 400"],
        ["conv_1", "2", "waiting", "-"],
    ]
    assert SECRET not in output
    assert "\x1b" not in output


def test_an_outbox_in_which_nothing_waits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that is empty there is the head alone; of none, an error that says so."""
    assert run("watch", file) == 1
    told(capsys, "there is no file")
    do(file, lambda log: None)
    assert run("watch", file) == 0
    assert capsys.readouterr().out.split() == [
        *("number", "conversation", "items", "bytes", "oldest", "state", "last", "error")
    ]


def test_without_rich_it_says_what_to_do(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the extra is not installed, the message names it, and the command that needs none."""
    do(file, lambda log: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run("watch", file) == 1
    told(capsys, "rich", 'pip install ".[cli]"', "`list`")


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_on_a_terminal_it_lives_until_it_is_interrupted(file: Path, emulator: Emulator) -> None:
    """The table follows what happens in the file; Ctrl-C ends it, with status 0, and it stays."""
    import pty

    at = address(emulator, "conv_1")
    record(file, at, "1")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cached_session", "outbox", "watch", str(file), "--every", "0.05"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20"},
    ) as process:
        os.close(theirs)
        screen = b""

        def read_until(*words: str) -> None:
            nonlocal screen
            while not all(word in ESCAPES.sub("", screen.decode()) for word in words):
                screen += os.read(ours, 4096)

        read_until("conv_1", "waiting", "1 item.")
        with living(file, at):
            record(file, address(emulator, "conv_2"), "2", "3")
            read_until("conv_2", "being sent", "3 items.")
        process.send_signal(signal.SIGINT)
        screen = b""
        # Linux reports the end of the other side as an error.
        with open(ours, "rb", buffering=0) as rest:
            try:
                while part := rest.read(4096):
                    screen += part
            except OSError:
                pass
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    left = screen.decode().rpartition("\x1b[?1049l")[2]
    assert "conv_1" in left
    assert "conv_2" in left
