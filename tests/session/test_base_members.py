"""What this session inherits acts on its own conversation, in every supported release of the SDK.

The base class's members are listed here one by one. A release that adds one
fails the first test: decide what it does to this session, then list it.
"""

from __future__ import annotations

import abc
import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, Runner
from agents.testing import ScriptedModel, assistant_message
from openai import APIConnectionError, AsyncOpenAI

from cached_session import CachedSession, MemoryOutbox, Outbox, SessionClosed
from cached_session.emulator import Emulator, Fault, FaultKind
from tests.faults.line import CUT, Line, any_request, policy
from tests.outbox_sessions.support import in_virtual_time
from tests.session.support import Elsewhere, Gate, new_client, sent, texts, user, users

OVERRIDDEN = {
    "__init__",
    "_clear_session_id",
    "_get_items",  # not before 0.24
    "_get_session_id",
    "_session_id",
    "add_items",
    "clear_session",
    "get_items",
    "pop_item",
    "session_id",
}

SAFE = {
    "_mutation_lock": "orders the base class's own methods, all overridden; not before 0.24",
    "_openai_client": "the client that this session uses; a call after a replacement raises",
    "_session_id_lock": "orders the base class's own methods, all overridden",
    "session_settings": "read by this session at each call, as by the base class",
}


def _members(client: AsyncOpenAI) -> set[str]:
    """The names that the SDK's session defines, on its classes and on an instance."""
    every_class_has = vars(type("Plain", (abc.ABC,), {"__annotations__": {}}))
    found = set(vars(OpenAIConversationsSession(openai_client=client)))
    for kind in OpenAIConversationsSession.__mro__:
        if kind not in (object, abc.ABC):
            found |= set(vars(kind)) - set(every_class_has)
    return found


def test_every_member_is_known(client: AsyncOpenAI) -> None:
    """Each member of the base class is overridden, or known to be safe as it is."""
    unknown = _members(client) - OVERRIDDEN - set(SAFE)
    assert not unknown, f"new in this release of the SDK: {sorted(unknown)}"
    assert set(vars(CachedSession)) >= OVERRIDDEN
    assert not set(vars(CachedSession)) & set(SAFE)


def test_one_name_of_its_own(client: AsyncOpenAI) -> None:
    """A session has one private name beside the base class's, and no subclass can have the same."""
    theirs = set(vars(OpenAIConversationsSession(openai_client=client)))
    ours = set(vars(CachedSession(openai_client=client))) - theirs
    assert ours == {"_CachedSession__binding"}
    methods = {name for name in vars(CachedSession) if re.match("_[^_]", name)}
    assert methods - {"_abc_impl"} <= OVERRIDDEN


def test_no_parameter_is_new() -> None:
    """What a caller may pass to a member of the base class is taken by the one in its place."""
    for name in OVERRIDDEN & set(vars(OpenAIConversationsSession)):
        theirs = inspect.getattr_static(OpenAIConversationsSession, name)
        if not inspect.isfunction(theirs):
            continue
        ours = inspect.signature(getattr(CachedSession, name)).parameters
        for parameter in inspect.signature(theirs).parameters.values():
            assert parameter.name in ours, f"{name}: {parameter.name}"


@pytest.fixture
def gate() -> Gate:
    return Gate()


def _outboxes() -> Any:
    kinds: list[Callable[[], Outbox | None]] = [lambda: None, MemoryOutbox]
    return pytest.mark.parametrize("new_outbox", kinds, ids=["without", "with outbox"])


