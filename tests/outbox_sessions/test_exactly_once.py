"""Lost answers, late commits and partial batches with an outbox: each item once, in order."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from cached_session import LateCopyRemoved, MemoryOutbox
from cached_session.emulator import Fault, FaultKind, Habits
from cached_session.emulator.requests import is_append, is_create, is_listing
from tests.faults.line import CUT, LOST, Do, Line, any_request, error, label, policy
from tests.outbox_sessions.support import in_virtual_time, opened, words
from tests.session.support import numbered, users

FAULTS: list[Any] = [
    CUT,
    LOST,
    FaultKind.HANG,
    FaultKind.LOCKED,
    FaultKind.TRUNCATED,
    FaultKind.NOT_JSON,
    FaultKind.WRONG_SHAPE,
    Fault(FaultKind.ERROR_BEFORE_COMMIT, status=500),
    Fault(FaultKind.ERROR_AFTER_COMMIT, status=503),
    Fault(FaultKind.RATE_LIMITED),
    Fault(FaultKind.PARTIAL_BATCH, items=1),
    Fault(FaultKind.PARTIAL_BATCH, items=19),
    Fault(FaultKind.LATE_COMMIT, delay=0.2),
    Fault(FaultKind.LATE_COMMIT, delay=9.0, silent=True),
    Fault(FaultKind.LATE_COMMIT, delay=40.0),
    Fault(FaultKind.REFUSED, delay=3.0),
]


@pytest.mark.parametrize("fault", FAULTS, ids=label)
@pytest.mark.parametrize("count", [1, 2, 45])
@in_virtual_time
async def test_whatever_happens_to_an_append(count: int, fault: Any) -> None:
    """Whatever becomes of one request, each item arrives once, in order, and stays so."""
    line, session, conversation = await opened("a")
    line.on(is_append, fault)
    await session.add_items(numbered(0, count))
    await session.add_items(users("last"))
    expected = ["a", *map(str, range(count)), "last"]
    assert words(await session.get_items()) == expected
    await session.flush(timeout=200)
    assert line.texts(conversation)[: len(expected)] == expected
    await asyncio.sleep(200)
    # Late copies are removed when somebody looks.
    assert await session.get_items() == line.service.items(conversation)
    assert line.texts(conversation) == expected
    await session.aclose()


@pytest.mark.parametrize("fault", FAULTS, ids=label)
@in_virtual_time
async def test_every_second_request_fails(fault: Any) -> None:
    """The same where every second request goes wrong, listings included."""
    line, session, conversation = await opened("a")
    line.on(any_request, *itertools.islice(itertools.cycle([None, fault]), 40))
    for number in range(0, 60, 3):
        await session.add_items(numbered(number, number + 3))
        await asyncio.sleep(0.01)
    expected = ["a", *map(str, range(60))]
    assert words(await session.get_items()) == expected
    await session.flush(timeout=2000)
    line.heal()
    await asyncio.sleep(200)
    assert await session.get_items() == line.service.items(conversation)
    assert line.texts(conversation) == expected
    await session.aclose()


@in_virtual_time
async def test_equal_messages() -> None:
    """Messages with the same words are told apart: as many arrive as were appended."""
    line, session, conversation = await opened("yes", "yes")
    line.on(is_append, LOST, CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=2))
    for _ in range(30):
        await session.add_items(users("yes"))
    await session.flush(timeout=200)
    assert line.texts(conversation) == ["yes"] * 32
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


@in_virtual_time
async def test_a_late_copy_is_removed() -> None:
    """Of a batch that was applied late, after it was sent again, the second copy goes."""
    removed: list[str] = []

    def observe(event: object) -> None:
        if isinstance(event, LateCopyRemoved):
            removed.append(event.item_id)

    line, session, conversation = await opened("a", observer=observe)
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    await session.add_items(users("b", "c"))
    await session.flush()
    shown = await session.get_items()
    await asyncio.sleep(10)
    assert line.texts(conversation) == ["a", "b", "c", "b", "c"]
    # More appends do not hide it.
    await session.add_items(users("d"))
    assert words(await session.get_items()) == ["a", "b", "c", "d"]
    await session.flush()
    assert line.texts(conversation) == ["a", "b", "c", "d"]
    assert (await session.get_items())[:3] == shown
    assert len(removed) == 2
    await session.aclose()


@in_virtual_time
async def test_the_server_was_away_for_long() -> None:
    """A batch whose answer was lost is found after hours: it is not sent again."""
    # A request a minute, and not every eight seconds: it is the hours that count.
    line, session, conversation = await opened("a", retry=policy(max_delay=60.0))
    line.on(is_append, LOST)
    line.always(is_listing, CUT)
    await session.add_items(numbered(0, 20))
    await asyncio.sleep(3 * 3600)
    line.heal()
    line.asked()
    await session.flush()
    assert "append" not in line.asked()
    assert line.texts(conversation) == ["a", *map(str, range(20))]
    await session.aclose()


@pytest.mark.parametrize("fault", [LOST, CUT, FaultKind.HANG], ids=label)
@in_virtual_time
async def test_a_conversation_that_is_made_late(fault: Any) -> None:
    """Where creating the conversation gets no answer, the items are in one conversation."""
    line = Line()
    line.on(is_create, fault, fault)
    session = line.session(outbox=MemoryOutbox(), retry=policy(attempt_timeout=2.0))
    await session.add_items(users("a"))
    await session.add_items(users("b"))
    await session.flush()
    assert line.texts(session.session_id) == ["a", "b"]
    others = [one for one in line.service.store.ids() if one != session.session_id]
    assert [line.texts(one) for one in others if line.texts(one)] == []
    await session.aclose()


@in_virtual_time
async def test_somebody_else_writes_in_between() -> None:
    """Another writer's items, before and after a lost batch, stay and are shown in their place."""
    line, session, conversation = await opened("a")
    other = Do(lambda: line.append(conversation, "other"), LOST)
    line.on(is_append, other)
    line.on(is_listing, Do(lambda: line.append(conversation, "more")))
    await session.add_items(users("b", "c"))
    await session.flush()
    assert line.texts(conversation) == ["a", "other", "b", "c", "more"]
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


