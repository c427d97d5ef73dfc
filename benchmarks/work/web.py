"""`web` and `workers`: what a web request costs, and what the answers of several workers miss.

The example's app runs under uvicorn and makes a session object for each web request. For `web` it
has one process, and talks TLS to the emulator over a line on which each byte takes 30 ms each way.
The model is a script that answers at once, so the times are those of the session and of the web
server. For `workers` it has three, and one conversation's messages go to any of them: how many of
the answers were given without all that was said before?
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness import Bench, Work, amount, count, numbers
from benchmarks.line import LOOPBACK, Line
from benchmarks.payload import items
from benchmarks.results import Figure
from benchmarks.serving import serving
from benchmarks.sites import Site
from benchmarks.timing import Taken
from cached_session.emulator import Emulator

ONE_WAY = 0.03
WORKERS = 3


@dataclass(frozen=True)
class App:
    """A way to serve the app.

    Attributes:
        name: As the table calls it.
        settings: The app's environment.
        served: What uvicorn serves.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    served: str = "app:app"

    def in_folder(self, directory: Path) -> dict[str, str]:
        """The settings, with the outbox's file in a directory."""
        if "CHAT_OUTBOX" not in self.settings:
            return dict(self.settings)
        return {**self.settings, "CHAT_OUTBOX": str(directory / self.settings["CHAT_OUTBOX"])}


APPS = (
    App("OpenAIConversationsSession", served="benchmarks.web_app:app"),
    App("CachedSession"),
    App("CachedSession, max_staleness=30", {"CHAT_MAX_STALENESS": "30"}),
    App("CachedSession, outbox", {"CHAT_OUTBOX": "chat.db"}),
    App(
        "CachedSession, outbox, max_staleness=30",
        {"CHAT_OUTBOX": "chat.db", "CHAT_MAX_STALENESS": "30"},
    ),
)


async def measure(app: App, size: int, times: int, step: Callable[[], None]) -> dict[str, float]:
    """Starts the app anew, and sends web requests one after the other to one conversation.

    Args:
        app: How the app is served.
        size: How long the conversation is at the beginning; 0: it is a new one.
        times: How many web requests.
        step: Called after each web request.
    """
    with tempfile.TemporaryDirectory() as made, Emulator() as emulator:
        directory = Path(made)
        site = Site(emulator.base_url, "any", own=True)
        conversation = None
        if size:
            async with site.client() as client:
                conversation = await site.fill(client, items(size), in_order=True)
        with Line(httpx2.URL(site.base_url).port or 0, delay=ONE_WAY) as line:
            settings = app.in_folder(directory)
            settings["SSL_CERT_FILE"] = str(line.trust(directory))
            base_url = f"https://{LOOPBACK}:{line.port}/v1"
            with serving(base_url, directory / "log", app=app.served, **settings) as web:  # type: ignore[arg-type]  # capitals
                with httpx2.Client(base_url=web.url, trust_env=False, timeout=60) as http:
                    # What is imported, and connected, at first use is there then.
                    _post(http, "warm up", None)
                    emulator.clear_log()
                    taken = Taken()
                    for number in range(times):
                        with taken.call():
                            answer = _post(http, f"message {number}", conversation)
                        conversation = answer["conversation_id"]
                        step()
                # What an outbox still sends is counted, too.
                status = web.stop()
                # One process, without a parent, ends by the signal that it got.
                if status != -signal.SIGTERM or "Traceback" in web.output:
                    raise RuntimeError(f"the app ended with {status}: {web.output}")
        stored = len(emulator.items(str(conversation)))
        if stored != size + 2 * times:
            raise RuntimeError(f"{stored} items are on the server, not {size + 2 * times}")
        return {
            "connections": line.connections,
            "API requests per web request": len(emulator.requests) / times,
            "first web request ms": taken.seconds[0] * 1e3,
            "later ones ms": statistics.median(taken.seconds[1:]) * 1e3,
        }


def left_out(app: App, messages: int, step: Callable[[], None]) -> int:
    """Sends one conversation's messages to several workers; counts the answers that miss some."""
    with tempfile.TemporaryDirectory() as made, Emulator() as emulator:
        directory = Path(made)
        log, settings = directory / "log", app.in_folder(directory)
        with (
            serving(emulator.base_url, log, app=app.served, workers=WORKERS, **settings) as web,
            httpx2.Client(
                base_url=web.url,
                trust_env=False,
                timeout=60,
                # A new connection may reach another worker.
                limits=httpx2.Limits(max_keepalive_connections=0),
            ) as http,
        ):
            conversation, missing = None, 0
            for number in range(1, messages + 1):
                answer = _post(http, f"message {number}", conversation)
                conversation = answer["conversation_id"]
                # The scripted model says how many messages it was shown.
                missing += answer["text"] != f"Question {number}: message {number}"
                step()
            return missing


def _post(http: httpx2.Client, text: str, conversation_id: str | None) -> dict[str, Any]:
    """Says something; returns the answer."""
    body = {"text": text, "conversation_id": conversation_id}
    answer = http.post("/chat", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=_several, default=20, help="web requests each (20)")
    parser.add_argument(
        "--sizes", type=numbers, default=[0, 200], help="items of the conversation, 0: new (0,200)"
    )


def _several(text: str) -> int:
    several = amount(text)
    if several < 2:
        raise argparse.ArgumentTypeError("must be 2 or more: the first one stands alone")
    return several


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    for size, app in itertools.product(options.sizes, APPS):
        conversation = count(size, "item") if size else "new"
        workload = f"{count(options.requests, 'web request')} to one conversation: {conversation}"
        with bench.measuring(f"web: {app.name}, {workload}", options.requests) as step:
            values = await measure(app, size, options.requests, step)
        yield Figure("web", workload, app.name, {"conversation": conversation}, values)


def _options_of_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=amount, default=40, help="messages each (40)")


async def _run_workers(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    messages = options.messages
    workload = f"{count(messages, 'message')} to one conversation, by {WORKERS} workers"
    for app in APPS:
        with bench.measuring(f"workers: {app.name}", messages) as step:
            missing = left_out(app, messages, step)
        values = {f"answers that left something out, of {messages}": missing}
        yield Figure("workers", workload, app.name, {}, values)


WORKS = (
    Work("web", "what a web request costs", _options, _run, own=True),
    Work(
        "workers",
        "what answers of several workers miss",
        _options_of_workers,
        _run_workers,
        own=True,
    ),
)
