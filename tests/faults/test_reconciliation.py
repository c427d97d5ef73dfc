"""An append whose answer is lost: what landed is found out, and only the rest is sent again."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from cached_session import AppendOutcomeUnknown
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import CUT, LOST, Do, Line, agrees, label, notes, opened, words
from tests.session.support import numbered, user, users


def sizes(line: Line) -> list[int]:
    """How many items each append carried."""
    return [
        len(json.loads(request.body)["items"]) for request in line.requests if is_append(request)
    ]


@pytest.mark.parametrize("held", [(), ("before",)], ids=["empty", "not empty"])
@pytest.mark.parametrize("landed", range(4))
async def test_so_many_landed(held: tuple[str, ...], landed: int) -> None:
    """None, some or all of a batch landed: the rest of it follows, and only that."""
    line, session, conversation = await opened(*held)
    fault = {0: CUT, 3: LOST}.get(landed, Fault(FaultKind.PARTIAL_BATCH, items=landed))
    line.on(is_append, fault)
    await session.add_items(users("a", "b", "c"))
    assert line.texts(conversation) == [*held, "a", "b", "c"]
    assert sizes(line) == ([3] if landed == 3 else [3, 3 - landed])
    await agrees(session, line, conversation)


@pytest.mark.parametrize("landed", range(1, 5))
async def test_landed_piece_by_piece(landed: int) -> None:
    """Each attempt may land a piece; the pieces stand together, in order."""
    line, session, conversation = await opened("before")
    line.on(is_append, *[Fault(FaultKind.PARTIAL_BATCH, items=landed)] * 4)
    await session.add_items(numbered(0, 20))
    assert line.texts(conversation) == ["before", *map(str, range(20))]
    assert sizes(line) == [20 - landed * sent for sent in range(5)]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=7)], ids=label)
@pytest.mark.parametrize("which", range(3))
async def test_batch_after_batch(lost: Any, which: int) -> None:
    """In a long append any batch may lose its answer; the others are not sent again."""
    line, session, conversation = await opened("before")
    line.on(is_append, *[None] * which, lost)
    await session.add_items(numbered(0, 45))
    assert line.texts(conversation) == ["before", *map(str, range(45))]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)], ids=label)
@pytest.mark.parametrize("held", [(), ("yes",), ("yes", "yes")], ids=len)
async def test_the_same_words_again(lost: Any, held: tuple[str, ...]) -> None:
    """Equal messages, in one append and before it, are as many as were asked for."""
    line, session, conversation = await opened(*held)
    line.on(is_append, lost, None, lost)
    await session.add_items(users("yes", "yes"))
    await session.add_items(users("yes"))
    await session.add_items(users("yes", "yes"))
    assert line.texts(conversation) == [*held, *["yes"] * 5]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)], ids=label)
async def test_a_call_id_used_again(lost: Any) -> None:
    """Tool items are told apart by their calls; an earlier call of the same name is another."""
    line, session, conversation = await opened()
    turn = [
        {"type": "function_call", "call_id": "call_1", "name": "tool", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ]
    await session.add_items(turn)
    line.on(is_append, lost)
    await session.add_items(turn)
    expected = ["function_call call_1", "function_call_output call_1"] * 2
    assert line.texts(conversation) == expected
    await agrees(session, line, conversation)


def thought(number: int) -> dict[str, Any]:
    return {"id": f"rs_{number:048x}", "type": "reasoning", "summary": []}


def reply(number: int) -> dict[str, Any]:
    content = [{"type": "output_text", "text": "same", "annotations": []}]
    return {"id": f"msg_{number:048x}", "type": "message", "role": "assistant", "content": content}


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)], ids=label)
async def test_items_with_ids(lost: Any) -> None:
    """Reasoning and messages that carry an id of their own land once, under that id."""
    line, session, conversation = await opened("before")
    line.on(is_append, lost)
    await session.add_items([thought(1), reply(1), thought(2), reply(2)])
    ids = [item["id"] for item in line.service.items(conversation)[1:]]
    assert ids == [thought(1)["id"], reply(1)["id"], thought(2)["id"], reply(2)["id"]]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("items", [[thought(1), reply(1)], [user("plain"), reply(1)]], ids=len)
async def test_ids_that_are_there_already(items: list[Any]) -> None:
    """A second send refused because its ids stand there already means that the first came late."""
    line, session, conversation = await opened("before")
    # Applied between the listing that does not show it and the second send.
    line.on(is_append, CUT, Do(lambda: line.service.handle(line.requests[0])))
    await session.add_items(items)
    assert line.texts(conversation) == ["before", *map(words, items)]
    assert line.asked() == ["append", "list", "append", "list"]
    await agrees(session, line, conversation)


async def test_ids_that_were_there_before() -> None:
    """Ids that another append has used are refused: nothing lands, and nothing is repeated."""
    line, session, conversation = await opened("before")
    await session.add_items([reply(1)])
    line.asked()
    with pytest.raises(openai.BadRequestError) as caught:
        await session.add_items([user("new"), reply(1)])
    assert "nothing was stored" in notes(caught.value)
    assert line.asked() == ["append"]
    assert line.texts(conversation) == ["before", "same"]


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)], ids=label)
async def test_pictures(lost: Any) -> None:
    """Contents that a listing leaves out do not make an item another one."""
    line, session, conversation = await opened("before")
    pictures = [
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": f"data:{n}", "detail": "auto"}],
        }
        for n in range(3)
    ]
    line.on(is_append, lost)
    await session.add_items(pictures)
    stored = line.service.items(conversation, include={"message.input_image.image_url"})
    assert [item["content"][0]["image_url"] for item in stored[1:]] == [
        "data:0",
        "data:1",
        "data:2",
    ]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("theirs", ["another", "ours"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_another_writers_item(theirs: str, when: str) -> None:
    """Another writer's item next to the batch is neither taken for it nor lost."""
    lost = LOST
    line, session, conversation = await opened("before")
    if when == "before":
        line.on(is_append, Do(lambda: line.append(conversation, theirs), lost))
    else:
        line.on(is_append, lost)
        line.on(is_listing, Do(lambda: line.append(conversation, theirs)))
    await session.add_items(users("ours", "end"))
    ours = ["ours", "end"]
    first = when == "before"
    expected = ["before", theirs, *ours] if first else ["before", *ours, theirs]
    assert line.texts(conversation) == expected
    await agrees(session, line, conversation)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_another_writers_item_where_ours_is_not(when: str) -> None:
    """An item of the same role with another text may be ours, rewritten: said, and not repeated."""
    line, session, conversation = await opened("before")
    if when == "before":
        line.on(is_append, Do(lambda: line.append(conversation, "another"), CUT))
    else:
        line.on(is_append, CUT)
        line.on(is_listing, Do(lambda: line.append(conversation, "another")))
    with pytest.raises(AppendOutcomeUnknown, match="another writer's") as caught:
        await session.add_items(users("ours", "end"))
    assert caught.value.item_ids == (line.service.items(conversation)[-1]["id"],)
    assert line.texts(conversation) == ["before", "another"]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_another_writers_item_of_another_role(when: str) -> None:
    """An item of another role is another writer's for certain: what was not applied follows it."""
    line, session, conversation = await opened("before")
    theirs = {"items": [{"role": "developer", "content": "theirs"}]}

    def append() -> None:
        line.call("POST", f"/v1/conversations/{conversation}/items", theirs)

    if when == "before":
        line.on(is_append, Do(append, CUT))
    else:
        line.on(is_append, CUT)
        line.on(is_listing, Do(append))
    await session.add_items(users("ours", "end"))
    assert line.texts(conversation) == ["before", "theirs", "ours", "end"]
    await agrees(session, line, conversation)


