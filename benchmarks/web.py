"""What a web request costs with both kinds of session: connections, requests, time.

    python -m benchmarks.web
    python -m benchmarks.web --page      # and writes the tables into docs/web.md

The example's app runs under uvicorn, one process, and makes a session object for each web request.
It talks TLS to the emulator over a line on which each byte takes 30 ms each way. The model is a
script that answers at once, so the times are those of the session and of the web server.

Then it runs with three workers, and one conversation's messages go to any of them: how many of the
answers were given without all that was said before?
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.line import LOOPBACK, Line
from benchmarks.page import fill
from benchmarks.serving import ROOT, serving
from cached_session.emulator import Emulator, Request

PAGE = ROOT / "docs" / "web.md"
ONE_WAY = 0.03
LONG = 200
BATCH = 20
WORKERS = 3
MESSAGES = 40


@dataclass(frozen=True)
class Kind:
    """A way to serve the app.

    Attributes:
        name: As the table calls it.
        settings: The app's environment.
        app: What uvicorn serves.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    app: str = "app:app"


KINDS = (
    Kind("OpenAIConversationsSession", app="benchmarks.web_app:app"),
    Kind("CachedSession"),
    Kind("CachedSession, max_staleness=30", {"CHAT_MAX_STALENESS": "30"}),
    Kind("CachedSession, outbox", {"CHAT_OUTBOX": "chat.db"}),
    Kind(
        "CachedSession, outbox, max_staleness=30",
        {"CHAT_OUTBOX": "chat.db", "CHAT_MAX_STALENESS": "30"},
    ),
)


@dataclass(frozen=True)
class Cost:
    """What the web requests of one conversation took.

    Attributes:
        connections: Connections to the API, those of the app's start included.
        requests: Requests to the API for each web request.
        first: Seconds of the first web request.
        then: Seconds of the later ones, the median.
    """

    connections: int
    requests: float
    first: float
    then: float


def measure(kind: Kind, items: int, count: int) -> Cost:
    """Starts the app anew, and sends web requests one after the other to one conversation.

    Args:
        kind: How the app is served.
        items: How long the conversation is at the beginning; 0: it is a new one.
        count: How many web requests.
    """
    with tempfile.TemporaryDirectory() as made, Emulator() as emulator:
        directory = Path(made)
        conversation = conversation_of(emulator, items) if items else None
        port = int(emulator.base_url.split(":")[2].split("/")[0])
        with Line(port, delay=ONE_WAY) as line:
            settings = with_file(kind.settings, directory)
            settings["SSL_CERT_FILE"] = str(line.trust(directory))
            base_url = f"https://{LOOPBACK}:{line.port}/v1"
            log = directory / "log"
            with serving(base_url, log, app=kind.app, **settings) as web:  # type: ignore[arg-type]  # names in capitals
                with httpx2.Client(base_url=web.url, trust_env=False, timeout=60) as http:
                    # What is imported, and connected, at first use is there then.
                    post(http, "warm up", None)
                    emulator.clear_log()
                    taken = []
                    for number in range(count):
                        started = time.perf_counter()
                        answer = post(http, f"message {number}", conversation)
                        conversation = answer["conversation_id"]
                        taken.append(time.perf_counter() - started)
                # What an outbox still sends is counted, too.
                status = web.stop()
                # One process, without a parent, ends by the signal that it got.
                if status != -signal.SIGTERM or "Traceback" in web.output:
                    raise RuntimeError(f"the app ended with {status}: {web.output}")
            stored = len(emulator.items(str(conversation)))
            if stored != items + 2 * count:
                raise RuntimeError(f"{stored} items are on the server, not {items + 2 * count}")
            return Cost(
                connections=line.connections,
                requests=len(emulator.requests) / count,
                first=taken[0],
                then=statistics.median(taken[1:]),
            )


def post(http: httpx2.Client, text: str, conversation_id: str | None) -> dict[str, Any]:
    """Says something; returns the answer."""
    body = {"text": text, "conversation_id": conversation_id}
    answer = http.post("/chat", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def left_out(kind: Kind) -> int:
    """Sends one conversation's messages to several workers; counts the answers that miss some."""
    with tempfile.TemporaryDirectory() as made, Emulator() as emulator:
        directory = Path(made)
        settings = with_file(kind.settings, directory)
        with (
            serving(
                emulator.base_url, directory / "log", app=kind.app, workers=WORKERS, **settings
            ) as web,
            httpx2.Client(
                base_url=web.url,
                trust_env=False,
                timeout=60,
                # A new connection may reach another worker.
                limits=httpx2.Limits(max_keepalive_connections=0),
            ) as http,
        ):
            conversation, missing = None, 0
            for number in range(1, MESSAGES + 1):
                answer = post(http, f"message {number}", conversation)
                conversation = answer["conversation_id"]
                # The scripted model says how many messages it was shown.
                missing += answer["text"] != f"Question {number}: message {number}"
            return missing


def with_file(settings: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The settings, with the outbox's file in a directory."""
    if "CHAT_OUTBOX" not in settings:
        return dict(settings)
    return {**settings, "CHAT_OUTBOX": str(directory / settings["CHAT_OUTBOX"])}


def conversation_of(emulator: Emulator, items: int) -> str:
    """Makes a conversation of so many items, past the line."""

    def call(path: str, body: object) -> Any:
        content = httpx2.Request("POST", "http://any", json=body).content
        headers = {"authorization": "Bearer any"}
        return emulator.service.handle(Request.parse("POST", path, headers, content)).json()

    made = call("/v1/conversations", {})["id"]
    for start in range(0, items, BATCH):
        batch = [
            {"role": ("user", "assistant")[number % 2], "content": f"This is item {number}."}
            for number in range(start, min(start + BATCH, items))
        ]
        call(f"/v1/conversations/{made}/items", {"items": batch})
    return str(made)


def measured(count: int) -> Iterator[tuple[str, Kind, Cost]]:
    """Each kind on each conversation, in turn."""
    for name, items in (("new", 0), (f"{LONG} items", LONG)):
        for kind in KINDS:
            yield name, kind, measure(kind, items, count)


def views() -> str:
    """The table of what the workers see of each other."""
    lines = [f"| session | answers that left something out, of {MESSAGES} |", "| --- | ---: |"]
    lines += [f"| {kind.name} | {left_out(kind)} |" for kind in KINDS]
    return "\n".join(lines)


def costs(rows: Iterable[tuple[str, Kind, Cost]]) -> str:
    """The table of what web requests cost."""
    lines = [
        "| conversation | session | connections | API requests per web request "
        "| first web request | later ones |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {kind.name} | {cost.connections} | {cost.requests:.2g} "
        f"| {cost.first * 1e3:.0f} ms | {cost.then * 1e3:.0f} ms |"
        for name, kind, cost in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--requests", type=int, default=20, help="web requests each (20)")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/web.md")
    options = parser.parse_args()
    if options.requests < 2:
        parser.error("--requests must be 2 or more")
    tables = {"web": costs(measured(options.requests)), "workers": views()}
    print("\n\n".join(tables.values()))
    if options.page:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(fill(page, tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
