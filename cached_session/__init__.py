"""A caching, write-through session for the OpenAI Agents SDK.

It reads like memory and writes like a ledger: repeated reads cost no request,
and an append happens exactly once even when the network loses the answer.
"""

from typing import TYPE_CHECKING

from cached_session.cache import ConversationCache
from cached_session.errors import (
    AppendOutcomeUnknown,
    CachedSessionError,
    DeadlineExceeded,
    OutboxError,
    OutboxFull,
    OutboxPaused,
    SessionClosed,
    TurnLost,
    UnexpectedAnswer,
)
from cached_session.events import (
    AbandonedWriteFailed,
    BacklogChanged,
    Event,
    LateCopyRemoved,
    Observer,
    Reconciled,
    RequestFinished,
    RetryScheduled,
    Sending,
    Stats,
)
from cached_session.retrying import RetryBudget, RetryPolicy
from cached_session.session import CachedSession

if TYPE_CHECKING:
    from cached_session.outbox import (
        Left,
        LeftConversation,
        MemoryOutbox,
        Outbox,
        SQLiteOutbox,
    )

__all__ = [
    "AbandonedWriteFailed",
    "AppendOutcomeUnknown",
    "BacklogChanged",
    "CachedSession",
    "CachedSessionError",
    "ConversationCache",
    "DeadlineExceeded",
    "Event",
    "LateCopyRemoved",
    "Left",
    "LeftConversation",
    "MemoryOutbox",
    "Observer",
    "Outbox",
    "OutboxError",
    "OutboxFull",
    "OutboxPaused",
    "Reconciled",
    "RequestFinished",
    "RetryBudget",
    "RetryPolicy",
    "RetryScheduled",
    "SQLiteOutbox",
    "Sending",
    "SessionClosed",
    "Stats",
    "TurnLost",
    "UnexpectedAnswer",
]

_OUTBOXES = ("Left", "LeftConversation", "MemoryOutbox", "Outbox", "SQLiteOutbox")


def __getattr__(name: str) -> object:
    """Imports an outbox when it is asked for: most processes use none."""
    if name not in _OUTBOXES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cached_session import outbox

    return getattr(outbox, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OUTBOXES})
