"""A caching, write-through session for the OpenAI Agents SDK.

It reads like memory and writes like a ledger: repeated reads cost no request,
and an append happens exactly once even when the network loses the answer.

`PostgresOutbox` needs the extra `postgres`, `instrument` and `Instrumented` need `otel`: these
three are imported by their names alone, and not by `*`.
"""

# pytest rewrites the assertions of packages that bring a plugin, and warns where one was imported
# before it. Nothing in this module is to be rewritten, and pytest looks for the word in here.
__doc__ = f"{__doc__}\nPYTEST_DONT_REWRITE\n"


import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cached_session.errors import (
        AppendOutcomeUnknown,
        CachedSessionError,
        ConversationBusy,
        DeadlineExceeded,
        OutboxError,
        OutboxFull,
        OutboxPaused,
        OutboxUnavailable,
        SessionClosed,
        TurnLost,
        UnexpectedAnswer,
    )
    from cached_session.events import (
        AbandonedWriteFailed,
        BacklogChanged,
        CacheStats,
        CallFinished,
        CallStarted,
        CopyEvicted,
        Event,
        LateCopyRemoved,
        LateCopySuspected,
        Observer,
        Reconciled,
        RequestFinished,
        RetryScheduled,
        SendFinished,
        Sending,
        SendStarted,
        StaleRead,
        Stats,
    )
    from cached_session.outbox import (
        BacklogSummary,
        Left,
        LeftConversation,
        MemoryOutbox,
        Outbox,
        SQLiteOutbox,
    )
    from cached_session.outbox.admin import OutboxAdmin
    from cached_session.outbox.ciphers import Cipher, fernet_cipher
    from cached_session.outbox.postgres.outbox import PostgresOutbox as PostgresOutbox
    from cached_session.outbox.records import WaitingItem
    from cached_session.server.retrying import RetryBudget, RetryPolicy
    from cached_session.session.cache import ConversationCache
    from cached_session.session.relay import Relay, Standing
    from cached_session.session.session import CachedSession
    from cached_session.session.telemetry import Instrumented as Instrumented
    from cached_session.session.telemetry import instrument as instrument

__version__ = "0.1.0"

# All but what an extra brings: whoever asks for all would have to have psycopg, and OpenTelemetry.
__all__ = [
    "AbandonedWriteFailed",
    "AppendOutcomeUnknown",
    "BacklogChanged",
    "BacklogSummary",
    "CacheStats",
    "CachedSession",
    "CachedSessionError",
    "CallFinished",
    "CallStarted",
    "Cipher",
    "ConversationBusy",
    "ConversationCache",
    "CopyEvicted",
    "DeadlineExceeded",
    "Event",
    "LateCopyRemoved",
    "LateCopySuspected",
    "Left",
    "LeftConversation",
    "MemoryOutbox",
    "Observer",
    "Outbox",
    "OutboxAdmin",
    "OutboxError",
    "OutboxFull",
    "OutboxPaused",
    "OutboxUnavailable",
    "Reconciled",
    "Relay",
    "RequestFinished",
    "RetryBudget",
    "RetryPolicy",
    "RetryScheduled",
    "SQLiteOutbox",
    "SendFinished",
    "SendStarted",
    "Sending",
    "SessionClosed",
    "StaleRead",
    "Standing",
    "Stats",
    "TurnLost",
    "UnexpectedAnswer",
    "WaitingItem",
    "fernet_cipher",
]

# The names of each module, which is imported when one of them is asked for: the command line's
# `--version` and `outbox list` need none of the SDK, whose import takes a second.
_NAMES = {
    "errors": (
        "AppendOutcomeUnknown CachedSessionError ConversationBusy DeadlineExceeded OutboxError "
        "OutboxFull OutboxPaused OutboxUnavailable SessionClosed TurnLost UnexpectedAnswer"
    ),
    "events": (
        "AbandonedWriteFailed BacklogChanged CacheStats CallFinished CallStarted CopyEvicted Event "
        "LateCopyRemoved LateCopySuspected Observer Reconciled RequestFinished RetryScheduled "
        "SendFinished SendStarted Sending StaleRead Stats"
    ),
    "outbox": "BacklogSummary Left LeftConversation MemoryOutbox Outbox SQLiteOutbox",
    "outbox.admin": "OutboxAdmin",
    "outbox.ciphers": "Cipher fernet_cipher",
    "outbox.postgres.outbox": "PostgresOutbox",
    "outbox.records": "WaitingItem",
    "server.retrying": "RetryBudget RetryPolicy",
    "session.cache": "ConversationCache",
    "session.relay": "Relay Standing",
    "session.session": "CachedSession",
    "session.telemetry": "Instrumented instrument",
}
_HOMES = {name: f"cached_session.{home}" for home in _NAMES for name in _NAMES[home].split()}

# Not where a checker looks: it would take every misspelt name for one that is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


# What an extra brings, by a module that comes with it.
_EXTRAS = {"psycopg": "PostgresOutbox", "opentelemetry": "Instrumented instrument"}


def __dir__() -> list[str]:
    # `help` and `inspect` take each name that is listed, and fail where one cannot be imported.
    found = (names for module, names in _EXTRAS.items() if importlib.util.find_spec(module))
    return sorted({*globals(), *__all__, *" ".join(found).split()})
