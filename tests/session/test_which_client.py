"""Requests go through the client that was given, or that the SDK's session would use; no other."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import agents
import pytest
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator
from tests.session.support import clean_environment, new_client, texts, users


@pytest.fixture(scope="module", name="running_stranger")
def _running_stranger() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def stranger(running_stranger: Emulator) -> Emulator:
    """Another account's server, to which nothing may go."""
    running_stranger.clear_log()
    return running_stranger


@pytest.fixture
def other(stranger: Emulator) -> AsyncOpenAI:
    """A client of the other account, which a program keeps for something else."""
    return new_client(stranger, api_key="other")


@pytest.fixture(autouse=True)
def _default_client(monkeypatch: pytest.MonkeyPatch, stranger: Emulator) -> Iterator[None]:
    """A default client that goes to the other account."""
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        monkeypatch.setenv("OPENAI_BASE_URL", stranger.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "other")
        yield


def _kinds(base: Any, other: AsyncOpenAI) -> dict[str, Any]:
    """Subclasses that keep a second client of their own, in every way that there is."""

    class Before(base):
        def __init__(self, **arguments: Any) -> None:
            self.moderation = other
            super().__init__(**arguments)

    class After(base):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.moderation = other

    class Class(base):
        moderation = other

    class Slot(base):
        __slots__ = ("moderation",)

        def __init__(self, **arguments: Any) -> None:
            self.moderation = other
            super().__init__(**arguments)

    class Property(base):
        @property
        def moderation(self) -> AsyncOpenAI:
            return other

    class Nested(base):
        def __init__(self, **arguments: Any) -> None:
            self.tools = SimpleNamespace(client=other)
            super().__init__(**arguments)

    class Mixin:
        def __init__(self, **arguments: Any) -> None:
            self.moderation = other
            super().__init__(**arguments)

    class Mixed(Mixin, base):
        pass

    class Several(base):
        def __init__(self, **arguments: Any) -> None:
            self.a = self.moderation = other
            super().__init__(**arguments)
            self.z = other

    kinds = (Before, After, Class, Slot, Property, Nested, Mixed, Several)
    return {kind.__name__: kind for kind in kinds}


KINDS = pytest.mark.parametrize(
    "kind", ["Before", "After", "Class", "Slot", "Property", "Nested", "Mixed", "Several"]
)


async def _goes_to(session: CachedSession, emulator: Emulator, stranger: Emulator) -> None:
    """Uses a session; everything is on this server, and the other one was asked for nothing."""
    async with session:
        await session.add_items(users("a"))
        assert texts(await session.get_items()) == ["a"]
        assert texts(emulator.items(session.session_id)) == ["a"]
    assert stranger.requests == []


