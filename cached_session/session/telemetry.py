"""OpenTelemetry: metrics and spans of sessions, with the extra `otel`.

Names, units and attributes are in `docs/observing.md`. Where OpenTelemetry's semantic
conventions have an attribute for something it is used; all else is named `cached_session.*`.
No item's content and no key is in any of it, and what tells single conversations apart is on
spans only.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from contextvars import Token
from typing import Any, Generic, TypeAlias, TypeVar

from cached_session.conversation.conversation import Held
from cached_session.events import (
    AbandonedWriteFailed,
    CallFinished,
    CallStarted,
    CopyEvicted,
    Event,
    LateCopyRemoved,
    LateCopySuspected,
    Reconciled,
    RequestFinished,
    RetryScheduled,
    SendFinished,
    Sending,
    SendStarted,
    StaleRead,
)
from cached_session.forks import Lock
from cached_session.session.cache import OVERHEAD, PROCESS_CACHE, ConversationCache
from cached_session.session.session import CachedSession

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TracerProvider
except ImportError as _error:
    raise ImportError(
        "cached_session.instrument needs opentelemetry-api: pip install 'cached-session[otel]'"
    ) from _error

__all__ = ["Instrumented", "instrument"]

Target: TypeAlias = CachedSession | ConversationCache
Attributes: TypeAlias = dict[str, str | int | float | bool]
T = TypeVar("T")

SCOPE = "cached_session"
"""The name of the meter and of the tracer."""

# Seconds. The first are those that the semantic conventions give for HTTP; a request may take
# longer than the last of them, and a read from memory takes far less than the first.
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_LONG = (*_HTTP, 30.0, 60.0)
_CALLS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, *_LONG)

_ERROR, _STATUS = "error.type", "http.response.status_code"
_METHODS = {"create": "POST", "append": "POST", "list": "GET"}


def instrument(
    target: Target | None = None,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Instrumented:
    """Has OpenTelemetry hear of what a session does, or all sessions that use a cache.

    What is instrumented twice counts once. Nothing is kept alive by it: gauges show what there
    is when they are read.

    Args:
        target: A session, or a cache: all its sessions, those made later, too, and what is
            evicted from it. None: the cache that sessions use which are given none.
        meter_provider: Who gets the metrics; None: the global one, also if it is set later.
        tracer_provider: Who gets the spans; None: the global one, also if it is set later.

    Returns:
        What takes it back.

    Raises:
        TypeError: `target` is neither a session nor a cache.
    """
    target = PROCESS_CACHE if target is None else target
    if not isinstance(target, CachedSession | ConversationCache):
        raise TypeError(
            f"target must be a CachedSession or a ConversationCache, not {type(target).__name__}"
        )
    measures = _measures.of(meter_provider)
    return Instrumented(
        target.observe(measures),
        target.observe(_spans.of(tracer_provider)),
        measures.watch(target),
    )


class Instrumented:
    """What `instrument` has set up."""

    def __init__(self, *ends: Callable[[], None]) -> None:
        """Takes what ends each part of it, which may be called again."""
        self._ends = ends

    def uninstrument(self) -> None:
        """Takes it back; twice does nothing.

        Nothing more is measured or traced of it, but for the ends of calls and of batches that
        have begun.
        """
        for end in self._ends:
            end()


class _Measures:
    """What one meter provider gets: an observer, and what its gauges look at.

    There is one for each provider: the API knows no way to take a gauge back, and drops the
    second of a name.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(SCOPE, meter_provider=provider)
        self._calls = meter.create_histogram(
            "cached_session.call.duration",
            "s",
            "Duration of calls of a session.",
            explicit_bucket_boundaries_advisory=_CALLS,
        )
        self._requests = meter.create_histogram(
            "cached_session.request.duration",
            "s",
            "Duration of requests to the Conversations API, each attempt by itself.",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._sends = meter.create_histogram(
            "cached_session.send.duration",
            "s",
            "Duration of attempts at sending a batch of an outbox in the background.",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        counter = meter.create_counter
        self._sent = counter(
            "cached_session.send.items", "{item}", "Items of an outbox that are on the server now."
        )
        self._hits = counter(
            "cached_session.cache.hits", "{read}", "Reads that were answered without a request."
        )
        self._misses = counter(
            "cached_session.cache.misses", "{read}", "Reads that needed a request."
        )
        self._stale = counter(
            "cached_session.cache.stale_reads",
            "{read}",
            "Reads that were answered from a copy because the server could not be asked.",
        )
        self._evictions = counter(
            "cached_session.cache.evictions", "{conversation}", "Copies dropped from a cache."
        )
        self._retries = counter(
            "cached_session.retries", "{retry}", "Attempts that are going to be repeated."
        )
        self._reconciliations = counter(
            "cached_session.reconciliations",
            "{append}",
            "Appends whose lost answer a listing made up for.",
        )
        self._late = counter(
            "cached_session.late_copies", "{item}", "Items that a late commit stored once more."
        )
        self._abandoned = counter(
            "cached_session.abandoned_writes",
            "{write}",
            "Writes that failed behind a caller who was cancelled.",
        )
        for name, unit, description, read in (
            ("cache.size", "By", "Memory that copies take.", _size),
            ("cache.conversations", "{conversation}", "Conversations with a copy.", _copies),
            ("backlog.items", "{item}", "Items that wait in an outbox.", _items),
            ("backlog.size", "By", "Bytes of the items that wait, as JSON.", _bytes),
            ("backlog.conversations", "{conversation}", "Conversations by state.", _states),
        ):
            meter.create_observable_up_down_counter(
                f"cached_session.{name}", [self._reading(read)], unit, description
            )
        meter.create_observable_gauge(
            "cached_session.backlog.age",
            [self._reading(_age)],
            "s",
            "For how long the oldest item has waited.",
        )
        self._lock = Lock()
        # How often each is instrumented.
        self._targets: weakref.WeakKeyDictionary[Target, int] = weakref.WeakKeyDictionary()

    def watch(self, target: Target) -> Callable[[], None]:
        """Has the gauges show a target; returns what ends that."""
        with self._lock:
            self._targets[target] = self._targets.get(target, 0) + 1
        # Weakly: whoever keeps the way back does not keep the target.
        left = [weakref.ref(target)]

        def end() -> None:
            with self._lock:
                found = left.pop()() if left else None
                if found is not None:
                    self._targets[found] -= 1
                    if not self._targets[found]:
                        del self._targets[found]

        return end

    def _reading(
        self, read: Callable[[list[Held]], Iterable[Observation]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            held = self._held()
            return () if held is None else read(held)

        return callback

    def _held(self) -> list[Held] | None:
        """What there is of each conversation, once; None: nothing is instrumented."""
        with self._lock:
            targets = list(self._targets)
        if not targets:
            return None
        found = {
            (conversation.conversation_id, id(conversation)): conversation.held()
            for target in targets
            if isinstance(target, ConversationCache)
            for conversation in target.conversations()
        }
        seen = {name for name, _ in found}
        for target in targets:
            if isinstance(target, CachedSession):
                name = target.local_name or _id(target)
                # Several sessions share one copy.
                if name is not None and name not in seen:
                    seen.add(name)
                    found[name, 0] = _held(target)
        return list(found.values())

    def __call__(self, event: Event) -> None:
        match event:
            case CallFinished():
                about: Attributes = {"cached_session.call.name": event.started.call}
                self._calls.record(event.seconds, _with_error(about, event.error))
                if event.hit is not None:
                    (self._hits if event.hit else self._misses).add(1)
            case RequestFinished():
                about = {
                    "cached_session.request.operation": event.operation,
                    "cached_session.request.outcome": event.outcome,
                }
                if event.status is not None:
                    about[_STATUS] = event.status
                self._requests.record(event.seconds, _with_error(about, event.error))
            case SendFinished():
                self._sends.record(event.seconds, _with_error({}, event.error))
                if event.landed:
                    self._sent.add(event.landed)
            case RetryScheduled():
                self._retries.add(1, {_ERROR: event.error})
            case Reconciled():
                self._reconciliations.add(
                    1, {"cached_session.reconciliation.result": _result(event)}
                )
            case LateCopyRemoved():
                self._late.add(1, {"cached_session.late_copy.action": "removed"})
            case LateCopySuspected():
                count = len(event.item_ids)
                self._late.add(count, {"cached_session.late_copy.action": "suspected"})
            case AbandonedWriteFailed():
                self._abandoned.add(1, {_ERROR: event.error})
            case StaleRead():
                self._stale.add(1, {_ERROR: event.error})
            case CopyEvicted():
                self._evictions.add(1, {"cached_session.eviction.reason": event.reason})
            case _:
                return  # the gauges show it


class _Spans:
    """What one tracer provider gets: an observer that begins and ends spans.

    The span of a call is the current one of the caller's task while the call lasts, and so of
    the tasks that the call makes: what an instrumentation of the HTTP client begins is below it.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=provider)
        # Whoever remembers where something began keeps its span, and nobody else does.
        self._open: weakref.WeakKeyDictionary[
            CallStarted | SendStarted, tuple[Span, Context, Token[Context]]
        ] = weakref.WeakKeyDictionary()
        self._calls: weakref.WeakKeyDictionary[CallStarted, SpanContext] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = Lock()

    def __call__(self, event: Event) -> None:
        match event:
            case CallStarted():
                span = self._begin(event, f"cached_session.{event.call}", ())
                if span.get_span_context().is_valid:
                    with self._lock:
                        self._calls[event] = span.get_span_context()
            case SendStarted():
                with self._lock:
                    causes = [self._calls.get(call) for call in event.calls]
                links = [Link(cause) for cause in causes if cause is not None]
                span = self._begin(event, "cached_session.send", links)
                span.set_attribute("cached_session.send.attempt", event.attempt)
                span.set_attribute("cached_session.items", event.items)
            case CallFinished():
                about = _with_error({}, event.error)
                if event.hit is not None:
                    about["cached_session.cache.hit"] = event.hit
                if event.items is not None:
                    about["cached_session.items"] = event.items
                self._end(event.started, event.conversation_id, about)
            case SendFinished():
                about = {"cached_session.send.landed": event.landed}
                self._end(event.started, event.conversation_id, _with_error(about, event.error))
            case RequestFinished():
                self._tell_of_request(event)
            case RetryScheduled():
                about = {"cached_session.retry.delay": event.delay}
                _note("cached_session.retry", _with_error(about, event.error))
            case Reconciled():
                _note("cached_session.reconciled", {"cached_session.send.landed": event.landed})
            case LateCopyRemoved():
                _note("cached_session.late_copy_removed", {})
            case LateCopySuspected():
                _note("cached_session.late_copy_suspected", {})
            case StaleRead():
                _note("cached_session.stale_read", {_ERROR: event.error})
            case _:
                return  # it belongs to no span

    def _begin(self, event: CallStarted | SendStarted, name: str, links: Iterable[Link]) -> Span:
        span = self._tracer.start_span(name, links=[*links])
        # Also of one that is not recorded: what is below it follows its sampling.
        if span.get_span_context().is_valid:
            current = trace.set_span_in_context(span)
            token = context.attach(current)
            with self._lock:
                self._open[event] = span, current, token
        return span

    def _end(
        self, started: CallStarted | SendStarted, conversation_id: str | None, about: Attributes
    ) -> None:
        with self._lock:
            found = self._open.pop(started, None)
        if found is None:
            return
        span, current, token = found
        # A coroutine that its event loop has left lying is closed in another context.
        if context.get_current() is current:
            context.detach(token)
        _describe(span, conversation_id, about)
        span.end()

    def _tell_of_request(self, event: RequestFinished) -> None:
        end = time.time_ns()
        span = self._tracer.start_span(
            "cached_session.request",
            kind=SpanKind.CLIENT,
            start_time=end - int(event.seconds * 1e9),
        )
        if not span.is_recording():
            return
        about: Attributes = {
            "cached_session.request.operation": event.operation,
            "cached_session.request.outcome": event.outcome,
            "http.request.method": _METHODS.get(event.operation, "DELETE"),
        }
        if event.attempt > 1:
            about["http.request.resend_count"] = event.attempt - 1
        if event.status is not None:
            about[_STATUS] = event.status
        if event.request_id is not None:
            span.set_attribute("http.response.header.x-request-id", [event.request_id])
        _describe(span, event.conversation_id, _with_error(about, event.error))
        span.end(end)


def _describe(span: Span, conversation_id: str | None, about: Attributes) -> None:
    if conversation_id is not None:
        span.set_attribute("gen_ai.conversation.id", conversation_id)
    span.set_attributes(about)
    # That a caller has left is no error.
    if about.get(_ERROR, "CancelledError") not in ("CancelledError", "GeneratorExit"):
        # Without the exception's text, which may quote an item.
        span.set_status(StatusCode.ERROR)


def _note(name: str, about: Attributes) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(name, about)


def _with_error(about: Attributes, error: str | None) -> Attributes:
    if error is not None:
        about[_ERROR] = error
    return about


def _result(event: Reconciled) -> str:
    if not event.landed:
        return "none"
    return "all" if event.landed == event.sent else "part"


def _id(session: CachedSession) -> str | None:
    try:
        return session.session_id
    except ValueError:  # there is none yet
        return None


def _held(session: CachedSession) -> Held:
    stats = session.stats
    return Held(**{name: getattr(stats, name) for name in Held._fields})


def _size(held: list[Held]) -> Iterable[Observation]:
    # As a cache counts it.
    yield Observation(sum(one.bytes + OVERHEAD for one in held if one.items or one.bytes))


def _copies(held: list[Held]) -> Iterable[Observation]:
    yield Observation(sum(1 for one in held if one.items or one.bytes))


def _items(held: list[Held]) -> Iterable[Observation]:
    yield Observation(sum(one.waiting for one in held))


def _bytes(held: list[Held]) -> Iterable[Observation]:
    yield Observation(sum(one.waiting_bytes for one in held))


def _age(held: list[Held]) -> Iterable[Observation]:
    yield Observation(max((one.waiting_seconds for one in held), default=0.0))


def _states(held: list[Held]) -> Iterable[Observation]:
    for state in Sending:
        if state is not Sending.IDLE:
            count = sum(one.sending is state for one in held)
            yield Observation(count, {"cached_session.backlog.state": str(state)})


class _Each(Generic[T]):
    """One for each provider."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._default: T | None = None
        self._made: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()

    def of(self, provider: object | None) -> T:
        """The one of a provider; None: the global one."""
        with self._lock:
            if provider is None:
                if self._default is None:
                    self._default = self._make(None)
                return self._default
            found = self._made.get(provider)
            if found is None:
                found = self._made[provider] = self._make(provider)
            return found


_measures: _Each[_Measures] = _Each(_Measures)
_spans: _Each[_Spans] = _Each(_Spans)
