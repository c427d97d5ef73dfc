"""Servers that tests start for themselves, over loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START_SECONDS = 30.0
"""How long a server may take to accept connections before a test run gives up on it."""


def agentic_binary() -> Path | None:
    """Returns the `agentic-server` binary next to the running interpreter, or None."""
    name = "agentic-server.exe" if sys.platform == "win32" else "agentic-server"
    binary = Path(sys.executable).with_name(name)
    return binary if binary.exists() else None


@contextlib.contextmanager
def agentic_server(directory: Path) -> Iterator[str]:
    """Runs `agentic-api`, a Conversations API server written by others, and yields its base URL.

    Args:
        directory: Where it may keep its database.

    Raises:
        FileNotFoundError: The binary is not installed.
        RuntimeError: It ended before it accepted connections, or took too long.
    """
    binary = agentic_binary()
    if binary is None:
        raise FileNotFoundError("agentic-server is not installed (pip install agentic-api)")
    port = free_port()
    command = [
        str(binary),
        # It binds all interfaces unless it is told the host.
        *("--gateway-host", "127.0.0.1"),
        *("--gateway-port", str(port)),
        # No model is needed: nothing listens there, and the conversation endpoints never ask.
        *("--llm-api-base", "http://127.0.0.1:9"),
        "--skip-llm-ready-check",
        *("--db-url", f"sqlite:///{directory.resolve() / 'conversations.db'}"),
    ]
    log = directory / "agentic-server.log"
    with (
        log.open("wb") as output,
        # It keeps a directory of its own in the home directory, which is none of its business here.
        subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={**os.environ, "HOME": str(directory)},
        ) as process,
    ):
        try:
            eventually(lambda: process.poll() is not None or accepts(port))
            if process.poll() is not None:
                raise RuntimeError(f"agentic-server ended: {log.read_text(errors='replace')}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nothing uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Tells whether something accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def eventually(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Returns as soon as a condition holds that another thread or process brings about.

    Raises:
        RuntimeError: It does not hold after `seconds`.
    """
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("a condition that a test waits for did not come about")
        pause.wait(0.002)