@KINDS
async def test_a_client_that_is_given(
    kind: str, emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """`openai_client` is used, whatever clients of its own a subclass has."""
    await _goes_to(_kinds(CachedSession, other)[kind](openai_client=client), emulator, stranger)


@KINDS
@pytest.mark.parametrize("by", ["environment", "default"])
async def test_no_client_is_given(
    kind: str,
    by: str,
    emulator: Emulator,
    stranger: Emulator,
    client: AsyncOpenAI,
    other: AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one it is the SDK's default client, whatever clients of its own a subclass has."""
    from agents.models import _openai_shared

    if by == "environment":
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    else:
        monkeypatch.setattr(_openai_shared, "_default_openai_client", None)
        agents.set_default_openai_client(client)
    await _goes_to(_kinds(CachedSession, other)[kind](), emulator, stranger)


@KINDS
async def test_of_a_wrapped_session(
    kind: str, emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """Of a wrapped session it is the one that the SDK's session itself would use."""
    wrapped = _kinds(OpenAIConversationsSession, other)[kind](openai_client=client)
    await _goes_to(CachedSession(wrapped), emulator, stranger)
    assert texts(await wrapped.get_items()) == ["a"]


@KINDS
async def test_of_a_wrapped_cached_session(
    kind: str, emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """Of a wrapped `CachedSession` it is that one's."""
    wrapped = _kinds(CachedSession, other)[kind](openai_client=client)
    await _goes_to(CachedSession(wrapped), emulator, stranger)
    plain = OpenAIConversationsSession(openai_client=client)
    middle = _kinds(CachedSession, other)[kind](underlying_session=plain)
    await _goes_to(CachedSession(middle), emulator, stranger)


async def test_an_attribute_that_is_set_later(
    emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """A client that somebody hangs on a session afterwards changes nothing."""
    wrapped: Any = OpenAIConversationsSession(openai_client=client)
    wrapped.a_second_client = other
    session: Any = CachedSession(wrapped)
    session.a_second_client = other
    await _goes_to(session, emulator, stranger)


class Computed(OpenAIConversationsSession):
    """A session that looks its client up each time, as one for several tenants may."""

    @property
    def _openai_client(self) -> Any:
        return self.state.client

    @_openai_client.setter
    def _openai_client(self, value: Any) -> None:
        self.state = SimpleNamespace(client=value)
        self.moderation = self.others[0]

    others: tuple[AsyncOpenAI, ...]


class Hiding(OpenAIConversationsSession):
    """A session that has none of its own in the place where the SDK's has one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.state = SimpleNamespace(client=self._openai_client)
        self._openai_client: Any = SimpleNamespace(conversations=self._openai_client.conversations)


@pytest.mark.parametrize("kind", [Computed, Hiding])
async def test_where_it_cannot_be_told(
    kind: Any, emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """Where it cannot be told for certain it is asked for, and may stand beside the session."""
    kind.others = (other,)
    wrapped = kind(openai_client=client)
    with pytest.raises(ValueError, match="openai_client"):
        CachedSession(wrapped)
    assert stranger.requests == emulator.requests == []
    session = CachedSession(wrapped, openai_client=client)
    await _goes_to(session, emulator, stranger)
    assert wrapped.session_id == session.session_id


async def test_computed_and_not_given(other: AsyncOpenAI) -> None:
    """A subclass that computes the SDK's own client is asked for one as well."""

    class Tenant(CachedSession, Computed):
        others = (other,)

    with pytest.raises(ValueError, match="openai_client"):
        Tenant()


async def test_given_to_one_that_computes(
    emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """A client that is given is used, even where a base class has another."""

    class Tenant(CachedSession, Computed):
        others = (other,)

    await _goes_to(Tenant(openai_client=client), emulator, stranger)


async def test_a_base_class_that_chooses(
    emulator: Emulator, stranger: Emulator, client: AsyncOpenAI
) -> None:
    """A base class between this session and the SDK's chooses the client where none is given."""

    class Choosing(OpenAIConversationsSession):
        def __init__(self, *, openai_client: AsyncOpenAI | None = None, **arguments: Any) -> None:
            super().__init__(openai_client=openai_client or client, **arguments)

    class Tenant(CachedSession, Choosing):
        pass

    await _goes_to(Tenant(), emulator, stranger)


@pytest.mark.parametrize("wrapping", [False, True], ids=["subclass", "wrapped"])
async def test_a_client_that_is_replaced(
    wrapping: bool, emulator: Emulator, stranger: Emulator, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    """A client that was taken over and is replaced later is no more to be told: calls say so."""
    wrapped: Any = OpenAIConversationsSession(openai_client=client)
    session: Any = CachedSession(wrapped) if wrapping else CachedSession()
    await (wrapped if wrapping else session).get_items()
    emulator.clear_log()
    stranger.clear_log()
    (wrapped if wrapping else session)._openai_client = other if wrapping else client
    for call in (session.get_items, session.clear_session, session.refresh, session.flush):
        with pytest.raises(ValueError, match="openai_client"):
            await call()
    with pytest.raises(ValueError, match="openai_client"):
        await session.add_items(users("a"))
    assert emulator.requests == stranger.requests == []
    await session.aclose()


async def test_a_client_that_contradicts(client: AsyncOpenAI, other: AsyncOpenAI) -> None:
    """Another client than the wrapped session's is refused; the same one is not."""
    for wrapped in (
        OpenAIConversationsSession(openai_client=client),
        CachedSession(openai_client=client),
    ):
        with pytest.raises(ValueError, match="openai_client"):
            CachedSession(wrapped, openai_client=other)
        CachedSession(wrapped, openai_client=client)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080/v1",
        "user:pa55word@api.example.com/v1",
        "/v1",
        "//api.example.com/v1",
        "ftp://api.example.com/v1",
        "http://127.0.0.1:99999/v1",
    ],
)
async def test_a_base_url_of_no_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose base URL leads nowhere is refused before anything is sent, by its name."""
    async with AsyncOpenAI(base_url=url, api_key="k") as client:
        for make in (
            lambda: CachedSession(openai_client=client),
            lambda: CachedSession(OpenAIConversationsSession(openai_client=client)),
        ):
            with pytest.raises(ValueError, match="openai_client: its base_url") as caught:
                make()
            assert "pa55word" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ValueError, match="OPENAI_BASE_URL"):
        CachedSession()
