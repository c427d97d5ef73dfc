"""Sessions that override methods: a mixin works; a wrapped one would be dropped, and is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, Runner
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI

from cached_session import CachedSession, MemoryOutbox, Outbox
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, sent, texts, user, users


class FilterMixin:
    """Leaves secrets out, on the way in and on the way out."""

    async def add_items(self, items: list[Any]) -> None:
        kept = [item for item in items if "secret" not in str(item)]
        await super().add_items(kept)  # type: ignore[misc]  # the session's

    async def get_items(self, limit: int | None = None) -> list[Any]:
        items = await super().get_items(limit)  # type: ignore[misc]  # the session's
        return [item for item in items if "hidden" not in str(item)]


class Filtering(FilterMixin, CachedSession):
    """The form that the error names."""


class FilteringSession(FilterMixin, OpenAIConversationsSession):
    """A session of the SDK that filters."""


class Together(FilteringSession, CachedSession):
    """A filtering session of the SDK that is there already, and the cache."""


def _overriding() -> dict[str, type[OpenAIConversationsSession]]:
    """A subclass for each member that a session could override."""

    async def method(self: Any, *arguments: Any) -> Any:
        raise AssertionError("nobody calls it")

    kinds: dict[str, type[OpenAIConversationsSession]] = {
        name: type("Overriding", (OpenAIConversationsSession,), {name: method})
        for name in ("get_items", "add_items", "pop_item", "clear_session", "_get_session_id")
    }
    kinds["session_id"] = type(
        "Overriding", (OpenAIConversationsSession,), {"session_id": property(lambda self: "conv_1")}
    )
    kinds["session_settings"] = type(
        "Overriding",
        (OpenAIConversationsSession,),
        {"session_settings": property(lambda self: None, lambda self, value: None)},
    )
    return kinds


@pytest.mark.parametrize("name", _overriding())
async def test_a_wrapped_override(name: str, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A wrapped session whose class overrides a member is refused; the error names both."""
    wrapped = _overriding()[name](openai_client=client)
    with pytest.raises(TypeError, match=rf"Overriding overrides {name}\b") as caught:
        CachedSession(wrapped)
    assert "class Filtering(FilterMixin, CachedSession)" in str(caught.value)
    assert sent(emulator) == []


async def test_further_overrides(client: AsyncOpenAI) -> None:
    """So it is with a mixin, a class further up, an override on the object, and our own class."""

    class Lower(FilteringSession):
        pass

    patched: Any = OpenAIConversationsSession(openai_client=client)
    patched.pop_item = patched.get_items
    for wrapped, names in (
        (FilteringSession(openai_client=client), "add_items, get_items"),
        (Lower(openai_client=client), "add_items, get_items"),
        (patched, "pop_item"),
        (Filtering(openai_client=client), "add_items, get_items"),
    ):
        with pytest.raises(TypeError, match=f"underlying_session.* overrides {names}"):
            CachedSession(wrapped)


async def test_a_subclass_that_only_adds(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A wrapped subclass with more attributes, methods and arguments is wrapped as any other."""

    class Named(OpenAIConversationsSession):
        """A session with a name."""

        kind = "chat"

        def __init__(self, name: str, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.name = name

        @property
        def title(self) -> str:
            return self.name.title()

        async def rename(self, name: str) -> None:
            self.name = name

    wrapped = Named("today", openai_client=client, session_settings={"limit": 1})
    session = CachedSession(wrapped)
    await session.add_items(users("a", "b"))
    assert texts(await session.get_items()) == texts(await wrapped.get_items()) == ["b"]
    assert wrapped.session_id == session.session_id


@pytest.mark.parametrize("kind", [Filtering, Together])
@pytest.mark.parametrize("new_outbox", [lambda: None, MemoryOutbox], ids=["without", "with outbox"])
async def test_a_mixin(
    kind: Any,
    new_outbox: Callable[[], Outbox | None],
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """The mixin's methods stand around the session's: they see every append and every read."""
    model = ScriptedModel([[assistant_message("a secret")], [assistant_message("hello")]])
    agent = Agent(name="assistant", model=model)
    async with kind(openai_client=client, outbox=new_outbox()) as session:
        await session.add_items([user("hidden"), user("secret"), user("a")])
        assert [item["content"][0]["text"] for item in await session.get_items()] == ["a"]
        await Runner.run(agent, "b", session=session)
        await Runner.run(agent, "c", session=session)
        assert model.last_call is not None
        assert "secret" not in str(model.last_call.input)
        assert "hidden" not in str(model.last_call.input)
        await session.flush()
        assert texts(emulator.items(session.session_id)) == ["hidden", "a", "b", "c", "hello"]
        sent(emulator)
        assert texts(await session.get_items()) == ["a", "b", "c", "hello"]
        assert sent(emulator) == []


async def test_a_mixin_around_a_wrapper(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A class with a mixin may itself wrap a plain session."""
    conversation = Elsewhere(emulator).conversation("hidden", "a")
    wrapped = OpenAIConversationsSession(conversation_id=conversation, openai_client=client)
    session = Filtering(wrapped)
    assert texts(await session.get_items()) == ["a"]
    await session.add_items(users("secret", "b"))
    assert texts(await wrapped.get_items()) == ["hidden", "a", "b"]
