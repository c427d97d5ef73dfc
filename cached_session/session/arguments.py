"""A session's arguments: what a caller may pass, what is said of something else, which client.

The client is the one that was given, or the SDK's session's own.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import sys
from dataclasses import dataclass
from typing import Any

from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

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


def check_staleness(name: str, value: object) -> None:
    """Refuses what is no number of seconds for which a copy may be used."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if not (0 <= value <= sys.float_info.max or value == math.inf):
        raise ValueError(f"{name} must be 0 or more seconds, or math.inf")


def check_timeout(value: object, name: str = "timeout") -> None:
    """Refuses what cannot be a timeout in seconds, or None."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if not 0 <= value <= sys.float_info.max:
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
    if not callable(value):
        raise TypeError(f"observer must be callable, not {type(value).__name__}")
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(
        getattr(value, "__call__", None)  # noqa: B004 - asks of what kind it is, not whether
    ):
        raise TypeError("observer must be a plain function: it is called, not awaited")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The client of a session.

    Attributes:
        client: The client.
        owner: The session of the SDK that it was taken over from; None: it was given.

    Raises:
        ValueError: No request can be made through the client: its base URL has no
            host, another scheme than HTTP's, or a port that cannot be.
    """

    client: AsyncOpenAI
    owner: OpenAIConversationsSession | None = None

    def __post_init__(self) -> None:
        url = self.client.base_url
        # A transport of one's own may know more schemes, such as http+unix.
        if not (url.host and url.scheme.startswith("http") and (url.port or 0) < 1 << 16):
            # The URL is left out: without a scheme, "user:password@host" is all path.
            raise ValueError(
                "openai_client: its base_url is not that of a server; it begins with https:// or "
                "http:// and a host (it may come from the environment, OPENAI_BASE_URL)"
            )

    def check(self) -> None:
        """Refuses to go on where the session that it was taken over from has another one now.

        Raises:
            ValueError: It has.
        """
        if self.owner is not None and getattr(self.owner, _attribute() or "", None) is not (
            self.client
        ):
            raise ValueError(
                f"openai_client: the client of this {type(self.owner).__name__} was replaced after "
                "the session was made; nothing was sent. Make a new session, and pass the client "
                "as openai_client="
            )


def told(session: OpenAIConversationsSession) -> Chosen | None:
    """The client that a session of the SDK uses; None where that cannot be told for certain.

    A subclass may have clients of its own beside it.
    """
    name = _attribute()
    if name is None or type(session).__getattribute__ is not object.__getattribute__:
        return None
    declared = inspect.getattr_static(type(session), name, None)
    # What is computed at each look may be another one at the next. A slot is not computed.
    if inspect.isdatadescriptor(declared) and not inspect.ismemberdescriptor(declared):
        return None
    client = getattr(session, name, None)
    return Chosen(client, session) if isinstance(client, AsyncOpenAI) else None


def choose(
    given: AsyncOpenAI | None, found: Chosen | None, session: OpenAIConversationsSession
) -> Chosen:
    """The client to use beside what a session of the SDK uses.

    Args:
        given: The one that was given, or None.
        found: The session's own, or None where it cannot be told.
        session: The session.

    Raises:
        ValueError: None was given, and the session's cannot be told; or the two differ.
    """
    kind = type(session).__name__
    if given is None:
        if found is None:
            raise ValueError(
                f"openai_client: which client a {kind} uses cannot be told for certain; pass it as "
                "openai_client="
            )
        return found
    if found is not None and found.client is not given:
        raise ValueError(
            f"openai_client is not the client that the wrapped {kind} uses, so the two would go to "
            "one conversation by two accounts; leave it out"
        )
    return Chosen(given)


@functools.cache
def _attribute() -> str | None:
    """Under which name a session of the SDK has its client; None where that cannot be told."""
    # The SDK has no public way to ask a session for its client, and the name of
    # the private one is not relied on: a session is given a client that is known
    # nowhere else, and is searched for it. That client is never used.
    unused = AsyncOpenAI.__new__(AsyncOpenAI)
    attributes = vars(OpenAIConversationsSession(openai_client=unused))
    names = [name for name, value in attributes.items() if value is unused]
    return names[0] if len(names) == 1 else None
