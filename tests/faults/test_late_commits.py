"""A request that is applied after it was given up on: recognised, and its copy removed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import openai
import pytest

from cached_session import ConversationCache, LateCopyRemoved
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_item_delete, is_listing
from tests.faults.line import CUT, Do, Line, agrees, error, label, opened, policy, words
from tests.faults.virtual import now
from tests.session.support import numbered, users

WATCH = 60.0
"""Seconds for which a request that got no answer may still come: the policy's deadline."""


def late(seconds: float, *, silent: bool = False) -> Fault:
    return Fault(FaultKind.LATE_COMMIT, delay=seconds, silent=silent)


def again(line: Line, position: int) -> Do:
    """Carries out an earlier request, just before the one that is on its way."""
    return Do(lambda: line.service.handle(line.requests[position]))


async def test_removed_at_once() -> None:
    """A first send that comes just before the second is found before the append returns."""
    line, session, conversation = await opened("before")
    line.on(is_append, CUT, again(line, 0))
    await session.add_items(users("a", "b"))
    assert line.asked() == ["append", "list", "append", "list", "delete item", "delete item"]
    assert line.texts(conversation) == ["before", "a", "b"]
    await agrees(session, line, conversation)


async def test_the_acknowledged_copy_stays() -> None:
    """Of two copies the one that nobody was told about goes: no id that was shown disappears."""
    removed: list[str] = []

    def observe(event: object) -> None:
        if isinstance(event, LateCopyRemoved):
            removed.append(event.item_id)

    line, session, conversation = await opened("before", observer=observe)
    line.on(is_append, late(5.0))
    await session.add_items(users("a"))
    shown = await session.get_items()
    await line.past(5.0)
    copy = line.service.items(conversation)[-1]["id"]
    assert await session.get_items() == shown == line.service.items(conversation)
    assert removed == [copy]


async def test_found_in_time() -> None:
    """A late commit that comes before the question counts as the append; nothing is sent again."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(0.1))
    await session.add_items(users("a"))
    assert line.asked() == ["append", "list"]
    assert line.texts(conversation) == ["before", "a"]
    # It came once and cannot come again: nothing is left to watch for.
    await agrees(session, line, conversation)
    assert line.asked() == []


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("seconds", [0.2, 5.0, 19.0, 30.0, 59.0])
async def test_removed_at_the_next_read(seconds: float, silent: bool) -> None:
    """Whenever the commit comes within the watch, no read shows its copy."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(seconds, silent=silent))
    await session.add_items(users("a", "b"))
    await line.past(seconds)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", "a", "b"]


@pytest.mark.parametrize("action", ["get_items", "pop_item", "add_items", "flush", "aclose"])
async def test_whatever_comes_next(action: str) -> None:
    """Whichever operation comes next, after a read of it the copy is gone and the rest is right."""
    line, session, conversation = await opened("before", cache=(cache := ConversationCache()))
    line.on(is_append, late(5.0))
    await session.add_items(users("a"))
    await line.past(5.0)
    expected = ["before", "a"]
    if action == "add_items":
        await session.add_items(users("b"))
        expected.append("b")
        await session.get_items()
    elif action == "pop_item":
        popped = await session.pop_item()
        assert popped is not None
        assert words(popped) == expected.pop()
    else:
        await getattr(session, action)()
    assert line.texts(conversation) == expected
    await agrees(line.session(conversation, cache=cache), line, conversation)


async def test_after_several_other_operations() -> None:
    """Appends, pops and reads may come in between; the copy is still known for what it is."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(40.0))
    await session.add_items(users("a", "b"))
    await session.add_items(users("c"))
    await session.pop_item()
    await session.add_items(users("a", "d"))
    await session.refresh()
    await session.get_items(1)
    await session.add_items(users("e"))
    await line.past(40.0)
    await session.add_items(users("f"))
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", "a", "b", "a", "d", "e", "f"]


async def test_batches_that_come_late_one_by_one() -> None:
    """Each batch of a long append may come late; each copy goes whole."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(10.0), None, late(20.0), None, late(5.0))
    await session.add_items(numbered(0, 45))
    for seconds in (5.0, 10.0, 20.0):
        await line.past(seconds + 0.5)
        await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", *map(str, range(45))]


@pytest.mark.parametrize("sends", [2, 3, 4])
async def test_every_attempt_comes_late(sends: int) -> None:
    """Several attempts at one batch may all be applied in the end; one copy stays."""
    line, session, conversation = await opened("before")
    line.on(is_append, *(late(10.0 + send) for send in range(sends)))
    await session.add_items(users("a", "b"))
    await line.past(11.0)
    await agrees(session, line, conversation)
    await line.past(20.0)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", "a", "b"]


