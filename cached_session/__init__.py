"""A caching, write-through session for the OpenAI Agents SDK.

It reads like memory and writes like a ledger: repeated reads cost no request,
and an append happens exactly once even when the network loses the answer.
"""

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
from cached_session.outbox import MemoryOutbox, Outbox, SQLiteOutbox
from cached_session.retrying import RetryBudget, RetryPolicy
from cached_session.session import CachedSession

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