async def test_another_writers_item_in_our_place() -> None:
    """An equal item where ours would stand is taken for it: they read the same, none is doubled."""
    line, session, conversation = await opened("before")
    line.on(is_append, Do(lambda: line.append(conversation, "ours"), CUT))
    await session.add_items(users("ours", "end"))
    assert line.texts(conversation) == ["before", "ours", "end"]
    await agrees(session, line, conversation)


async def test_another_writers_item_in_between() -> None:
    """Where another writer comes behind a piece, its item may be the next one, rewritten: said."""
    line, session, conversation = await opened("before")
    line.on(is_append, Fault(FaultKind.PARTIAL_BATCH, items=1))
    line.on(is_listing, Do(lambda: line.append(conversation, "theirs")))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("a", "b"))
    assert line.texts(conversation) == ["before", "a", "theirs"]
    await agrees(session, line, conversation)


async def test_one_anchor_of_several_is_deleted() -> None:
    """Another writer may delete the item before the batch: those before it anchor it as well."""
    line, session, conversation = await opened("yes", "no")
    line.on(is_append, LOST)
    line.on(is_listing, Do(lambda: line.remove(conversation, "no")))
    await session.add_items(users("yes"))
    assert line.texts(conversation) == ["yes", "yes"]
    await agrees(session, line, conversation)


@pytest.mark.parametrize("lost", [CUT, LOST], ids=label)
async def test_every_anchor_is_deleted(lost: FaultKind) -> None:
    """Without a trace of what stood before, nobody can tell: said so, and nothing is doubled."""
    line = Line()
    conversation = line.conversation("far", "yes")
    session = line.session(conversation)
    # Of this conversation, only the newest item is known.
    await session.get_items(1)
    line.on(is_append, lost)
    line.on(is_listing, Do(lambda: line.remove(conversation, "yes")))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("ours"))
    assert line.texts(conversation) == (["far", "ours"] if lost is LOST else ["far"])
    await agrees(session, line, conversation)


async def test_the_anchor_costs_one_request() -> None:
    """Before the first append to an unread conversation its last items are read, in one request."""
    line = Line()
    conversation = line.conversation(*["yes"] * 5)
    session = line.session(conversation)
    line.on(is_append, LOST)
    await session.add_items(users("yes"))
    assert line.requests[0].parameter("limit") == "32"
    assert line.asked() == ["list", "append", "list"]
    assert line.texts(conversation) == ["yes"] * 6
    await agrees(session, line, conversation)


async def test_a_new_conversation_needs_no_anchor() -> None:
    """A conversation made by this session is known to be empty."""
    line = Line()
    session = line.session()
    line.on(is_append, LOST, CUT)
    await session.add_items(users("yes", "yes"))
    assert line.asked() == ["create", "append", "list"]
    await session.add_items(users("yes"))
    assert line.texts(session.session_id) == ["yes"] * 3
