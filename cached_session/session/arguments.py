"""What a caller may pass, and what is said to one who passes something else."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from typing import Any

from agents import OpenAIConversationsSession

from cached_session.core.ledger import LOCAL


def resolve_limit(limit: int | None, settings: Any) -> int | None:
    """How many items a read returns at most.

    Args:
        limit: The call's own limit; None: the one of `settings`.
        settings: `SessionSettings`, a dict like them (which the SDK takes,
            too, when it is set later), or None.

    Returns:
        The limit, None for all. A negative one counts as 1: the SDK's session
        stops at the first item that reaches it (measured).

    Raises:
        TypeError: The limit is no int.
    """
    name = "limit"
    if limit is None:
        name = "session_settings.limit"
        limit = (
            settings.get("limit")
            if isinstance(settings, dict)
            else getattr(settings, "limit", None)
        )
        if limit is None:
            return None
    try:
        if isinstance(limit, bool):
            raise TypeError
        limit = operator.index(limit)
    except TypeError:
        raise TypeError(f"{name} must be an int or None, not {type(limit).__name__}") from None
    return 1 if limit < 0 else limit


def check_type(name: str, value: object, *kinds: type) -> None:
    """Refuses what is neither None nor one of `kinds`."""
    if value is not None and not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {expected} or None, not {type(value).__name__}")


def check_underlying(value: object) -> None:
    """Refuses what cannot be wrapped; an id in its place is an easy mistake."""
    if isinstance(value, str):
        raise TypeError(
            "underlying_session must be a session, not a str; to open a conversation, pass its "
            "id as conversation_id="
        )
    check_type("underlying_session", value, OpenAIConversationsSession)


def check_id(name: str, value: object) -> None:
    """Refuses what cannot be a conversation's id."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not value or value in (".", "..") or not value.isprintable():
        raise ValueError(f"{name} must be a conversation's id, not {value!r}")


def check_staleness(value: object) -> None:
    """Refuses what `max_staleness` cannot be."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(
            f"max_staleness must be a number of seconds or None, not {type(value).__name__}"
        )
    if math.isnan(value) or value < 0:
        raise ValueError("max_staleness must not be negative or NaN")


def check_timeout(value: object, name: str = "timeout") -> None:
    """Refuses what cannot be a timeout in seconds, or None."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if not (0 <= value < math.inf) or value > sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of seconds, and not negative")


def check_absent(**values: object) -> None:
    """Refuses, by name, what a wrapped session decides."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name} comes from underlying_session; pass one of the two")


def check_not_overridden(session: object, kind: type) -> None:
    """Refuses to wrap what overrides a member of `kind`: the session around it goes past that."""
    members = {
        name: inspect.getattr_static(kind, name)
        for each in kind.__mro__
        if each is not object
        for name in vars(each)
        if not name.startswith("__")
    }
    overridden = []
    for name, member in members.items():
        found = inspect.getattr_static(session if _acts(member) else type(session), name)
        if found is not member and (_acts(member) or _acts(found)):
            overridden.append(name)
    if overridden:
        name, what = type(session).__name__, ", ".join(sorted(overridden))
        raise TypeError(
            f"underlying_session: {name} overrides {what}, and a CachedSession around it would go "
            "past that. Put the override into a mixin that calls super(), and use a class of both "
            "in place of wrapping: class Filtering(FilterMixin, CachedSession)"
        )


def _acts(member: object) -> bool:
    """Whether a member of a class is a method or a property, and no plain value."""
    return callable(member) or hasattr(type(member), "__get__")


def check_outbox(value: object, conversation_id: str | None) -> None:
    """Refuses what cannot record a transaction; and none where the id is one's local name."""
    if value is None and conversation_id is not None and conversation_id.startswith(LOCAL):
        raise ValueError(
            f"conversation_id: {conversation_id} is a name that an outbox gives to a "
            "conversation before the server has made it; pass that outbox, too"
        )
    records = inspect.iscoroutinefunction(getattr(value, "transact", None))
    if value is not None and (isinstance(value, type) or not records):
        raise TypeError(f"outbox must be an Outbox or None, not {type(value).__name__}")


def check_observer(value: object) -> None:
    """Refuses what cannot be called with an event, or would only make a coroutine of it."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"observer must be callable, not {type(value).__name__}")
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(
        getattr(value, "__call__", None)  # noqa: B004 - asks of what kind it is, not whether
    ):
        raise TypeError("observer must be a plain function: it is called, not awaited")
