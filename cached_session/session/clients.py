"""Which openai client a session uses: the one that was given, or the SDK's session's own."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

from agents import OpenAIConversationsSession
from openai import AsyncOpenAI


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
