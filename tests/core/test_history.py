"""The tail window, against a plain list of what stands on the server."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cached_session.core.history import History
from cached_session.core.items import Held
from tests.core.strategies import held

counts = st.integers(0, 6)


class Windows(RuleBasedStateMachine):
    """A window that always holds the newest part of `server`, as its owner uses it."""

    @initialize(before=st.integers(0, 12), known=st.integers(0, 12))
    def begin(self, before: int, known: int) -> None:
        self.number = 0
        self.server = self.new(before)
        known = min(known, before)
        self.window = History(self.server[before - known :], complete=known == before)
        self.verified = known

    def new(self, count: int) -> list[Held]:
        self.number += count
        return [held(f"msg_{number}") for number in range(self.number - count, self.number)]

    @rule(count=counts)
    def append(self, count: int) -> None:
        added = self.new(count)
        self.server += added
        self.window.append(added)

    @rule(count=counts)
    def extend_back(self, count: int) -> None:
        missing = self.server[: len(self.server) - len(self.window)]
        older = missing[max(0, len(missing) - count) :]
        self.window.extend_back(older, complete=len(older) == len(missing))
        self.verified += len(older)

    @precondition(lambda self: len(self.window) > 0)
    @rule(data=st.data(), removed=counts, added=counts)
    def replace_after(self, data: st.DataObject, removed: int, added: int) -> None:
        position = data.draw(st.integers(0, len(self.window) - 1))
        base = len(self.server) - len(self.window) + position + 1
        newer = self.new(added)
        self.server = self.server[:base] + newer
        self.window.replace_after(position, newer)
        self.verified = position + 1 + added

    @precondition(lambda self: len(self.window) > 0)
    @rule()
    def drop_last(self) -> None:
        self.server.pop()
        self.window.drop_last()
        self.verified = min(self.verified, len(self.window))

    @precondition(lambda self: len(self.window) > 0)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.window) - 1))
        item = self.window.items[position]
        self.server.remove(item)
        self.window.remove(item.id)
        self.verified -= position < self.verified

    @invariant()
    def it_is_the_newest_part(self) -> None:
        if not hasattr(self, "window"):
            return
        window, count = self.window, len(self.window)
        assert window.items == self.server[len(self.server) - count :]
        assert window.size == sum(item.size for item in window.items)
        assert window.verified == self.verified
        assert 0 <= window.verified <= count
        assert not window.complete or count == len(self.server)

    @invariant()
    def what_it_covers_is_right(self) -> None:
        if not hasattr(self, "window"):
            return
        for limit in (None, 0, 1, len(self.window), len(self.window) + 1, len(self.server) + 1):
            if self.window.covers(limit):
                start = 0 if limit is None else max(0, len(self.server) - limit)
                assert self.window.tail(limit) == self.server[start:]
        assert self.window.covers(len(self.window))
        assert self.window.covers(None) == self.window.complete

    @invariant()
    def landmarks_are_verified(self) -> None:
        if not hasattr(self, "window"):
            return
        for newest in (1, 3, 64):
            landmarks = self.window.landmarks(newest)
            assert len(landmarks) == min(newest, self.verified)
            expected = range(self.verified - len(landmarks), self.verified)
            assert sorted(landmarks.values()) == list(expected)
            for item_id, position in landmarks.items():
                assert self.window.items[position].id == item_id


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


ids = st.lists(st.sampled_from("abcdef"), max_size=10)


@given(ids, st.integers(1, 10), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_landmarks_below_doubt(standing: list[str], newest: int, below: set[str]) -> None:
    """Landmarks end at the newest item before the doubt; an id that stands twice counts last."""
    window = History([held(item_id) for item_id in standing], complete=True)
    landmarks = window.landmarks(newest, below=below)
    ends = [position + 1 for position, item_id in enumerate(standing) if item_id in below]
    end = max(ends, default=0)
    assert set(landmarks) == set(standing[max(0, end - newest) : end])
    for item_id, position in landmarks.items():
        assert standing[position] == item_id
        assert item_id not in standing[position + 1 : end]


@given(ids, st.sampled_from("abcdef"), st.integers(0, 5))
def test_remove_takes_every_occurrence(standing: list[str], gone: str, added: int) -> None:
    """An id that stands twice is removed wherever it stands."""
    window = History([held(item_id) for item_id in standing], complete=True)
    window.append([held(gone)] * added)
    window.remove(gone)
    kept = [item_id for item_id in standing if item_id != gone]
    assert [item.id for item in window.items] == kept
    assert window.verified == len(kept)
    assert window.size == sum(item.size for item in window.items)


def test_readers_keep_what_they_have() -> None:
    """A list that a reader was handed, or a swap of the window, is not changed behind its back."""
    window = History([held("a"), held("b")], complete=True)
    tail, items = window.tail(None), window.items
    window.replace_after(0, [held("c")])
    window.remove("a")
    assert [item.id for item in tail] == [item.id for item in items] == ["a", "b"]
    tail.clear()
    assert [item.id for item in window.items] == ["c"]
