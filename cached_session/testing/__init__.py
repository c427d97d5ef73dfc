"""For the tests of programs that use this package: no waiting, and faults in one line.

With pytest, the fixtures `conversations_emulator`, `conversations_client` and `cached_session` are
there as soon as the package is installed (`cached_session.testing.plugin`). What follows works
without pytest, too.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cached_session.testing.faults import (
        Befalls,
        Plan,
        Requests,
        any_request,
        append,
        creation,
        deletion,
        item_deletion,
        listing,
    )
    from cached_session.testing.mode import is_testing, set_testing

__all__ = [
    "Befalls",
    "Plan",
    "Requests",
    "any_request",
    "append",
    "creation",
    "deletion",
    "is_testing",
    "item_deletion",
    "listing",
    "set_testing",
]

# Not where a checker looks: it would take every misspelt name for one that is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a name when it is first asked for: pytest imports the plugin in every project."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "mode" if name.endswith("_testing") else "faults"
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
