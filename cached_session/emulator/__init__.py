"""A Conversations API server for offline work and tests.

It imports nothing from the rest of ``cached_session``, so that it can be trusted as a witness.
``Emulator`` and ``create_app`` need Starlette and h11 (``pip install
"cached-session[emulator]"``); the rest needs the standard library only.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from .faults import Fault, FaultKind, FaultPlan, Faults
from .habits import Habits
from .log import LoggedRequest
from .outcomes import Outcome, Sight, carry_out
from .service import Service
from .snapshot import SnapshotError
from .store import ConversationStore, random_ids, seeded_ids
from .wire import Request, Response

if TYPE_CHECKING:
    from .app import create_app
    from .server import Emulator

__all__ = [
    "ConversationStore",
    "Emulator",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "Faults",
    "Habits",
    "LoggedRequest",
    "Outcome",
    "Request",
    "Response",
    "Service",
    "Sight",
    "SnapshotError",
    "carry_out",
    "create_app",
    "random_ids",
    "seeded_ids",
]

_NEEDS_SERVER = {"Emulator": "server", "create_app": "app"}


# Not where a checker looks: it would take every misspelt name for one that is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports what needs Starlette and h11 only when it is asked for."""
        if name not in _NEEDS_SERVER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f".{_NEEDS_SERVER[name]}", __name__)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("h11", "starlette"):
                raise
            raise ImportError(
                f"{name} needs Starlette and h11, the extra emulator: "
                'pip install "cached-session[emulator]"; from a checkout, pip install ".[emulator]"'
            ) from error
        return getattr(module, name)


def __dir__() -> list[str]:
    # See `cached_session.__dir__`.
    there = all(map(importlib.util.find_spec, ("h11", "starlette")))
    return sorted({*globals(), *(__all__ if there else ())})
