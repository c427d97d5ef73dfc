"""Pops and clears whose answers are lost: one item for one pop, all or nothing for a clear."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from cached_session import UnexpectedAnswer
from cached_session.emulator import Fault, FaultKind, Request
from cached_session.emulator.faults import applies
from cached_session.emulator.requests import is_append, is_item_delete, is_listing
from tests.faults.line import (
    CUT,
    LOST,
    Do,
    agrees,
    error,
    is_conversation_delete,
    label,
    notes,
    opened,
    policy,
    words,
)
from tests.session.support import users

DELETE = Request("DELETE", "/v1/conversations/conv_1/items/msg_1")
QUOTA = FaultKind.RATE_LIMITED_QUOTA
EVERY = [
    *(kind for kind in FaultKind if applies(kind, DELETE) and kind is not QUOTA),
    Fault(FaultKind.ERROR_AFTER_COMMIT, status=503),
    Fault(FaultKind.LATE_COMMIT, delay=1.0, silent=True),
]


async def popped(session: Any) -> str | None:
    item = await session.pop_item()
    return None if item is None else words(item)


@pytest.mark.parametrize("fault", EVERY, ids=label)
async def test_one_pop_one_item(fault: Any) -> None:
    """Whatever becomes of the delete's answer, one pop removes one item and returns it."""
    line, session, conversation = await opened("a", "b", "c")
    line.on(is_item_delete, fault)
    assert await popped(session) == "c"
    await line.past(3.0)
    assert line.texts(conversation) == ["a", "b"]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("fault", EVERY, ids=label)
async def test_popping_everything(fault: Any) -> None:
    """Pops down to the empty conversation return every item once, in order, then None."""
    line, session, conversation = await opened("a", "b", "b", "c")
    line.on(is_item_delete, *[fault, None] * 9)
    assert [await popped(session) for _ in range(6)] == ["c", "b", "b", "a", None, None]
    assert line.texts(conversation) == []
    await agrees(session, line, conversation)


async def test_woken_after_the_deadline() -> None:
    """Where the loop wakes too late to repeat a delete, the lost answer stays in doubt."""
    line, session, conversation = await opened("a", "b", retry=policy(deadline=5.0))
    line.on(is_item_delete, LOST)
    loop: Any = asyncio.get_running_loop()

    def sleep_through() -> None:
        loop._now += 60.0  # the loop was held up by something else

    loop.call_later(0.001, sleep_through)
    with pytest.raises(TimeoutError) as caught:
        await session.pop_item()
    assert "whether the item was removed is not known" in notes(caught.value)
    assert line.texts(conversation) == ["a"]
    await agrees(session, line, conversation)


async def test_a_404_after_a_lost_answer() -> None:
    """A repeated delete that finds nothing has succeeded, and costs no listing."""
    line, session, _ = await opened("a", "b")
    line.on(is_item_delete, LOST)
    assert await popped(session) == "b"
    assert line.asked() == ["delete item", "delete item"]
    assert await popped(session) == "a"
    assert line.asked() == ["delete item"]


async def test_a_404_at_first() -> None:
    """A delete that finds nothing at first says that the copy is old: the true last item goes."""
    line, session, conversation = await opened("a", "b", "c")
    line.remove(conversation, "c")
    assert await popped(session) == "b"
    assert line.asked() == ["delete item", "list", "delete item"]
    assert line.texts(conversation) == ["a"]
    line.append(conversation, "theirs")
    line.remove(conversation, "a")
    # Their item is the last one by now.
    assert await popped(session) == "theirs"
    assert await popped(session) is None


async def test_a_404_for_the_conversation() -> None:
    """Where the conversation itself is gone, the 404 reaches the caller."""
    line, session, conversation = await opened("a")
    line.delete(conversation)
    for action in (session.pop_item, session.get_items):
        with pytest.raises(openai.NotFoundError):
            await action()


