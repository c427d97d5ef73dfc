"""What an observer is told, and the counters behind `CachedSession.stats`.

Events and counters name conversations, never an item's content or a key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from inspect import isroutine
from typing import TypeAlias

from cached_session.errors import counted, verb
from cached_session.forks import Lock

logger: logging.Logger = logging.getLogger("cached_session")

# For changes of who is told, which are rare.
_lock = Lock()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CallStarted:
    """A session was called. Each call has one of its own, which tells it from all others.

    Told in the caller's task, as is `CallFinished`: what an observer sets in the context there
    holds for what the call does, until the observer takes it back.

    Attributes:
        call: Which method: "get_items", "add_items", "pop_item", "clear_session", "refresh" or
            "flush".
        conversation_id: The conversation, or its local name; None while there is none.
    """

    call: str
    conversation_id: str | None


@dataclass(frozen=True, slots=True)
class CallFinished:
    """A call ended, whatever came of it.

    Attributes:
        started: Its beginning.
        conversation_id: The conversation that it was done on, or its local name, or None.
        seconds: How long it took.
        hit: Whether a read was answered without a request; None where it is no read, or has
            come to nothing.
        items: How many items were read, given to be appended, or removed; None where none are.
        error: The class name of what it raised, or None.
    """

    started: CallStarted
    conversation_id: str | None
    seconds: float
    hit: bool | None
    items: int | None
    error: str | None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SendStarted:
    """What waits in an outbox is being sent: one attempt at the next batch, in the background.

    Told in the task that sends, as is `SendFinished`.

    Attributes:
        conversation_id: The conversation, or its local name.
        items: How many items the batch has.
        attempt: Which attempt it is, from 1, since the last one that got something done.
        calls: The calls that had the items recorded, oldest first: those of this process of
            which observers were told.
    """

    conversation_id: str
    items: int
    attempt: int
    calls: tuple[CallStarted, ...]


@dataclass(frozen=True, slots=True)
class SendFinished:
    """An attempt at a batch ended.

    Attributes:
        started: Its beginning.
        conversation_id: The conversation, by its own id if it has got one meanwhile.
        seconds: How long it took.
        landed: How many items were put on the server, or found there.
        error: The class name of what went wrong, or None.
    """

    started: SendStarted
    conversation_id: str
    seconds: float
    landed: int
    error: str | None


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One request to the server ended.

    Attributes:
        operation: What was asked: "create", "list", "append", "delete item",
            "delete conversation".
        conversation_id: The conversation, None while it is being created.
        outcome: "applied", "refused" or "unknown".
        seconds: How long it took.
        error: The class name of what went wrong, or None.
        attempt: Which attempt at the same step it was, from 1.
        status: The HTTP status of the answer; None if there was none.
        request_id: The answer's `x-request-id`, by which the service knows the request, or None.
    """

    operation: str
    conversation_id: str | None
    outcome: str
    seconds: float
    error: str | None
    attempt: int = 1
    status: int | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """A request is going to be repeated.

    Attributes:
        conversation_id: The conversation, None while it is being created.
        attempt: How many attempts were made so far.
        delay: Seconds until the next one.
        error: The class name of what went wrong.
    """

    conversation_id: str | None
    attempt: int
    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A listing decided an append whose answer was lost.

    Attributes:
        conversation_id: The conversation.
        landed: How many items of the batch the server had.
        sent: How many items the batch had.
    """

    conversation_id: str
    landed: int
    sent: int


@dataclass(frozen=True, slots=True)
class LateCopyRemoved:
    """An item that a late commit stored a second time was deleted again.

    Attributes:
        conversation_id: The conversation.
        item_id: The id of the copy that was deleted.
    """

    conversation_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class LateCopySuspected:
    """Items turned up that may be of an append that was said not to have landed.

    Or of one of which it was said that nobody knows: then these may be all of its copies.
    Or they are another writer's: their types and roles are the same, and their
    texts are others, which some servers rewrite. They stay where they are.

    Attributes:
        conversation_id: The conversation.
        item_ids: The ids of the items, in order.
    """

    conversation_id: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbandonedWriteFailed:
    """A write whose caller was cancelled failed behind it.

    Attributes:
        conversation_id: The conversation.
        error: The class name of what went wrong.
        item_ids: Items on the server that may be of it, as in
            `AppendOutcomeUnknown.item_ids`; () where nothing of the kind stands there.
    """

    conversation_id: str
    error: str
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StaleRead:
    """A read was answered from the copy because the server could not be asked: `stale_if_error`.

    Attributes:
        conversation_id: The conversation.
        seconds: How long ago the copy was last confirmed by the server; inf: not in this process.
        error: The class name of what the server, or nobody, answered.
    """

    conversation_id: str
    seconds: float
    error: str


class Sending(StrEnum):
    """What becomes of the items that an outbox holds of a conversation."""

    IDLE = "idle"
    """Nothing waits."""
    SENDING = "sending"
    """They are on their way, in order."""
    OFFLINE = "offline"
    """The server does not answer, or asks to wait; it is asked again, ever less often."""
    PAUSED = "paused"
    """The server refused a batch. All is kept, and nothing is sent until somebody decides."""
    ELSEWHERE = "elsewhere"
    """Another living process that uses the same outbox sends them."""
    FAILED = "failed"
    """The outbox could not be read or written, or the client has another key than the one
    that accepted them; the next use of the session tries again."""


@dataclass(frozen=True, slots=True)
class BacklogChanged:
    """The sending of a conversation's outbox has taken another state.

    Attributes:
        conversation_id: The conversation, or its local name before it could be created.
        state: The new state.
        waiting: How many items wait.
        error: The class name of what brought it about, or None.
    """

    conversation_id: str
    state: Sending
    waiting: int
    error: str | None


@dataclass(frozen=True, slots=True)
class CopyEvicted:
    """A `ConversationCache` dropped its copy of a conversation; the next read asks the server.

    Told to the observers of the cache, not to those of single sessions.

    Attributes:
        conversation_id: The conversation, or its local name.
        reason: "size": room was needed, or the copy alone is larger than the cache; "age": it was
            not used for `ttl` seconds.
        items: How many items it held.
        bytes: Bytes of memory that they took.
    """

    conversation_id: str
    reason: str
    items: int
    bytes: int


Event: TypeAlias = (
    CallStarted
    | CallFinished
    | SendStarted
    | SendFinished
    | RequestFinished
    | RetryScheduled
    | Reconciled
    | LateCopyRemoved
    | LateCopySuspected
    | AbandonedWriteFailed
    | StaleRead
    | BacklogChanged
    | CopyEvicted
)
Observer: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of what one session did, and of the local copy it uses.

    Attributes:
        hits: Reads that were answered without a request.
        misses: Reads that needed at least one.
        requests: Requests sent, repeated ones included.
        retries: Requests that were repeated.
        reconciliations: Appends whose lost answer a listing made up for.
        items: Items held of the conversation, by all sessions of the process.
        bytes: Bytes of memory that they take.
        waiting: Items accepted into an outbox that are not on the server yet.
        sending: What becomes of those; "idle" without an outbox.
        waiting_bytes: Bytes of those items as JSON.
        waiting_seconds: For how long the oldest of them has waited; 0 if none waits.
        stale: Reads that were answered from the copy because the server could not be asked. They
            count as misses, too.
    """

    hits: int
    misses: int
    requests: int
    retries: int
    reconciliations: int
    items: int
    bytes: int
    waiting: int = 0
    sending: Sending = Sending.IDLE
    waiting_bytes: int = 0
    waiting_seconds: float = 0.0
    stale: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A snapshot of what all sessions of a cache did in this process, and of the copies it keeps.

    Attributes:
        hits: Reads that were answered without a request.
        misses: Reads that needed at least one.
        evictions: Copies that the cache dropped by itself, for want of room or after `ttl`.
        conversations: Copies that are kept: one for each conversation and account.
        bytes: Bytes of memory that they take, as counted against `max_bytes`.
    """

    hits: int
    misses: int
    evictions: int
    conversations: int
    bytes: int


def _said(event: Event) -> tuple[int, object]:
    """At which level an event is logged, and how it is said.

    What needs a person is a warning, a recovery is information. Troubles of a
    backlog are logged where it is known whether they are news.
    """
    match event:
        case AbandonedWriteFailed():
            return logging.WARNING, (
                f"{event.conversation_id}: a write whose caller was cancelled failed behind it "
                f"({event.error}). The server may have all of it, a part or nothing; the next read "
                f"shows what it has. {_in_question(event.item_ids)}Write again what is missing"
            )
        case LateCopySuspected():
            ids = event.item_ids
            return logging.WARNING, (
                f"{event.conversation_id}: {counted(len(ids))} ({', '.join(ids)}) may be of an "
                "append that got no answer, and was not found on the server or not looked for, "
                "with texts that the server has rewritten, or another writer's. "
                f"{verb(len(ids), 'It', 'They')} "
                f"{verb(len(ids), 'stays', 'stay')} there; look whether something stands there "
                "twice"
            )
        case Reconciled():
            return logging.INFO, (
                f"{event.conversation_id}: the answer to an append was lost; the server has "
                f"{event.landed} of its {counted(event.sent)}, and only what is missing is sent "
                "again"
            )
        case StaleRead():
            return logging.INFO, (
                f"{event.conversation_id}: the server could not be asked ({event.error}); a read "
                f"was answered from the copy, which it confirmed {event.seconds:.1f} s ago"
            )
        case LateCopyRemoved():
            return logging.INFO, (
                f"{event.conversation_id}: {event.item_id}, a second copy of an item, which a late "
                "request had stored, was deleted"
            )
        case _:
            return logging.DEBUG, event


def _in_question(item_ids: tuple[str, ...]) -> str:
    if not item_ids:
        return ""
    return f"Of it, rewritten by the server, or another writer's: {', '.join(item_ids)}. "


def _each_once(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    """Each observer once. It may have no hash, and be equal to another; a method is made anew."""
    found: list[Observer] = []
    for one in observers:
        if not any(one is other or (isroutine(one) and one == other) for other in found):
            found.append(one)
    return (*found,)


class Observers:
    """Who is told of events; that may change at any time, from any thread."""

    __slots__ = ("_added", "_beyond", "_each", "_failed")

    def __init__(self, observer: Observer | None = None, beyond: Observers | None = None) -> None:
        """Begins with one observer, or with none.

        Args:
            observer: The observer.
            beyond: Others that are told of the same events.
        """
        self._added: dict[object, Observer] = {} if observer is None else {None: observer}
        self._each: tuple[Observer, ...] = (*self._added.values(),)
        self._beyond = beyond
        self._failed: tuple[Observer, ...] = ()

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tells one more; returns what ends that. One that was added twice is told once."""
        key = object()
        self._change(key, observer)
        return lambda: self._change(key, None)

    def _change(self, key: object, observer: Observer | None) -> None:
        with _lock:
            if observer is None:
                self._added.pop(key, None)
            else:
                self._added[key] = observer
            self._each = _each_once(self._added.values())

    @property
    def listening(self) -> bool:
        """Whether anybody would hear of an event; frequent ones are not even made if not."""
        if self._each:
            return True
        beyond = self._beyond
        return logger.isEnabledFor(logging.DEBUG) if beyond is None else beyond.listening

    def _all(self) -> tuple[Observer, ...]:
        beyond = () if self._beyond is None else self._beyond._all()
        return _each_once((*self._each, *beyond)) if beyond else self._each

    def tell(
        self, event: Event, *, quietly: bool = False, heard: tuple[Observer, ...] = ()
    ) -> tuple[Observer, ...]:
        """Passes an event on. An observer's failure is logged and goes no further.

        Args:
            event: What has happened.
            quietly: Whether it needs nobody's attention, whatever its kind.
            heard: Who has heard of its beginning, and hears of its end, though it may not be told
                of anything else any more.

        Returns:
            Who was told.
        """
        level, text = (logging.DEBUG, event) if quietly else _said(event)
        logger.log(level, "%s", text)
        told = _each_once((*heard, *self._all())) if heard else self._all()
        for observer in told:
            try:
                observer(event)
            except Exception:  # whatever it is, an observer must not break a write half way
                # It is told of several events in each call.
                level = logging.DEBUG if observer in self._failed else logging.ERROR
                self._failed += (observer,)
                said = "the observer failed on %s; its next failures are logged at DEBUG"
                logger.log(level, said, type(event).__name__, exc_info=True)
        return told


class Meter(Observers):
    """Counts for one session and passes events to its observers, and its cache's."""

    __slots__ = ("hits", "misses", "reconciliations", "requests", "retries", "stale")

    def __init__(self, observer: Observer | None, beyond: Observers | None = None) -> None:
        super().__init__(observer, beyond)
        self.hits: int = 0
        self.misses: int = 0
        self.requests: int = 0
        self.retries: int = 0
        self.reconciliations: int = 0
        self.stale: int = 0

    def apart(self) -> Meter:
        """One with the same observers, that counts for somebody else."""
        return Meter(None, self)
