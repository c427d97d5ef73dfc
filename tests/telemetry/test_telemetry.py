"""What OpenTelemetry is told of sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import Histogram, Metric, Sum
from opentelemetry.trace import SpanKind, StatusCode

from cached_session import (
    AbandonedWriteFailed,
    CachedSession,
    CallFinished,
    ConversationCache,
    CopyEvicted,
    Event,
    MemoryOutbox,
    RequestFinished,
    SendFinished,
    SendStarted,
    SQLiteOutbox,
    instrument,
)
from cached_session.emulator import Emulator, Fault, FaultKind, Request
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import QUICK, until
from tests.pages import ROOT
from tests.session.support import Elsewhere, user, users
from tests.telemetry.sdk import Sdk

PAGE = ROOT / "docs" / "observing.md"
LOST = Fault(FaultKind.RESET_AFTER_COMMIT)
CUT = Fault(FaultKind.RESET_BEFORE_COMMIT)
REFUSED = Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503)


def session_on(client: AsyncOpenAI, cache: ConversationCache, **options: Any) -> CachedSession:
    settings = {"retry": QUICK, **options}
    return CachedSession(openai_client=client, cache=cache, **settings)


def on_appends(emulator: Emulator, *faults: Fault | None) -> None:
    """Decides about the next appends."""
    script = iter(faults)
    emulator.faults = lambda request: next(script, None) if is_append(request) else None


async def late_copy(emulator: Emulator, session: CachedSession) -> None:
    """Appends an item that the server stores twice: the first request comes just before the second.

    The second copy is known and deleted by the time that the append returns.
    """
    seen: list[Request] = []

    def plan(request: Request) -> Fault | None:
        if not is_append(request):
            return None
        seen.append(request)
        if len(seen) == 1:
            return CUT
        if len(seen) == 2:
            emulator.service.handle(seen[0])
        return None

    emulator.faults = plan
    await session.add_items([user("late")])
    emulator.faults = None


async def test_a_read_that_misses_and_one_that_hits(
    emulator: Emulator, client: AsyncOpenAI, sdk: Sdk
) -> None:
    """A read that asks the server counts as a miss, with its request below; the next as a hit."""
    cache = ConversationCache()
    sdk.instrument(cache)
    conversation = Elsewhere(emulator).conversation("a", "b")
    session = session_on(client, cache, conversation_id=conversation)
    await session.get_items()
    await session.get_items()
    assert sdk.values("cache.hits") == {(): 1}
    assert sdk.values("cache.misses") == {(): 1}
    assert sdk.values("call.duration") == {("get_items",): 2}
    assert sdk.values("request.duration") == {("list", "applied", 200): 1}
    assert sdk.values("cache.conversations") == {(): 1}
    assert sdk.values("cache.size") == {(): cache.bytes}
    request, miss, hit = sdk.spans()
    assert [span.name for span in (miss, hit)] == ["cached_session.get_items"] * 2
    assert dict(miss.attributes or {}) == {
        "gen_ai.conversation.id": conversation,
        "cached_session.cache.hit": False,
        "cached_session.items": 2,
    }
    assert hit.attributes is not None
    assert hit.attributes["cached_session.cache.hit"] is True
    assert request.parent == miss.context
    assert (request.kind, miss.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert request.attributes is not None
    [logged] = emulator.requests
    assert request.attributes["http.request.method"] == logged.method == "GET"
    assert request.attributes["http.response.status_code"] == 200
    [request_id] = request.attributes["http.response.header.x-request-id"]
    assert request_id.startswith("req_")


async def test_what_a_request_was_answered(emulator: Emulator, client: AsyncOpenAI) -> None:
    """An observer hears of each request which attempt it was, its status, and the service's id."""
    events: list[Event] = []
    cache = ConversationCache()
    session = session_on(client, cache, observer=events.append)
    on_appends(emulator, REFUSED, LOST)
    await session.add_items([user("a")])
    told = [
        (event.operation, event.attempt, event.status, event.request_id is not None)
        for event in events
        if isinstance(event, RequestFinished)
    ]
    # A gateway's 503 has no id of the service. It leaves open whether the server did it: a
    # listing decides, as after a lost answer, and one looks for what may have come late.
    assert told == [
        ("create", 1, 200, True),
        ("append", 1, 503, False),
        ("list", 1, 200, True),
        ("append", 2, None, False),
        ("list", 1, 200, True),
        ("list", 1, 200, True),
    ]