async def test_another_writer_is_always_faster() -> None:
    """Where each newest item is gone before it can be removed, the pop ends with an error."""
    line, session, conversation = await opened("0", retry=policy(max_attempts=1))

    def replace() -> None:
        [last] = line.texts(conversation)
        line.append(conversation, str(int(last) + 1))
        line.remove(conversation, last)

    line.on(is_item_delete, *[Do(replace)] * 8)
    with pytest.raises(UnexpectedAnswer):
        await session.pop_item()
    assert line.texts(conversation) == ["8"]
    await agrees(session, line, conversation)


async def test_pops_at_the_same_time() -> None:
    """Pops from several tasks take an item each, though every answer is lost."""
    line, session, conversation = await opened(*"abcdef")
    line.on(is_item_delete, *[LOST, None] * 9)
    found = await asyncio.gather(*(popped(session) for _ in range(4)))
    assert found == ["f", "e", "d", "c"]
    assert line.texts(conversation) == ["a", "b"]


@pytest.mark.parametrize("applied", [False, True])
async def test_a_pop_in_doubt(applied: bool) -> None:
    """A pop that ends in doubt says so, and the next read shows whether the item is there."""
    line, session, conversation = await opened("a", "b", retry=policy(max_attempts=2))
    line.always(is_item_delete, LOST if applied else CUT)
    with pytest.raises(openai.APIConnectionError) as caught:
        await session.pop_item()
    assert "whether the item was removed is not known" in notes(caught.value)
    line.heal()
    assert line.texts(conversation) == (["a"] if applied else ["a", "b"])
    await agrees(session, line, conversation)
    assert await popped(session) == ("a" if applied else "b")


async def test_a_refusal_after_a_lost_answer() -> None:
    """A second delete that is refused does not say that the first one was not applied."""
    line, session, conversation = await opened("a", "b")
    line.on(is_item_delete, LOST, QUOTA)
    with pytest.raises(openai.RateLimitError) as caught:
        await session.pop_item()
    assert "whether the item was removed is not known" in notes(caught.value)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["a"]


async def test_a_pop_that_is_refused() -> None:
    """A delete that is refused for certain leaves the item and the local copy."""
    line, session, conversation = await opened("a", "b")
    line.on(is_item_delete, QUOTA)
    with pytest.raises(openai.RateLimitError) as caught:
        await session.pop_item()
    assert notes(caught.value) == ""
    line.asked()
    await agrees(session, line, conversation)
    assert line.asked() == []
    assert line.texts(conversation) == ["a", "b"]


@pytest.mark.parametrize("silent", [False, True])
async def test_a_pop_applied_late(silent: bool) -> None:
    """While a delete that was given up on may still come, reads ask; afterwards they agree."""
    line, session, conversation = await opened("a", "b", retry=policy(max_attempts=1))
    line.on(is_item_delete, Fault(FaultKind.LATE_COMMIT, delay=30.0, silent=silent))
    with pytest.raises(openai.APIConnectionError):
        await session.pop_item()
    await agrees(session, line, conversation)
    await session.add_items(users("c"))
    await agrees(session, line, conversation)
    await line.past(30.0)
    assert line.texts(conversation) == ["a", "c"]
    await agrees(session, line, conversation)
    await line.past(100.0)
    await agrees(session, line, conversation)
    line.asked()
    await agrees(session, line, conversation)
    assert line.asked() == []


async def test_a_second_pop_after_one_in_doubt() -> None:
    """The same item popped again, then the first delete applied late: one item is gone."""
    line, session, conversation = await opened("a", "b", retry=policy(max_attempts=1))
    line.on(is_item_delete, Fault(FaultKind.LATE_COMMIT, delay=10.0))
    with pytest.raises(openai.APIConnectionError):
        await session.pop_item()
    assert await popped(session) == "b"
    await line.past(10.0)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["a"]


