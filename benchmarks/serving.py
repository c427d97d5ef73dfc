"""The web example under uvicorn, in processes of its own, as somebody would start it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "web"
_PATIENCE = 240.0


@dataclass(frozen=True)
class Serving:
    """A running app.

    Attributes:
        url: Where it is.
        process: The process that was started; with several workers their parent.
        log: The file of its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    def stop(self) -> int:
        """Asks it to end, as a service manager does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_PATIENCE)


@contextlib.contextmanager
def serving(
    base_url: str,
    log: Path,
    *,
    app: str = "app:app",
    directory: str = str(EXAMPLE),
    workers: int = 1,
    **settings: str,
) -> Iterator[Serving]:
    """Runs the app with a scripted model; yields when all its workers serve.

    Args:
        base_url: The Conversations API.
        log: The file for its output.
        app: What uvicorn is to serve.
        directory: Where that is.
        workers: How many processes serve.
        settings: More of its environment.

    Raises:
        RuntimeError: It ended, or did not start in time.
    """
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--app-dir", directory]
    command += ["--port", str(port), "--workers", str(workers), "--timeout-graceful-shutdown", "15"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=_environment(OPENAI_BASE_URL=base_url, **settings),
            stdout=output,
            stderr=output,
            # A group of its own, so that what is left of it can be ended as a whole.
            start_new_session=True,
        ) as process,
    ):
        running = Serving(f"http://127.0.0.1:{port}", process, log)
        try:
            _eventually(lambda: _ready(running, workers))
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _ready(running: Serving, workers: int) -> bool:
    if running.process.poll() is not None:
        raise RuntimeError(f"the app ended: {running.output}")
    return running.output.count("Application startup complete.") == workers


def _eventually(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the app did not start in time")
        pause.wait(0.02)


def _environment(**settings: str) -> Mapping[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and not name.startswith("CHAT_")
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {
        "OPENAI_API_KEY": "any",
        "CHAT_MODEL": "scripted",
        "PYTHONPATH": path,
        **settings,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