async def test_given_up_on_and_applied_late() -> None:
    """Of an append that failed nothing turns up later: the caller was told so."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    line.on(is_append, late(10.0), late(20.0))
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(users("a", "b"))
    await line.past(10.0)
    await agrees(session, line, conversation)
    await line.past(20.0)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before"]


@pytest.mark.parametrize("seconds", [0.11, 0.2, 1.5, 10.0])
async def test_the_same_words_on_purpose(seconds: float) -> None:
    """A message that the user sends again on purpose is never taken for the copy."""
    line, session, conversation = await opened("before", "yes")
    line.on(is_append, late(seconds))
    await session.add_items(users("yes"))
    await asyncio.sleep(1)
    await session.add_items(users("yes"))
    await line.past(seconds)
    await session.add_items(users("yes"))
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", *["yes"] * 4]


async def test_the_same_words_while_nothing_comes() -> None:
    """Where the lost send was never applied, nothing is removed, however often it is said again."""
    line, session, conversation = await opened("before")
    line.on(is_append, CUT)
    for _ in range(4):
        await session.add_items(users("yes"))
        await agrees(session, line, conversation)
    assert "delete item" not in line.asked()
    assert line.texts(conversation) == ["before", *["yes"] * 4]


async def test_another_writer_in_between() -> None:
    """Another writer's items around the copy stay."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(10.0))
    await session.add_items(users("a", "b"))
    line.append(conversation, "theirs")
    await line.past(10.0)
    line.append(conversation, "a")
    await agrees(session, line, conversation)
    # Only the whole batch is a copy; their "a" alone is theirs.
    assert line.texts(conversation) == ["before", "a", "b", "theirs", "a"]


async def test_reads_ask_while_the_watch_is_on() -> None:
    """While a late commit may come every read asks; when it cannot come any more, none does."""
    line, session, conversation = await opened("before")
    line.on(is_append, CUT)
    await session.add_items(users("a"))
    line.asked()
    for _ in range(5):
        await agrees(session, line, conversation)
        assert line.asked() == ["list"]
        await asyncio.sleep(10)
    await line.past(WATCH + 1)
    await agrees(session, line, conversation)
    assert len(line.asked()) <= 1
    await agrees(session, line, conversation)
    await session.get_items(1)
    assert line.asked() == []


@pytest.mark.parametrize("failure", [error(503), CUT, FaultKind.HANG], ids=label)
async def test_the_removal_fails(failure: Any) -> None:
    """A copy that cannot be removed now is never shown, and removed as soon as that works."""
    line, session, conversation = await opened(
        "before", retry=policy(max_attempts=2, attempt_timeout=1.0)
    )
    line.on(is_append, CUT, again(line, 0))
    line.always(is_item_delete, failure)
    await session.add_items(users("a", "b"))
    for _ in range(2):
        with pytest.raises(openai.OpenAIError):
            await session.get_items()
    line.heal()
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", "a", "b"]


async def test_the_removal_fails_half_way() -> None:
    """Where one item of the copy went and the next would not, only the next is asked for again."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=1))
    line.on(is_append, CUT)
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(users("a", "b"))
    line.service.handle(line.requests[0])
    line.on(is_item_delete, None, error(503))
    with pytest.raises(openai.InternalServerError):
        await session.get_items()
    await agrees(session, line, conversation)
    assert line.sent.count("delete item") == 3
    assert line.texts(conversation) == ["before"]


async def test_somebody_else_removes_the_copy() -> None:
    """A copy that is gone by the time it is removed needs no removal."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(5.0))
    await session.add_items(users("a"))
    await line.past(5.0)
    copy = line.service.items(conversation)[-1]["id"]
    path = f"/v1/conversations/{conversation}/items/{copy}"
    line.on(is_item_delete, Do(lambda: line.call("DELETE", path)))
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["before", "a"]


@pytest.mark.parametrize("max_bytes", [0, 64 << 20])
async def test_the_watch_outlives_the_session(max_bytes: int) -> None:
    """A session may go, and its copy be evicted: the next one on the conversation still knows."""
    cache = ConversationCache(max_bytes=max_bytes)
    line, session, conversation = await opened("before", cache=cache)
    line.on(is_append, late(30.0))
    await session.add_items(users("a"))
    del session
    gc.collect()
    await line.past(30.0)
    await agrees(line.session(conversation, cache=cache), line, conversation)
    assert line.texts(conversation) == ["before", "a"]
    assert now() < WATCH


async def test_a_clear_ends_the_watch() -> None:
    """After a clear the next conversation has nothing to do with what the old one waited for."""
    line, session, conversation = await opened("before")
    line.on(is_append, late(5.0))
    await session.add_items(users("a"))
    await session.clear_session()
    await session.add_items(users("b"))
    await line.past(5.0)
    assert session.session_id != conversation
    assert line.texts(session.session_id) == ["b"]
    line.asked()
    await agrees(session, line, session.session_id)
    assert line.asked() == []


async def test_the_look_is_not_worth_a_failure() -> None:
    """An append that landed returns, though the look for late copies finds nobody to ask."""
    line, session, conversation = await opened("before")
    line.on(is_append, CUT)
    line.on(is_listing, None, error(503))
    await session.add_items(users("a"))
    assert line.asked() == ["append", "list", "append", "list"]
    await agrees(session, line, conversation)


async def test_a_copy_that_comes_while_a_read_is_begun_anew() -> None:
    """A read that loses its place, and finds the late copy as it begins anew, removes it first."""
    line = Line()
    conversation = line.conversation(*map(str, range(20)))
    for start in range(20, 160, 20):
        line.append(conversation, *map(str, range(start, start + 20)))
    session = line.session(conversation)
    await session.get_items(3)
    line.on(is_append, CUT)
    await session.add_items(users("ours"))
    sent = line.sent.index("append")
    carried_out = again(line, sent)
    # The second page's cursor is lost; by then the copy is there.
    line.on(is_listing, None, Do(carried_out.action, FaultKind.CURSOR_REFUSED))
    items = await session.get_items()
    assert [words(item) for item in items] == [*map(str, range(160)), "ours"]
    assert line.texts(conversation).count("ours") == 1
    await agrees(session, line, conversation)