@in_virtual_time
async def test_ids_of_their_own() -> None:
    """Items with ids of their own, which the server takes only once, are told by them."""
    call: Any = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "add",
        "arguments": "{}",
        "status": "completed",
    }
    line = Line(habits=Habits())
    conversation = line.conversation("a")
    session = line.session(conversation, outbox=MemoryOutbox())
    await session.get_items()
    line.on(is_append, LOST, error(503))
    await session.add_items([call, *users("b")])
    await session.flush()
    assert await session.get_items() == line.service.items(conversation)
    assert words(await session.get_items(1)) == ["b"]
    assert len(line.service.items(conversation)) == 3
    await session.aclose()


@pytest.mark.parametrize("lost", [CUT, LOST], ids=label)
@in_virtual_time
async def test_the_only_item_held_is_removed(lost: FaultKind) -> None:
    """A batch behind the one item that was read is found, whoever removes that item meanwhile."""
    line = Line()
    conversation = line.conversation("yes", "a", "yes")
    session = line.session(conversation, outbox=MemoryOutbox())
    assert words(await session.get_items(1)) == ["yes"]
    line.asked()
    line.on(is_append, Do(lambda: line.remove(conversation, "yes"), then=lost))
    await session.add_items(users("yes"))
    await session.flush()
    assert line.texts(conversation) == ["a", "yes"]
    assert await session.get_items() == line.service.items(conversation)
    await session.aclose()


@in_virtual_time
async def test_what_the_only_item_held_costs() -> None:
    """A batch behind the one item that was read costs one request more, once."""
    line = Line()
    conversation = line.conversation("a", "b", "c")
    session = line.session(conversation, outbox=MemoryOutbox())
    await session.get_items(1)
    line.asked()
    for text, asked in (("d", ["list", "append"]), ("e", ["append"])):
        await session.add_items(users(text))
        await session.flush()
        assert line.asked() == asked
    await session.aclose()
