"""Sends without an answer: what landed, what came late, and what is left in the end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cached_session.core.items import Held, unhold
from cached_session.core.unsettled import ANCHORS, Unsettled, Untold
from tests.core.strategies import held, message

EXPIRES = 100.0


def outgoing(text: str) -> bytes:
    """A message as it is sent."""
    return json.dumps(message(text)).encode()


class Server:
    """A list of items that sends end up on, now, later, in part, or never."""

    def __init__(self, before: int) -> None:
        self.items: list[Held] = []
        self.texts: dict[str, str] = {}
        self.store([f"before {number}" for number in range(before)])

    def store(self, texts: list[str]) -> list[Held]:
        added = []
        for text in texts:
            item_id = f"msg_{len(self.texts)}"
            self.texts[item_id] = text
            # Another writer's are told by their role: with ours, they might be ours, rewritten.
            added.append(held(item_id, text, "developer" if text.startswith("other") else "user"))
        self.items += added
        return added

    def delete(self, item_id: str) -> None:
        self.items = [item for item in self.items if item.id != item_id]

    def shown(self) -> list[str]:
        return [self.texts[item.id] for item in self.items]


def settle(unsettled: Unsettled, server: Server, *, now: float = 1.0) -> int:
    """Lists, settles, and deletes what came late, as the copy of a conversation does."""
    landed = unsettled.settle(server.items, reached_start=True, listed_at=now)
    while unsettled.extra:
        server.delete(unsettled.extra.pop(0))
    assert not isinstance(landed, Untold)
    return landed


def acknowledge(unsettled: Unsettled, answered: list[Held]) -> None:
    """An answer shows items as they were sent."""
    sent = [outgoing(unhold(item)["content"][0]["text"]) for item in answered]
    unsettled.acknowledged(tuple(sent), answered)


attempts = st.lists(
    st.tuples(
        st.sampled_from(["never", "whole", "part", "late"]),
        st.lists(st.sampled_from(["other 1", "other 2"]), max_size=2),
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(
    before=st.integers(0, 3),
    batch=st.lists(st.sampled_from("xyz"), min_size=1, max_size=4),
    attempts=attempts,
    data=st.data(),
)
def test_every_item_once(
    before: int, batch: list[str], attempts: list[Any], data: st.DataObject
) -> None:
    """However the attempts end, in the end the batch stands there once, and all else is kept."""
    server, unsettled = Server(before), Unsettled()
    rest, late, others = batch, [], 0
    unsettled.begin(server.items, complete=True)

    def elsewhere(texts: list[str]) -> None:
        server.store(texts)
        nonlocal others
        others += len(texts)

    for fate, foreign in attempts:
        if not rest:
            break
        elsewhere(foreign[:1])
        unsettled.begin(server.items, complete=True)
        if fate == "whole":
            server.store(rest)
        elif fate == "part":
            server.store(rest[: data.draw(st.integers(1, len(rest)))])
        elif fate == "late":
            late.append(rest)
        unsettled.sent(tuple(map(outgoing, rest)), expires=EXPIRES)
        if late and data.draw(st.booleans()):
            server.store(late.pop(0))
        elsewhere(foreign[1:])
        rest = rest[settle(unsettled, server) :]
    if rest:
        acknowledge(unsettled, server.store(rest))
    for came in late:
        server.store(came)
        settle(unsettled, server)
    settle(unsettled, server, now=EXPIRES)
    assert not unsettled.active
    shown = server.shown()
    assert [text for text in shown if text in "xyz"] == batch
    assert len(shown) == before + others + len(batch)


appends = st.lists(
    st.tuples(
        st.lists(st.sampled_from("xy"), min_size=1, max_size=3),
        st.sampled_from(["answered", "never", "whole", "part", "late"]),
    ),
    max_size=6,
)


def what_was_shown_stays(appends: list[Any], data: st.DataObject) -> None:
    """Of appends that are given up on, what a listing has shown stays, however alike they are.

    Nobody else writes. So each item is one of theirs, and whichever request it is taken for, the
    texts that stay are those that were told.
    """
    server, unsettled = Server(1), Unsettled()
    told, late = server.shown(), []

    def arrive() -> None:
        while late and data.draw(st.booleans()):
            server.store(late.pop(data.draw(st.integers(0, len(late) - 1))))

    for batch, fate in appends:
        arrive()
        if fate == "answered":
            acknowledge(unsettled, server.store(batch))
            told += batch
            continue
        unsettled.begin(server.items, complete=True)
        if fate == "whole":
            server.store(batch)
        elif fate == "part":
            server.store(batch[: data.draw(st.integers(1, len(batch)))])
        elif fate == "late":
            late.append(batch)
        unsettled.sent(tuple(map(outgoing, batch)), expires=EXPIRES)
        arrive()
        told += batch[: settle(unsettled, server)]
        assert server.shown() == told
    while late:
        arrive()
        settle(unsettled, server, now=2.0)
        assert server.shown() == told


@settings(max_examples=200, deadline=None)
@given(appends=appends, data=st.data())
def test_appends_of_the_same_words(appends: list[Any], data: st.DataObject) -> None:
    """What a listing has shown stays."""
    what_was_shown_stays(appends, data)


@pytest.mark.campaign
@settings(max_examples=2000, deadline=None)
@given(appends=appends, data=st.data())
def test_many_appends_of_the_same_words(appends: list[Any], data: st.DataObject) -> None:
    """What a listing has shown stays, in many more cases."""
    what_was_shown_stays(appends, data)


@given(st.lists(st.sampled_from("xy"), min_size=1, max_size=3), st.integers(0, 3))
def test_equal_messages_on_purpose(batch: list[str], equal: int) -> None:
    """Equal messages that an answer has shown are wanted, and never taken for late copies."""
    server, unsettled = Server(1), Unsettled()
    unsettled.begin(server.items, complete=True)
    unsettled.sent(tuple(map(outgoing, batch)), expires=EXPIRES)
    assert settle(unsettled, server) == 0
    acknowledge(unsettled, server.store(batch))
    for _ in range(equal):
        acknowledge(unsettled, server.store(batch))
    settle(unsettled, server, now=2.0)
    assert server.shown()[1:] == batch * (1 + equal)
    server.store(batch)
    settle(unsettled, server, now=3.0)
    assert server.shown()[1:] == batch * (1 + equal)


def test_nothing_open_says_nothing() -> None:
    """With no open request, a listing decides nothing and removes nothing."""
    server, unsettled = Server(3), Unsettled()
    assert not unsettled.active
    assert unsettled.anchors == ()
    assert settle(unsettled, server) == 0
    assert len(server.items) == 3


def test_it_stays_open_until_it_expires() -> None:
    """A send that did not land is watched until its request can no longer be alive."""
    server, unsettled = Server(1), Unsettled()
    unsettled.begin(server.items, complete=True)
    unsettled.sent((outgoing("x"),), expires=EXPIRES)
    assert unsettled.undecided
    assert settle(unsettled, server, now=EXPIRES - 1) == 0
    assert unsettled.active
    assert not unsettled.undecided
    assert not unsettled.expired(EXPIRES - 1)
    assert unsettled.expired(EXPIRES)
    settle(unsettled, server, now=EXPIRES)
    assert not unsettled.active


def test_a_landed_send_is_no_longer_open() -> None:
    """A send that a listing has shown whole is settled: an equal message later is another."""
    server, unsettled = Server(1), Unsettled()
    unsettled.begin(server.items, complete=True)
    unsettled.sent((outgoing("x"),), expires=EXPIRES)
    server.store(["x"])
    assert settle(unsettled, server) == 1
    assert not unsettled.active


def left_to(before: Unsettled | None, noted: bytes, *, now: float) -> Unsettled:
    """Takes over from a note, as whoever comes to the conversation does."""
    unsettled = Unsettled(before)
    unsettled.restore(noted, (), now=now, expires=now + EXPIRES)
    return unsettled


def noted(unsettled: Unsettled, *, now: float, removing: str | None = None) -> bytes:
    """What is noted of a conversation of one item."""
    window = [held("msg_0", "before")]
    return unsettled.dump(window, complete=True, now=now, sending=False, removing=removing)


def open_until(unsettled: Unsettled) -> float:
    """When the last request that is watched for can no longer be alive."""
    return min(float(now) for now in range(10_000) if unsettled.expired(float(now)))


def test_a_note_tells_for_how_long_a_request_is_watched_for() -> None:
    """Whoever takes over watches for as long as was left, from when the note was there."""
    first = Unsettled()
    first.begin([], complete=True)
    first.sent((outgoing("a"),), expires=EXPIRES)
    first.removing("msg_0", expires=EXPIRES)
    second = left_to(None, noted(first, now=40.0), now=1000.0)
    assert open_until(second) == 1060.0
    second.postpone(5.0)
    assert open_until(second) == 1065.0
    # Once: what was met before is as old as it was.
    second.postpone(5.0)
    assert open_until(second) == 1065.0


def test_a_request_is_watched_for_once() -> None:
    """Two who note it for one another watch no longer than who knows best, and then it is over."""
    first = Unsettled()
    first.begin([], complete=True)
    first.removing("msg_0", expires=EXPIRES)
    note = noted(first, now=0.0)
    second = left_to(None, note, now=30.0)
    assert open_until(second) == 130.0
    for now in range(40, 100, 10):
        first = left_to(first, noted(second, now=float(now)), now=float(now))
        second = left_to(second, noted(first, now=float(now)), now=float(now))
        assert (open_until(first), open_until(second)) == (100.0, 100.0)
    first.settle([], reached_start=True, listed_at=110.0)
    assert not left_to(first, noted(second, now=120.0), now=120.0).active
    assert second.active


def test_what_is_deleted_next_is_watched_for_from_when_the_note_is_met() -> None:
    """How long it takes nobody can say in the note; whoever meets the note again has met it."""
    note = noted(Unsettled(), now=0.0, removing="msg_0")
    met = left_to(None, note, now=500.0)
    assert open_until(met) == 500.0 + EXPIRES
    assert open_until(left_to(met, note, now=550.0)) == 500.0 + EXPIRES
    assert open_until(left_to(None, note, now=550.0)) == 550.0 + EXPIRES


def test_a_late_copy_that_is_still_there_keeps_the_note_in_force() -> None:
    """It may never be deleted by who has found it: the note is gone by until that is done."""
    server, first = Server(1), Unsettled()
    first.begin(server.items, complete=True)
    first.sent((outgoing("a"),), expires=EXPIRES)
    first.settle(server.items, reached_start=True, listed_at=1.0)
    note = first.dump(server.items, complete=True, now=2.0, sending=False)
    server.store(["a"])
    met = left_to(None, note, now=10.0)
    met.settle(server.items, reached_start=True, listed_at=500.0)
    assert met.extra
    assert left_to(met, note, now=510.0).active


def test_removals_are_watched() -> None:
    """A delete without an answer keeps the copy in doubt until it expires, and no longer."""
    server, unsettled = Server(3), Unsettled()
    gone = server.items[-1]
    unsettled.begin(server.items[:-1], complete=True)
    unsettled.removing(gone.id, expires=EXPIRES)
    assert unsettled.active
    settle(unsettled, server)
    assert unsettled.active
    assert gone.id not in unsettled.anchors
    server.delete(gone.id)
    settle(unsettled, server, now=EXPIRES)
    assert not unsettled.active


@given(st.integers(0, 3 * ANCHORS), st.integers(0, 3 * ANCHORS))
def test_anchors(before: int, gone: int) -> None:
    """Anchors are the newest items before the first open send; any one of them is enough."""
    server, unsettled = Server(before), Unsettled()
    unsettled.begin(server.items, complete=True)
    unsettled.sent((outgoing("x"),), expires=EXPIRES)
    assert unsettled.anchors == tuple(item.id for item in reversed(server.items[-ANCHORS:]))
    for item in server.items[max(0, before - gone) :]:
        server.delete(item.id)
    server.store(["x"])
    assert settle(unsettled, server) == 1


@pytest.mark.parametrize("reached_start", [False, True])
def test_old_items_are_not_taken_for_ours(reached_start: bool) -> None:
    """Where every anchor is gone and the window did not begin at the start, nothing is guessed."""
    server, unsettled = Server(0), Unsettled()
    server.store(["x"])
    unknown = server.items
    unsettled.begin([held("msg_gone")], complete=False)
    unsettled.sent((outgoing("x"),), expires=EXPIRES)
    landed = unsettled.settle(unknown, reached_start=reached_start, listed_at=1.0)
    assert landed == Untold(())
    assert unsettled.extra == []


def test_late_copies_stay_in_sight_until_they_are_deleted() -> None:
    """Whoever takes over lists back to before the copies: some may be gone, and still held."""
    server, unsettled = Server(3), Unsettled()
    unsettled.begin(server.items, complete=True)
    unsettled.sent((outgoing("x"),), expires=EXPIRES)
    assert settle(unsettled, server) == 0
    (ours,) = server.store(["x"])
    acknowledge(unsettled, [ours])
    (copy,) = server.store(["x"])
    acknowledge(unsettled, server.store(["y"]))
    unsettled.settle(server.items, reached_start=True, listed_at=1.0)
    assert unsettled.extra == [copy.id]
    assert unsettled.anchors[0] == ours.id
    assert copy.id not in unsettled.anchors