async def test_a_lost_answer(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """A lost answer is one retry and one reconciliation, which the append's span tells of."""
    cache = ConversationCache()
    session = session_on(client, cache)
    await session.add_items([user("before")])
    sdk.instrument(session)
    on_appends(emulator, LOST)
    await session.add_items([user("a")])
    assert sdk.values("retries") == {("APIConnectionError",): 1}
    assert sdk.values("reconciliations") == {("all",): 1}
    assert sdk.values("request.duration") == {
        ("append", "unknown", "APIConnectionError"): 1,
        ("list", "applied", 200): 1,
    }
    [append] = sdk.spans("add_items")
    assert [event.name for event in append.events] == [
        "cached_session.retry",
        "cached_session.reconciled",
    ]
    assert append.status.status_code is StatusCode.UNSET
    lost, listing = sdk.spans("request")
    assert lost.status.status_code is StatusCode.ERROR
    assert lost.parent == listing.parent == append.context


async def test_a_late_copy(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """A late copy that was deleted again is counted, and the append's span tells of it."""
    session = session_on(client, ConversationCache())
    await session.add_items([user("before")])
    sdk.instrument(session)
    await late_copy(emulator, session)
    assert sdk.values("late_copies") == {("removed",): 1}
    [append] = sdk.spans("add_items")
    assert "cached_session.late_copy_removed" in [event.name for event in append.events]
    again = [span for span in sdk.spans("request") if "append" in (span.attributes or {}).values()]
    assert [(span.attributes or {}).get("http.request.resend_count") for span in again] == [None, 1]


async def test_a_stale_read(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """A read that the copy answers, as the server is away, is a miss, and is told by its error."""
    cache = ConversationCache()
    sdk.instrument(cache)
    session = session_on(client, cache, max_staleness=0, stale_if_error=60)
    await session.get_items()
    emulator.faults = lambda request: REFUSED
    await session.get_items()
    emulator.faults = None
    assert sdk.values("cache.stale_reads") == {("InternalServerError",): 1}
    assert sdk.values("cache.hits") == {}
    *_, read = sdk.spans("get_items")
    assert "cached_session.stale_read" in [event.name for event in read.events]


async def test_an_eviction(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """A copy that has to go for another one counts as evicted, and the bytes with it."""
    cache = ConversationCache(max_bytes=12_000)
    events: list[Event] = []
    cache.observe(events.append)
    sdk.instrument(cache)
    one, two, three = (session_on(client, cache) for _ in range(3))
    for session in (one, two, three):
        await session.add_items([user("a")])
    assert sdk.values("cache.evictions") == {("size",): 1}
    assert sdk.values("cache.conversations") == {(): 2}
    assert sdk.values("cache.size") == {(): cache.bytes}
    [evicted] = [event for event in events if isinstance(event, CopyEvicted)]
    assert (evicted.conversation_id, evicted.items) == (one.session_id, 1)
    assert evicted.bytes > 0


async def test_an_outbox(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk, tmp_path: Any) -> None:
    """What waits shows in the gauges and is gone at the end; sends name the calls behind them."""
    cache, outbox = ConversationCache(), SQLiteOutbox(tmp_path / "outbox.db")
    sdk.instrument(cache)
    session = session_on(client, cache, outbox=outbox)
    emulator.faults = lambda _: REFUSED
    await session.add_items(users("a", "b"))
    await session.add_items([user("c")])
    await until(lambda: sdk.values("backlog.conversations")["offline",] == 1)
    assert sdk.values("backlog.items") == {(): 3}
    assert sdk.values("backlog.size") == {(): session.stats.waiting_bytes}
    assert sdk.values("backlog.age")[()] > 0
    assert session.stats.waiting_seconds > 0
    emulator.faults = None
    await session.flush()
    for name in ("items", "size", "age"):
        assert sdk.values(f"backlog.{name}") == {(): 0}
    assert set(sdk.values("backlog.conversations").values()) == {0}
    assert sdk.values("send.items") == {(): 3}
    accepts = [span.context for span in sdk.spans("add_items")]
    assert len(accepts) == 2
    *failed, sent = sdk.spans("send")
    assert [link.context for link in sent.links] == accepts
    # Nobody's child: it may be sent long after the calls, and for several of them.
    assert sent.parent is None
    assert (sent.attributes or {})["cached_session.send.landed"] == 3
    assert (sent.attributes or {})["gen_ai.conversation.id"] == session.session_id
    assert failed
    assert all(span.status.status_code is StatusCode.ERROR for span in failed)
    attempts = [(span.attributes or {})["cached_session.send.attempt"] for span in (*failed, sent)]
    assert attempts == list(range(1, len(attempts) + 1))
    below = [span for span in sdk.spans("request") if span.parent == sent.context]
    assert {(span.attributes or {})["cached_session.request.operation"] for span in below} == {
        "create",
        "append",
    }
    await session.aclose()
    await outbox.aclose()


async def test_only_what_waits_is_linked(client: AsyncOpenAI, emulator: Emulator) -> None:
    """A send names the calls whose items it has: none sent, taken back, or of later batches."""
    events: list[Event] = []
    outbox = MemoryOutbox()
    session = session_on(client, ConversationCache(), outbox=outbox, observer=events.append)
    await session.add_items([user("sent")])
    await session.flush()
    emulator.faults = lambda _: REFUSED
    await session.add_items([user("waits") for _ in range(15)])
    await session.add_items([user("taken back")])
    await session.pop_item()
    await session.add_items([user("in both") for _ in range(10)])
    await session.add_items([user("later")])
    events_before = len(events)
    emulator.faults = None
    await session.flush()
    calls = [
        event.started
        for event in events
        if isinstance(event, CallFinished) and event.started.call == "add_items"
    ]
    sends = {
        event.started.calls: event.landed
        for event in events[events_before:]
        if isinstance(event, SendFinished) and event.landed
    }
    assert sum(sends.values()) == 26
    assert calls[0] not in {call for found in sends for call in found}
    assert calls[2] not in {call for found in sends for call in found}
    last = list(sends)[-1]
    assert last[-1] is calls[4]
    assert all(isinstance(event.calls, tuple) for event in events if isinstance(event, SendStarted))
    await session.aclose()
    await outbox.aclose()


async def test_uninstrument(client: AsyncOpenAI, sdk: Sdk) -> None:
    """After it nothing more is measured or traced; what was instrumented twice goes on."""
    cache = ConversationCache()
    session = session_on(client, cache)
    once, again, all_of_them = (sdk.instrument(one) for one in (session, session, cache))
    await session.add_items([user("a")])
    assert sdk.values("call.duration") == {("add_items",): 1}
    assert len(sdk.spans("add_items")) == 1
    once.uninstrument()
    once.uninstrument()
    all_of_them.uninstrument()
    await session.get_items()
    assert sdk.values("cache.hits") == {(): 1}
    assert sdk.values("cache.conversations") == {(): 1}
    again.uninstrument()
    await session.get_items()
    assert sdk.values("cache.hits") == {(): 1}
    assert sdk.values("cache.conversations") == {}
    assert len(sdk.spans("get_items")) == 1
    # And once more.
    sdk.instrument(session)
    await session.get_items()
    assert sdk.values("cache.hits") == {(): 2}
    assert sdk.values("cache.conversations") == {(): 1}


async def test_uninstrument_in_the_middle(client: AsyncOpenAI, sdk: Sdk) -> None:
    """The span of a call, or of a batch, that has begun by then ends as it would have."""
    async with session_on(client, ConversationCache(), outbox=MemoryOutbox()) as session:
        await session.get_items()
        way_back = sdk.instrument(session)
        session.observe(
            lambda event: way_back.uninstrument() if isinstance(event, RequestFinished) else None
        )
        await session.refresh()
        await session.get_items()
        assert len(sdk.spans("get_items")) == 1
        assert not trace.get_current_span().get_span_context().is_valid
        way_back = sdk.instrument(session)
        await session.add_items(users("a"))
        await session.flush()
        assert len(sdk.spans("send")) == 1
        assert sdk.values("send.items") == {(): 1}
        await session.get_items()
        assert len(sdk.spans("get_items")) == 1


async def test_nothing_is_kept_alive(client: AsyncOpenAI, sdk: Sdk) -> None:
    """A session and a cache that nobody has any more go, though they were instrumented."""
    cache = ConversationCache()
    session = session_on(client, cache)
    ways_back = [sdk.instrument(session), sdk.instrument(cache)]
    await session.add_items([user("a")])
    gone = [weakref.ref(session), weakref.ref(cache)]
    del session, cache
    ways_back.clear()
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert sdk.values("cache.conversations") == {}


async def test_spans_stay_in_their_task(client: AsyncOpenAI, sdk: Sdk) -> None:
    """Each call has its own span below its caller's, and leaves the context as it was."""
    cache = ConversationCache()
    sdk.instrument(cache)
    tracer = sdk.tracers.get_tracer("program")

    async def work(name: str) -> None:
        with tracer.start_as_current_span(name) as mine:
            session = session_on(client, cache)
            await session.add_items([user(name)])
            await session.get_items()
            assert trace.get_current_span() is mine

    await asyncio.gather(work("one"), work("two"))
    assert not trace.get_current_span().get_span_context().is_valid
    parents = [span.context for span in sdk.spans() if span.name in ("one", "two")]
    for call in ("add_items", "get_items"):
        found = [span.parent for span in sdk.spans(call)]
        assert sorted(map(repr, found)) == sorted(map(repr, parents))


async def test_a_call_that_is_cancelled_or_left(
    emulator: Emulator, client: AsyncOpenAI, sdk: Sdk, caplog: pytest.LogCaptureFixture
) -> None:
    """A span ends with its call: one that was cancelled or left is no error."""
    session = session_on(client, ConversationCache())
    await session.add_items([user("a")])
    await session.refresh()
    sdk.instrument(session)
    emulator.faults = lambda _: Fault(FaultKind.HANG)
    call = asyncio.ensure_future(session.get_items())
    await until(lambda: len(emulator.requests) > 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    emulator.faults = None
    left = session.get_items()
    left.send(None)
    left.close()
    cancelled, closed = sdk.spans("get_items")
    assert (cancelled.attributes or {})["error.type"] == "CancelledError"
    assert (closed.attributes or {})["error.type"] == "GeneratorExit"
    assert {span.status.status_code for span in (cancelled, closed)} == {StatusCode.UNSET}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_error(client: AsyncOpenAI, sdk: Sdk, emulator: Emulator) -> None:
    """A call that fails has a span with the error's class, and nothing that the error says."""
    session = session_on(client, ConversationCache(), conversation_id="conv_none")
    sdk.instrument(session)
    with pytest.raises(NotFoundError):
        await session.get_items()
    [read] = sdk.spans("get_items")
    assert read.status.status_code is StatusCode.ERROR
    assert read.status.description is None
    assert (read.attributes or {})["error.type"] == "NotFoundError"
    assert not read.events
    assert sdk.values("request.duration") == {("list", "refused", "NotFoundError", 404): 1}


async def test_an_exporter_that_fails(
    client: AsyncOpenAI, sdk: Sdk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer and a meter that raise break no call; the log tells of them, without content."""
    session = session_on(client, ConversationCache())
    sdk.instrument(session)
    for kind in (sdk.tracers.get_tracer("x"), sdk.meters.get_meter("x").create_histogram("x")):
        for name in ("start_span", "record"):
            if hasattr(kind, name):
                monkeypatch.setattr(type(kind), name, _fails)
    await session.add_items([user("secret words")])
    assert len(await session.get_items()) == 1
    assert "the observer failed" in caplog.text
    assert "secret words" not in caplog.text


def _fails(*_: object, **__: object) -> None:
    raise LookupError("exporter")


async def test_no_content_and_no_key(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """No metric and no span has an item's text or the key; no metric has a conversation's id."""
    cache, outbox = ConversationCache(), MemoryOutbox()
    sdk.instrument(cache)
    client.api_key = "sk-very-secret"
    session = session_on(client, cache, outbox=outbox)
    on_appends(emulator, REFUSED, LOST)
    await session.add_items([user("secret words")])
    await session.flush()
    await session.get_items()
    metrics = repr(sdk.metrics())
    spans = json.dumps([span.to_json() for span in sdk.spans()])
    for told in (metrics, spans):
        assert "secret" not in told
    assert session.session_id in spans
    assert session.session_id not in metrics
    assert "req_" not in metrics
    await session.aclose()
    await outbox.aclose()


def test_refuses_what_is_no_target() -> None:
    """Something else than a session or a cache is refused, and so is an observer that is none."""
    with pytest.raises(TypeError, match="target must be"):
        instrument("session")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="observer must be callable"):
        ConversationCache().observe(None)  # type: ignore[arg-type]


@pytest.mark.processes
def test_not_loaded_unless_asked_for() -> None:
    """`import cached_session`, and the use of a session, load nothing of OpenTelemetry."""
    program = (
        "import sys; from cached_session import CachedSession, ConversationCache; "
        "assert 'cached_session.session.telemetry' not in sys.modules; "
        "sys.modules['opentelemetry'] = None\n"
        "try: from cached_session import instrument\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "cached-session[otel]" in done.stdout


# What the page says


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a heading."""
    below = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].split("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def names(cell: str) -> set[str]:
    """The names in a cell, which stand in backticks."""
    return set(cell.split("`")[1::2])


def kind_of(metric: Metric) -> str:
    if isinstance(metric.data, Histogram):
        return "histogram"
    if isinstance(metric.data, Sum):
        return "counter" if metric.data.is_monotonic else "up-down counter"
    return "gauge"


async def test_the_page_is_right(emulator: Emulator, client: AsyncOpenAI, sdk: Sdk) -> None:
    """The page's tables have each metric and span that is made, its kind, unit and attributes."""
    cache, outbox = ConversationCache(max_bytes=11_000), MemoryOutbox()
    sdk.instrument(cache)
    stale = session_on(client, cache, max_staleness=0, stale_if_error=60)
    await stale.get_items()
    emulator.faults = lambda request: REFUSED
    await stale.get_items()
    emulator.faults = None
    plain = session_on(client, cache)
    await plain.add_items([user("a")])
    on_appends(emulator, LOST)
    await plain.add_items([user("b")])
    await late_copy(emulator, plain)
    await plain.get_items()
    await plain.refresh()
    await plain.get_items()
    await plain.pop_item()
    await plain.flush()
    emulator.faults = lambda request: REFUSED if request.method == "POST" else None
    waiting = session_on(client, cache, outbox=outbox)
    await waiting.add_items([user("c")])
    await until(lambda: sdk.values("backlog.conversations")["offline",] == 1)
    emulator.faults = None
    await waiting.flush()
    other = session_on(client, cache, conversation_id="conv_none")
    with pytest.raises(NotFoundError):
        await other.get_items()
    await abandoned(emulator, client, cache)
    await plain.clear_session()
    metrics = {
        metric.name: (
            kind_of(metric),
            metric.unit,
            {name for point in metric.data.data_points for name in point.attributes or {}},
        )
        for metric in sdk.metrics()
    }
    written = {
        name: (kind, unit.strip("`"), names(attributes))
        for cells, kind, unit, attributes, *_ in rows("## Metrics")
        for name in names(cells)
    }
    assert metrics == written
    spans: dict[str, tuple[str, set[str]]] = {}
    for span in sdk.spans():
        before = spans.get(span.name, ("", set()))[1]
        spans[span.name] = (span.kind.name.lower(), before | set(span.attributes or {}))
    shown = {
        name: (kind, names(attributes))
        for cells, kind, attributes, *_ in rows("## Spans")
        for name in names(cells)
    }
    assert spans == shown
    events = {event.name for span in sdk.spans() for event in span.events}
    for name in events:
        assert f"`{name}`" in PAGE.read_text(encoding="utf-8")
    await outbox.aclose()


async def abandoned(emulator: Emulator, client: AsyncOpenAI, cache: ConversationCache) -> None:
    """An append whose caller leaves, and that fails behind it."""
    session = session_on(client, cache)
    await session.get_items()
    emulator.faults = lambda request: (
        Fault(FaultKind.RATE_LIMITED_QUOTA) if is_append(request) else None
    )
    told: list[Event] = []

    def leave(event: Event) -> None:
        told.append(event)
        if isinstance(event, RequestFinished):
            call.cancel()

    end = session.observe(leave)
    call = asyncio.ensure_future(session.add_items([user("d")]))
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: any(isinstance(event, AbandonedWriteFailed) for event in told))
    end()
    emulator.faults = None
