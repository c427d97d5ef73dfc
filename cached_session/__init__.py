"""A caching, write-through session for the OpenAI Agents SDK.

It reads like memory and writes like a ledger: repeated reads cost no request,
and an append happens exactly once even when the network loses the answer.
"""

from cached_session.cache import ConversationCache
from cached_session.errors import (
    AppendOutcomeUnknown,
    CachedSessionError,
    DeadlineExceeded,
    SessionClosed,
    TurnLost,
    UnexpectedAnswer,
)
from cached_session.events import (
    AbandonedWriteFailed,
    Event,
    LateCopyRemoved,
    Observer,
    Reconciled,
    RequestFinished,
    RetryScheduled,
    Stats,
)
from cached_session.retrying import RetryBudget, RetryPolicy
from cached_session.session import CachedSession

__all__ = [
    "AbandonedWriteFailed",
    "AppendOutcomeUnknown",
    "CachedSession",
    "CachedSessionError",
    "ConversationCache",
    "DeadlineExceeded",
    "Event",
    "LateCopyRemoved",
    "Observer",
    "Reconciled",
    "RequestFinished",
    "RetryBudget",
    "RetryPolicy",
    "RetryScheduled",
    "SessionClosed",
    "Stats",
    "TurnLost",
    "UnexpectedAnswer",
]
