"""What this package raises beside the openai client's own exceptions, and how it says numbers.

A refusal by the server (400, 401, 403, 404, ...) reaches the caller as the
openai exception that it is. No error carries an item's content or a key.
"""

from __future__ import annotations


class CachedSessionError(Exception):
    """Base of the errors of this package.

    Attributes:
        conversation_id: The conversation it happened on, or None where there
            is none yet.
    """

    def __init__(self, message: str, *, conversation_id: str | None = None) -> None:
        super().__init__(message)
        self.conversation_id = conversation_id


class AppendOutcomeUnknown(CachedSessionError):
    """An append was sent, no answer came, and the server could not be asked, or could not tell.

    With an outbox it is the cause of an `OutboxPaused`.

    The items may or may not be on the server. The local copy is dropped: the
    next read asks the server and shows the truth, and what it shows stays.
    Read before appending the same items again.

    A server that lists a text otherwise than it was sent cannot tell either,
    unless the answers to earlier appends have shown how it rewrites.

    Attributes:
        landed: How many of the items are on the server for certain, from the first on.
        total: How many items the append was given.
        item_ids: Items on the server that may be of this append, with texts that the server has
            rewritten, or another writer's; () where nothing of the kind stands there.
    """

    def __init__(
        self,
        message: str,
        *,
        conversation_id: str | None = None,
        landed: int = 0,
        total: int = 0,
        item_ids: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, conversation_id=conversation_id)
        self.landed = landed
        self.total = total
        self.item_ids = item_ids

    @property
    def reason(self) -> str:
        """In a few words, as an outbox records it where it pauses."""
        name = type(self).__name__
        return f"{name}, other texts" if self.item_ids else name


class DeadlineExceeded(CachedSessionError, TimeoutError):
    """The operation's deadline passed while it waited, or before its next request.

    That request was not sent. What an append had put on the server before is
    told by a note. With an outbox it is also raised by a call that waits for
    what is being sent in the background, as `flush` and `aclose` do; all that
    is recorded is kept.
    """


class TurnLost(CachedSessionError):
    """Another one went on, in the middle of an operation or of a turn.

    Of an operation whose event loop was stopped: what it had sent is not known.
    Reads ask the server until it is.

    Of a call that belongs to a turn (`CachedSession.turn`) which is over: it
    was given back, or its event loop was stopped and another task took it, or
    the outbox was closed, or not reached for longer than its lease. The call
    has sent and recorded nothing; what an append without the outbox had put on
    the server before is told by a note.
    """


class ConversationBusy(CachedSessionError, TimeoutError):
    """Somebody else had the conversation's turn for as long as `CachedSession.turn` waited.

    Nothing was sent or recorded.
    """


class UnexpectedAnswer(CachedSessionError):
    """The server answered in a way that this package cannot trust.

    It ignores cursors, or answers with something other than the API's JSON.
    Nothing was changed by the request that met it, unless it says so.
    """


class SessionClosed(CachedSessionError, RuntimeError):
    """The session was used after `aclose`."""


class OutboxError(CachedSessionError):
    """The outbox could not be read or written; its text says why, and what to do.

    An `add_items` that raises it has recorded nothing. `flush` and `aclose`
    raise it, too, where what sends in the background could not write; what is
    recorded is kept. Base of `OutboxFull`, `OutboxPaused` and `OutboxUnavailable`.
    """


class Reopened(OutboxError):
    """The outbox was closed and opened again, or not asked in time: others may have had it since.

    Nothing of the transaction or the request that met it was done. It is met inside only: what
    is recorded is read anew, and the call begins again.
    """


class OutboxUnavailable(OutboxError):
    """The engine of a `PostgresOutbox` cannot be reached.

    An `add_items` that raises it has recorded nothing. One of which that is not
    known raises `AppendOutcomeUnknown` instead.
    """


class OutboxFull(OutboxError):
    """The backlog is at a limit of the outbox, and stayed there; nothing was accepted by the call.

    Or the call is larger than the limits by itself. Nothing that waits was dropped.
    """


class OutboxPaused(OutboxError):
    """The server refused a recorded batch, or what became of one cannot be found out.

    Or the client could not send it: it has no credentials. Nothing of the
    backlog is sent any more until somebody decides.

    All of it is kept. `cached-session outbox` shows what an `SQLiteOutbox` or
    a `PostgresOutbox` holds, sends it again, or discards it. `CachedSession.clear_session` drops
    it together with the conversation. The cause is the error that stopped it,
    where this process met it.

    Attributes:
        waiting: How many items are recorded and not on the server.
    """

    def __init__(
        self, message: str, *, conversation_id: str | None = None, waiting: int = 0
    ) -> None:
        super().__init__(message, conversation_id=conversation_id)
        self.waiting = waiting


def run_is_over(
    conversation_id: str, said: str = "nothing was sent or recorded by this call"
) -> TurnLost:
    """What a call raises that belongs to a turn which is over; `said` is what it has done."""
    return TurnLost(
        f"{conversation_id}: the turn that this call belongs to is over, and others may have "
        f"appended since; {said}. Take the turn again, and read the conversation first",
        conversation_id=conversation_id,
    )


class Naming:
    """Has an `OutboxError` name the conversation: the file does not know whose call it was.

    No generator: this is around every call.
    """

    __slots__ = ("_conversation_id",)

    def __init__(self, conversation_id: str) -> None:
        self._conversation_id = conversation_id

    def __enter__(self) -> None:
        """Begins."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OutboxError):
            error.conversation_id = error.conversation_id or self._conversation_id


def counted(number: int, noun: str = "item") -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verb(number: int, one: str, more: str) -> str:
    """The form of a verb that goes with so many."""
    return one if number == 1 else more


def rewritten_or_not(count: int) -> str:
    """What stands on the server where a lost batch would."""
    return (
        f"{counted(count)} of the same types and roles with other texts "
        f"{verb(count, 'stands', 'stand')} where it would: this append, rewritten by the server, "
        "or another writer's"
    )
