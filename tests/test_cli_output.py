"""Commands whose standard output cannot be written, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.processes

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
PIPE = pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks in another way")


def shell(line: str) -> tuple[int, str]:
    """Runs a command by a shell; its status and what went to standard error."""
    program = f"{shlex.quote(sys.executable)} -m"
    # argparse says nothing where its help cannot be written at once.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        line.replace("PYTHON", program),
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=buffered,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "prefix"),
    [
        ("PYTHON cached_session demo --runs 1 --latency 0", "cached-session demo: "),
        ("PYTHON cached_session serve", ""),
        ("PYTHON cached_session.emulator", ""),
        ("PYTHON cached_session demo --help", "cached-session demo: "),
        ("PYTHON cached_session --help", "cached-session: "),
        ("PYTHON benchmarks --help", "python -m benchmarks: "),
    ],
)
@FULL
def test_full_output_ends_with_a_line(line: str, prefix: str) -> None:
    """Where the standard output has no room, a command ends with a line that says so."""
    message = f"{prefix}standard output: No space left on device\n"
    assert shell(f"{line} >/dev/full") == (1, message)


@pytest.mark.parametrize(
    "line",
    [
        "PYTHON cached_session demo --runs 1 --latency 0",
        "PYTHON cached_session serve",
        "PYTHON cached_session.emulator",
        "PYTHON cached_session serve --help",
    ],
)
@PIPE
def test_reader_that_leaves_ends_a_command(line: str) -> None:
    """When whoever reads the output has left, a command ends without a word."""
    # The status is the reader's; the command's own goes to where it cannot be lost.
    status = "{ sleep 0.2; " + line + "; echo $? >&2; } | true"
    assert shell(status) == (0, "1\n")


@PIPE
def test_serve_ends_when_nobody_reads_its_trace() -> None:
    """A server whose trace nobody reads any more ends, and the request is answered all the same."""
    with subprocess.Popen(
        [sys.executable, "-m", "cached_session", "serve", "--trace"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            base_url = process.stdout.readline().strip()
            process.stdout.close()
            with contextlib.suppress(httpx2.HTTPError):
                httpx2.post(f"{base_url}/conversations", json={}, trust_env=False)
            assert process.wait(timeout=30) == 1
            assert process.stderr.read() == ""
        finally:
            process.kill()
