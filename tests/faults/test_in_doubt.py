"""Appends that fail or stay in doubt: what the caller is told, and what the next read shows."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from cached_session import AppendOutcomeUnknown
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import (
    CUT,
    LOST,
    Do,
    Fail,
    agrees,
    error,
    label,
    notes,
    opened,
    policy,
    words,
)
from tests.session.support import numbered, users


@pytest.mark.parametrize("landed", range(5))
async def test_attempts_run_out(landed: int) -> None:
    """The error of a failed append says how many items landed, and nothing lands afterwards."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=3))
    piece = Fault(FaultKind.PARTIAL_BATCH, items=landed) if landed else CUT
    line.on(is_append, None, piece, *[CUT] * 9)
    with pytest.raises(openai.APIConnectionError) as caught:
        await session.add_items(numbered(0, 25))
    assert f"the first {20 + landed} of 25 items are on the server" in notes(caught.value)
    there = ["before", *map(str, range(20 + landed))]
    assert line.texts(conversation) == there
    await session.flush()
    assert line.texts(conversation) == there
    await agrees(session, line, conversation)


@pytest.mark.parametrize("lost", [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=1)], ids=label)
async def test_down_at_the_question(lost: Any) -> None:
    """With the server down after the send the outcome is unknown; the next read shows it."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=3))
    line.on(is_append, None, lost)
    line.always(is_listing, error(503))
    with pytest.raises(AppendOutcomeUnknown) as caught:
        await session.add_items(numbered(0, 25))
    assert (caught.value.landed, caught.value.total) == (20, 25)
    assert "whether more are could not be found out" in str(caught.value)
    with pytest.raises(openai.InternalServerError):
        await session.get_items()
    line.heal()
    there = line.texts(conversation)
    await agrees(session, line, conversation)
    await agrees(session, line, conversation)
    assert line.texts(conversation) == there


async def test_a_late_commit_after_the_read_that_decided() -> None:
    """What the next read shows stays true: a commit that comes after it is taken back."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    line.on(is_append, Fail(TimeoutError(), late=20.0))
    line.always(is_listing, error(503))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("ours"))
    line.heal()
    assert [words(item) for item in await session.get_items()] == ["before"]
    await line.past(20.0)
    assert line.texts(conversation) == ["before", "ours"]
    assert [words(item) for item in await session.get_items()] == ["before"]
    assert line.texts(conversation) == ["before"]


async def test_an_append_after_one_in_doubt() -> None:
    """The next append asks first, so that a commit of the one before is not taken for its own."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    line.on(is_append, LOST)
    line.always(is_listing, error(503))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("yes"))
    line.heal()
    line.on(is_append, LOST)
    line.asked()
    await session.add_items(users("yes"))
    asked = line.asked()
    assert (asked[0], asked[-2:]) == ("list", ["append", "list"])
    assert line.texts(conversation) == ["before", "yes", "yes"]
    await agrees(session, line, conversation)


async def test_gone_at_the_question() -> None:
    """A conversation that is deleted meanwhile leaves the outcome unknown, and reads say 404."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    line.on(is_append, LOST)
    line.on(is_listing, Do(lambda: line.delete(conversation)))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users("ours"))
    with pytest.raises(openai.NotFoundError):
        await session.get_items()