@_outboxes()
async def test_the_id_before_the_first_run(
    new_outbox: Callable[[], Outbox | None], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`_get_session_id`, which programs store before the first run, makes the one conversation."""
    model = ScriptedModel([[assistant_message("hello")]])
    session = CachedSession(openai_client=client, outbox=new_outbox())
    stored = await session._get_session_id()
    assert stored == session.session_id == session._session_id
    assert emulator.items(stored) == []
    await Runner.run(Agent(name="assistant", model=model), "hi", session=session)
    assert session.session_id == await session._get_session_id() == stored
    await session.flush()
    assert texts(emulator.items(stored)) == ["hi", "hello"]
    assert sent(emulator).count("POST conversation") == 1
    await session.aclose()


@pytest.mark.parametrize("wrapping", [False, True], ids=["alone", "wrapping"])
@_outboxes()
async def test_first_calls_race(
    wrapping: bool,
    new_outbox: Callable[[], Outbox | None],
    emulator: Emulator,
    client: AsyncOpenAI,
) -> None:
    """However the first use is begun, and on which of two sessions, there is one conversation."""
    wrapped = OpenAIConversationsSession(openai_client=client) if wrapping else None
    arguments = {} if wrapping else {"openai_client": client}
    session = CachedSession(wrapped, outbox=new_outbox(), **arguments)
    calls: list[Awaitable[Any]] = [session.add_items(users("a")), session._get_session_id()]
    calls += [] if wrapped is None else [wrapped._get_session_id(), session._get_session_id()]
    _, *ids = await asyncio.gather(*calls)
    assert session.session_id == await session._get_session_id()
    if wrapped is None:
        assert set(ids) == {session.session_id}
        assert sent(emulator).count("POST conversation") == 1
    else:
        assert wrapped.session_id == await wrapped._get_session_id() == session.session_id
    await session.flush()
    assert texts(emulator.items(session.session_id)) == ["a"]
    await session.aclose()


@pytest.mark.parametrize("by", ["wrapped", "wrapper"])
async def test_the_id_of_a_wrapped_session(
    by: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """The id is one for a session and the one around it, whichever is asked for it first."""
    wrapped = OpenAIConversationsSession(openai_client=client)
    session = CachedSession(wrapped)
    first, second = (wrapped, session) if by == "wrapped" else (session, wrapped)
    stored = await first._get_session_id()
    assert await second._get_session_id() == stored
    await session.add_items(users("a"))
    assert texts(await wrapped.get_items()) == ["a"]
    assert sent(emulator).count("POST conversation") == 1
    await second._clear_session_id()
    assert session._session_id is wrapped._session_id is None
    assert await first._get_session_id() == await second._get_session_id() != stored


@_outboxes()
async def test_forgetting_the_id(
    new_outbox: Callable[[], Outbox | None], emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`_clear_session_id` leaves the conversation where it is; the next use makes a new one."""
    session = CachedSession(openai_client=client, outbox=new_outbox())
    await session._clear_session_id()
    await session.add_items(users("a"))
    await session.flush()
    before = session.session_id
    await session._clear_session_id()
    assert session._session_id is None
    with pytest.raises(ValueError, match="not yet available"):
        _ = session.session_id
    assert await session.get_items() == []
    assert session.session_id != before
    assert texts(emulator.items(before)) == ["a"]
    await session.aclose()


async def test_forgetting_behind_a_creation(gate: Gate) -> None:
    """`_clear_session_id` during a creation comes after it."""
    with Emulator(latency=1, sleep=gate.sleep) as emulator:
        session = CachedSession(openai_client=new_client(emulator))
        gate.hold()
        identifying = asyncio.create_task(session._get_session_id())
        await gate.arrived()
        forgetting = asyncio.create_task(session._clear_session_id())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not forgetting.done()
        gate.open()
        made = await identifying
        await forgetting
        assert session._session_id is None
        assert await session._get_session_id() != made


async def test_setting_the_private_id(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`_session_id`, read or set, is the session's own id."""
    elsewhere = Elsewhere(emulator)
    session = CachedSession(openai_client=client)
    assert session._session_id is None
    session._session_id = elsewhere.conversation("a")
    assert texts(await session.get_items()) == ["a"]
    assert session.session_id == session._session_id
    session._session_id = None
    assert await session.get_items() == []
    with pytest.raises(ValueError, match="session_id"):
        session._session_id = ".."


async def test_the_unlocked_read(emulator: Emulator, client: AsyncOpenAI) -> None:
    """`_get_items`, which a release has, reads as `get_items` does, also of an override."""

    class Longer(CachedSession):
        async def get_items(self, limit: int | None = None) -> Any:
            return [*await self._get_items(limit), user("more")]

    session = Longer(openai_client=client)
    await session.add_items(users("a", "b"))
    assert await session._get_items(1) == emulator.items(session.session_id)[1:]
    assert len(await session.get_items()) == 3
    assert "GET items" not in sent(emulator)


async def test_behind_a_clear(gate: Gate) -> None:
    """`_get_session_id` during a clear names the next conversation, not the one that goes."""
    for outbox in (None, MemoryOutbox()):
        with Emulator(latency=1, sleep=gate.sleep) as emulator:
            session = CachedSession(openai_client=new_client(emulator), outbox=outbox)
            before = await session._get_session_id()
            gate.hold()
            clearing = asyncio.create_task(session.clear_session())
            await gate.arrived()
            identifying = asyncio.create_task(session._get_session_id())
            for _ in range(10):
                await asyncio.sleep(0)
            gate.open()
            await clearing
            assert await identifying == session.session_id != before
            await session.aclose()


async def test_the_server_refuses(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Where no conversation can be made, `_get_session_id` raises what the server said."""
    emulator.faults = lambda request: Fault(FaultKind.ERROR_BEFORE_COMMIT, status=403)
    session = CachedSession(openai_client=client)
    with pytest.raises(Exception, match="403"):
        await session._get_session_id()
    emulator.faults = None
    assert emulator.items(await session._get_session_id()) == []


@in_virtual_time
async def test_the_server_is_away() -> None:
    """While only a local name is known, `_get_session_id` asks each time, and never gives that."""
    line = Line()
    line.always(any_request, CUT)
    session = line.session(outbox=MemoryOutbox())
    for _ in range(2):
        with pytest.raises(ValueError, match="could not be reached"):
            await session._get_session_id()
    assert session._session_id is None
    await session.add_items(users("a"))
    line.heal()
    stored = await session._get_session_id()
    await session.flush()
    assert session.session_id == stored
    assert line.texts(stored) == ["a"]
    await session.aclose()
    line.always(any_request, CUT)
    alone = line.session(retry=policy(max_attempts=1))
    with pytest.raises(APIConnectionError):
        await alone._get_session_id()


async def test_after_the_close(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A closed session refuses the inherited coroutines, too, and sends nothing."""
    session = CachedSession(openai_client=client)
    await session.aclose()
    for call in (session._get_session_id, session._clear_session_id, session._get_items):
        with pytest.raises(SessionClosed):
            await call()
    assert sent(emulator) == []