async def test_an_append_in_doubt_then_a_pop() -> None:
    """A pop after an append in doubt asks first: it takes what is really last."""
    line, session, _ = await opened("a", retry=policy(max_attempts=1))
    line.on(is_append, LOST)
    line.on(is_listing, error(503))
    with pytest.raises(Exception, match="could not be found out"):
        await session.add_items(users("b"))
    assert await popped(session) == "b"
    assert await popped(session) == "a"
    assert await popped(session) is None


@pytest.mark.parametrize("fault", EVERY, ids=label)
async def test_clear(fault: Any) -> None:
    """Whatever becomes of its answer, a clear deletes once, and the next use makes a new one."""
    line, session, conversation = await opened("a", "b")
    line.on(is_conversation_delete, fault)
    await session.clear_session()
    assert conversation not in line.service.store.ids()
    await session.add_items(users("new"))
    assert session.session_id != conversation
    assert line.texts(session.session_id) == ["new"]
    await line.past(3.0)
    await agrees(session, line, session.session_id)


@pytest.mark.parametrize("fault", [CUT, FaultKind.HANG, FaultKind.ERROR_BEFORE_COMMIT, QUOTA])
async def test_a_clear_that_fails(fault: FaultKind) -> None:
    """A clear that fails keeps the id, and with it everything that is there."""
    line, session, conversation = await opened("a", retry=policy(max_attempts=3))
    line.always(is_conversation_delete, fault)
    with pytest.raises(openai.OpenAIError):
        await session.clear_session()
    assert session.session_id == conversation
    await session.add_items(users("b"))
    await agrees(session, line, conversation)
    assert line.texts(conversation) == ["a", "b"]
    line.heal()
    await session.clear_session()
    assert conversation not in line.service.store.ids()


async def test_a_clear_that_finds_nothing() -> None:
    """A clear whose first answer is 404 did not delete anything: the caller is told."""
    line, session, conversation = await opened("a")
    line.delete(conversation)
    with pytest.raises(openai.NotFoundError):
        await session.clear_session()
    assert session.session_id == conversation
    assert line.asked() == ["delete conversation"]
    with pytest.raises(openai.NotFoundError):
        await session.get_items()


async def test_a_clear_in_doubt_that_was_applied() -> None:
    """After a clear in doubt the next read asks, and says what has become of the conversation."""
    line, session, conversation = await opened("a", retry=policy(max_attempts=1))
    line.on(is_conversation_delete, LOST)
    with pytest.raises(openai.APIConnectionError):
        await session.clear_session()
    assert session.session_id == conversation
    with pytest.raises(openai.NotFoundError):
        await session.get_items()


async def test_a_clear_again_after_one_in_doubt() -> None:
    """The 404 to a clear after one in doubt says that the first was applied: it has succeeded."""
    line, session, conversation = await opened("a", retry=policy(max_attempts=1))
    line.on(is_conversation_delete, LOST)
    with pytest.raises(openai.APIConnectionError):
        await session.clear_session()
    await session.clear_session()
    await session.add_items(users("new"))
    assert session.session_id != conversation
    assert line.texts(session.session_id) == ["new"]


async def test_a_clear_applied_late() -> None:
    """While a clear that was given up on may still come, no read is served from memory."""
    line, session, conversation = await opened("a", retry=policy(max_attempts=1))
    line.on(is_conversation_delete, Fault(FaultKind.LATE_COMMIT, delay=10.0))
    with pytest.raises(openai.APIConnectionError):
        await session.clear_session()
    await agrees(session, line, conversation)
    await line.past(10.0)
    with pytest.raises(openai.NotFoundError):
        await session.get_items()


async def test_operations_around_a_clear() -> None:
    """What comes before a clear is deleted with the rest; what comes after starts anew."""
    line, session, conversation = await opened("a")
    line.on(is_append, LOST)
    line.on(is_conversation_delete, LOST)
    async with asyncio.TaskGroup() as group:
        group.create_task(session.add_items(users("before the clear")))
        await asyncio.sleep(0)
        group.create_task(session.clear_session())
    assert conversation not in line.service.store.ids()
    await session.add_items(users("after"))
    assert line.texts(session.session_id) == ["after"]
